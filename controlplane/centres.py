"""The data centre of a user: page loads, the curves learned from them, and what follows from the readings of paths.

Says which data centres there are to choose from and what a page takes from each; `choice` decides. Its state survives a
restart: page loads and the sets in force are in the Store.
"""

import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from controlplane import choice, curves
from controlplane.contents import CONTENTS, default_seconds
from controlplane.database import Busy
from controlplane.prefixes import Prefixes, cut

SECOND_ns = 10**9
PAIRS_MAX = 5000  # of a content, the latest: these make its curve, older ones are deleted
AHEAD_ns = 60 * SECOND_ns  # of our clock, that a page load may be
DECIDED_ns = SECOND_ns // 4  # a decision holds so long: readings are not made anew for each user
TOLD_MAX = 100  # to people
CONGESTED, UNKNOWN = "congested", "unknown"
NO_LOAD, AHEAD = "no_load", "ahead"


class Centre(NamedTuple):
    """A data centre as seen from one aggregation point."""

    name: str
    addresses: list
    path: str
    rtt_seconds: float
    capacity_bps: int


class Site(NamedTuple):
    """What the configuration says: replaced as a whole."""

    prefixes: Prefixes  # names of aggregation points
    centres: dict  # their names: [Centre]
    rules: choice.Rules


class Learned(NamedTuple):
    """What is known of a content: a curve, or why there is none."""

    curve: curves.Curve | None
    pairs: int
    reason: str | None


class Decided(NamedTuple):
    """A decision and what it was made of."""

    at_ns: int
    decision: choice.Decision
    candidates: dict  # JSON, by name
    addresses: dict  # by name


class Selection:
    """reading_of(path, now_ns): the Reading of a path; load_at(path, at_ns): its load then. None: it is not known.

    settings: aggregations (name, prefixes), data_centres (name, addresses, paths, rtt in ns, capacity in bit/s),
    hysteresis and near.
    """

    def __init__(self, reading_of, load_at, store, settings):
        self.reading_of, self.load_at, self.store = reading_of, load_at, store
        self.learning, self.learned = threading.Lock(), {}
        self.deciding, self.decided = threading.Lock(), {}
        self.states = {key: choice.state_of(document) for key, document in store.choices().items()}
        self.learn(CONTENTS)
        self.configure(settings)

    def configure(self, settings):
        """Go by other settings from now on."""
        prefixes, centres = Prefixes(), {item.name: [] for item in settings.aggregations}
        for item in settings.aggregations:
            for prefix in item.prefixes:
                prefixes.add(prefix, item.name)
        for item in settings.data_centres:
            for aggregation, path in item.paths.items():
                rtt_seconds = item.rtt / SECOND_ns
                centres[aggregation].append(Centre(item.name, item.addresses, path, rtt_seconds, item.capacity))
        with self.deciding:
            self.site = Site(prefixes, centres, choice.Rules(settings.hysteresis, settings.near))
            self.decided = {}

    # --- page loads and curves

    def take(self, page_loads, now_ns):
        """Future of what became of page loads, when they are on disk: dicts with path, content, seconds, ts_ns and
        maybe bytes and load; without a load it is the path's as of then. Busy as of Database.submit.
        """
        rows, rejected = [], Counter()
        for one in page_loads:
            if one["ts_ns"] > now_ns + AHEAD_ns:
                rejected[AHEAD] += 1
                continue
            load = one["load"] if one.get("load") is not None else self.load_at(one["path"], one["ts_ns"])
            if load is None:
                rejected[NO_LOAD] += 1
            else:
                rows.append((one["path"], one["content"], one["ts_ns"], one["seconds"], load, one.get("bytes")))
        return self.store.submit(partial(self._write, rows, rejected), len(rows))

    def _write(self, rows, rejected):
        added = self.store.add_page_loads(rows)
        for content in {row[1] for row in rows}:
            self.store.trim_page_loads(content, PAIRS_MAX)
        counts = {"accepted": added, "duplicates": len(rows) - added, "rejected": rejected}
        return lambda: counts

    def learn(self, contents):
        """Make the curves of contents anew from the page loads that are kept."""
        with self.learning:
            for content in contents:
                pairs = self.store.page_loads(content, PAIRS_MAX)
                self.learned[content] = _learned(content, pairs)

    def curve(self, content):
        """JSON of a content's curve."""
        found = self.learned[content]
        document = found.curve and curves.to_document(found.curve)
        return {"content": content, "pairs": found.pairs, "reason": found.reason, "curve": document}

    # --- the data centre of a user

    def select(self, network, content, now_ns):
        """JSON of the data centre for users of an ip_network. KeyError: it belongs to no aggregation point."""
        site = self.site
        found = site.prefixes.find(network)
        if found is None:
            raise KeyError(str(network))
        length, aggregation = found
        decided = self._decided(site, (aggregation, content), now_ns)
        name, reason = choice.pick(decided.decision, str(cut(network)))
        chosen = decided.candidates[name]
        return {
            "data_centre": name, "addresses": decided.addresses[name], "content": content, "aggregation": aggregation,
            "prefix": str(network.supernet(new_prefix=length)), "expected_s": chosen["expected_s"],
            "class": chosen["class"], "reason": reason, "candidates": list(decided.candidates.values()),
        }  # fmt: skip

    def in_force(self, now_ns):
        """What `select` says of each aggregation point and content that it was asked for, as far as no user matters."""
        found, site = [], self.site
        for aggregation, content in sorted((*self.decided,))[:TOLD_MAX]:
            decided = self._decided(site, (aggregation, content), now_ns)
            chosen = [decided.candidates[name] for name in decided.decision.members]
            found.append({
                "aggregation": aggregation, "content": content, "reason": choice.reason_of(decided.decision),
                "data_centre": ", ".join(one["data_centre"] for one in chosen),
                "expected_s": chosen[0]["expected_s"], "class": chosen[0]["class"],
            })  # fmt: skip
        return found

    def _decided(self, site, key, now_ns):
        with self.deciding:
            found = self.decided.get(key)
            if found is None or not found.at_ns <= now_ns < found.at_ns + DECIDED_ns:
                found = self.decided[key] = self._decide(site, key, now_ns)
        return found

    def _decide(self, site, key, now_ns):
        aggregation, content = key
        centres = site.centres[aggregation]
        told = {centre.name: self._candidate(centre, content, now_ns) for centre in centres}
        before = self.states.get(key, choice.State())
        state, decision = choice.decide([_weighed(one) for one in told.values()], before, site.rules, now_ns)
        self.states[key] = state
        if state.as_document() != before.as_document():
            with suppress(Busy):  # it is written with the next change
                self.store.submit(partial(self._note, key, now_ns, state.as_document()))
        for name, one in told.items():
            one["chosen"] = name in decision.members
        return Decided(now_ns, decision, told, {centre.name: centre.addresses for centre in centres})

    def _note(self, key, now_ns, document):
        self.store.choose(*key, now_ns, document)
        return lambda: None

    def _candidate(self, centre, content, now_ns):
        """JSON of a data centre and what its path tells now."""
        reading = self.reading_of(centre.path, now_ns) or {"load": None, "class": UNKNOWN, "delay_ns": None}
        spread_known = (reading.get("model") or {}).get("spread_known", False)
        expected_seconds = partial(self._expected_seconds, centre, content)
        return {
            "data_centre": centre.name, "path": centre.path, "load": reading["load"], "class": reading["class"],
            "expected_s": expected_seconds(reading["load"]),
            "expected_low_s": expected_seconds(reading["load_low"] if spread_known else None),
            "expected_high_s": expected_seconds(reading["load_high"] if spread_known else None),
            "delay_ns": reading["delay_ns"], "interval_s": reading.get("interval_s", 0.0),
        }  # fmt: skip

    def _expected_seconds(self, centre, content, load):
        """By the curve, or by default for all data centres alike; None for a load that is None."""
        if load is None:
            return None
        curve = self.learned[content].curve
        if curve:
            return curves.seconds_at(curve, load)
        return default_seconds(CONTENTS[content], load, centre.rtt_seconds, centre.capacity_bps)


def _learned(content, pairs):
    loads, seconds = zip(*pairs, strict=True) if pairs else ((), ())
    try:
        return Learned(curves.learn(content, loads, seconds), len(pairs), None)
    except ValueError as error:
        return Learned(None, len(pairs), str(error))


def _weighed(told):
    """choice.Candidate of a candidate's JSON."""
    known = told["expected_low_s"] is not None
    return choice.Candidate(
        told["data_centre"], told["expected_s"], told["class"] == CONGESTED, told["delay_ns"], told["interval_s"],
        (told["expected_low_s"], told["expected_high_s"]) if known else None,
    )  # fmt: skip

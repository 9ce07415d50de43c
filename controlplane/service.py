"""Load service: samples of paths come in, loads go out. Time is an argument; `Store` keeps what must survive.

A path's load is a pure function of its model and its last HISTORY_samples samples by event time, so neither the order
nor the repetition of events matters, and after a restart the answers are the same. Samples are taken in the store's
thread: first written, then, when that is on disk, put into the history that readings are made of. Histories are
replaced, never changed, so any thread may read.
"""

import itertools
import re
import sys
from collections import Counter
from functools import partial
from typing import NamedTuple

import numpy as np

from controlplane import load
from controlplane.database import StateError
from controlplane.ingest import FUTURE_MAX_ns, Rejected, parse
from controlplane.load import HISTORY_samples
from controlplane.load_estimate import interval_of
from controlplane.shapes import Reading, Taken

SECOND_ns = 10**9
PATHS_MAX = 4096
STALE_intervals = 3
STALE_LEAST_seconds = 3.0  # agents post once a second or so, however short the interval
TIDIED_paths, TIDIED_samples = 256, 5000  # at a time, at most
SAMPLES_MAX = 10_000  # told at a time
HORIZON = "horizon_ns"
ODD = re.compile("[^A-Za-z0-9_.-]")


class Settings(NamedTuple):
    """Of the service."""

    keep_ns: int  # older samples are deleted, and refused
    interval_ns: int  # between samples of a path while that is not known
    named: dict = {}  # (agent_id, master_clock, domain): name
    intervals_ns: dict = {}  # name: interval, where it is given
    models: dict = {}  # name: Model, where it is given
    model: load.Model | None = None  # of paths without one of their own


class InForce(NamedTuple):
    """A model and its version, 0 if it is the default."""

    version: int
    model: load.Model


class Path:
    """What is known of a path. history: (ts_ns, request_id, slave_clock, delay_ns), in this order; never changed."""

    def __init__(self, name, agent_id, master_clock, domain):
        self.name, self.agent_id, self.master_clock, self.domain = name, agent_id, master_clock, domain
        self.history, self.accepted, self.late = (), 0, 0
        self.told = None  # a history, an InForce, the seconds between samples and the Estimate made of them


class LoadService:
    """Loads of the paths in `store`.

    StateError: the store holds what this program does not understand.
    """

    def __init__(self, store, settings, now_ns):
        self.store, self.known, self.turns = store, {}, itertools.count()
        self.counts = Counter(store.numbers())
        self.horizon_ns = self.counts.pop(HORIZON, 0)
        for *whose, accepted, late in store.paths():
            path = self.known[whose[0]] = Path(*whose)
            path.accepted, path.late = accepted, late
            found = store.last_samples(path.name, HISTORY_samples, self.horizon_ns)
            path.history = tuple((*at, sys.intern(slave_clock), delay_ns) for *at, slave_clock, delay_ns in found)
        self.models = {name: stored_model(store, name, *found) for name, found in store.models().items()}
        self.configure(settings, now_ns)

    def configure(self, settings, now_ns):
        """Go by other Settings from now on. Paths that they name are known at once. Busy, StateError: all stays as it
        was."""
        if settings.models:
            self.store.submit(partial(self._write_models, settings.models, now_ns), len(settings.models)).result()
        for whose, name in settings.named.items():
            path = self.known.setdefault(name, Path(name, *whose))
            path.agent_id, path.master_clock, path.domain = whose
        self.default = settings.model and InForce(0, settings.model)
        self.settings = settings

    # --- in

    def take(self, lines, now_ns):
        """Taken of JSON lines (bytes), when it is on disk. Busy, StateError as of Database.submit."""
        return self.submit(parse(lines, now_ns), now_ns).result()

    def submit(self, parsed, now_ns):
        """Future of Taken of an ingest.Parsed. Busy as of Database.submit."""
        return self.store.submit(partial(self._write, parsed, now_ns), 1 + len(parsed.samples))

    def _write(self, parsed, now_ns):
        """In the store's transaction: write samples and counts."""
        groups, rejected = self._by_path(parsed)
        least_ns = max(self._horizon_ns(now_ns), now_ns - self.settings.keep_ns)
        gained = [self._write_path(name, samples, least_ns) for name, samples in groups.items()]
        accepted, late = sum(g.accepted for g in gained), sum(g.late for g in gained)
        duplicates = sum(len(g.rows) for g in gained) - accepted
        taken = Taken(
            accepted=accepted, duplicates=duplicates, late=late, ignored=parsed.ignored, rejected=dict(rejected)
        )
        counts = {**taken, **{f"rejected.{reason}": count for reason, count in rejected.items()}}
        del counts["rejected"]
        self.store.count(counts)
        return partial(self._taken, gained, counts, taken, now_ns + FUTURE_MAX_ns)

    def _write_path(self, name, samples, least_ns):
        rows = [(s.ts_ns, s.request_id, s.slave_clock, s.delay_ns) for s in samples if s.ts_ns >= least_ns]
        accepted, late, path = 0, len(samples) - len(rows), self.known.get(name)
        whose = (path.agent_id, path.master_clock, path.domain) if path else samples[0][:3]
        if rows or path:
            number = self.store.path_id(name, *whose)
            accepted = self.store.add_samples(number, rows)
            self.store.count_path(number, accepted, late)
        return Gain(name, whose, rows, accepted, late)

    def _by_path(self, parsed):
        """({name: [Sample]}, Counter of why lines or samples were rejected)."""
        groups, rejected, names = {}, Counter(parsed.rejected), set()
        for sample in parsed.samples:
            try:
                groups.setdefault(self._name_of(sample, names), []).append(sample)
            except Rejected as error:
                rejected[str(error)] += 1
        return groups, rejected

    def _name_of(self, sample, names):
        """Name of a sample's path. Rejected if there is no such path, or would be one too many.

        names: of all paths, once one was new; those that this request and others of its transaction add among them.
        """
        if sample.path is not None:
            if sample.path not in self.known:
                raise Rejected("unknown_path")
            return sample.path
        name = self.settings.named.get(sample[:3]) or own_name(*sample[:3])
        if name not in self.known and name not in names:
            if not names:
                names |= self.known.keys() | self.store.names_written()
            if name not in names and len(names) >= PATHS_MAX:
                raise Rejected("too_many_paths")
            names.add(name)
        return name

    def _taken(self, gained, counts, taken, most_ns):
        """It is on disk: put it into the histories, without what is later than most_ns: our clock was ahead then."""
        for name, whose, rows, accepted, late in gained:
            if rows and name not in self.known:
                self.known[name] = Path(name, *whose)
            if path := self.known.get(name):
                path.history = merged(until(path.history, most_ns), rows) if accepted else path.history
                path.accepted, path.late = path.accepted + accepted, path.late + late
        self.counts.update(counts)
        return taken

    def tidy(self, now_ns):
        """Future of how many samples were deleted since they are older than samples are kept: some at a time.

        What goes is older than both `now_ns` and the latest sample say, so a clock that jumps ahead deletes nothing.
        What was deleted is refused from then on, so that nothing counts twice.
        """
        latest_ns = max((path.history[-1][0] for path in list(self.known.values()) if path.history), default=0)
        horizon_ns = max(self._horizon_ns(now_ns), min(now_ns, latest_ns) - self.settings.keep_ns)
        names, turn = sorted(self.known), next(self.turns)
        start = turn * TIDIED_paths % max(len(names), 1)
        return self.store.submit(partial(self._delete, (names[start:] + names[:start])[:TIDIED_paths], horizon_ns))

    def _horizon_ns(self, now_ns):
        """Before it samples are refused, since they were deleted; one ahead of now would refuse all that comes."""
        return self.horizon_ns if self.horizon_ns < now_ns else 0

    def _delete(self, names, horizon_ns):
        left = TIDIED_samples
        for name in names:
            left -= self.store.delete_samples(name, horizon_ns, left)
        self.store.set_number(HORIZON, horizon_ns)
        return partial(self._deleted, horizon_ns, TIDIED_samples - left)

    def _deleted(self, horizon_ns, count):
        self.horizon_ns = horizon_ns
        for path in self.known.values():
            if path.history and path.history[0][0] < horizon_ns:
                path.history = tuple(sample for sample in path.history if sample[0] >= horizon_ns)
        return count

    # --- out

    def paths(self, now_ns):
        """Readings of all paths, by name."""
        return [self._reading(path, now_ns) for _, path in sorted(self.known.items())]

    def load(self, name, now_ns):
        """Reading of a path. KeyError if there is none."""
        return self._reading(self.known[name], now_ns)

    def reading_of(self, name, now_ns):
        """The same, None if there is none."""
        return self.load(name, now_ns) if name in self.known else None

    def load_at(self, name, at_ns):
        """The load as the samples until then tell it, as far as they are in memory; None: they do not."""
        path, force = self.known.get(name), self.in_force(name)
        history = until(path.history, at_ns) if path and force else ()
        if not history:
            return None
        seen_s, estimate = self._made(history, force)
        stale = at_ns - history[-1][0] > fresh_seconds(self._interval_s(name, seen_s)) * SECOND_ns
        return None if stale else estimate.load

    def samples(self, name, since_ns, count=SAMPLES_MAX):
        """[(ts_ns, delay_ns)] since then, the last `count`. KeyError if there is no such path."""
        return self.store.samples(self.known[name].name, max(since_ns, self.horizon_ns), count)

    def recent(self, name, count=HISTORY_samples):
        """The same of the last `count` samples, as they are in memory, so HISTORY_samples at most."""
        return [(sample[0], sample[3]) for sample in self.known[name].history[-count:]]

    def _reading(self, path, now_ns):
        history, force = path.history, self.in_force(path.name)
        interval_s, estimate = self._told(path, history, force)
        last_ns = history[-1][0] if history else None
        age_s = max(0, now_ns - last_ns) / SECOND_ns if history else None
        stale = bool(history) and (age_s > fresh_seconds(interval_s) or last_ns > now_ns + FUTURE_MAX_ns)
        reason = "no_samples" if not history else "stale" if stale else "no_model" if force is None else None
        told = estimate if reason is None else None
        return Reading({
            "path": path.name, "agent_id": path.agent_id, "master_clock": path.master_clock, "domain": path.domain,
            "load": told and told.load, "load_low": told and told.load_low, "load_high": told and told.load_high,
            "class": told.class_ if told else load.UNKNOWN, "raw_load": told and told.raw_load,
            "delay_ns": round(estimate.delay_ns) if estimate else history[-1][3] if history else None,
            "samples": path.accepted, "late": path.late, "last_ns": last_ns, "age_s": age_s, "stale": stale,
            "interval_s": interval_s, "w": estimate and estimate.w, "model": force and described(force),
            "reason": reason,
        })  # fmt: skip

    def _told(self, path, history, force):
        """(seconds between samples, load.Estimate or None) of a history and a model, made once for both."""
        told = path.told  # other threads replace it
        if told is None or told[0] is not history or told[1] is not force:
            told = path.told = (history, force, *self._made(history, force))
        return self._interval_s(path.name, told[2]), told[3]

    def _interval_s(self, name, seen_s):
        """Seconds between samples of a path: as the configuration gives them, else as they are seen."""
        given_ns = self.settings.intervals_ns.get(name)
        return given_ns / SECOND_ns if given_ns else seen_s

    def _made(self, history, force):
        times = np.array([sample[0] for sample in history], np.int64)
        delays = np.array([sample[3] for sample in history], np.int64)
        interval_s = interval_of(times, self.settings.interval_ns / SECOND_ns)
        return interval_s, load.estimate(force.model, times, delays) if history and force else None

    # --- models

    def in_force(self, name):
        """InForce of a path: its own latest model, else the default; None without."""
        return self.models.get(name, self.default)

    def model(self, name, version=None):
        """Document of a path's model in force, or of a version. KeyError: there is no such path, model or version."""
        path = self.known[name]
        if version is not None:
            return self.store.model(path.name, version)
        force = self.in_force(name)
        if force is None:
            raise KeyError(name)
        return load.to_document(force.model)

    def set_model(self, name, document, now_ns):
        """Future of the version of a model that is in force from then on; the same one again has the same version.

        KeyError: there is no such path. ValueError: this is no model.
        """
        name, model = self.known[name].name, load.from_document(document)
        return self.store.submit(partial(self._write_model, name, model, now_ns))

    def _write_models(self, models, now_ns):
        written = [self._write_model(name, model, now_ns) for name, model in models.items()]
        return lambda: [put_in_force() for put_in_force in written]

    def _write_model(self, name, model, now_ns):
        version = self.store.add_model(name, load.to_document(model), now_ns)
        return partial(self._model_set, name, InForce(version, model))

    def _model_set(self, name, force):
        if self.models.get(name) != force:
            self.models[name] = force
        return force.version


class Gain(NamedTuple):
    """What a request brought a path."""

    name: str
    whose: tuple  # agent_id, master_clock, domain
    rows: list
    accepted: int
    late: int


def own_name(agent_id, master_clock, domain):
    """What a path is called that the configuration does not name."""
    return f"{ODD.sub('_', agent_id)}:{master_clock}:{domain}"


def fresh_seconds(interval_s):
    """How old the latest sample of a path may be."""
    return max(STALE_intervals * interval_s, STALE_LEAST_seconds)


def until(history, at_ns):
    """A history without what is later."""
    if not history or history[-1][0] <= at_ns:
        return history
    return tuple(sample for sample in history if sample[0] <= at_ns)


def merged(history, rows):
    """The last HISTORY_samples of both, in event-time order. What has the identity of an earlier one is left out."""
    found = {row[:3]: row for row in itertools.chain(reversed(rows), history)}
    return tuple(sorted(found.values())[-HISTORY_samples:])


def described(force):
    """What a Reading tells of its model."""
    model = force.model
    return {
        "version": force.version, "kind": model.kind, "a_ns": model.a_ns, "b": model.b,
        "low": model.low, "congested": model.congested, "r2": model.r2,
        "spread_known": model.spread is not None,
    }  # fmt: skip


def stored_model(store, name, version, document):
    try:
        return InForce(version, load.from_document(document))
    except ValueError as error:
        raise StateError(f"{store.path}: model {version} of {name}: {error}") from error

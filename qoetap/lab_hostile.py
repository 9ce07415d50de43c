"""`qoetap lab hostile`: a flow that feigns stalls without end, and what it wins by that.

It is offered more than the link carries, beside bulk transfer. Mitigation's promise is held against what was received:
each rule favours a client for at most `budget` in any time of length `window`, and a favoured flow has the rate of its
class at most.
"""

from typing import NamedTuple

from qoetap.inline_keys import PRIORITY
from qoetap.lab_intervals import covered_s, favours_of, most_within, within
from qoetap.lab_site import CLIENT, SERVER, Site, begin_ns
from qoetap.lab_stalls import rate_bps
from qoetap.say import say

FLOOD_bps = 8_000_000
FLOWS, SETTLE_seconds = 4, 2.0  # of bulk transfer
LEAST_seconds = 20
PAYLOAD, PACKET = 999, 1027  # bytes of the flood's filler; with the headers that a class's rate counts


class Promise(NamedTuple):
    """What a rule promises, and the most that was seen; seconds."""

    rule: int
    do: str
    budget_s: float
    window_s: float
    favoured_s: float  # in all
    most_s: float  # in any time of length window_s

    @property
    def kept(self):
        return self.most_s <= self.budget_s + LATE_seconds


class Hostile(NamedTuple):
    """What the flow won. Rates in bit/s of IP packets."""

    signals: int  # feigned stalls that the router believed
    promises: list
    favoured_bps: float  # while the flow was favoured
    other_bps: float  # while not
    class_bps: int | None  # rate of the class that favoured flows get; None: no rule gives one, or it has no rate
    bulk_bps: float


LATE_seconds = 0.1  # a favour ends when inline's main loop looks


def run_once(folder, options, inline, seconds):
    """The Hostile of one run. inline: the section that options lead to. Exit if something fails."""
    say(f"feigned stalls without end: {seconds:g} s")
    with Site(folder) as site:
        site.run_inline(options)
        site.source("source")
        when = begin_ns()
        count = site.sink("count", address=CLIENT, begin_ns=when, seconds=seconds)
        bulk = site.sink("fetch", address=SERVER, begin_ns=when, seconds=seconds, delays_s=[0.0] * FLOWS)
        ends = {"address": SERVER, "client": CLIENT}
        flood = site.agent(site.street.sender, "flood", **ends, begin_ns=when, seconds=seconds, rate_bps=FLOOD_bps)
        for agent in (flood, count, bulk):
            agent.finish(seconds + 60)
        events = site.end_inline()
    series = [[((line["ts_ns"] - when) / 1e9, line["received"]) for line in agent.lines()] for agent in (count, bulk)]
    return result(events, series, inline, when, seconds)


def result(events, series, inline, when, seconds):
    """The Hostile of events (dicts) and the (time, bytes so far) of the flow and of bulk transfer."""
    received, fetched = series
    end = when + int(seconds * 1e9)
    promises = [promise(rule, number, events, end) for number, rule in enumerate(inline.mitigation, 1)]
    rule = next((n for n, r in enumerate(inline.mitigation, 1) if r.do == PRIORITY), None)
    favours = [((a - when) / 1e9, (b - when) / 1e9) for a, b in favours_of(events, end, rule)]
    favoured, other = split_bps(received, favours)
    return Hostile(
        signals=sum(event["event_type"] == "iqn.stall_start" for event in events),
        promises=promises,
        favoured_bps=favoured * PACKET / PAYLOAD,
        other_bps=other * PACKET / PAYLOAD,
        class_bps=class_rate(inline, rule),
        bulk_bps=rate_bps(fetched, SETTLE_seconds),
    )


def promise(rule, number, events, end_ns):
    intervals = favours_of(events, end_ns, number)
    most = most_within(intervals, rule.window)
    return Promise(number, rule.do, rule.budget / 1e9, rule.window / 1e9, covered_s(intervals) / 1e9, most / 1e9)


def class_rate(inline, number):
    """Rate of the class into which rule `number` puts flows."""
    if number is None:
        return None
    (name,) = getattr(inline.mitigation[number - 1], "class")
    return next(c.rate for c in inline.classes if c.name == name)


def split_bps(samples, favours):
    """Bits a second of (time, bytes so far) while favoured, and while not. Samples on an edge count for neither."""
    sums = {True: [0, 0.0], False: [0, 0.0]}
    for (since, before), (until, after) in zip(samples, samples[1:], strict=False):
        covered = within(favours, since, until)
        if 0 < covered < until - since:
            continue
        kind = sums[covered > 0]
        kind[0] += after - before
        kind[1] += until - since
    return tuple(8 * size / passed if passed else 0.0 for size, passed in (sums[True], sums[False]))


def lines_of(found):
    """The table, for a person."""
    yield f"{'rule':>4} {'do':<12} {'budget':>7} {'window':>7} {'favoured':>9} {'most in a window':>17}"
    for p in found.promises:
        kept = "kept" if p.kept else "BROKEN"
        yield (
            f"{p.rule:>4} {p.do:<12} {p.budget_s:>5.0f} s {p.window_s:>5.0f} s {p.favoured_s:>7.1f} s "
            f"{p.most_s:>15.1f} s  {kept}"
        )
    yield ""
    cap = "" if found.class_bps is None else f", its class has {found.class_bps / 1e6:.2f}"
    yield f"{found.signals} feigned stalls were believed"
    yield f"the flow, Mbit/s: {found.favoured_bps / 1e6:.2f} while favoured{cap}; {found.other_bps / 1e6:.2f} else"
    yield f"bulk transfer: {found.bulk_bps / 1e6:.2f} Mbit/s"


def as_json(found):
    """The same for a program."""
    return {**found._asdict(), "promises": [{**p._asdict(), "kept": p.kept} for p in found.promises]}

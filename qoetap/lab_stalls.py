"""`qoetap lab stalls`: the closed loop. A viewer beside bulk transfer, once without mitigation and once with it.

Per seed a scenario is drawn: the sizes of the video's segments, when it begins, how many bulk flows there are and when
each begins. Both runs get the same. Without mitigation means `dry_run`: signals, events and queue are the same.
"""

import random
from typing import NamedTuple

from qoetap.lab_intervals import covered_s, favours_of
from qoetap.lab_site import SERVER, Site, begin_ns, tried
from qoetap.say import say

VIDEO_bps, SEGMENT_seconds, SEGMENTS = 3_000_000, 2.0, 100
VARIATION = 0.3  # of a segment's size
FLOWS = (4, 8)  # of bulk transfer, at least and at most
VIDEO_BEGINS, BULK_BEGINS = (0.0, 2.0), (5.0, 10.0)  # seconds after the beginning, at random in it
SETTLE_seconds = 2.0  # for bulk transfer to find its rate, before it is measured
LEAST_seconds = 20
KINDS = ("without", "with")


class Scenario(NamedTuple):
    """What a seed stands for."""

    sizes: list  # bytes of the video's segments
    video_delay_s: float
    bulk_delays_s: list  # of each flow


class Run(NamedTuple):
    """What came of one run; times in seconds after its beginning."""

    seed: int
    mitigated: bool
    stalled_s: float
    stalls: list  # (since, until)
    bulk_bps: float  # goodput once all flows are there
    signals: int  # stalls that the router has noticed
    favours: list  # (since, until); in a dry run, what they would have been
    levels: list  # (time, seconds in the player's buffer)
    bulk: list  # (time, bytes so far)


class Comparison(NamedTuple):
    """All runs of one kind against all of the other. None: there is nothing to divide by."""

    stall_ratio: float | None
    bulk_ratio: float | None


def scenario(seed):
    """The Scenario of a seed."""
    rng = random.Random(seed)
    mean = VIDEO_bps * SEGMENT_seconds / 8
    sizes = [round(mean * rng.uniform(1 - VARIATION, 1 + VARIATION)) for _ in range(SEGMENTS)]
    delay = rng.uniform(*VIDEO_BEGINS)
    return Scenario(sizes, delay, [rng.uniform(*BULK_BEGINS) for _ in range(rng.randint(*FLOWS))])


def run_once(folder, options, seed, mitigated, seconds):
    """One Run. options: words for `qoetap inline`; files go to `folder`. Exit if something fails."""
    drawn = scenario(seed)
    with Site(folder) as site:
        site.run_inline([*options, "--set", f"inline.dry_run={'false' if mitigated else 'true'}"])
        site.source("serve")
        site.source("source")
        when = begin_ns()
        common = {"address": SERVER, "begin_ns": when, "seconds": seconds}
        player = site.sink("play", **common, sizes=drawn.sizes, delay_s=drawn.video_delay_s, segment_s=SEGMENT_seconds)
        bulk = site.sink("fetch", **common, delays_s=drawn.bulk_delays_s)
        for agent in (player, bulk):
            agent.finish(seconds + 60)
        events = site.end_inline()
    measured_from = max(drawn.bulk_delays_s) + SETTLE_seconds
    return result(seed, mitigated, when, seconds, (player.lines(), bulk.lines(), events, measured_from))


def result(seed, mitigated, when, seconds, found):
    """A Run of what was written: `found` is lines of player and bulk transfer, events, and since when bulk counts."""
    played, fetched, events, measured_from = found

    def after(ts_ns):
        return (ts_ns - when) / 1e9

    last = played[-1]
    bulk = [(after(line["ts_ns"]), line["received"]) for line in fetched]
    return Run(
        seed=seed,
        mitigated=mitigated,
        stalled_s=last["stalled_s"],
        stalls=[(after(since), after(until)) for since, until in last["stalls"]],
        bulk_bps=rate_bps(bulk, measured_from),
        signals=sum(event["event_type"] == "iqn.stall_start" for event in events),
        favours=[(after(a), after(b)) for a, b in favours_of(events, when + int(seconds * 1e9))],
        levels=[(after(line["ts_ns"]), line["level_s"]) for line in played[:-1]],
        bulk=bulk,
    )


def rate_bps(samples, since):
    """Bits a second of (time, bytes so far) from `since` on; 0.0 if there are no two samples."""
    kept = [sample for sample in samples if sample[0] >= since]
    if len(kept) < 2:
        return 0.0
    (first, before), (last, after) = kept[0], kept[-1]
    return (after - before) * 8 / (last - first)


def run_all(folder, options, seeds, seconds):
    """Runs of each of the seeds, without and with mitigation."""
    runs = []
    for seed in seeds:
        for mitigated in (False, True):
            kind = KINDS[mitigated]
            say(f"seed {seed} of {seeds[0]} to {seeds[-1]}, {kind} mitigation: {seconds:g} s")
            runs.append(tried(run_once, folder / f"seed{seed}-{kind}", options, seed, mitigated, seconds))
    return runs


def compare(runs):
    """The Comparison of runs with mitigation with those without."""
    kinds = [[run for run in runs if run.mitigated is kind] for kind in (False, True)]
    stalled, bulk = ([sum(getattr(r, name) for r in kind) for kind in kinds] for name in ("stalled_s", "bulk_bps"))
    return Comparison(*(after / before if before else None for before, after in (stalled, bulk)))


def lines_of(runs):
    """The table, for a person."""
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    yield f"{'':>5} {'stalled, s':>15} {'stalls':>13} {'bulk, Mbit/s':>15} {'favoured, s':>12}"
    yield f"{'seed':>5} {'without':>8} {'with':>6} {'without':>8} {'with':>4} {'without':>8} {'with':>6}"
    for before, after in pairs:
        yield (
            f"{before.seed:>5} {before.stalled_s:>8.1f} {after.stalled_s:>6.1f} {len(before.stalls):>8} "
            f"{len(after.stalls):>4} {before.bulk_bps / 1e6:>8.2f} {after.bulk_bps / 1e6:>6.2f} "
            f"{covered_s(after.favours):>12.1f}"
        )
    found = compare(runs)
    yield ""
    yield f"stalled with mitigation: {percent(found.stall_ratio)} of the seconds without"
    yield f"bulk transfer with mitigation: {percent(found.bulk_ratio)} of its rate without"


def percent(ratio):
    return "?" if ratio is None else f"{100 * ratio:.0f} %"


def as_json(runs):
    """The same for a program."""
    names = ("seed", "mitigated", "stalled_s", "stalls", "bulk_bps", "signals", "favours")
    return {"runs": [{name: getattr(run, name) for name in names} for run in runs], **compare(runs)._asdict()}

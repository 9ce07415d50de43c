"""Known load over a path of the lab: steps of it, what was really sent, and the samples of a tap labelled with it."""

import random
from bisect import bisect_right
from typing import NamedTuple

from endhost.bursts import SLOT_seconds
from qoetap.exits import RUN_ERROR, Exit
from qoetap.lab_ptp import LOG_INTERVAL, OnePath, samples
from qoetap.lab_site import TooBusy, begin_ns

LATE_seconds = 0.5  # a packet that was sent so late belonged to a slot that is over
LEVELS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.1)  # that a model is learned from
LEVEL_seconds = 30  # for which each is held: as long as loads in use
HOLD_seconds = (20, 40)  # of a random step, whole seconds at least and at most
HELD_seconds = sum(HOLD_seconds) / 2
MOST = 1.1  # random load, at most: above 1 the bottleneck is congested


class Step(NamedTuple):
    """A load that is held: share of the capacity. Times in ns since 1970."""

    begin_ns: int
    end_ns: int
    load: float  # asked for
    sent: float  # really sent


class Run(NamedTuple):
    """Samples of a tap, (ts_ns, delay_ns) each, while the steps were held."""

    steps: list
    samples: list
    counted: dict  # what the bottleneck let through: bytes, packets, drops
    sent_bytes: int


def random_steps(seed, seconds, most=MOST):
    """(load, seconds) of each step: loads uniform from 0 to `most`, held for HOLD_seconds; together `seconds`."""
    rng, found, left = random.Random(seed), [], round(seconds)
    while left > 0:
        held = min(left, rng.randint(*HOLD_seconds))
        found.append((round(rng.uniform(0, most), 3), held))
        left -= held
    return found


def held(steps, lines, begin, rate_bps):
    """The Steps of (load, seconds) of each, and of what the sender told of its slots."""
    found, number = [], 0
    for load, seconds in steps:
        count = round(seconds / SLOT_seconds)
        sent = sum(line["bytes"] for line in lines[number : number + count])
        since = begin + round(number * SLOT_seconds * 1e9)
        number += count
        until = begin + round(number * SLOT_seconds * 1e9)
        found.append(Step(since, until, load, sent * 8 / (rate_bps * count * SLOT_seconds)))
    return found


def told_slots(sender, steps):
    """What the load's sender told of its slots. Exit unless it sent what it was asked for."""
    lines, slots = sender.lines(), sum(round(seconds / SLOT_seconds) for _, seconds in steps)
    if len(lines) != slots:
        raise Exit(RUN_ERROR, f"the load's sender told of {len(lines)} s in place of {slots}")
    late = max((line["late_s"] for line in lines), default=0.0)
    if late > LATE_seconds:
        raise TooBusy(RUN_ERROR, f"the machine was too busy: load was sent up to {late:.2f} s late")
    return lines


def record(folder, rate_bps, steps, seed, log_interval=LOG_INTERVAL):
    """The Run of these steps over a bottleneck of rate_bps, with a tap. Exit if something fails."""
    with OnePath(folder, rate_bps, log_interval) as path:
        tap = path.tap()
        path.await_samples(tap)
        begin, before = begin_ns(), path.passed()
        sender = path.load(steps, begin, seed)
        sender.finish(sum(seconds for _, seconds in steps) + 60)
        tap.process.stop()
        counted = path.passed_since(before)
    lines = told_slots(sender, steps)
    return Run(held(steps, lines, begin, rate_bps), samples(tap.events), counted, sum(line["bytes"] for line in lines))


def labelled(run):
    """{ts_ns, delay_ns, load} of the samples within steps, load as it was sent, 1 at most: more does not pass."""
    begins = [step.begin_ns for step in run.steps]
    for ts_ns, delay_ns in run.samples:
        number = bisect_right(begins, ts_ns) - 1
        if number >= 0 and ts_ns < run.steps[number].end_ns:
            yield {"ts_ns": ts_ns, "delay_ns": delay_ns, "load": round(min(run.steps[number].sent, 1.0), 4)}


def traffic(sent_bytes, counted):
    """A sentence: what was sent, and what the bottleneck counted."""
    return (
        f"{sent_bytes:,} bytes of load were sent; with PTP {counted['bytes']:,} passed the bottleneck, which dropped "
        f"{counted['drops']:,} packets"
    )

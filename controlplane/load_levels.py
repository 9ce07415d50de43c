"""Labelled samples, checked, and what is seen at each level of load: filtered delays, never across a change of load."""

from typing import NamedTuple

import numpy as np

from controlplane.load_estimate import SECOND_ns, filtered, interval_of
from controlplane.load_model import DELAY_MAX_ns

DISTINCT_MAX = 40  # more different loads than that are taken as continuous
BIN_load = 0.05
ORDER_SEED = 1
SAMPLES_MIN = 5  # fewer say nothing of a level


class Samples(NamedTuple):
    """Arrays of one length, in the order of time: times in ns (None: not known), delays in ns, loads in 0..1."""

    ts_ns: np.ndarray | None
    delay_ns: np.ndarray
    load: np.ndarray


class Seen(NamedTuple):
    """What was seen at a load: its filtered delays, in runs at a steady load, and how many delays they are made of."""

    load: float
    runs: list
    samples: int

    @property
    def delays(self):
        return np.concatenate(self.runs)

    @property
    def median_ns(self):
        return float(np.median(self.delays))


class BadSample(ValueError):
    """A sample that cannot be: its number in the arrays, from 0, and a sentence."""

    def __init__(self, at, sentence):
        super().__init__(f"sample {at + 1}: {sentence}")
        self.at, self.sentence = at, sentence


def check_samples(delay_ns, load):
    """Whether each delay in ns and load may be. BadSample: the first one that may not."""
    delay_ns, load = np.asarray(delay_ns, float), np.asarray(load, float)
    _refuse(~np.isfinite(delay_ns), "the delay is no finite number", delay_ns)
    _refuse(delay_ns < 0, "the delay is negative", delay_ns)
    _refuse(delay_ns > DELAY_MAX_ns, "the delay is longer than a minute", delay_ns)
    _refuse(~((load >= 0) & (load <= 1)), "the load is not in 0 to 1", load)


def _refuse(wrong, sentence, values):
    if wrong.any():
        at = int(np.argmax(wrong))
        raise BadSample(at, f"{sentence}: {values[at]:g}")


def checked(delay_ns, load, ts_ns=None):
    """Samples of the arrays, sorted by time. ValueError: what is wrong with them."""
    delay_ns, load = np.asarray(delay_ns, float), np.asarray(load, float)
    if len(delay_ns) != len(load) or (ts_ns is not None and len(ts_ns) != len(load)):
        raise ValueError(f"there are {len(delay_ns)} delays, but {len(load)} loads or another number of times")
    check_samples(delay_ns, load)
    if ts_ns is None:
        return Samples(None, delay_ns, load)
    ts_ns = np.asarray(ts_ns, np.int64)
    order = np.argsort(ts_ns, kind="stable")
    return Samples(ts_ns[order], delay_ns[order], load[order])


def level_numbers(load):
    """(loads of the levels, rising; the number of its level for each sample).

    The different loads; where they are many, bins of BIN_load, each with the median of its loads.
    """
    loads, numbers = np.unique(load, return_inverse=True)
    if len(loads) <= DISTINCT_MAX:
        return loads, numbers
    _, numbers = np.unique(np.round(load / BIN_load), return_inverse=True)
    return np.array([np.median(load[numbers == at]) for at in range(numbers.max() + 1)]), numbers


def stretches(numbers):
    """[positions of samples that follow each other at one level]."""
    return np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers)) + 1)


def shuffled(samples, held_s):
    """A trace whose load changes at random: the samples' stretches, cut into pieces of held_s, in another order.

    As it is, if the load changes as often already. The order is the same every time.
    """
    interval_s = interval_of(samples.ts_ns, held_s)
    count = max(1, round(held_s / interval_s))
    runs = stretches(level_numbers(samples.load)[1])
    pieces = [run[at : at + count] for run in runs for at in range(0, len(run), count)]
    if len(pieces) == len(runs):
        return samples
    order = np.concatenate([pieces[at] for at in np.random.default_rng(ORDER_SEED).permutation(len(pieces))])
    ts_ns = np.rint(np.arange(len(order)) * interval_s * SECOND_ns).astype(np.int64)
    return Samples(ts_ns, samples.delay_ns[order], samples.load[order])


def levels_of(samples, percentile=50.0, count=1):
    """[Seen] by rising load, of the percentile of each `count` consecutive delays at a steady load.

    Levels with fewer than SAMPLES_MIN of those are left out.
    """
    loads, numbers = level_numbers(samples.load)
    runs = [[] for _ in loads]
    for run in stretches(numbers):
        if len(run) >= count:
            runs[numbers[run[0]]].append(filtered(samples.delay_ns[run], percentile, count))
    sizes = np.bincount(numbers, minlength=len(loads))
    return [
        Seen(float(load), of_level, int(size))
        for load, of_level, size in zip(loads, runs, sizes, strict=True)
        if sum(map(len, of_level)) >= SAMPLES_MIN
    ]

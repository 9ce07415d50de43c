"""Page load time against load, T(load), learned from measured pairs. Pure: no clock, no files.

Pairs are sorted by load and parted into levels of about equal count; a level is the median of its loads and of its
times. Isotonic regression (pool adjacent violators, least squares) of these medians, each weighted by its count, is the
curve. Medians and not the pairs themselves, because least squares follows a single page that hung for a minute, and
a median does not move for fewer than half of its level. Between levels T is interpolated linearly, beyond them it
stays what it is at the end.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

FORMAT, VERSION = "qoetap-page-load-curve", 1
LEVEL_PAIRS = 5  # of a level at least: two of them may be wrong
LEVELS_MAX = 20
PAIRS_MIN = 30  # fewer make no curve
SPREAD_MIN = 0.5  # between its lowest and highest level: beyond them a curve says nothing
SECONDS_MAX = 3600.0


class Curve(NamedTuple):
    """T(load) at its levels: loads rise, seconds do not fall."""

    content: str
    loads: tuple
    seconds: tuple
    counts: tuple  # pairs of each level

    @property
    def pairs(self):
        return sum(self.counts)


class Levels(NamedTuple):
    """Medians of pairs of about the same load: arrays of the same length."""

    loads: np.ndarray
    seconds: np.ndarray
    counts: np.ndarray


def levels(loads, seconds):
    """Levels of pairs (two arrays): LEVEL_PAIRS or more each, LEVELS_MAX of them at most, equal loads in the same."""
    order = np.argsort(loads, kind="stable")
    loads, seconds = loads[order], seconds[order]
    edges = _edges(loads, max(LEVEL_PAIRS, math.ceil(len(loads) / LEVELS_MAX)))
    parts = [slice(low, high) for low, high in zip(edges, edges[1:], strict=False)]
    medians = [np.array([np.median(values[part]) for part in parts]) for values in (loads, seconds)]
    return Levels(*medians, np.diff(edges))


def _edges(loads, least):
    """Where levels of sorted loads begin, and the end of the last."""
    edges = [0]
    for start in np.flatnonzero(np.diff(loads)) + 1:  # between two loads that differ
        if start - edges[-1] >= least:
            edges.append(int(start))
    if len(edges) > 1 and len(loads) - edges[-1] < least:
        edges.pop()  # what is left over belongs to the level before
    return [*edges, len(loads)]


def learn(content, loads, seconds):
    """Curve of pairs (load 0 to 1, s). ValueError with one sentence: they are too few, too near one another or odd."""
    loads, seconds = np.asarray(loads, dtype=float), np.asarray(seconds, dtype=float)
    _check_pairs(loads, seconds)
    if len(loads) < PAIRS_MIN:
        raise ValueError(f"a curve needs {PAIRS_MIN} page loads, there are {len(loads)}")
    found = levels(loads, seconds)
    spread = float(found.loads[-1] - found.loads[0])
    if spread < SPREAD_MIN:
        raise ValueError(f"a curve needs loads that are {SPREAD_MIN} apart, these span {spread:.2f}")
    rising = isotonic_regression(found.seconds, weights=found.counts).x
    return Curve(content, *(tuple(values.tolist()) for values in (found.loads, rising, found.counts)))


def _check_pairs(loads, seconds):
    if loads.ndim != 1 or loads.shape != seconds.shape:
        raise ValueError("give as many loads as times")
    if not np.all((loads >= 0) & (loads <= 1)):
        raise ValueError("a load is from 0 to 1")
    if not np.all((seconds > 0) & (seconds <= SECONDS_MAX)):
        raise ValueError(f"a page load takes more than 0 and at most {SECONDS_MAX:.0f} s")


def seconds_at(curve, load):
    """T of a load, s."""
    return float(np.interp(load, curve.loads, curve.seconds))


def to_document(curve):
    """The curve as JSON's types."""
    points = zip(curve.loads, curve.seconds, curve.counts, strict=True)
    return {
        "format": FORMAT,
        "version": VERSION,
        "content": curve.content,
        "pairs": curve.pairs,
        "points": [{"load": load, "seconds": seconds, "pairs": count} for load, seconds, count in points],
    }

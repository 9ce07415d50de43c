"""A load model learned from labelled samples: levels, curve, thresholds, filter, weight of the past, scatter."""

from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

import numpy as np

from controlplane import load_curves, load_scores
from controlplane.load_document import from_document, to_document
from controlplane.load_estimate import interval, interval_of, scatter_left
from controlplane.load_levels import SAMPLES_MIN, checked, levels_of, shuffled
from controlplane.load_model import (
    EXPONENTIAL,
    MONOTONE,
    SHAPES,
    Level,
    Model,
    Spread,
    class_of,
    delay_at,
    inverse,
)  # fmt: skip

SEPARATE = 0.9  # of pairs of estimates, one at the level and one at the lowest: the level's is the greater
SIGNIFICANT = 3.0  # standard deviations
LOW_SHARE = 0.9
PERCENTILES, COUNTS = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0), (3, 5, 10, 20, 50, 100, 200)
FILTERS = ((1, 50.0), *((count, percentile) for count in COUNTS for percentile in PERCENTILES))
TRACE_FILTERS = 4  # a trace must be as long as so many filters
NEARLY_BEST = 1.02  # a shorter filter is taken if its RMSE is within this
COVERED = 0.9
LOW_QUANTILE, HIGH_QUANTILE = 0.05, 0.95
HELD_seconds = 60.0  # how long a load stays, unless it is told
CHECKED_MAX = 2000  # points of a trace at which intervals are compared with the load


class FittedLevel(NamedTuple):
    """A row of the table of a fit; class_ by the level's load, in_fit: the curve was fitted to it."""

    load: float
    samples: int
    delay_ns: float
    fitted_ns: float
    class_: str
    in_fit: bool


@dataclass(frozen=True)
class Fit:
    """A model, and how it came about.

    scores: RMSE by cross-validation of exponential, isotonic and pchip. r2 of the filtered delays and of the medians of
    the levels fitted to, raw scale. left_out: samples at levels with too few. rmse: on the trace, by class; None if w
    and the filter could not be chosen, since the trace's load changes too seldom or its times are not known.
    """

    model: Model
    levels: list
    scores: dict
    r2_medians: float
    left_out: int
    rmse: dict | None


class Shape(NamedTuple):
    """What fitting to levels gives: a model of curve and congestion point; how many levels it is fitted to, and those
    as columns: loads, medians in ns, numbers of samples.
    """

    model: Model
    used: int
    fitted: tuple


def learn(delay_ns, load, ts_ns=None, *, kind=EXPONENTIAL, trace=None, held_s=HELD_seconds):
    """The Fit of a model to labelled samples: delays in ns and the loads in 0..1 at which they were measured.

    ts_ns: their times. trace: (delay_ns, load, ts_ns), load changing as it will in use, on which filter and smoothing
    are chosen; else they are chosen on the samples in another order, at a load for held_s before it changes.
    ValueError: one sentence about what the samples lack.
    """
    samples = checked(delay_ns, load, ts_ns)
    steps = checked(*trace) if trace is not None else samples
    if trace is None and ts_ns is not None and len(samples.load):
        steps = shuffled(samples, held_s)
    if steps.ts_ns is None or load_scores.changes(steps.load) < load_scores.CHANGES_MIN:
        steps = steps._replace(load=steps.load[:0])  # nothing can be chosen on it
    if len(steps.load):
        shape, w = choose(samples, steps, kind)
    else:
        shape, w = shape_of(levels_of(samples), kind, 50.0, 1), Model.w
    seen = levels_of(samples, shape.model.percentile, shape.model.samples)
    fit = finish(replace(shape.model, w=w), shape, seen, samples, steps)
    require_readable(fit.model)
    return fit


def require_readable(model):
    """ValueError if its document would be refused: loads that are too near one another, times in another unit."""
    try:
        from_document(to_document(model))
    except ValueError as error:
        raise ValueError(f"the samples lead to no model that could be used: {error}") from error


def finish(model, shape, seen, samples, steps):
    """The Fit: what is known of the scatter, and the numbers of a report."""
    if steps.ts_ns is not None:
        model = replace(model, interval_s=interval_of(steps.ts_ns, Model.interval_s))
    model = replace(model, low=low_threshold(model, seen[: shape.used]))
    levels = tuple(Level(level.load, level.samples, level.median_ns) for level in seen)
    model = replace(model, levels=levels, spread=spread_of(model, seen))
    told = None
    if len(steps.load):
        model = replace(model, spread=replace(model.spread, margin=margin_of(model, steps)))
        told = trace_rmse(model, steps)
    left_out = len(samples.load) - sum(level.samples for level in seen)
    scores = {name: load_curves.cross_validation(name, *shape.fitted) for name in (EXPONENTIAL, *SHAPES)}
    r2_medians = load_curves.r_squared(shape.fitted[1], delay_at(model, shape.fitted[0]))
    return Fit(model, table_of(model, shape.used), scores, r2_medians, left_out, told)


def table_of(model, used):
    """[FittedLevel] of the model's levels, the curve fitted to the first `used` of them."""
    return [
        FittedLevel(*astuple(level), float(delay_at(model, level.load)), class_of(model, level.load), at < used)
        for at, level in enumerate(model.levels)
    ]


def shape_of(seen, kind, percentile, count):
    """The Shape of levels. ValueError: what they lack."""
    if len(seen) < load_curves.LEVELS_MIN:
        raise ValueError(_too_few(len(seen), ""))
    load, median = np.array([s.load for s in seen]), np.array([s.median_ns for s in seen])
    jump = load_curves.congestion(load, median)
    used = jump if jump is not None else int(np.count_nonzero(load < 1.0))
    if used < load_curves.LEVELS_MIN:
        raise ValueError(_too_few(used, f" below congestion, which begins at load {load[used]:g}"))
    part, weight = slice(used), np.array([s.samples for s in seen], float)
    fitted = load[part], median[part], weight[part]
    a, b = load_curves.exponential(*fitted[:2])
    if b < 1.01 * load_curves.B_MIN:
        raise ValueError("delay does not rise with load in these samples: load cannot be told from it")
    congested = congestion_point(load, used)
    model = Model(a, b, 0.0, congested, EXPONENTIAL, jump is not None, percentile=percentile, samples=count)
    if kind == MONOTONE:
        name = min(SHAPES, key=lambda shape: load_curves.cross_validation(shape, *fitted))
        curve = load_curves.monotone(*fitted, name)
        model = replace(model, kind=kind, curve=load_curves.closed(curve, congested, _seen_ns(median, used)))
    return Shape(replace(model, r2=r2_of(model, seen[part])), used, fitted)


def congestion_point(load, used):
    """Load of the first level that is not fitted to; half way from the last one that is to full load if that is nearer.

    At full load itself a point would be of no use: no load below it would be congested.
    """
    half_way = (load[used - 1] + 1.0) / 2
    return float(load[used]) if used < len(load) and load[used] < 1.0 else float(half_way)


def _too_few(levels, where):
    return (
        f"a fit needs {load_curves.LEVELS_MIN} levels of load with {SAMPLES_MIN} samples or more{where}, "
        f"but there are {levels}"
    )


def _seen_ns(median, used):
    return median[used] if used < len(median) else None


def r2_of(model, seen):
    delays = np.concatenate([s.delays for s in seen])
    told = np.concatenate([np.full(len(s.delays), delay_at(model, s.load)) for s in seen])
    return load_curves.r_squared(delays, told)


def separation(lower, upper):
    """Share of pairs, one of each, in which the upper one is the greater; equal ones count half (Mann-Whitney U)."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, upper, "left") + np.searchsorted(ordered, upper, "right")
    return float(np.mean(below) / (2 * len(ordered)))


def separates(told, at, w):
    """Whether SEPARATE of pairs of smoothed estimates, of the lowest level and of level `at`, are in order.

    told: for each level, runs of single estimates.
    """
    return separation(*(load_scores.settled(told[level], w) for level in (0, at))) >= SEPARATE


def is_no_chance(told, at):
    """Whether pairs of single estimates are in order more often than chance has it (Mann-Whitney, SIGNIFICANT
    deviations), counting correlated ones as fewer.
    """
    single = [np.concatenate(told[level]) for level in (0, at)]
    persistence = persistence_of([told[0], told[at]])
    m, n = (max(1.0, len(loads) * (1 - persistence) / (1 + persistence)) for loads in single)
    by_chance = np.sqrt((m + n + 1) / (12 * m * n))
    return separation(*single) > 0.5 + SIGNIFICANT * by_chance


def low_threshold(model, seen):
    """Load below which the smoothed estimate does not tell the load: the greater of two.

    Half way between the first level that stands out from the lowest one and the level below it; and what LOW_SHARE of
    the estimates stay below at each level up to that one, or it would often not be low. A level stands out if it and
    all above it separate, and that is no chance; those above need not prove it, since a long queue is correlated.
    ValueError: no level stands out below the congestion point.
    """
    told = [[inverse(model, run) for run in level.runs] for level in seen]
    mixed = max(at for at in range(len(seen)) if at == 0 or not separates(told, at, model.w))
    first = next((at for at in range(mixed + 1, len(seen)) if is_no_chance(told, at)), None)
    if first is None:
        raise ValueError("no level's delays stand out from those of the lowest one: load cannot be told from delay")
    untold = [np.quantile(load_scores.settled(runs, model.w), LOW_SHARE) for runs in told[:first]]
    low = float(max((seen[first - 1].load + seen[first].load) / 2, *untold))
    if low >= model.congested:
        raise ValueError("the fit takes the lowest level's delays for congestion: load cannot be told from it")
    return low


def choose(samples, steps, kind):
    """(Shape, w): filter and weight of the past with the least RMSE on the trace; of nearly equal ones the shortest.

    ValueError: with no filter there is a fit; why not without one.
    """
    found, failure, levels = [], None, len(levels_of(samples))
    for count, percentile in FILTERS:
        seen = levels_of(samples, percentile, count)
        if count > 1 and (len(seen) < levels or len(steps.load) < TRACE_FILTERS * count):
            continue  # too few samples for this filter
        try:
            shape = shape_of(seen, kind, percentile, count)
            found.append((*weigh(shape.model, steps), shape))
        except ValueError as error:  # it takes away what tells the load, or there is nothing to take
            failure = failure or error
    if not found:
        raise failure
    limit = NEARLY_BEST * min(score for _, score, _ in found)
    least = min(shape.model.samples for _, score, shape in found if score <= limit)
    w, _, shape = min((f for f in found if f[2].model.samples == least), key=lambda f: f[1])
    return shape, w


def weigh(model, steps):
    """(w, RMSE) that are best for the model on the trace."""
    return load_scores.choose_w(load_scores.raw_loads(model, steps.delay_ns), steps.load[model.samples - 1 :])


def spread_of(model, seen):
    """The Spread of single estimates at each level."""
    told = [[inverse(model, run) for run in level.runs] for level in seen]
    joined = [np.concatenate(runs) for runs in told]
    mean = np.array([loads.mean() for loads in joined])
    low = np.minimum(mean, [np.quantile(loads, LOW_QUANTILE) for loads in joined])
    high = np.maximum(mean, [np.quantile(loads, HIGH_QUANTILE) for loads in joined])
    at = tuple(level.load for level in seen)
    return Spread(at, *(tuple(map(float, column)) for column in (mean, low, high)), persistence_of(told))


def persistence_of(told):
    """Correlation of an estimate with the next at a steady load, all levels taken together."""
    products = squares = 0.0
    for runs in told:
        middle = np.mean(np.concatenate(runs))
        for run in runs:
            products += float(np.sum((run[1:] - middle) * (run[:-1] - middle)))
            squares += float(np.sum((run[1:] - middle) ** 2))
    return float(np.clip(products / squares, 0.0, 1.0)) if squares else 0.0


def margin_of(model, steps):
    """What has to be added to intervals on both sides so that COVERED of them hold the load of the trace.

    Conformalized quantile regression (Romano, Patterson, Candes 2019), with the whole trace as calibration set.
    """
    known = steps.load[model.samples - 1 :]
    loads, classes = (told(model, steps.delay_ns) for told in (load_scores.trace_loads, load_scores.trace_classes))
    beyond = []
    for at in np.unique(np.linspace(0, len(loads) - 1, CHECKED_MAX).astype(int)):
        scale = scatter_left(int(at) + 1, model.w, model.spread.persistence)
        low, high = interval(model, float(loads[at]), classes[at], scale)
        beyond.append(max(low - known[at], known[at] - high))
    return float(np.clip(np.quantile(beyond, COVERED), 0.0, 1.0))


def trace_rmse(model, steps):
    loads = load_scores.trace_loads(model, steps.delay_ns)
    return load_scores.rmse_by_class(steps.load[model.samples - 1 :], loads, model)

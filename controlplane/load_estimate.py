"""From delays to a load: filter, inverse, smoothing, interval. A pure function of the last samples and the model."""

from dataclasses import dataclass

import numpy as np

from controlplane.load_model import CONGESTED, LOW, class_of, inverse

SECOND_ns = 10**9
FORGOTTEN = 1e-4  # weight of the past that no longer counts
CONGESTED_SHARE = 0.5
COPIED_MAX = 1 << 21  # delays at a time
W_MAX = 0.9999


@dataclass(frozen=True)
class Estimate:
    """Load of a path, all loads in 0..1: smoothed, its interval, its class, that of the last delay alone.

    delay_ns: the filtered delay; interval_s: median distance of the samples; w: weight of the past at that distance.
    """

    load: float
    load_low: float
    load_high: float
    class_: str
    raw_load: float
    delay_ns: float
    interval_s: float
    w: float


def filtered(delay_ns, percentile, samples):
    """The percentile of each `samples` consecutive delays, linear between them; of all if there are fewer."""
    if samples == 1:
        return np.asarray(delay_ns, float)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(delay_ns, float), min(samples, len(delay_ns)))
    rows = max(1, COPIED_MAX // windows.shape[1])
    parts = [windows[at : at + rows] for at in range(0, len(windows), rows)]
    return np.concatenate([np.percentile(part, percentile, axis=1) for part in parts])


def interval_of(ts_ns, default_s):
    """Median distance of the samples in seconds; `default_s` if there is none."""
    gaps = np.diff(ts_ns)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) / SECOND_ns if len(gaps) else default_s


def converted(w, from_s, to_s):
    """The weight of the past that forgets as fast when samples come `to_s` instead of `from_s` apart: w^(dt'/dt)."""
    return w ** (to_s / from_s)


def past_weights(count, w):
    """Weights of l_1 ... l_n in L_n, where L_i = w L_{i-1} + (1-w) l_i and L_1 = l_1."""
    weights = (1 - w) * w ** np.arange(count - 1, -1, -1)
    weights[0] = w ** (count - 1)
    return weights


def smoothed_class(model, load, congested_share):
    """Class of a smoothed load; congested too where single delays that are so weigh CONGESTED_SHARE.

    Else a few short delays among many very long ones would hide congestion, above all where it begins at load 1.
    """
    return CONGESTED if congested_share >= CONGESTED_SHARE else class_of(model, load)


def scatter_left(count, w, persistence):
    """Standard deviation of the smoothed load after `count` samples, that of a single one being 1.

    Samples are taken as correlated by persistence^distance (a first-order autoregressive process).
    """
    variance = covariance = 1.0  # of L, and of L with the last l
    memory = 1 + int(np.log(FORGOTTEN) / np.log(min(w, W_MAX))) if w > 0 else 1
    for _ in range(min(count - 1, memory)):
        variance = w * w * variance + 2 * w * (1 - w) * persistence * covariance + (1 - w) ** 2
        covariance = w * persistence * covariance + (1 - w)
    return float(np.sqrt(min(1.0, variance)))


def interval(model, load, class_, scale):
    """(low, high): the known loads at which an estimate of `load` is not unusual, `scale` of the single one's scatter.

    Holds the load in 9 of 10 cases at a steady load. Where no scatter is known: the bounds of the class.
    """
    low, high = {LOW: (0.0, model.low), CONGESTED: (model.congested, 1.0)}.get(class_, (model.low, model.congested))
    if model.spread is not None:
        low, high = _unrejected(model.spread, load, scale)
    if class_ == LOW:
        low, high = 0.0, max(high, model.low)
    if class_ == CONGESTED:
        low, high = min(low, model.congested), 1.0
    return float(min(low, load)), float(max(high, load))


def _unrejected(spread, load, scale):
    at, mean = np.array(spread.load), np.array(spread.mean)
    upper = np.maximum.accumulate(mean + (np.array(spread.high) - mean) * scale)
    lower = np.minimum.accumulate((mean - (mean - np.array(spread.low)) * scale)[::-1])[::-1]
    least = first_reaching(at, upper, load, 0.0)
    most = first_reaching(at[::-1], -lower[::-1], -load, 1.0)
    return max(0.0, least - spread.margin), min(1.0, most + spread.margin)


def first_reaching(at, values, wanted, start):
    """Where the rising polyline (at, values) first reaches `wanted`: `start` if before it, its last point if never."""
    after = int(np.searchsorted(values, wanted))
    if after == 0:
        return start
    if after == len(at):
        return at[-1]
    share = (wanted - values[after - 1]) / (values[after] - values[after - 1])
    return at[after - 1] + share * (at[after] - at[after - 1])


def estimate(model, ts_ns, delay_ns):
    """The Estimate from the last samples, int64 arrays in the order of time. ValueError: none, or a negative one."""
    ts_ns, delay_ns = np.asarray(ts_ns, np.int64), np.asarray(delay_ns, np.int64)
    if len(ts_ns) != len(delay_ns) or not len(ts_ns):
        raise ValueError(f"an estimate needs samples, here are {len(ts_ns)} times and {len(delay_ns)} delays")
    if delay_ns.min() < 0:
        raise ValueError("a delay is negative")
    delays = filtered(delay_ns, model.percentile, model.samples)
    loads = inverse(model, delays)
    interval_s = interval_of(ts_ns, model.interval_s)
    w = converted(model.w, model.interval_s, interval_s)
    weights = past_weights(len(loads), w)
    load = min(1.0, float(weights @ loads))  # rounding may exceed it
    class_ = smoothed_class(model, load, weights @ (loads == 1.0))
    persistence = converted(model.spread.persistence, model.interval_s, interval_s) if model.spread else 0.0
    low, high = interval(model, load, class_, scatter_left(len(loads), w, persistence))
    return Estimate(load, low, high, class_, float(loads[-1]), float(delays[-1]), interval_s, w)

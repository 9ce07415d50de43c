"""How good estimates are, where the load is known; and the weight of the past that makes them best."""

import numpy as np

from controlplane.load_estimate import filtered, smoothed_class
from controlplane.load_model import CLASSES, class_of, inverse

W_GRID = np.arange(100) / 100
SETTLING = 2.0  # time constants
CHANGES_MIN = 5  # of the load, in a trace that w can be chosen on


def rmse(known, estimated):
    return float(np.sqrt(np.mean((np.asarray(known) - np.asarray(estimated)) ** 2)))


def rmse_by_class(known, estimated, model):
    """{"all", and each class of the known load: RMSE of the load, None where there is none of the class}."""
    known, estimated = np.asarray(known, float), np.asarray(estimated, float)
    classes = np.array([class_of(model, load) for load in known])
    parts = {"all": np.full(len(known), True), **{name: classes == name for name in CLASSES}}
    return {name: rmse(known[part], estimated[part]) if part.any() else None for name, part in parts.items()}


def raw_loads(model, delay_ns):
    """Loads of each `model.samples` consecutive delays, not smoothed: as many fewer than there are delays."""
    return inverse(model, filtered(delay_ns, model.percentile, model.samples))


def smooth_all(loads, w):
    """All L_i of L_i = w L_{i-1} + (1-w) l_i, L_1 = l_1."""
    from scipy.signal import lfilter  # late: it takes half a second, and who estimates does not need it

    return lfilter([1 - w], [1, -w], loads, zi=[w * loads[0]])[0]


def settled(runs, w):
    """Smoothed loads of runs at a steady load, without the start of each, where smoothing has seen too little."""
    start = int(SETTLING / (1 - w))
    return np.concatenate([smooth_all(run, w)[min(start, len(run) // 2) :] for run in runs])


def trace_loads(model, delay_ns):
    """The smoothed load at each delay of a trace, from the first at which the filter is full."""
    return smooth_all(raw_loads(model, delay_ns), model.w)


def trace_classes(model, delay_ns):
    """The class at each delay of a trace, from the first at which the filter is full."""
    loads = raw_loads(model, delay_ns)
    shares = smooth_all((loads == 1.0).astype(float), model.w)
    return [smoothed_class(model, *row) for row in zip(smooth_all(loads, model.w), shares, strict=True)]


def choose_w(loads, known):
    """(w of the grid with the least RMSE, that RMSE)."""
    scores = [rmse(known, smooth_all(loads, w)) for w in W_GRID]
    best = int(np.argmin(scores))
    return float(W_GRID[best]), scores[best]


def changes(load):
    """How often the load changes from one sample to the next."""
    return int(np.count_nonzero(np.diff(load)))

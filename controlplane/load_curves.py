"""Curves of delay over load from the medians of levels: the exponential, monotone ones, which of them says more.

A level is (load, median delay in ns), given as two arrays by rising load. scipy is imported late: it takes half a
second, and who estimates does not need it.
"""

import numpy as np

from controlplane.load_model import EXPONENTIAL, MONOTONE, Curve, Model, free_inverse

B_MIN = 1e-6  # of a curve that does not rise
CONGESTION_FACTOR = 10.0
RISE_MIN = 1e-6  # of ln delay from knot to knot; less is rounding
LEVELS_MIN = 4  # below congestion; one more than what the search for congestion starts from
UNUSED_EXPONENTIAL, UNUSED_THRESHOLDS = (1.0, 1.0), (0.0, 1.0)  # of models that only serve for their curve


def log_linear(load, delay_ns):
    """(a, b) of the line through (x, ln y): least squares of the relative error."""
    b, log_a = np.polyfit(load, np.log(np.maximum(delay_ns, 1.0)), 1)
    return float(np.exp(log_a)), float(b)


def exponential(load, delay_ns):
    """(a, b) of y = a e^(b x) with b > 0: least squares of the absolute error, started from the log-linear fit."""
    from scipy.optimize import least_squares

    load, delay_ns = np.asarray(load, float), np.maximum(delay_ns, 1.0)
    top = delay_ns.max()
    a, b = log_linear(load, delay_ns)

    def left(p):
        return np.exp(p[0] + p[1] * load) - delay_ns / top

    def slopes(p):
        y = np.exp(p[0] + p[1] * load)
        return np.column_stack((y, y * load))

    start = (np.log(a / top), max(b, 2 * B_MIN))
    bounds = ((-60.0, B_MIN), (10.0, 200.0))
    found = least_squares(left, np.clip(start, *bounds), slopes, bounds, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    return float(np.exp(found.x[0]) * top), float(found.x[1])


def congestion(load, delay_ns):
    """Number of the first level whose median exceeds CONGESTION_FACTOR times what the fit of those below it expects."""
    for at in range(LEVELS_MIN - 1, len(load)):
        a, b = exponential(load[:at], delay_ns[:at])
        if delay_ns[at] > CONGESTION_FACTOR * a * np.exp(b * load[at]):
            return at
    return None


def monotone(load, delay_ns, weight, shape):
    """Curve through the isotonic regression of ln delay (weighted); levels that it pools become one knot.

    ValueError: less than two knots are left.
    """
    from scipy.optimize import isotonic_regression

    load, weight = np.asarray(load, float), np.asarray(weight, float)
    found = isotonic_regression(np.log(np.maximum(delay_ns, 1.0)), weights=weight)
    first = np.flatnonzero(np.diff(found.x, prepend=-np.inf) > RISE_MIN)
    total = np.add.reduceat(weight, first)
    knots = np.add.reduceat(load * weight, first) / total
    if len(knots) < 2:
        raise ValueError("delay does not rise with load in these samples")
    return Curve(shape, tuple(map(float, knots)), tuple(map(float, np.exp(found.x[first]))))


def curve_of(name, load, delay_ns, weight):
    """A Model that only serves for its curve. name: exponential, isotonic or pchip."""
    if name == EXPONENTIAL:
        return Model(*exponential(load, delay_ns), *UNUSED_THRESHOLDS)
    curve = monotone(load, delay_ns, weight, name)
    return Model(*UNUSED_EXPONENTIAL, *UNUSED_THRESHOLDS, MONOTONE, curve=curve)


def cross_validation(name, load, delay_ns, weight):
    """RMSE of the load that the curve tells for the median of a level that it was not fitted to.

    Each level but the first and the last is left out once: no curve has to guess beyond what it saw.
    """
    errors = []
    for at in range(1, len(load) - 1):
        rest = [np.delete(column, at) for column in (load, delay_ns, weight)]
        told = np.clip(free_inverse(curve_of(name, *rest), delay_ns[at]), 0.0, 1.0)
        errors.append(float(told - load[at]))
    return float(np.sqrt(np.mean(np.square(errors))))


def closed(curve, congested, congested_ns):
    """The curve, continued to the congestion point as a queue's wait grows, 1 / (1 - load), but not past half way (in
    ln delay) to what was seen there (None: nothing).
    """
    x, y = curve.load[-1], np.log(curve.delay_ns[-1])
    if x >= congested:
        return curve
    half_way = (np.log(congested_ns) - y) / 2 if congested_ns is not None and np.log(congested_ns) > y else np.inf
    y += min(np.log((1 - x) / (1 - congested)), half_way)
    return Curve(curve.shape, (*curve.load, congested), (*curve.delay_ns, float(np.exp(y))))


def r_squared(seen, told):
    """1 - SS_res / SS_tot on the raw scale."""
    rest = np.sum((seen - np.mean(seen)) ** 2)
    return float(1 - np.sum((seen - told) ** 2) / rest) if rest else 0.0

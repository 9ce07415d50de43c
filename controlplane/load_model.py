"""A path's load model: what is known of it, and how delay and load follow from each other. Pure; knows no document.

Facts follow the paper on estimating load from PTPv2 path delay (Frangoudis et al.): y = a e^(b x), x the load in 0..1,
y the mean path delay.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

KINDS = EXPONENTIAL, MONOTONE = "exponential", "monotone"
SHAPES = LINEAR, PCHIP = "isotonic", "pchip"
CLASSES = LOW, NORMAL, CONGESTED = "low", "normal", "congested"
UNKNOWN = "unknown"  # of a path that tells nothing now
HISTORY_samples = 512  # what an estimate looks back at, at most
DELAY_MAX_ns = 60 * 10**9  # no path takes a minute
PAPER_W, PAPER_INTERVAL_seconds = 0.87, 4.0


@dataclass(frozen=True)
class Curve:
    """Knots of a monotone curve, loads and delays strictly rising; straight or cubic (PCHIP) in (ln delay, load)."""

    shape: str
    load: tuple
    delay_ns: tuple


@dataclass(frozen=True)
class Spread:
    """How single estimates scatter at known loads: per level their mean and their 5 and 95 % quantile.

    persistence: correlation of one estimate with the next at a steady load; margin: what has to be added on both sides
    so that 9 in 10 intervals hold the load of the training trace.
    """

    load: tuple
    mean: tuple
    low: tuple
    high: tuple
    persistence: float = 0.0
    margin: float = 0.0


@dataclass(frozen=True)
class Level:
    """What was seen at a load: how many delays, and the median of the filtered ones."""

    load: float
    samples: int
    delay_ns: float


@dataclass(frozen=True)
class Model:
    """What tells the load of a path from its delays.

    a_ns, b: of the exponential. low: load below which delay tells nothing. congested: load from which delay jumps;
    congestion_found: False where no level's did. w: weight of the past for samples interval_s apart. percentile of
    the last `samples` delays is what load is told from. curve: for the kind "monotone". spread: None if not known.
    """

    a_ns: float
    b: float
    low: float
    congested: float
    kind: str = EXPONENTIAL
    congestion_found: bool = True
    r2: float | None = None
    w: float = PAPER_W
    interval_s: float = PAPER_INTERVAL_seconds
    percentile: float = 50.0
    samples: int = 1
    curve: Curve | None = None
    spread: Spread | None = None
    levels: tuple = ()
    made: str = ""


@lru_cache(maxsize=256)
def _pchip(curve):
    from scipy.interpolate import PchipInterpolator  # late: takes a second, and most models are exponential

    return PchipInterpolator(np.log(curve.delay_ns), curve.load)


def _curve_load(curve, log_delay):
    """Load at ln(delay), that of the first or last knot beyond them."""
    log_delay = np.clip(log_delay, *np.log([curve.delay_ns[0], curve.delay_ns[-1]]))
    if curve.shape == PCHIP:
        return _pchip(curve)(log_delay)
    return np.interp(log_delay, np.log(curve.delay_ns), curve.load)


def _curve_log_delay(curve, load):
    """ln(delay) at the load: bisection, since the curve is told the other way round."""
    load = np.asarray(load, float)
    low = np.full(load.shape, np.log(curve.delay_ns[0]))
    high = np.full(load.shape, np.log(curve.delay_ns[-1]))
    for _ in range(60):
        middle = (low + high) / 2
        above = _curve_load(curve, middle) >= load
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high


def delay_at(model, load):
    """Delay in ns that the model expects at the load; arrays too."""
    if model.kind == MONOTONE:
        return np.exp(_curve_log_delay(model.curve, load))
    return model.a_ns * np.exp(model.b * np.asarray(load, float))


def free_inverse(model, delay_ns):
    """Load by the curve alone, ln(y/a)/b, without classes; arrays too. May lie outside 0..1."""
    log_delay = np.log(np.maximum(delay_ns, 1.0))
    if model.kind == MONOTONE:
        return _curve_load(model.curve, log_delay)
    return (log_delay - np.log(model.a_ns)) / model.b


@lru_cache(maxsize=256)
def thresholds_ns(model):
    """(delay up to which the class is low, delay from which it is congested)."""
    return float(delay_at(model, model.low)), float(delay_at(model, model.congested))


def classify(model, delay_ns):
    """Class of one delay in ns: low, normal or congested."""
    low_ns, congested_ns = thresholds_ns(model)
    if delay_ns >= congested_ns:
        return CONGESTED
    return LOW if delay_ns <= low_ns else NORMAL


def class_of(model, load):
    """Class of a load in 0..1."""
    if load >= model.congested:
        return CONGESTED
    return LOW if load <= model.low else NORMAL


def inverse(model, delay_ns):
    """Load in 0..1 of a delay in ns; arrays too.

    Up to the delay at `low` the inverse clamped to 0..low, from that at `congested` on 1.0, between them the inverse.
    """
    delay_ns = np.asarray(delay_ns, float)
    low_ns, congested_ns = thresholds_ns(model)
    load = np.clip(free_inverse(model, delay_ns), 0.0, np.where(delay_ns <= low_ns, model.low, model.congested))
    return np.where(delay_ns >= congested_ns, 1.0, load)

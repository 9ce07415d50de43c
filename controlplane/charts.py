"""Geometry of the page's pictures: values in, coordinates out. Pure; the templates write the SVG.

Delays stand on a logarithmic axis, as the model's fit is a line there.
"""

import math
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 420, 240  # of a chart, in SVG's user units
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 16, 28  # margins for axes
SPARK_WIDTH, SPARK_HEIGHT = 96, 24
SPARK_points, CHART_points = 60, 512
GAP_intervals = 3  # a line is interrupted where samples are farther apart, as a reading is stale then
RATIO_MIN = 4  # of a delay axis, so that noise does not fill it
DECADES_MAX = 2  # with more, only powers of ten are marked
CURVE_points = 64
TIME_STEPS_seconds = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
TIME_TICKS = 5
DAY_seconds = 86400
NS = 10**9


class Scale(NamedTuple):
    """A line from values to coordinates."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value):
        """Coordinate of the value, or of the nearest end of the scale."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)


class LogScale(NamedTuple):
    """The same for positive values, by their logarithm."""

    line: Scale

    def at(self, value):
        return self.line.at(math.log10(max(value, 1)))


def delay_scale(delays_ns, start, end):
    """LogScale that holds the delays and some room around them."""
    low, high = (math.log10(max(pick(delays_ns), 1)) for pick in (min, max))
    room = max(0.05 * (high - low), (math.log10(RATIO_MIN) - (high - low)) / 2)
    return LogScale(Scale(low - room, high + room, start, end))


def delay_ticks(scale):
    """Delays to mark, ns: 1, 2, 5 times powers of ten, or only the powers."""
    low, high = scale.line.low, scale.line.high
    digits = (1, 2, 5) if high - low <= DECADES_MAX else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [d * 10.0**p for p in powers for d in digits if low <= math.log10(d) + p <= high]


def time_ticks(since_ns, until_ns):
    """[(ts_ns, text in UTC)], TIME_TICKS at most but for spans of many days."""
    span = (until_ns - since_ns) / NS
    step = next((step for step in TIME_STEPS_seconds if span / step <= TIME_TICKS), None)
    step = step or DAY_seconds * math.ceil(span / DAY_seconds / TIME_TICKS)
    form = "%H:%M:%S" if step < 60 else "%H:%M" if step < DAY_seconds else "%d %b"
    first = -(-since_ns // (step * NS)) * step
    times = range(first, until_ns // NS + 1, step)
    return [(t * NS, datetime.fromtimestamp(t, UTC).strftime(form)) for t in times]


def polyline(points):
    """SVG path data of a line through the points."""
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def thinned(samples, most):
    """At most `most` of the samples, the last one among them."""
    step = -(-len(samples) // most)
    return samples[::-1][::step][::-1] if step > 1 else samples


def runs(samples, interval_s):
    """The samples in pieces without a gap of more than GAP_intervals."""
    pieces = [samples[:1]]
    for before, sample in pairwise(samples):
        if sample[0] - before[0] > GAP_intervals * interval_s * NS:
            pieces.append([])
        pieces[-1].append(sample)
    return pieces


def spark(samples):
    """Path data of the last delays, or None if there are too few."""
    samples = thinned(list(samples), SPARK_points)
    if len(samples) < 2 or samples[-1][0] <= samples[0][0]:
        return None
    across = Scale(samples[0][0], samples[-1][0], 1, SPARK_WIDTH - 1)
    up = delay_scale([delay for _, delay in samples], SPARK_HEIGHT - 2, 2)
    return polyline([(across.at(ts), up.at(delay)) for ts, delay in samples])


def bar(reading, model):
    """Coordinates of a load bar, 100 wide and 14 high; None where the load is not known."""
    if reading["load"] is None:
        return None
    across = Scale(0, 1, 0, 100)
    load, low, high = (across.at(reading[key]) for key in ("load", "load_low", "load_high"))
    whisker = f"M{low} 3.5V10.5M{low} 7H{high}M{high} 3.5V10.5"
    marks = [across.at(model[key]) for key in ("low", "congested")] if model else []
    return {"load": load, "interval": whisker, "marks": marks}


def history(samples, model_curve, reading, now_ns):
    """Chart of the last delays over time, or None without samples.

    model_curve: callable load -> delay_ns, or None; its thresholds are drawn.
    """
    samples = [(int(ts), int(delay)) for ts, delay in samples][-CHART_points:]
    if not samples:
        return None
    since, last = samples[0][0], samples[-1][0]
    until = now_ns if last < now_ns <= last + max(last - since, 60 * NS) else last
    levels = thresholds(reading["model"], model_curve)
    across = Scale(since, max(until, since + NS), LEFT, WIDTH - RIGHT)
    up = delay_scale([delay for _, delay in samples] + [y for _, _, y in levels], HEIGHT - BOTTOM, TOP)
    dots = [(across.at(ts), up.at(delay)) for ts, delay in samples]
    pieces = [[(across.at(ts), up.at(y)) for ts, y in run] for run in runs(samples, reading["interval_s"])]
    return {
        "dots": dots,
        "lines": [polyline(piece) for piece in pieces if len(piece) > 1],
        "levels": [(name, up.at(y)) for name, _, y in levels],
        "xticks": [(across.at(ts), text) for ts, text in time_ticks(since, max(until, since + NS))],
        "yticks": [(up.at(y), y) for y in delay_ticks(up)],
        "lowest": min(delay for _, delay in samples),
        "highest": max(delay for _, delay in samples),
        "since": since,
        "until": last,
    }


def thresholds(model, curve):
    """[(class, load, delay_ns)] at which the classes low and congested begin; empty without a model."""
    if not (model and curve):
        return []
    return [(name, model[name], curve(model[name])) for name in ("low", "congested")]


def fit(levels, curve, reading):
    """Chart of delay against load: the model's curve, the medians it was fitted to, the current point.

    levels: [(load, delay_ns)]; curve: callable load -> delay_ns; reading: with a model.
    """
    model = reading["model"]
    loads = [model["congested"] * i / CURVE_points for i in range(CURVE_points + 1)]
    line = [(load, curve(load)) for load in loads]
    now = reading["delay_ns"] if reading["load"] is not None else None
    delays = [y for _, y in [*line, *levels]] + [now] * (now is not None)
    across = Scale(0, 1, LEFT, WIDTH - RIGHT)
    up = delay_scale([y for y in delays if y > 0], HEIGHT - BOTTOM, TOP)
    return {
        "curve": polyline([(across.at(x), up.at(y)) for x, y in line]),
        "levels": [(across.at(x), up.at(y)) for x, y in levels],
        "low": across.at(model["low"]),
        "congested": across.at(model["congested"]),
        "now": now is not None and current(reading, across, up),
        "xticks": [(across.at(x / 5), f"{20 * x} %") for x in range(6)],
        "yticks": [(up.at(y), y) for y in delay_ticks(up)],
    }


def current(reading, across, up):
    """Where a reading stands in the chart of the fit, with the interval of its load."""
    x, low, high = (across.at(reading[key]) for key in ("load", "load_low", "load_high"))
    return {"x": x, "y": up.at(reading["delay_ns"]), "low": low, "high": high}

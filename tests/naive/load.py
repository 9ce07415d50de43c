"""Slow twin of controlplane/load_*: the definitions in plain Python, one number at a time."""

import math
from statistics import mean


def inverse(delay_ns, a_ns, b, low, congested):
    """Load of one delay: x = ln(y/a)/b with the classes of the paper."""
    if delay_ns >= a_ns * math.exp(b * congested):
        return 1.0
    load = math.log(max(delay_ns, 1.0) / a_ns) / b
    if delay_ns <= a_ns * math.exp(b * low):
        return min(max(load, 0.0), low)
    return min(load, congested)


def percentile(values, percent):
    """Between the two nearest of the sorted values, in proportion."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def filtered(delays, percent, count):
    count = min(count, len(delays))
    return [percentile(delays[at - count : at], percent) for at in range(count, len(delays) + 1)]


def smoothed(loads, w):
    """Every L_i = w L_{i-1} + (1-w) l_i."""
    found = [loads[0]]
    for load in loads[1:]:
        found.append(w * found[-1] + (1 - w) * load)
    return found


def scatter_left(count, w, persistence):
    """From the weights that each l_i has in L_n, and the correlation of each pair."""
    weights = [w ** (count - 1)] + [(1 - w) * w ** (count - 1 - at) for at in range(1, count)]
    pairs = ((a, b, abs(i - j)) for i, a in enumerate(weights) for j, b in enumerate(weights))
    return math.sqrt(sum(a * b * (1.0 if not far else persistence**far) for a, b, far in pairs))


def accepted(levels, load, scale):
    """Levels (load, mean, low, high) at which `load` is not unusual: within `scale` of the scatter around the mean."""
    return [at for at, m, low, high in levels if m - (m - low) * scale <= load <= m + (high - m) * scale]


def separation(lower, upper):
    """Share of pairs in which the upper one is the greater; equal ones count half."""
    return mean(1.0 if a < b else 0.5 if a == b else 0.0 for a in lower for b in upper)


def exponential(load, delays):
    """(a, b) with the least squared error: each b has its best a; b by golden section near the best of a grid."""

    def best_a(b):
        e = [math.exp(b * x) for x in load]
        return sum(y * z for y, z in zip(delays, e)) / sum(z * z for z in e)

    def error(b):
        a = best_a(b)
        return sum((y - a * math.exp(b * x)) ** 2 for x, y in zip(load, delays))

    near = min((step / 20 for step in range(1, 800)), key=error)
    low, high = max(near - 0.05, 1e-9), near + 0.05
    for _ in range(100):
        first, second = low + 0.382 * (high - low), low + 0.618 * (high - low)
        low, high = (low, second) if error(first) < error(second) else (first, high)
    return best_a(low), low


def isotonic(values, weights):
    """The max-min formula: at i the greatest over j <= i of the least over k >= i of the mean from j to k."""

    def middle(j, k):
        part = range(j, k + 1)
        return sum(values[at] * weights[at] for at in part) / sum(weights[at] for at in part)

    size = range(len(values))
    return [max(min(middle(j, k) for k in size if k >= i) for j in size if j <= i) for i in size]


def congestion(load, delays, factor, first):
    """Number of the first level, from `first` on, far above what the fit of those below it expects."""
    for at in range(first, len(load)):
        a, b = exponential(load[:at], delays[:at])
        if delays[at] > factor * a * math.exp(b * load[at]):
            return at
    return None


def rmse(known, told):
    return math.sqrt(mean((a - b) ** 2 for a, b in zip(known, told)))

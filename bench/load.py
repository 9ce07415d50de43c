"""`python -m bench.load`: what the load model makes of delays whose law is known. Takes a minute.

Three tables: how well the published model is fitted back; which weight of the past comes out; both kinds of curve on
traces of random loads that they have not seen, for the published law and for queues.
"""

import numpy as np

from controlplane import load, load_curves
from controlplane.load_model import Model
from controlplane.load_scores import choose_w, raw_loads, rmse
from tests.load_samples import PAPER_LEVELS, A_ns, B, published, queueing, random_steps, steps

RUNS, CLOSE = 40, 0.03
BELOW = np.array(PAPER_LEVELS[:10])
ADDED_ns = np.sqrt(0.11 / 0.89 * np.var(A_ns * np.exp(B * BELOW)))  # R2 0.89, the same at each load
PACKET_bits, BURST_packets, BUFFER_seconds = 12000, 4, 1.0
SAMPLE_seconds = 0.125
BASE_ns, OUTLIERS, OUTLIER_ns = 40e3, 0.03, 100e3  # time stamps of software


def added(levels, rng):
    """The published law with noise that is added instead of multiplied."""
    delay = A_ns * np.exp(B * levels) + rng.normal(0, ADDED_ns, levels.shape)
    return np.where(levels >= 0.95, 1e9, np.maximum(delay, 0))


def link(rate):
    """A law: a link of `rate` bit/s passed by bursts of packets at random (Poisson, geometric), seen every 125 ms."""

    def law(levels, rng):
        send = PACKET_bits / rate
        counts = rng.poisson(levels / (send * BURST_packets) * SAMPLE_seconds)
        waits, wait = np.empty(len(levels)), 0.0
        for at, count in enumerate(counts):
            wait = queue_after(wait, np.sort(rng.random(count)), rng.geometric(1 / BURST_packets, count) * send)
            waits[at] = wait
        stamps = BASE_ns * np.exp(rng.normal(0, 0.25, len(levels)))
        stamps += np.where(rng.random(len(levels)) < OUTLIERS, rng.exponential(OUTLIER_ns, len(levels)), 0)
        return waits * 1e9 / 2 + stamps  # one way of two

    return law


def queue_after(wait, arrivals, work):
    """Seconds of work that wait after a sample's time, arrivals at shares of it (Lindley's recursion)."""
    last = 0.0
    for at, more in zip(arrivals * SAMPLE_seconds, work, strict=True):
        wait = min(BUFFER_seconds, max(0.0, wait - (at - last)) + more)
        last = at
    return max(0.0, wait - (SAMPLE_seconds - last))


def fitted_back():
    print(f"fitted back, {RUNS} runs each: rms error of a and b, runs with both within {CLOSE:.0%}")
    for count in (450, 1800, 20000):
        for fit in (load_curves.exponential, load_curves.log_linear):
            found = []
            for seed in range(RUNS):
                rng = np.random.default_rng(seed)
                median = [np.median(published(np.full(count, level), rng)) for level in BELOW]
                found.append(fit(BELOW, median))
            off = np.array(found) / (A_ns, B) - 1
            a, b = np.sqrt(np.mean(off**2, axis=0))
            close = np.count_nonzero(np.abs(off).max(axis=1) <= CLOSE)
            print(f"  {count:6d} a level, {fit.__name__:12s} a {a:.2%}  b {b:.2%}  {close:2d} of {RUNS}")


def weights():
    print("w chosen for the published model, samples at a load before it changes: 1, 15, 60, 150")
    for law in (published, added):
        found = []
        for held in (1, 15, 60, 150):
            delays, loads, _ = random_steps(law, np.random.default_rng(2), 6000, held)
            found.append("w {:.2f} RMSE {:.3f}".format(*choose_w(raw_loads(Model(A_ns, B, 0.2, 0.95), delays), loads)))
        print(f"  {law.__name__:10s} {', '.join(found)}")


def kinds():
    print("both kinds, learned on steps, tested on random loads")
    laws = {
        "published": (published, PAPER_LEVELS, 1800, 150, 4.0),
        "queueing": (queueing, np.arange(11) / 10, 1800, 150, 4.0),
        "link 100M": (link(100e6), np.arange(11) / 10, 480, 240, SAMPLE_seconds),
        "link 10M": (link(10e6), np.arange(11) / 10, 480, 240, SAMPLE_seconds),
    }
    for name, (law, levels, count, held, every_s) in laws.items():
        for kind in load.KINDS:
            rng = np.random.default_rng(1)
            learned = timed(steps(law, rng, levels, count), every_s)
            fit = load.learn(*learned, kind=kind, held_s=held * every_s)
            print(f"  {name:10s} {kind:12s}", tested(fit, timed(random_steps(law, rng, 40 * held, held), every_s)))


def timed(samples, every_s):
    delays, loads, _ = samples
    return delays, loads, (np.arange(len(loads)) * every_s * 1e9).astype(np.int64)


def tested(fit, trace):
    """A line about the fit on a trace that it has not seen."""
    model, (delays, known, _) = fit.model, trace
    told, known = load.trace_loads(model, delays), known[model.samples - 1 :]
    classes = load.trace_classes(model, delays)
    right = np.mean([load.class_of(model, at) == class_ for at, class_ in zip(known, classes, strict=True)])
    busy = known >= 0.3
    curve = min(fit.scores[name] for name in ("isotonic", "pchip")) if model.curve else fit.scores["exponential"]
    held, width = intervals(model, trace)
    return (
        f"left out {curve:.3f}, low {model.low:.2f}, w {model.w:.2f}, filter {model.percentile:g}/{model.samples}: "
        f"RMSE {rmse(known, told):.3f}, from 0.3 {rmse(known[busy], told[busy]):.3f}, class right {right:.2f}, "
        f"interval holds {held:.2f}, width {width:.2f}"
    )


def intervals(model, trace):
    """(share of loads that lie in their interval, mean width)."""
    delays, known, ts_ns = trace
    delays, rows = delays.astype(np.int64), []
    for at in range(load.HISTORY_samples, len(known), 11):
        part = slice(at - load.HISTORY_samples + 1, at + 1)
        found = load.estimate(model, ts_ns[part], delays[part])
        rows.append((found.load_low <= known[at] <= found.load_high, found.load_high - found.load_low))
    return np.mean(rows, axis=0)


if __name__ == "__main__":
    fitted_back()
    weights()
    kinds()

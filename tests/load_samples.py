"""Labelled samples for tests of the load model: paths whose delay follows load in a known way."""

import numpy as np

A_ns, B = 3.61e4, 6.218  # the paper's
BASE_ns, SERVICE_ns, FULL_ns = 50e3, 600e3, 200e6
EVERY_ns = 4 * 10**9
PAPER_LEVELS = (*(at / 10 for at in range(10)), 0.95, 1.0)


def published(load, rng, scatter=0.283):
    """Delays of the paper's path: log-normal around a e^(b x), and congested from 0.95 on.

    With 0.283 R2 of the delays below congestion is 0.89.
    """
    delay = A_ns * np.exp(B * load + rng.normal(0, scatter, load.shape))
    return np.where(load >= 0.95, 1e9, delay)


def queueing(load, rng):
    """Delays past a queue with random arrivals: with probability `load` a wait, exponential with mean s / (1 - load);
    above a base that scatters a little. At load 1 the buffer is full.
    """
    mean = SERVICE_ns / np.maximum(1 - load, 1e-9)
    wait = np.where(rng.random(load.shape) < load, rng.exponential(1.0, load.shape) * mean, 0.0)
    delay = BASE_ns * np.exp(rng.normal(0, 0.2, load.shape)) + wait
    return np.where(load >= 1, FULL_ns * rng.uniform(0.8, 1.0, load.shape), delay)


def samples(path, load, rng):
    """(delays, loads, times) at the loads, one every 4 s."""
    load = np.asarray(load, float)
    return np.floor(path(load, rng)), load, np.arange(len(load)) * EVERY_ns


def steps(path, rng, levels, count):
    """One level after the other."""
    return samples(path, np.repeat(levels, count), rng)


def random_steps(path, rng, count, held):
    """Loads of 0, 0.05 ... 1 at random, each held for `held` samples."""
    return samples(path, np.repeat(rng.integers(0, 21, count // held) / 20, held), rng)

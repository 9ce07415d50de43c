"""What the machine itself gives, to read ratios by: on shared hosts two cores may be one, and memory twice as slow as
an hour ago. Arithmetic in registers and dependent loads, nothing of qoetap.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

SPINS, LOADS = 20_000_000, 1_000_000
MEMORY_bytes = 256 << 20  # beyond any cache


@njit(nogil=True)
def spin(count):
    """Eight independent chains of shifts: they fill a core's arithmetic units."""
    a, b, c, d, e, f, g, h = 1, 2, 3, 4, 5, 6, 7, 8
    for i in range(count):
        a, b, c, d = a ^ a << 1 ^ i, b ^ b << 3 ^ i, c ^ c << 5 ^ i, d ^ d << 7 ^ i
        e, f, g, h = e ^ e << 2 ^ i, f ^ f << 4 ^ i, g ^ g << 6 ^ i, h ^ h << 8 ^ i
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h


@njit(nogil=True)
def follow(links, count):
    """`count` loads, each from where the one before says."""
    at = 0
    for _ in range(count):
        at = links[at]
    return at


def seconds_of(call, *args):
    started = time.perf_counter()
    call(*args)
    return time.perf_counter() - started


def spin_rates(pool):
    """Spins per second of one thread alone and of two at once."""
    alone = seconds_of(spin, SPINS)
    both = seconds_of(lambda: list(pool.map(spin, [SPINS] * 2)))
    return SPINS / alone, 2 * SPINS / both


def load_ns(links):
    """Time of a load from memory at random, ns."""
    return seconds_of(follow, links, LOADS) / LOADS * 1e9


def links_over(size):
    """One circle through all cache lines of `size` bytes, in random order."""
    lines = np.random.default_rng(1).permutation(size // 64) * 8
    links = np.zeros(size // 8, np.int64)
    links[lines] = np.roll(lines, -1)
    return links


class Limits:
    """Asked again and again between measurements."""

    def __init__(self):
        self.pool, self.links = ThreadPoolExecutor(2), links_over(MEMORY_bytes)
        spin(1), follow(self.links, 1)

    def now(self):
        """{one_core: spins per second, two_cores: how many times that two threads make, load_ns: of a random load}."""
        one, two = spin_rates(self.pool)
        return {"one_core": one, "two_cores": two / one, "load_ns": load_ns(self.links)}

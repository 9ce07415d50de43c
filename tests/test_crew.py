"""The crew: every block is decoded once, seen by each share in order, settled in order, whoever does it."""

import random
import threading
import time

import pytest

from dataplane.crew import Crew
from dataplane.engine import shares_of

AHEAD = 4


class Work:
    """Blocks 0 to count - 1; what was done to them, in the order of its end."""

    def __init__(self, count, shares, seed=0, fails=()):
        self.count, self.taken, self.in_hand, self.most = count, 0, 0, 0
        self.decoded, self.settled = [], []
        self.seen, self.threads = [[] for _ in range(shares)], [set() for _ in range(shares)]
        self.rng, self.fails, self.lock = random.Random(seed), fails, threading.Lock()
        self.readers = set()

    def dawdle(self, what):
        if what in self.fails:
            raise OSError(what)
        time.sleep(self.rng.random() / 2000)

    def read(self):
        self.readers.add(threading.get_ident())
        self.dawdle("read")
        if self.taken == self.count:
            return None
        with self.lock:
            self.taken, self.in_hand = self.taken + 1, self.in_hand + 1
            self.most = max(self.most, self.in_hand)
        return self.taken - 1

    def decode(self, slot, number):
        assert slot == number % AHEAD
        self.dawdle("decode")
        self.decoded.append(number)

    def detect(self, share, slot, number):
        assert number in self.decoded
        self.dawdle("detect")
        self.seen[share].append(number)
        self.threads[share].add(threading.get_ident())

    def settle(self, slot, number):
        assert all(number in seen for seen in self.seen)
        self.dawdle("settle")
        self.settled.append(number)
        with self.lock:
            self.in_hand -= 1


def crew(workers, work):
    return Crew(workers, shares_of(workers), AHEAD, work.read, work.decode, work.detect, work.settle)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("workers", [2, 3, 4, 7])
def test_every_block_once_and_in_order(workers, seed):
    work = Work(60, shares_of(workers), seed)
    crew(workers, work).run()
    every = list(range(60))
    assert sorted(work.decoded) == every and work.settled == every
    assert all(seen == every for seen in work.seen)
    assert all(len(threads) == 1 for threads in work.threads)
    assert work.readers == {threading.get_ident()} and work.most <= AHEAD


def test_nothing_to_read():
    work = Work(0, 1)
    crew(2, work).run()
    assert work.settled == []


@pytest.mark.parametrize("what", ["read", "decode", "detect", "settle"])
def test_what_one_raises_all_hear(what):
    before = threading.active_count()
    with pytest.raises(OSError, match=what):
        crew(4, Work(9, 2, fails=(what,))).run()
    assert threading.active_count() == before

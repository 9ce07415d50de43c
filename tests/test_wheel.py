"""The timing wheel against a dict."""

import random

import numpy as np
import pytest

from dataplane.records import JIT, NEVER
from dataplane.wheel import (
    NODE,
    NOWHERE,
    SORTED,
    TICK_BITS,
    WHEEL_TICKS,
    advance,
    delist,
    enlist,
    first_due,
    move,
    nearest,
    new_wheel,
    wheel_bytes,
    wheel_places,
)

TICK_NS = 1 << TICK_BITS
TURN_NS = WHEEL_TICKS * TICK_NS
SECOND_NS = 10**9


class Twin:
    """A wheel and what must be in it: {thing: due}."""

    def __init__(self, things):
        self.wheel, self.dues = new_wheel(things), {}
        self.at = wheel_places(self.wheel)

    def put(self, thing, due, now):
        (move if thing in self.dues else enlist)(self.at, thing, due, now)
        self.dues[thing] = due

    def drop(self, thing):
        delist(self.at, thing)
        del self.dues[thing]

    def pop(self, now):
        """Take out all that is due, in order; [(due, thing)]."""
        found = []
        advance(self.at, now)
        while (thing := int(first_due(self.at, now))) != NOWHERE:
            found.append((self.dues[thing], thing))
            self.drop(thing)
        return found

    def check(self):
        """Every thing is in one place, and every bit and link says so."""
        assert nearest(self.at) == min(self.dues.values(), default=NEVER)
        nodes, control, listed = self.wheel.nodes, self.wheel.control[0], set()
        own = np.arange(control.things, len(nodes))
        lists = own[nodes["after"][own] != own]
        assert (nodes["before"][own] != own).sum() == len(lists)
        assert (np.unpackbits(self.wheel.bits.view(np.uint8), bitorder="little") == (nodes["after"][own] != own)).all()
        for head in lists.tolist():
            thing = head
            while (after := int(nodes["after"][thing])) != head:
                assert int(nodes["before"][after]) == thing
                listed.add(after)
                thing = after
        heap = self.wheel.heap[: control.sorted].tolist()
        assert all(nodes["after"][thing] == at and nodes["before"][thing] == SORTED for at, thing in enumerate(heap))
        assert len(listed) == control.listed and listed.isdisjoint(heap) and listed | set(heap) == set(self.dues)


STEPS_NS = (0, 1, TICK_NS - 1, TICK_NS, 5 * TICK_NS, SECOND_NS, TURN_NS - 1, TURN_NS, TURN_NS + 1, 3 * TURN_NS)


@pytest.mark.parametrize("seed", range(30 if JIT else 10))
def test_random_times(seed):
    rng = random.Random(seed)
    twin, now = Twin(things := rng.choice((1, 5, 70))), rng.choice((0, TICK_NS, 10**15 + 7, -5 * TURN_NS))
    for turn in range(400):
        thing = rng.randrange(things)
        if rng.random() < 0.1 and thing in twin.dues:
            twin.drop(thing)
        elif rng.random() < 0.7:
            twin.put(thing, now + rng.choice((*STEPS_NS, rng.randrange(SECOND_NS), rng.randrange(9 * TURN_NS))), now)
        if rng.random() < 0.3:
            now += rng.choice((*STEPS_NS, rng.randrange(TICK_NS), rng.randrange(SECOND_NS)))
            expected = sorted(due for due in twin.dues.values() if due <= now)
            found = twin.pop(now)
            assert [due for due, _ in found] == expected
        assert nearest(twin.at) == min(twin.dues.values(), default=NEVER)
        if turn % 100 == 99:
            twin.check()
    left = len(twin.dues)
    assert len(twin.pop(now + 20 * TURN_NS)) == left
    twin.check()


def test_many_in_one_tick_leave_in_order():
    twin, rng = Twin(500), random.Random(1)
    dues = [10 * TICK_NS + rng.randrange(TICK_NS) for _ in range(500)]
    for thing, due in enumerate(dues):
        twin.put(thing, due, 0)
    middle = 10 * TICK_NS + TICK_NS // 2
    assert [due for due, _ in twin.pop(middle)] == sorted(due for due in dues if due <= middle)
    assert nearest(twin.at) == min(due for due in dues if due > middle)
    assert [due for due, _ in twin.pop(11 * TICK_NS)] == sorted(due for due in dues if due > middle)
    twin.check()


def test_the_last_tick_of_a_turn_hides_nothing_nearer():
    """What is due beyond a turn is listed before things that are due earlier."""
    twin = Twin(3)
    twin.put(0, 9 * TURN_NS, 0)
    twin.put(1, 8 * TURN_NS + 5, 0)
    assert nearest(twin.at) == 8 * TURN_NS + 5
    assert twin.pop(10 * TICK_NS) == []
    twin.put(2, TURN_NS + 5 * TICK_NS, 10 * TICK_NS)
    assert nearest(twin.at) == TURN_NS + 5 * TICK_NS
    assert twin.pop(TURN_NS + 5 * TICK_NS) == [(TURN_NS + 5 * TICK_NS, 2)]
    assert nearest(twin.at) == 8 * TURN_NS + 5
    assert [thing for _, thing in twin.pop(9 * TURN_NS)] == [1, 0]


def test_a_clock_that_stands_or_goes_back():
    twin = Twin(2)
    twin.put(0, 100 * TICK_NS, 50 * TICK_NS)
    assert twin.pop(60 * TICK_NS) == [] and twin.pop(40 * TICK_NS) == []
    twin.put(1, 41 * TICK_NS, 40 * TICK_NS)
    assert nearest(twin.at) == 41 * TICK_NS
    assert twin.pop(41 * TICK_NS) == [(41 * TICK_NS, 1)]
    twin.check()


def test_nothing():
    twin = Twin(0)
    assert twin.pop(10**18) == []
    twin.check()


def test_memory_is_as_announced():
    wheel = new_wheel(1000)
    assert wheel_bytes(1000) == sum(array.nbytes for array in wheel)
    assert NODE.itemsize == 16

"""Things by the time at which each is due: a hashed timing wheel (Varghese and Lauck, "Hashed and hierarchical timing
wheels") with a bit for each tick that lists anything. Knows numbers and times only; `now` is an argument.

A thing is in one place: nowhere, in the list of its tick, or sorted. As the wheel turns, the ticks that have come are
emptied into a heap, so things leave in the exact order of their times, however many one tick lists. A thing due beyond
a turn is listed in the turn's last tick and placed anew when that has come.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.memory import lowest_bit, memory, put, row_at, word
from dataplane.records import NEVER, rows, zeros

TICK_BITS = 16  # 2**16 ns = 65.5 us
WHEEL_TICKS = 16384  # 1.07 s

NODE = np.dtype(
    [
        ("due", np.int64),  # ns
        ("after", np.int32),  # the next node of its list; of a sorted one its place in the heap
        ("before", np.int32),  # the one before, or one of these two
    ],
    align=True,
)
NOWHERE, SORTED = -1, -2
ONE, ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)

WHEEL = np.dtype(
    [
        ("now", np.int64),  # tick to which it has been turned
        ("things", np.int64),  # nodes from 0 on; those behind are the heads of the lists
        ("listed", np.int64),
        ("sorted", np.int64),
    ],
    align=True,
)


class Wheel(NamedTuple):
    """The arrays of a wheel."""

    nodes: np.ndarray
    heap: np.ndarray  # uint64, numbers of things; none is due before its parent (i - 1) >> 1
    bits: np.ndarray  # uint64, one bit a tick: its list is not empty
    control: np.ndarray


def new_wheel(things):
    """A wheel for the things 0 to `things` - 1, all of them nowhere."""
    nodes, control = rows(NODE, things + WHEEL_TICKS), rows(WHEEL, 1)
    nodes["before"][:things] = NOWHERE
    for link in ("after", "before"):
        nodes[link][things:] = np.arange(things, len(nodes))
    control[0].things = things
    return Wheel(nodes, zeros(8 * things).view(np.uint64), zeros(WHEEL_TICKS // 8).view(np.uint64), control)


def wheel_bytes(things):
    """Memory of a wheel."""
    return (things + WHEEL_TICKS) * NODE.itemsize + 8 * things + WHEEL_TICKS // 8 + WHEEL.itemsize


@njit(forceinline=True)
def wheel_places(wheel):
    """Handles of a wheel's arrays (see memory.py), under the same names: what the functions below take as `at`."""
    return Wheel(memory(wheel.nodes), memory(wheel.heap), memory(wheel.bits), memory(wheel.control))


@njit(forceinline=True)
def enlist(at, thing, due, now):
    """Place a thing that is nowhere."""
    control = row_at(at.control, 0, WHEEL)
    if control.listed == 0:
        control.now = max(control.now, now >> TICK_BITS)
    row_at(at.nodes, thing, NODE).due = due
    place(at, thing)


@njit(forceinline=True)
def delist(at, thing):
    """Take a thing from where it is."""
    node = row_at(at.nodes, thing, NODE)
    if node.before == SORTED:
        unsort(at, np.int64(node.after))
    else:
        unlink(at, node)
    node.before = NOWHERE


@njit(forceinline=True)
def move(at, thing, due, now):
    """Place a thing anew."""
    node = row_at(at.nodes, thing, NODE)
    if node.before == SORTED and due >> TICK_BITS <= row_at(at.control, 0, WHEEL).now:
        node.due = due
        sift(at, np.int64(node.after))
    else:
        delist(at, thing)
        enlist(at, thing, due, now)


@njit
def advance(at, now):
    """Turn the wheel: sort what is listed in ticks up to that of `now`."""
    control = row_at(at.control, 0, WHEEL)
    first, last = control.now + 1, min(now >> TICK_BITS, control.now + WHEEL_TICKS - 1)
    control.now = max(control.now, now >> TICK_BITS)
    tick = next_tick(at, first, last)
    while tick <= last:
        number = head_of(control, tick)
        head = row_at(at.nodes, number, NODE)
        thing = np.int64(head.after)
        head.after = head.before = number
        clear_bit(at, tick)
        while thing != number:
            following = np.int64(row_at(at.nodes, thing, NODE).after)
            control.listed -= 1
            place(at, thing)
            thing = following
        tick = next_tick(at, tick + 1, last)


@njit(forceinline=True)
def first_due(at, now):
    """The thing that is due first, if that is by `now`, to which the wheel has been turned; else NOWHERE."""
    if row_at(at.control, 0, WHEEL).sorted == 0:
        return NOWHERE
    thing = np.int64(word(at.heap, 0))
    return thing if row_at(at.nodes, thing, NODE).due <= now else NOWHERE


@njit
def nearest(at):
    """When the first thing is due; NEVER if there is none.

    What is due beyond a turn stands in too early a tick: the search ends at a tick behind which nothing can be earlier.
    """
    control, due = row_at(at.control, 0, WHEEL), NEVER
    if control.sorted:
        return row_at(at.nodes, np.int64(word(at.heap, 0)), NODE).due
    last = control.now + WHEEL_TICKS - 1 if control.listed else control.now
    tick = next_tick(at, control.now + 1, last)
    while tick <= last and due >> TICK_BITS >= tick:
        number = head_of(control, tick)
        thing = np.int64(row_at(at.nodes, number, NODE).after)
        while thing != number:
            node = row_at(at.nodes, thing, NODE)
            due, thing = min(due, node.due), np.int64(node.after)
        tick = next_tick(at, tick + 1, last)
    return due


# --- lists


@njit(forceinline=True)
def place(at, thing):
    """Sort a thing or list it, by its time."""
    control, node = row_at(at.control, 0, WHEEL), row_at(at.nodes, thing, NODE)
    tick = node.due >> TICK_BITS
    if tick <= control.now:
        node.before = SORTED
        control.sorted += 1
        set_place(at, control.sorted - 1, thing)
        sift(at, control.sorted - 1)
        return
    tick = min(tick, control.now + WHEEL_TICKS - 1)
    number = head_of(control, tick)
    head = row_at(at.nodes, number, NODE)
    node.after, node.before = number, head.before
    row_at(at.nodes, np.int64(head.before), NODE).after = thing
    head.before = thing
    index = (tick & WHEEL_TICKS - 1) >> 6
    put(at.bits, index, word(at.bits, index) | ONE << np.uint64(tick & 63))
    control.listed += 1


@njit(forceinline=True)
def unlink(at, node):
    """Take a node from its list."""
    after, before, control = np.int64(node.after), np.int64(node.before), row_at(at.control, 0, WHEEL)
    row_at(at.nodes, before, NODE).after, row_at(at.nodes, after, NODE).before = after, before
    if after == before:  # only a head is left
        clear_bit(at, after - control.things)
    control.listed -= 1


@njit(forceinline=True)
def head_of(control, tick):
    """The node that is the head of a tick's list."""
    return control.things + (tick & WHEEL_TICKS - 1)


@njit(forceinline=True)
def clear_bit(at, tick):
    index = (tick & WHEEL_TICKS - 1) >> 6
    put(at.bits, index, word(at.bits, index) & ~(ONE << np.uint64(tick & 63)))


@njit(forceinline=True)
def next_tick(at, tick, last):
    """The first tick from `tick` to `last`, at most a turn, that lists anything; one behind `last` if none does."""
    while tick <= last:
        start = tick & 63
        there = word(at.bits, (tick & WHEEL_TICKS - 1) >> 6) & ALL << np.uint64(start)
        if there != np.uint64(0):
            return min(tick - start + lowest_bit(np.int64(there)), last + 1)
        tick += 64 - start
    return last + 1


# --- the heap


@njit(forceinline=True)
def set_place(at, index, thing):
    put(at.heap, index, np.uint64(thing))
    row_at(at.nodes, thing, NODE).after = index


@njit(forceinline=True)
def due_at(at, index):
    """When the thing at a place of the heap is due."""
    return row_at(at.nodes, np.int64(word(at.heap, index)), NODE).due


@njit
def sift(at, index):
    """Bring the thing at `index`, whose time may be any, to its place in the heap."""
    thing, size = np.int64(word(at.heap, index)), row_at(at.control, 0, WHEEL).sorted
    due = row_at(at.nodes, thing, NODE).due
    while index > 0 and due_at(at, index - 1 >> 1) > due:
        set_place(at, index, np.int64(word(at.heap, index - 1 >> 1)))
        index = index - 1 >> 1
    while 2 * index + 1 < size:
        child = 2 * index + 1
        if child + 1 < size and due_at(at, child + 1) < due_at(at, child):
            child += 1
        if due_at(at, child) >= due:
            break
        set_place(at, index, np.int64(word(at.heap, child)))
        index = child
    set_place(at, index, thing)


@njit(forceinline=True)
def unsort(at, index):
    """Take the thing at `index` from the heap."""
    control = row_at(at.control, 0, WHEEL)
    control.sorted -= 1
    if index < control.sorted:
        set_place(at, index, np.int64(word(at.heap, control.sorted)))
        sift(at, index)

"""Things by the time at which each is due: a hashed timing wheel (Varghese and Lauck, "Hashed and hierarchical timing
wheels") with a bit for each tick that lists anything. Knows numbers and times only; `now` is an argument.

A thing is in one place: nowhere, in the list of its tick, or sorted. As the wheel turns, the ticks that have come are
emptied into a heap, so things leave in the exact order of their times, however many one tick lists. A thing due beyond
a turn is listed in the turn's last tick and placed anew when that has come.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.memory import lowest_bit
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
    heap: np.ndarray  # int32, numbers of things; none is due before its parent (i - 1) >> 1
    bits: np.ndarray  # int64, one bit a tick: its list is not empty
    control: np.ndarray


def new_wheel(things):
    """A wheel for the things 0 to `things` - 1, all of them nowhere."""
    nodes, control = rows(NODE, things + WHEEL_TICKS), rows(WHEEL, 1)
    nodes["before"][:things] = NOWHERE
    for link in ("after", "before"):
        nodes[link][things:] = np.arange(things, len(nodes))
    control[0].things = things
    return Wheel(nodes, zeros(4 * things).view(np.int32), zeros(WHEEL_TICKS // 8).view(np.int64), control)


def wheel_bytes(things):
    """Memory of a wheel."""
    return (things + WHEEL_TICKS) * NODE.itemsize + 4 * things + WHEEL_TICKS // 8 + WHEEL.itemsize


@njit(forceinline=True)
def enlist(wheel, thing, due, now):
    """Place a thing that is nowhere."""
    control = wheel.control[0]
    if control.listed == 0:
        control.now = max(control.now, now >> TICK_BITS)
    wheel.nodes[thing].due = due
    place(wheel, thing)


@njit(forceinline=True)
def delist(wheel, thing):
    """Take a thing from where it is."""
    node = wheel.nodes[thing]
    if node.before == SORTED:
        unsort(wheel, np.int64(node.after))
    else:
        unlink(wheel, node)
    node.before = NOWHERE


@njit(forceinline=True)
def move(wheel, thing, due, now):
    """Place a thing anew."""
    node = wheel.nodes[thing]
    if node.before == SORTED and due >> TICK_BITS <= wheel.control[0].now:
        node.due = due
        sift(wheel, np.int64(node.after))
    else:
        delist(wheel, thing)
        enlist(wheel, thing, due, now)


@njit
def advance(wheel, now):
    """Turn the wheel: sort what is listed in ticks up to that of `now`."""
    control, nodes = wheel.control[0], wheel.nodes
    first, last = control.now + 1, min(now >> TICK_BITS, control.now + WHEEL_TICKS - 1)
    control.now = max(control.now, now >> TICK_BITS)
    tick = next_tick(wheel, first, last)
    while tick <= last:
        head = control.things + (tick & WHEEL_TICKS - 1)
        thing = np.int64(nodes[head].after)
        nodes[head].after = nodes[head].before = head
        set_bit(wheel, head, 0)
        while thing != head:
            following = np.int64(nodes[thing].after)
            control.listed -= 1
            place(wheel, thing)
            thing = following
        tick = next_tick(wheel, tick + 1, last)


@njit(forceinline=True)
def first_due(wheel, now):
    """The thing that is due first, if that is by `now`, to which the wheel has been turned; else NOWHERE."""
    if wheel.control[0].sorted == 0:
        return NOWHERE
    thing = np.int64(wheel.heap[0])
    return thing if wheel.nodes[thing].due <= now else NOWHERE


@njit
def nearest(wheel):
    """When the first thing is due; NEVER if there is none.

    What is due beyond a turn stands in too early a tick: the search ends at a tick behind which nothing can be earlier.
    """
    control, nodes, due = wheel.control[0], wheel.nodes, NEVER
    if control.sorted:
        return nodes[np.int64(wheel.heap[0])].due
    last = control.now + WHEEL_TICKS - 1 if control.listed else control.now
    tick = next_tick(wheel, control.now + 1, last)
    while tick <= last and due >> TICK_BITS >= tick:
        head = control.things + (tick & WHEEL_TICKS - 1)
        thing = np.int64(nodes[head].after)
        while thing != head:
            due, thing = min(due, nodes[thing].due), np.int64(nodes[thing].after)
        tick = next_tick(wheel, tick + 1, last)
    return due


# --- lists


@njit
def place(wheel, thing):
    """Sort a thing or list it, by its time."""
    control, nodes = wheel.control[0], wheel.nodes
    node = nodes[thing]
    tick = node.due >> TICK_BITS
    if tick <= control.now:
        node.before, node.after = SORTED, control.sorted
        wheel.heap[control.sorted] = thing
        control.sorted += 1
        sift(wheel, control.sorted - 1)
        return
    head = control.things + (min(tick, control.now + WHEEL_TICKS - 1) & WHEEL_TICKS - 1)
    node.after, node.before = head, nodes[head].before
    nodes[np.int64(node.before)].after = nodes[head].before = thing
    set_bit(wheel, head, 1)
    control.listed += 1


@njit(forceinline=True)
def unlink(wheel, node):
    """Take a node from its list."""
    after, before = np.int64(node.after), np.int64(node.before)
    wheel.nodes[before].after, wheel.nodes[after].before = after, before
    if after == before:  # only a head is left
        set_bit(wheel, after, 0)
    wheel.control[0].listed -= 1


@njit(forceinline=True)
def set_bit(wheel, head, value):
    tick = head - wheel.control[0].things
    bit = np.int64(1) << (tick & 63)
    wheel.bits[tick >> 6] = wheel.bits[tick >> 6] & ~bit | bit * value


@njit(forceinline=True)
def next_tick(wheel, tick, last):
    """The first tick from `tick` to `last`, at most a turn, that lists anything; one behind `last` if none does."""
    while tick <= last:
        start = tick & 63
        word = wheel.bits[(tick & WHEEL_TICKS - 1) >> 6] & (np.int64(-1) << start)
        if word:
            return min(tick - start + lowest_bit(word), last + 1)
        tick += 64 - start
    return last + 1


# --- the heap


@njit(forceinline=True)
def set_place(wheel, at, thing):
    wheel.heap[at] = thing
    wheel.nodes[thing].after = at


@njit
def sift(wheel, at):
    """Bring the thing at `at`, whose time may be any, to its place in the heap."""
    heap, nodes, size = wheel.heap, wheel.nodes, wheel.control[0].sorted
    thing = np.int64(heap[at])
    due = nodes[thing].due
    while at > 0 and nodes[np.int64(heap[at - 1 >> 1])].due > due:
        set_place(wheel, at, np.int64(heap[at - 1 >> 1]))
        at = at - 1 >> 1
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and nodes[np.int64(heap[child + 1])].due < nodes[np.int64(heap[child])].due:
            child += 1
        if nodes[np.int64(heap[child])].due >= due:
            break
        set_place(wheel, at, np.int64(heap[child]))
        at = child
    set_place(wheel, at, thing)


@njit(forceinline=True)
def unsort(wheel, at):
    """Take the thing at `at` from the heap."""
    control = wheel.control[0]
    control.sorted -= 1
    if at < control.sorted:
        set_place(wheel, at, np.int64(wheel.heap[control.sorted]))
        sift(wheel, at)

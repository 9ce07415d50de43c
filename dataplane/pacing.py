"""Pacing: when a packet of a class may leave. Knows no socket and no clock; `now` is an argument, ns of a clock that
never runs backwards (CLOCK_MONOTONIC).

A packet that waits stays in the kernel; what is held is its verdict to come. Each class has a FIFO of those and one
place in the timing wheel, for the first of them. With the bits of a packet, `length` * 8, and the class's `rate`:

    depart = max(now - credit, next)    the packet leaves when now >= depart
    next = depart + bits / rate         exact: ns and a rest in 1 / rate ns

so over any time t a class sends at most rate * (t + credit) bits and one packet, and catches up what a late call cost
it, up to `credit`. A changed rate acts on what is held: what the class owes or has earned is kept in bits.

Lengths are bytes of the IP packet, below 2**30.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.memory import memory, row_at
from dataplane.records import NEVER, NF_ACCEPT, NF_DROP, rows
from dataplane.wheel import (
    NODE,
    Wheel,
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

BYTE_WORK = 8 * 10**9  # of one byte at 1 bit/s, ns
CREDIT_ns = 4 * 10**6

SET_MARK, SET_CE, SET_DSCP = 1, 2, 4  # VERDICT.flags
NO_SLOT = -1

VERDICT = np.dtype(  # also of a packet that is held
    [
        ("arrived", np.int64),  # ns, if it was held
        ("id", np.uint32),  # the same as in META
        ("queue", np.int32),
        ("mark", np.uint32),  # with SET_MARK
        ("length", np.uint32),  # bytes
        ("class_index", np.int32),
        ("slot", np.int32),  # in which it was held, NO_SLOT: in none
        ("after", np.int32),  # the next slot of the same class, or the next free one
        ("verdict", np.uint8),  # NF_ACCEPT or NF_DROP
        ("flags", np.uint8),
        ("dscp", np.uint8),  # with SET_DSCP
    ],
    align=True,
)

CLASS = np.dtype(
    [
        # Settings
        ("rate", np.int64),  # bit/s; 0: unpaced
        ("credit_ns", np.int64),
        ("limit_bytes", np.int64),  # that may be held
        ("limit_ns", np.int64),  # that a packet may be expected to wait
        ("mark_ns", np.int64),  # from which on ECN-capable packets get CE (RFC 3168); NEVER: none do
        # State
        ("next", np.int64),  # ns
        ("rest", np.int64),  # and so many 1 / rate ns
        ("held", np.int64),  # packets now
        ("held_bytes", np.int64),
        ("first", np.int32),  # slots of the FIFO's ends, while packets are held
        ("last", np.int32),
        # Settings: what every packet of the class is given
        ("mark", np.uint32),  # bits of the firewall mark within the mask
        ("mark_mask", np.uint32),
        ("dscp", np.int16),  # -1: as it was
        # Counters: packets = passed + released + flushed + over_bytes + over_time + no_room + held
        ("packets", np.int64),  # offered
        ("bytes", np.int64),
        ("sent_bytes", np.int64),  # accepted
        ("passed", np.int64),  # at once: unpaced or due
        ("released", np.int64),  # when they were due
        ("flushed", np.int64),
        ("over_bytes", np.int64),  # dropped
        ("over_time", np.int64),
        ("no_room", np.int64),  # accepted at once, for no slot was free: the network outlives us
        ("marked", np.int64),  # CE
        ("wait_max", np.int64),  # ns
    ],
    align=True,
)

PACING = np.dtype(
    [
        ("classes", np.int64),
        ("free", np.int64),  # the first free slot
        ("held", np.int64),  # packets in all
        ("held_max", np.int64),  # the most there were
        ("late_max", np.int64),  # ns by which a release came after a packet was due; the reader may set it to 0
    ],
    align=True,
)


class Pacer(NamedTuple):
    """The arrays of a pacer."""

    classes: np.ndarray
    held: np.ndarray  # VERDICT rows, the slots
    wheel: Wheel
    control: np.ndarray


def new_classes(count):
    """CLASS rows that pace nothing and have no limits."""
    classes = rows(CLASS, count)
    classes["credit_ns"], classes["dscp"] = CREDIT_ns, -1
    for name in ("limit_bytes", "limit_ns", "mark_ns"):
        classes[name] = NEVER
    return classes


def new_pacer(classes, held_capacity):
    """A pacer of the CLASS rows given, which holds at most `held_capacity` packets."""
    held, control = rows(VERDICT, held_capacity), rows(PACING, 1)
    held["after"] = np.arange(1, held_capacity + 1)
    held["after"][-1:] = NO_SLOT
    control[0].classes = len(classes)
    control[0].free = 0 if held_capacity else NO_SLOT
    return Pacer(classes, held, new_wheel(len(classes)), control)


def pacer_bytes(classes, held_capacity):
    """Memory of a pacer for so many classes."""
    return classes * CLASS.itemsize + held_capacity * VERDICT.itemsize + wheel_bytes(classes) + PACING.itemsize


@njit
def places(pacer):
    """Handles of a pacer's arrays (see memory.py), under the same names: what the functions below take as `at`."""
    wheel = wheel_places(pacer.wheel)
    return Pacer(memory(pacer.classes), memory(pacer.held), wheel, memory(pacer.control))


@njit(forceinline=True)
def class_at(at, index):
    """The CLASS row of a class."""
    return row_at(at.classes, index, CLASS)


@njit(forceinline=True)
def prepare(verdict, meta, length, row):
    """Begin the VERDICT row of a packet of the class `row`, of `length` bytes. Its mark and DSCP may be changed yet."""
    verdict.id, verdict.queue, verdict.length = meta.id, meta.queue, length
    verdict.mark = (meta.mark & ~row.mark_mask) | (row.mark & row.mark_mask)
    verdict.flags = (SET_MARK if row.mark_mask else 0) | (SET_DSCP if row.dscp >= 0 else 0)
    verdict.dscp = max(0, row.dscp)


@njit(forceinline=True)
def offer(at, index, verdict, tos, now):
    """Offer a packet to its class; whether `verdict` is complete and to be sent at once. If not, it is held.

    index: of the class; verdict: as left by `prepare`; tos: ToS or traffic class. If the packet is held, verdict.slot
    says where: should bytes of it be kept, they are good until that slot is taken anew, by an offer after its release.
    """
    row, length = class_at(at, index), np.int64(verdict.length)
    row.packets += 1
    row.bytes += length
    verdict.class_index, verdict.slot = index, NO_SLOT
    if row.held == 0 and (row.rate == 0 or due_of(row) <= now):
        depart(row, length, now)
        row.passed += 1
        return accept(row, verdict)
    wait = expected_wait(row, now)
    if row.held_bytes + length > row.limit_bytes:
        row.over_bytes += 1
        return drop(verdict)
    if wait > row.limit_ns:
        row.over_time += 1
        return drop(verdict)
    if row_at(at.control, 0, PACING).free == NO_SLOT:
        row.no_room += 1
        return accept(row, verdict)
    if wait > row.mark_ns and (tos & 3 == 1 or tos & 3 == 2):  # ECT(1), ECT(0)
        verdict.flags |= SET_CE
        row.marked += 1
    hold(at, index, row, verdict, now)
    return False


@njit
def release(at, now, verdicts, room):
    """Write the VERDICT rows of at most `room` packets that are due, in the order of their departure; how many.

    If `room` were written there may be more: call again.
    """
    made = 0
    advance(at.wheel, now)
    index = first_due(at.wheel, now)
    if index >= 0 and room > 0:
        control = row_at(at.control, 0, PACING)
        control.late_max = max(control.late_max, now - row_at(at.wheel.nodes, index, NODE).due)
    while index >= 0 and made < room:
        row = class_at(at, index)
        let_go(at, row, now, verdicts[made])
        row.released += 1
        forgive(row, np.int64(verdicts[made].length), now)
        depart(row, np.int64(verdicts[made].length), now)
        made += 1
        if row.held:
            move(at.wheel, index, due_of(row) if row.rate else now, now)
        else:
            delist(at.wheel, index)
        index = first_due(at.wheel, now)
    return made


@njit
def flush(at, now, verdicts, room):
    """Write accepting VERDICT rows of at most `room` packets that are held, class by class; how many.

    If `room` were written there may be more: call again. No class is charged.
    """
    made = 0
    for index in range(row_at(at.control, 0, PACING).classes):
        row = class_at(at, index)
        while row.held and made < room:
            let_go(at, row, now, verdicts[made])
            row.flushed += 1
            made += 1
            if row.held == 0:
                delist(at.wheel, index)
    return made


@njit
def next_due(at):
    """When `release` will find a packet, ns; NEVER if none is held."""
    return nearest(at.wheel)


@njit
def set_rate(at, index, rate, now):
    """Give a class another rate, bit/s; 0: what is held leaves with the next release.

    The bits that the class owes or has earned stay the same, those earned at most `credit` at the new rate.
    """
    row = class_at(at, index)
    if row.rate == 0:
        row.next, row.rest = now, 0
    elif rate:
        lend(row, now - min(row.credit_ns, NEVER // row.rate))
        work = (row.next - now) * row.rate + row.rest
        row.next = now + work // rate
        row.rest = work - work // rate * rate
        lend(row, now - row.credit_ns)
    row.rate = rate
    if row.held:
        move(at.wheel, index, due_of(row) if rate else now, now)


@njit
def set_rates(at, rates, now):
    """Give each class the rate in `rates` (classes,), int64 bit/s: no packet leaves in between."""
    for index in range(len(rates)):
        set_rate(at, index, rates[index], now)


@njit(forceinline=True)
def expected_wait(row, now):
    """How long a packet that comes now would be held, ns, as a float."""
    if row.rate == 0:
        return 0.0
    return max(0, due_of(row) - now) + row.held_bytes * 8e9 / row.rate


# --- a class


@njit(forceinline=True)
def due_of(row):
    """When the class may send, rounded up to ns."""
    return row.next + (row.rest > 0)


@njit(forceinline=True)
def lend(row, earliest):
    """Forget what was earned before `earliest`."""
    if row.next < earliest:
        row.next, row.rest = earliest, 0


@njit(forceinline=True)
def forgive(row, length, now):
    """Forget what a class that we let wait for too long has earned beyond its credit, but not where in the time of a
    packet it was: classes that waited for us together would else leave in step from now on.
    """
    earliest = now - row.credit_ns
    if row.rate and row.next < earliest:
        span = max(1, min(row.credit_ns, length * BYTE_WORK // row.rate))
        row.next, row.rest = earliest + (row.next - earliest) % span, 0


@njit(forceinline=True)
def depart(row, length, now):
    """Charge the class for a packet that leaves now."""
    if row.rate:
        lend(row, now - row.credit_ns)
        work = length * BYTE_WORK + row.rest
        whole = work // row.rate
        row.next += whole
        row.rest = work - whole * row.rate


@njit(forceinline=True)
def accept(row, verdict):
    verdict.verdict = NF_ACCEPT
    row.sent_bytes += np.int64(verdict.length)
    return True


@njit(forceinline=True)
def drop(verdict):
    verdict.verdict = NF_DROP
    return True


# --- the slots


@njit(forceinline=True)
def hold(at, index, row, verdict, now):
    """Put a packet at the end of the class's FIFO."""
    control = row_at(at.control, 0, PACING)
    slot = control.free
    held = row_at(at.held, slot, VERDICT)
    control.free = np.int64(held.after)
    verdict.arrived, verdict.slot, verdict.after, verdict.verdict = now, slot, NO_SLOT, NF_ACCEPT
    copy(held, verdict)
    if row.held:
        row_at(at.held, np.int64(row.last), VERDICT).after = slot
    else:
        row.first = slot
        enlist(at.wheel, index, due_of(row), now)
    row.last = slot
    row.held += 1
    row.held_bytes += np.int64(verdict.length)
    control.held += 1
    control.held_max = max(control.held_max, control.held)


@njit(forceinline=True)
def let_go(at, row, now, verdict):
    """Take the first packet from the class's FIFO; its verdict goes to `verdict`."""
    control, slot = row_at(at.control, 0, PACING), np.int64(row.first)
    held = row_at(at.held, slot, VERDICT)
    copy(verdict, held)
    length = np.int64(held.length)
    row.first = held.after
    row.held -= 1
    row.held_bytes -= length
    row.sent_bytes += length
    row.wait_max = max(row.wait_max, now - held.arrived)
    held.after = control.free
    control.free = slot
    control.held -= 1


@njit(forceinline=True)
def copy(to, row):
    """All of a VERDICT row."""
    to.arrived, to.id, to.queue, to.mark, to.length = row.arrived, row.id, row.queue, row.mark, row.length
    to.class_index, to.slot, to.after = row.class_index, row.slot, row.after
    to.verdict, to.flags, to.dscp = row.verdict, row.flags, row.dscp

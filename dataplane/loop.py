"""A detector's loop over a batch: select, locate, step, tick.

This file is executed once for each detector, by runner.bind, with DETECTOR set: so each gets a loop of its own in which
numba inlines its three functions, from one source, and keeps it on disk like any other module's.
"""

import numpy as np
from numba import njit

from dataplane.chain import AGAIN, DONE, batch_at
from dataplane.flowtable import (
    AFTER,
    BLOCK_SLOTS,
    BORN_WORD,
    CONTROL,
    DUE_WORD,
    HEAD_BYTES,
    HEAD_WORDS,
    LINE_SLOTS,
    TICK_BITS,
    WHEEL_TICKS,
    Table,
    copy_ends,
    crowded,
    delist,
    enlist,
    find,
    give_back,
    grow,
    guess,
    home_of,
    link,
    nearer,
    places,
    take,
    tick_of,
    victim,
    worker_of,
    write_ends,
)
from dataplane.memory import array_at, memory, prefetch, put, word
from dataplane.records import CHECKED, IP, KINDS, LINE_BYTES, NEVER, PACKET
from detectors.base import DUE, EMERGENCY, END, FORGET

DETECTOR: object  # set by runner.bind before this file is executed
PARAMS: np.dtype
CONTEXT: np.dtype
TURN: np.dtype
GROUP_PACKETS: int
TAG: str
key, tick = DETECTOR.key, DETECTOR.tick
step = njit(forceinline=True)(getattr(DETECTOR.step, "py_func", DETECTOR.step))  # LLVM would call it
STATE_BYTES, PACKET_ENDS, SILENT = DETECTOR.state.itemsize, DETECTOR.packet_ends, DETECTOR.silent

AHEAD_STATES = 12  # how many states ahead are asked for at the end of input
# Of a state is asked for what most packets touch, or most of it
USUAL_BYTES, WHOLE_BYTES = min(STATE_BYTES, DETECTOR.usual_bytes), min(STATE_BYTES, 16 * LINE_BYTES)
SHORT_LIVED = DETECTOR.kind != IP  # states of flows last, others come and go with every few packets
STATE_WORDS = STATE_BYTES // 8
KIND, EVENT, STATE = DETECTOR.kind, DETECTOR.event, DETECTOR.state
EVENT_BYTES, ENDS_AT = DETECTOR.event.itemsize, DETECTOR.event.fields["src"][1]

# `turn` (runner.TURN) says which worker this is and what a call left behind: the position in the list and the events
# made, so that a call whose event buffer was full can go on.
#
# Packets are taken in groups, in three short loops: while a group is stepped, the states of the next one and the keys
# of the one after that are on their way.


def named(function):
    """Jitted, under a name of the detector's own: numba files its code by it."""
    function.__qualname__ = f"{function.__name__}_{TAG}"
    return njit(nogil=True, cache=True)(function)


@njit(forceinline=True)
def fetch(at, slot, size, linked):
    """Ask for the first `size` bytes of a slot's state; with `linked` for its ends and its place in the wheel too."""
    for line in range(0, size, LINE_BYTES):
        prefetch(at.words, slot, STATE_BYTES, line)
    if linked:
        prefetch(at.links, slot, HEAD_BYTES, 0)


@njit
def ask_keys(at, keys, likely, first, last):
    """Ask for the lines of keys that the packets from `first` to `last` will be looked for in, and note these."""
    for i in range(np.uint64(first), np.uint64(last)):
        home = home_of(at, keys[i])
        likely[i] = home
        prefetch(at.keys, home, 8, 0)


@njit
def ask_states(at, keys, likely, first, last):
    """Ask for what their keys lead to, and note their likely slots instead."""
    for i in range(np.uint64(first), np.uint64(last)):
        slot, there = guess(at, np.int64(likely[i]) & ~(LINE_SLOTS - 1), keys[i])
        likely[i] = slot
        prefetch(at.tally, slot >> 6, 8, 0)
        fetch(at, slot, USUAL_BYTES, SHORT_LIVED)
        if not SHORT_LIVED:
            # Only of a new state; else the same line again, for a branch would often be guessed wrong
            prefetch(at.words if there else at.links, slot, STATE_BYTES if there else HEAD_BYTES, 0)


@njit(forceinline=True)
def emit(event, text, at, slot, code, turn):
    """Complete the event that the detector has filled; `text` is a handle of the bytes of all."""
    event.code = code
    if PACKET_ENDS:
        event.ip_version = event.proto = event.vlan = event.sport = event.dport = 0
    else:
        copy_ends(text, turn.made * EVENT_BYTES + ENDS_AT, at.ends, slot)
    turn.made += 1
    for line in range(0, EVENT_BYTES, LINE_BYTES):
        prefetch(text, turn.made, EVENT_BYTES, line)


@njit(forceinline=True)
def begin(event, ts, order, seq, cause, by_packet):
    event.ts, event.order, event.seq, event.cause, event.by_packet = ts, order, seq, cause, by_packet


@njit
def make_room(table, at, pkt, k, events, text, params, turn):
    """Emergency: the neighbour with the nearest deadline gives up its slot."""
    control = table.control[0]
    slot = victim(at, k, STATE_WORDS)
    state, event = table.states[slot], events[turn.made]
    begin(event, pkt.ts, pkt.clock, state.born, pkt.seq, 1)
    code = tick(state, pkt.clock, EMERGENCY, event, params)
    if code:
        emit(event, text, at, slot, code, turn)
    delist(at, slot)
    give_back(at, control, slot, STATE_WORDS)
    control.emergency += 1


@njit
def fire(table, at, slot, events, text, params, turn):
    """Call tick for each deadline of the slot that has come; False when the event buffer is full."""
    control, state = table.control[0], table.states[slot]
    due_tick = tick_of(state.due)
    while due_tick <= control.now:
        if turn.made >= turn.room:
            return False
        due, event = state.due, events[turn.made]
        begin(event, due, due_tick << TICK_BITS, state.born, state.born, 0)
        code = tick(state, due, DUE, event, params)
        if code:
            emit(event, text, at, slot, code, turn)
        if state.due == FORGET:
            delist(at, slot)
            give_back(at, control, slot, STATE_WORDS)
            control.expired += 1
            return True
        state.due = max(state.due, (due_tick << TICK_BITS) + 1)
        due_tick = tick_of(state.due)
    delist(at, slot)
    enlist(at, control, state, slot)
    return True


@njit
def advance(table, at, target, events, text, params, turn):
    """Turn the wheel to tick `target`; False when the event buffer is full: call again, it goes on where it was."""
    control = table.control[0]
    if not control.started:
        control.started, control.now, control.swept = 1, target, target
    control.now = max(control.now, target)
    first = max(control.swept, control.now - WHEEL_TICKS) + 1
    wheel = control.wheel
    for t in range(first, control.now + 1):
        head = wheel + (t & (WHEEL_TICKS - 1))
        slot = link(at, head, AFTER)
        while slot != head:
            following = link(at, slot, AFTER)
            fetch(at, following, WHOLE_BYTES, True)  # of a list's head nothing is there: no harm
            prefetch(at.keys, following, 8, 0)
            if not fire(table, at, slot, events, text, params, turn):
                control.swept = t - 1
                return False
            slot = following
    control.swept = control.now
    return True


@njit
def admit(at, control, mem, pkt, k):
    """The slot of a state for a new key."""
    slot = take(at, control, k)
    write_ends(at.ends, slot * HEAD_BYTES, mem, pkt)
    put(at.words, slot * STATE_WORDS + BORN_WORD, np.uint64(pkt.seq))
    put(at.words, slot * STATE_WORDS + DUE_WORD, np.uint64(NEVER))
    return slot


@njit(forceinline=True)
def settle(at, control, state, slot, clock, fresh):
    """After a step: free the state if it is done, list it anew if its deadline came nearer."""
    if state.due == FORGET:
        if not fresh:
            delist(at, slot)
        give_back(at, control, slot, STATE_WORDS)
        control.expired += 1
        return
    if state.due <= clock:
        state.due = clock + 1
    if fresh:
        enlist(at, control, state, slot)
    elif nearer(state):
        delist(at, slot)
        enlist(at, control, state, slot)


@njit
def gather(packets, index, count, chosen, keys, at, params, turn):
    """Write the row numbers of this worker's packets in `index` to `chosen` and their keys to `keys`; how many."""
    n, workers, worker = np.uint64(0), turn.workers, turn.worker
    for i in range(np.uint64(count)):
        row = np.uint64(index[i])
        pkt = packets[row]
        k = np.uint64(0) if KIND == IP and pkt.hash == np.uint64(0) else key(pkt, params)
        chosen[n], keys[n] = row, k  # written always, counted if so: no branch to guess
        mine = workers == 1 or worker_of(at, k, workers) == worker
        n += np.uint64((k != np.uint64(0)) & mine)
    return np.int64(n)


def run(buf, packets, index, count, clock, table, scratch, events, event_bytes, params, turns):
    """Step the states of this worker's packets in `index` and tick those whose time has come by `clock`.

    AGAIN when `events` is full: take them and call again.
    """
    turn, control, p, (chosen, keys, likely) = turns[0], table.control[0], params[0], scratch
    at, mem, text = places(table), memory(buf), memory(event_bytes)
    if turn.position == 0:
        turn.chosen = gather(packets, index, count, chosen, keys, at, p, turn)
        ask_keys(at, keys, likely, 0, min(2 * GROUP_PACKETS, turn.chosen))
    first, n = turn.position, turn.chosen
    ask_states(at, keys, likely, first, min(first + GROUP_PACKETS, n))
    while first < n:
        last = min(first + GROUP_PACKETS, n)
        ask_keys(at, keys, likely, min(last + GROUP_PACKETS, n), min(last + 2 * GROUP_PACKETS, n))
        ask_states(at, keys, likely, last, min(last + GROUP_PACKETS, n))
        if turn.made >= turn.room:
            turn.position = first
            return AGAIN
        for i in range(np.uint64(first), np.uint64(last)):
            pkt, k = packets[np.uint64(chosen[i])], keys[i]
            if pkt.clock >> TICK_BITS > control.swept or not control.started:
                if not advance(table, at, pkt.clock >> TICK_BITS, events, text, p, turn):
                    turn.position = i
                    return AGAIN
            slot = np.int64(likely[i])
            if word(at.keys, slot) != k:
                slot = find(at, k)
            fresh = slot < 0
            if fresh:
                while crowded(at, k) and grow(at, control, k, STATE_WORDS):
                    pass
                if crowded(at, k):
                    make_room(table, at, pkt, k, events, text, p, turn)
                slot = admit(at, control, mem, pkt, k)
            state, event = table.states[np.uint64(slot)], events[np.uint64(turn.made)]
            if not SILENT:
                begin(event, pkt.ts, pkt.clock, pkt.seq, pkt.seq, 1)
            code = step(pkt, state, event, p)
            if code:
                emit(event, text, at, slot, code, turn)
                if PACKET_ENDS:
                    write_ends(text, (turn.made - 1) * EVENT_BYTES + ENDS_AT, mem, pkt)
            settle(at, control, state, slot, pkt.clock, fresh)
        first = last
    turn.position = turn.chosen
    if control.started and not advance(table, at, clock >> TICK_BITS, events, text, p, turn):
        return AGAIN
    turn.position = 0
    return DONE


run = named(run) if CHECKED else njit(run)


def stage(context, batch):
    """The same for chain.py: a runner's CONTEXT and a BATCH, by their addresses."""
    c, b = array_at(context, 1, CONTEXT)[0], batch_at(batch)
    heads = c.slots + c.workers * WHEEL_TICKS
    table = Table(
        array_at(c.keys, c.slots, np.uint64),
        array_at(c.states, c.slots, STATE),
        array_at(c.states, c.slots * STATE_WORDS, np.uint64),
        array_at(c.links, heads * HEAD_BYTES, np.uint8),
        array_at(c.links, heads * HEAD_WORDS, np.uint64),
        array_at(c.tally, c.slots // BLOCK_SLOTS, np.uint64),
        array_at(c.used, c.sections, np.uint64),
        array_at(c.control, 1, CONTROL),
    )
    scratch = (
        array_at(c.chosen, b.rows, np.uint32),
        array_at(c.chosen_keys, b.rows, np.uint64),
        array_at(c.chosen_slots, b.rows, np.uint32),
    )
    size = b.rows + 1
    return run(
        array_at(b.buf, b.buf_bytes, np.uint8),
        array_at(b.packets, b.rows, PACKET),
        array_at(b.lists + KIND * size * 4, size, np.int32),
        array_at(b.counts, len(KINDS), np.int64)[KIND],
        b.clock,
        table,
        scratch,
        array_at(c.events, c.room, EVENT),
        array_at(c.events, c.room * EVENT_BYTES, np.uint8),
        array_at(c.params, 1, PARAMS),
        array_at(c.turns, 1, TURN),
    )


stage.__qualname__ = f"stage_{TAG}"


@named
def finish(table, slots, clock, events, event_bytes, params, turns):
    """Tick the states in `slots` for the last time, at the end of input; `events` has room for all. Events made.

    Nothing can come after it: the slots are not freed.
    """
    turn, at, text, p = turns[0], places(table), memory(event_bytes), params[0]
    turn.made = 0
    for i in range(slots.size):
        if i + AHEAD_STATES < slots.size:
            fetch(at, slots[i + AHEAD_STATES], USUAL_BYTES, False)
            prefetch(at.links, slots[i + AHEAD_STATES], HEAD_BYTES, 0)
        slot = slots[i]
        state, event = table.states[slot], events[turn.made]
        begin(event, clock, NEVER, state.born, state.born, 0)
        code = tick(state, clock, END, event, p)
        if code:
            emit(event, text, at, slot, code, turn)
    table.control[0].live -= slots.size
    return turn.made

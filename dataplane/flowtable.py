"""Key to slot: a set-associative table with deadlines. Knows no detector and no packet but its addresses.

A key belongs to one of 64 sections, whose history does not depend on how sections are shared out among workers: any
number of them finds, expires and gives up the same states. A section begins as one block of 64 slots. When a block is
nearly full, as many as there are are added and half of the states move there, as in extendible hashing (Fagin and
others, "Extendible hashing: a fast access method for dynamic files"). The first blocks of all sections lie in front,
the second ones behind them: so few states lie close together, for spread over the whole table each would be on a page
of its own, and to find the page takes longer than all else. When all of a section is in use, a block nearly full is in
emergency: each new state drives out the one of its neighbours whose deadline is nearest.

The eight keys of a cache line are compared at once. A key is in its home line or, where that was full, in the next one
of its block with room; each line counts the keys that went past it, so a search ends at the first that none has passed
(as in Facebook's F14).

Deadlines live in a hashed timing wheel (Varghese and Lauck, "Hashed and hierarchical timing wheels") of one list per
tick. A deadline that moves away costs nothing: the slot is looked at again when its old tick comes.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.memory import load64, lowest_bit, matches, memory, prefetch, put, store64, word
from dataplane.records import ENDS, LINE_BYTES, rows, zeros

BLOCK_SLOTS = 64
SECTION_BITS = 6  # of a key, its highest: the number of its section; fewer in a small table
EMERGENCY_SLOTS = 56  # a block with as many live states is nearly full
NEAR_BYTES = 8 << 20  # of states; beyond, keeping them together gains less than moving them costs
LINE_SLOTS = 8  # keys in a cache line
COUNT_BITS = 7  # of a block's tally, for each of its lines: keys that went past it; above these: live states
NEIGHBOURS = 8  # states looked at for one to give up
BORN_WORD, DUE_WORD = 0, 1  # positions in a state row, in words

# What stands beside a slot's state, one cache line: both ends, and its place in the wheel, a circular list of slots
HEAD = np.dtype([*ENDS, ("after", np.uint64), ("before", np.uint64), ("unused", np.uint64)], align=True)
HEAD_BYTES, ENDS_BYTES = HEAD.itemsize, HEAD.fields["after"][1]
HEAD_WORDS, AFTER, BEFORE = HEAD_BYTES // 8, ENDS_BYTES // 8, ENDS_BYTES // 8 + 1
assert HEAD_BYTES == LINE_BYTES

TICK_BITS = 24  # deadlines are rounded up to 2**24 ns = 16.8 ms
WHEEL_TICKS = 4096  # 69 s; later deadlines are looked at once a turn

EMPTY = np.uint64(0)  # the key of a free slot
ONE_LIVE = 1 << COUNT_BITS * (BLOCK_SLOTS // LINE_SLOTS)  # in a tally

CONTROL = np.dtype(
    [
        ("slots", np.int64),
        ("sections_shift", np.int64),  # log2 of the number of sections
        ("wheel", np.int64),  # number of the HEAD row of the wheel's first list
        ("started", np.int64),  # 0 until the first packet has set the two below
        ("now", np.int64),  # tick to which the wheel is turning
        ("swept", np.int64),  # tick up to which its lists have been looked through
        ("live", np.int64),
        ("created", np.int64),
        ("expired", np.int64),  # done, by a step or a deadline
        ("emergency", np.int64),  # given up in emergency
    ],
    align=True,
)


class Table(NamedTuple):
    """The arrays of a table. Behind the HEAD rows of the slots stand those of the wheel's lists, one a tick."""

    keys: np.ndarray  # uint64
    states: np.ndarray
    words: np.ndarray  # the same memory as `states`, as uint64: born, due and zeros are written without a row
    ends: np.ndarray  # HEAD rows as bytes
    links: np.ndarray  # the same as uint64
    tally: np.ndarray  # uint64, counts of each block
    used: np.ndarray  # uint64, slots of each section that are in use so far
    control: np.ndarray


class Places(NamedTuple):
    """Handles of a table's arrays (see memory.py), made once a kernel call."""

    keys: object
    words: object
    ends: object
    links: object
    tally: object
    used: object
    sections_shift: object  # a number


def slots_for(capacity):
    """Slots for `capacity` states: the power of two at which blocks are at most three quarters full on average."""
    slots = BLOCK_SLOTS
    while slots * 3 // 4 < capacity:
        slots *= 2
    return slots


def sections_of(slots):
    """Sections of a table."""
    return min(1 << SECTION_BITS, slots // BLOCK_SLOTS)


def table_bytes(capacity, state):
    """Memory of a table for one worker, all of it in use."""
    slots = slots_for(capacity)
    return (
        slots * (8 + state.itemsize)
        + (slots + WHEEL_TICKS) * HEAD_BYTES
        + slots // BLOCK_SLOTS * 8
        + sections_of(slots) * 8
    )


def new_tables(capacity, state, workers=1):
    """An empty table for `capacity` states of dtype `state` (a detectors.base.state_row), as each worker sees it.

    The slots are shared, a section belongs to one worker; each has a wheel and a control row of its own.
    """
    slots = slots_for(capacity)
    states = rows(state, slots)
    keys, heads = zeros(8 * slots).view(np.uint64), rows(HEAD, slots + workers * WHEEL_TICKS)
    ends, links = (np.asarray(heads).view(kind) for kind in (np.uint8, np.uint64))
    for link in (AFTER, BEFORE):
        links[slots * HEAD_WORDS + link :: HEAD_WORDS] = np.arange(slots, len(heads))  # nothing is listed
    shared = (keys, states, np.asarray(states).view(np.uint64), ends, links)
    tally, used = (zeros(8 * count).view(np.uint64) for count in (slots // BLOCK_SLOTS, sections_of(slots)))
    used[:] = BLOCK_SLOTS
    shared = (*shared, tally, used)
    return [Table(*shared, _control(slots, slots + i * WHEEL_TICKS)) for i in range(workers)]


def _control(slots, wheel):
    control = rows(CONTROL, 1)
    control[0].slots, control[0].wheel = slots, wheel
    control[0].sections_shift = sections_of(slots).bit_length() - 1
    return control


@njit(forceinline=True)
def places(table):
    control, keys, words = table.control[0], memory(table.keys), memory(table.words)
    ends, links, tally = memory(table.ends), memory(table.links), memory(table.tally)
    return Places(keys, words, ends, links, tally, memory(table.used), control.sections_shift)


@njit(forceinline=True)
def section_of(at, key):
    """The number of the key's section."""
    return np.int64(key >> np.uint64(64 - SECTION_BITS)) >> SECTION_BITS - at.sections_shift


@njit(forceinline=True)
def index_of(key):
    """The number whose low bits say where in its section a key is."""
    return np.int64(key >> np.uint64(20))


@njit(forceinline=True)
def home_of(at, key):
    """Where the line begins in which the search for a key does; its block is slot // 64."""
    section = section_of(at, key)
    index = index_of(key) & (np.int64(word(at.used, section)) - LINE_SLOTS)
    return block_at(at, section, index >> 6) | index & (BLOCK_SLOTS - 1)


@njit(forceinline=True)
def block_at(at, section, number):
    """The first slot of a section's block."""
    return (number << at.sections_shift | section) << 6


@njit(forceinline=True)
def worker_of(at, key, workers):
    """Which of `workers` owns the key's section: contiguous shares of equal size."""
    return section_of(at, key) * workers >> at.sections_shift


@njit(forceinline=True)
def next_line(line):
    """The line after, in the same block."""
    return line & ~(BLOCK_SLOTS - 1) | (line + LINE_SLOTS) & (BLOCK_SLOTS - 1)


@njit(forceinline=True)
def went_past(line):
    """What a key that went past a line adds to its block's tally."""
    return np.int64(1) << (line >> 3 & 7) * COUNT_BITS


@njit(forceinline=True)
def passed(at, line):
    """Whether a key went past a line."""
    return np.int64(word(at.tally, line >> 6)) & went_past(line) * ((1 << COUNT_BITS) - 1) != 0


@njit(forceinline=True)
def count(at, slot, more):
    """Change the tally of the slot's block."""
    put(at.tally, slot >> 6, np.uint64(np.int64(word(at.tally, slot >> 6)) + more))


@njit(forceinline=True)
def guess(at, home, key):
    """(slot where the key is, or would be put, unless that is in another line than its home; whether it is there)."""
    there = matches(at.keys, home, key)
    found = there != 0
    if not found:
        there = matches(at.keys, home, EMPTY) | 1 << LINE_SLOTS - 1
    return home + lowest_bit(there), found


@njit
def find(at, key):
    """The key's slot, -1 where it is not there."""
    line = home_of(at, key)
    for _ in range(BLOCK_SLOTS // LINE_SLOTS):
        there = matches(at.keys, line, key)
        if there:
            return line + lowest_bit(there)
        if not passed(at, line):
            break
        line = next_line(line)
    return -1


@njit
def enter(at, key):
    """Put a new key into its block, which is not full; its slot."""
    line = home_of(at, key)
    free = matches(at.keys, line, EMPTY)
    while not free:
        count(at, line, went_past(line))
        line = next_line(line)
        free = matches(at.keys, line, EMPTY)
    slot = line + lowest_bit(free)
    put(at.keys, slot, key)
    count(at, slot, ONE_LIVE)
    return slot


@njit(forceinline=True)
def leave(at, slot):
    """Take the key out of a slot."""
    line = slot & ~(BLOCK_SLOTS - 1) | index_of(word(at.keys, slot)) & (BLOCK_SLOTS - LINE_SLOTS)
    while line != slot & ~(LINE_SLOTS - 1):
        count(at, line, -went_past(line))
        line = next_line(line)
    put(at.keys, slot, EMPTY)
    count(at, slot, -ONE_LIVE)


@njit
def take(at, control, key):
    """Enter a new key; its slot, whose state is zero. Its deadline is the caller's to set and list."""
    slot = enter(at, key)
    control.live += 1
    control.created += 1
    return slot


@njit(forceinline=True)
def give_back(at, control, slot, words):
    """Free a slot. Its state of `words` words is zeroed now: so the next one in it need not touch all of its lines."""
    leave(at, slot)
    for i in range(words):
        put(at.words, slot * words + i, EMPTY)
    control.live -= 1


@njit(forceinline=True)
def crowded(at, key):
    """Whether the block to which `key` belongs is nearly full."""
    return np.int64(word(at.tally, home_of(at, key) >> 6)) >= EMERGENCY_SLOTS * ONE_LIVE


@njit
def grow(at, control, key, words):
    """Use twice as much of the key's section, all its states being listed, or all that is left where that is no longer
    near; False if all is in use."""
    section = section_of(at, key)
    used, size = np.int64(word(at.used, section)), control.slots >> at.sections_shift
    if used == size:
        return False
    more = 2 * used if 2 * used * words * 8 << at.sections_shift <= NEAR_BYTES else size
    put(at.used, section, np.uint64(more))
    for number in range(used >> 6):
        split(at, block_at(at, section, number), more - used, words)
    return True


@njit
def split(at, first, bits, words):
    """Move those states of a block out of it that are elsewhere now that more `bits` of their keys count."""
    for slot in range(first, first + BLOCK_SLOTS):
        if moves(at, slot, bits):
            home = home_of(at, word(at.keys, slot))
            prefetch(at.keys, home, 8, 0)
            prefetch(at.words, home, words * 8, 0)
            prefetch(at.links, home, HEAD_BYTES, 0)
            prefetch(at.links, link(at, slot, AFTER), HEAD_BYTES, 0)
            prefetch(at.links, link(at, slot, BEFORE), HEAD_BYTES, 0)
    for slot in range(first, first + BLOCK_SLOTS):
        if moves(at, slot, bits):
            key = word(at.keys, slot)
            leave(at, slot)
            move(at, slot, enter(at, key), words)


@njit(forceinline=True)
def moves(at, slot, bits):
    """Whether a slot has a key of which one of `bits` is set."""
    key = word(at.keys, slot)
    return key != EMPTY and index_of(key) & bits != 0


@njit
def move(at, slot, target, words):
    """Bring what is in a slot, but its key, to another one."""
    for i in range(words):
        put(at.words, target * words + i, word(at.words, slot * words + i))
        put(at.words, slot * words + i, EMPTY)
    for i in range(HEAD_WORDS):
        put(at.links, target * HEAD_WORDS + i, word(at.links, slot * HEAD_WORDS + i))
    set_link(at, link(at, slot, AFTER), BEFORE, target)
    set_link(at, link(at, slot, BEFORE), AFTER, target)


@njit
def victim(at, key, words):
    """Among the next live neighbours of the key's home, the slot whose deadline is nearest; `words` as in give_back."""
    home = home_of(at, key)
    base, best, best_due, seen = home & ~(BLOCK_SLOTS - 1), home, np.int64(0), 0
    for i in range(BLOCK_SLOTS):
        slot = base | ((home + i) & (BLOCK_SLOTS - 1))
        if word(at.keys, slot) != EMPTY:
            due = np.int64(word(at.words, slot * words + DUE_WORD))
            if seen == 0 or due < best_due:
                best, best_due = slot, due
            seen += 1
            if seen == NEIGHBOURS:
                break
    return best


@njit(forceinline=True)
def write_ends(to, at, mem, pkt):
    """Both ends as this packet has them, as records.ENDS at byte `at` of `to`; `mem`: the block's buffer."""
    if pkt.ip_version == 6:
        for i in range(0, 32, 8):
            store64(to, at + i, load64(mem, pkt.addr + i))
    else:
        both = load64(mem, pkt.addr) if pkt.addr >= 0 else np.uint64(0)
        store64(to, at, both & np.uint64(0xFFFFFFFF))
        store64(to, at + 8, np.uint64(0))
        store64(to, at + 16, both >> np.uint64(32))
        store64(to, at + 24, np.uint64(0))
    numbers = np.int64(pkt.sport) | np.int64(pkt.dport) << 16 | np.int64(pkt.vlan) << 32
    store64(to, at + 32, np.uint64(numbers | np.int64(pkt.proto) << 48 | np.int64(pkt.ip_version) << 56))


@njit(forceinline=True)
def copy_ends(to, at, ends, slot):
    """The same from a slot's head."""
    for i in range(0, ENDS_BYTES, 8):
        store64(to, at + i, load64(ends, slot * HEAD_BYTES + i))


# --- deadlines


@njit(forceinline=True)
def tick_of(due):
    """The tick at which a deadline has come: rounded up."""
    return (due >> TICK_BITS) + (1 if due & ((1 << TICK_BITS) - 1) else 0)


@njit(forceinline=True)
def low_word(tick):
    """The low 32 bits of a tick, as a signed number."""
    return ((tick + 0x80000000) & 0xFFFFFFFF) - 0x80000000


@njit(forceinline=True)
def nearer(state):
    """Whether the deadline has moved before the tick under which the state is listed."""
    return low_word((state.due >> TICK_BITS) - np.int64(state.scheduled)) < -1


@njit(forceinline=True)
def link(at, slot, which):
    """The slot, or list of the wheel, AFTER this one or BEFORE it."""
    return np.int64(word(at.links, slot * HEAD_WORDS + which))


@njit(forceinline=True)
def set_link(at, slot, which, other):
    put(at.links, slot * HEAD_WORDS + which, np.uint64(other))


@njit(forceinline=True)
def enlist(at, control, state, slot):
    """List the slot under its deadline's tick, at most one turn of the wheel ahead."""
    tick = max(control.now + 1, min(tick_of(state.due), control.now + WHEEL_TICKS - 1))
    state.scheduled = low_word(tick)
    head = control.wheel + (tick & (WHEEL_TICKS - 1))
    first = link(at, head, AFTER)
    set_link(at, slot, AFTER, first)
    set_link(at, slot, BEFORE, head)
    set_link(at, first, BEFORE, slot)
    set_link(at, head, AFTER, slot)


@njit(forceinline=True)
def delist(at, slot):
    after, before = link(at, slot, AFTER), link(at, slot, BEFORE)
    set_link(at, before, AFTER, after)
    set_link(at, after, BEFORE, before)

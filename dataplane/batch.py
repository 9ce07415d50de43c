"""A block of frames becomes a batch: one PACKET row a frame and one index list per kind.

Knows rows and `wire`, no detector. A CLOCK row carries the capture clock from block to block.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane import wire
from dataplane.chain import DONE, Chain, Stage, batch_at
from dataplane.kernels import stage_address
from dataplane.memory import array_at, memory
from dataplane.records import (
    BATCH,
    FRAME,
    IP,
    KINDS,
    NO_TIME,
    PACKET,
    QUIC,
    TIME_NONE,
    TIME_RANGE,
    UNWANTED,
    rows,
    zeros,
)

BATCH_ROWS = 4096
SOME_FRAMES = 128  # as many, their bytes and their rows fit into the first-level cache

# The capture clock survives damaged timestamps: a step forward counts at most this much, a step back beyond the other
# limit is taken as a new time base. Steps back within the limit leave the clock where it is.
FORWARD_MAX_NS = 3_600 * 1_000_000_000
BACKWARD_MAX_NS = 60 * 1_000_000_000
CLOCK_MAX_NS = 2**63 - 2**58  # where the clock ends (the year 2253), so that deadlines of up to nine years fit

CLOCK = np.dtype(
    [
        ("now", np.int64),  # the capture clock, NO_TIME before the first timestamp
        ("shift", np.int64),  # clock = ts + shift
        ("backwards", np.int64),  # packets whose timestamp is before that of their predecessor
        ("jumps", np.int64),  # new time bases
        ("timeless", np.int64),  # packets without a usable timestamp
        ("last", np.int64),
    ],
    align=True,
)


def new_clock():
    clock = rows(CLOCK, 1)
    clock[0].now = clock[0].last = NO_TIME
    return clock


@njit(forceinline=True)
def advance_plainly(clock, frames, i):
    """Move the capture clock over the frames from `i` on that are in order, on the first time base; how far it came."""
    last = clock.last
    if clock.shift != 0 or clock.now != last or last < 0:
        return i
    while i < frames.size:
        frame = frames[i]
        if frame.flags != 0 or not last <= frame.ts <= min(last + FORWARD_MAX_NS, CLOCK_MAX_NS):
            break
        last = frame.clock = frame.ts
        i += 1
    clock.now = clock.last = last
    return i


@njit
def advance_oddly(clock, frame):
    """Move the capture clock by one frame. Never backwards, never by years.

    Any step, modulo 2**64: what is more than 292 years away may be taken as ahead or behind.
    """
    if frame.flags & UNWANTED:
        return
    if frame.flags & (TIME_NONE | TIME_RANGE):
        clock.timeless += 1
        return
    if clock.now == NO_TIME:
        clock.last = frame.ts
        clock.now = min(frame.ts, CLOCK_MAX_NS)
        clock.shift = clock.now - frame.ts
    if frame.ts < clock.last:
        clock.backwards += 1
    clock.last = frame.ts
    step = frame.ts + clock.shift - clock.now
    if step > FORWARD_MAX_NS or step < -BACKWARD_MAX_NS:
        clock.jumps += 1
        step = FORWARD_MAX_NS if step > 0 else 0
        clock.shift = clock.now + step - frame.ts
    clock.now = min(clock.now + max(step, 0), CLOCK_MAX_NS)


@njit(nogil=True, cache=True)
def set_clock(frames, clock):
    """Fill FRAME.clock; the last one. Sequential by nature, so it runs before any parallel work."""
    state, i = clock[0], advance_plainly(clock[0], frames, 0)
    while i < frames.size:
        advance_oddly(state, frames[i])
        frames[i].clock = state.now if state.now != NO_TIME else 0
        i = advance_plainly(state, frames, i + 1)
    return state.now if state.now != NO_TIME else 0


class Scratch(NamedTuple):
    """What fill needs besides: row numbers by sort of frame."""

    tcp: np.ndarray  # uint32
    udp: np.ndarray
    odd: np.ndarray
    some: np.ndarray  # UDP packets to look into; the second run of a list


def new_scratch(size):
    return Scratch(*(zeros(4 * (size + 1)).view(np.uint32) for _ in Scratch._fields))


@njit
def sort(mem, frames, first, last, scratch, n_odd):
    """Write the frames' numbers to `scratch` by sort: TCP over common IPv4, UDP over that, neither (behind the `n_odd`
    that are there already). How many of each there are then.
    """
    n_tcp = n_udp = np.uint64(0)
    for i in range(np.uint64(first), np.uint64(last)):
        protocol = wire.common_protocol(mem, frames[i])
        tcp, udp = np.uint64(protocol == wire.TCP), np.uint64(protocol == wire.UDP)
        scratch.tcp[n_tcp] = scratch.udp[n_udp] = scratch.odd[n_odd] = i
        n_tcp, n_udp, n_odd = n_tcp + tcp, n_udp + udp, n_odd + (np.uint64(1) - tcp - udp)
    return n_tcp, n_udp, n_odd


@njit
def number_all(scratch, count):
    """All frames are odd."""
    for i in range(np.uint64(count)):
        scratch.odd[i] = i
    return np.uint64(count)


@njit
def fill_tcp(mem, frames, packets, options, scratch, n_tcp, first_seq):
    """Decode TCP over common IPv4."""
    for j in range(n_tcp):
        i = np.uint64(scratch.tcp[j])
        frame, row = frames[i], packets[i]
        row.seq = first_seq + np.int64(i)
        wire.decode_tcp4(mem, frame, frame.offset + wire.ETHERNET_BYTES, options, row)


@njit
def fill_udp(mem, frames, packets, options, scratch, lists, counts, n_udp, first_seq):
    """Decode UDP over common IPv4, and list it."""
    n_quic, n_some = np.uint64(counts[QUIC]), np.uint64(0)
    for j in range(n_udp):
        i = np.uint64(scratch.udp[j])
        frame, row = frames[i], packets[i]
        row.seq = first_seq + np.int64(i)
        wire.decode_udp4(mem, frame, frame.offset + wire.ETHERNET_BYTES, options, row)
        lists[QUIC, n_quic] = scratch.some[n_some] = i
        n_quic += np.uint64(row.sport == wire.HTTPS)
        n_some += np.uint64(wire.asked(row))
    counts[QUIC] = n_quic
    for j in range(n_some):
        i = np.uint64(scratch.some[j])
        enlist(lists, counts, i, wire.udp_application(mem, frames[i], options, packets[i]))


@njit
def fill_odd(mem, frames, packets, options, scratch, lists, counts, reasons, n_odd, first_seq):
    """Decode the other frames, and list them behind those."""
    for j in range(n_odd):
        i = np.uint64(scratch.odd[j])
        frame, row = frames[i], packets[i]
        row.seq = first_seq + np.int64(i)
        kinds = -1 if options.tunnels else wire.decode_common(mem, frame, options, row)
        if kinds < 0:
            kinds = wire.decode(mem, frame, options, row)
        reasons[1 if kinds else 0, row.reason] += 1
        enlist(lists, counts, i, kinds)


@njit
def enlist(lists, counts, i, kinds):
    """Put row `i` into the lists in the bit set `kinds`."""
    for k in range(IP + 1, len(KINDS)):
        if kinds >> k & 1:
            lists[k, counts[k]] = i
            counts[k] += 1


@njit
def merge(numbers, middle, end, spare):
    """Make two ascending runs, numbers[:middle] and numbers[middle:end], one."""
    left, right, at = middle - 1, end - middle - 1, end - 1
    for i in range(end - middle):
        spare[i] = numbers[middle + i]
    while right >= 0:
        earlier = left < 0 or numbers[left] < spare[right]
        numbers[at] = spare[right] if earlier else numbers[left]
        left, right, at = left - (not earlier), right - earlier, at - 1


@njit
def fill(buf, frames, options, packets, scratch, lists, counts, reasons, first_seq):
    """Decode all frames into `packets`; `lists` (kinds, rows) takes row numbers, `counts` (kinds,) their number.

    `reasons` (2, reasons) adds up where decoding stopped: packets that are in no list, and packets that are. Each sort
    of frame has a loop of its own: all in one would have a branch where no processor can guess.
    """
    counts[:] = 0
    counts[IP] = frames.size
    settings, mem = options[0], memory(buf)
    n_odd = number_all(scratch, frames.size) if settings.tunnels else np.uint64(0)
    for first in range(0, 0 if settings.tunnels else frames.size, SOME_FRAMES):
        last = min(first + SOME_FRAMES, frames.size)
        n_tcp, n_udp, n_odd = sort(mem, frames, first, last, scratch, n_odd)
        fill_tcp(mem, frames, packets, settings, scratch, n_tcp, first_seq)
        fill_udp(mem, frames, packets, settings, scratch, lists, counts, n_udp, first_seq)
    reasons[1, wire.OK] += frames.size - np.int64(n_odd)
    first_run = counts.copy()
    fill_odd(mem, frames, packets, settings, scratch, lists, counts, reasons, n_odd, first_seq)
    for k in range(IP + 1, len(KINDS)):
        merge(lists[k], first_run[k], counts[k], scratch.some)
    for j in range(counts[QUIC]):
        row = packets[lists[QUIC, j]]
        row.quic_client = wire.client_of(mem, settings, row)


FRAME_BYTES, N_REASONS, DECODE = FRAME.itemsize, len(wire.REASONS), wire.DECODE
DECODING = np.dtype(  # context of the stage, by addresses
    [
        ("clock", np.int64),  # CLOCK; 0: the frames have their clocks
        ("raw", np.int64),  # only tiles with as much in BATCH.raw are decoded
        *((name, np.int64) for name in ("options", "reasons", *Scratch._fields)),
    ],
    align=True,
)


def decode_stage(context, batch):
    """Decode the tile at hand; see chain.py."""
    c, b = array_at(context, 1, DECODING)[0], batch_at(batch)
    frames = array_at(b.frames + b.first * FRAME_BYTES, b.count, FRAME)
    if c.clock:
        b.clock = set_clock(frames, array_at(c.clock, 1, CLOCK))
    if b.raw != c.raw:
        return DONE
    numbers = b.rows + 1
    scratch = Scratch(
        array_at(c.tcp, numbers, np.uint32),
        array_at(c.udp, numbers, np.uint32),
        array_at(c.odd, numbers, np.uint32),
        array_at(c.some, numbers, np.uint32),
    )
    fill(
        array_at(b.buf, b.buf_bytes, np.uint8),
        frames,
        array_at(c.options, 1, DECODE),
        array_at(b.packets, b.rows, PACKET),
        scratch,
        array_at(b.lists, (len(KINDS), numbers), np.int32),
        array_at(b.counts, len(KINDS), np.int64),
        array_at(c.reasons, (2, N_REASONS), np.int64),
        b.seq + b.first,
    )
    return DONE


class Batch:
    """PACKET rows and index lists for up to `size` frames, reused from tile to tile and block to block."""

    def __init__(self, size=BATCH_ROWS):
        self.packets = rows(PACKET, size)
        self.lists = zeros(4 * len(KINDS) * (size + 1)).view(np.int32).reshape(len(KINDS), size + 1)
        self.lists[IP] = np.arange(size + 1)  # for good: all rows
        self.counts = zeros(8 * len(KINDS)).view(np.int64)
        self.reasons = zeros(16 * N_REASONS).view(np.int64).reshape(2, N_REASONS)
        self.views, self.frames = list(self.lists), 0
        self.row, self.context, self.scratch = rows(BATCH, 1), rows(DECODING, 1), new_scratch(size)
        self.block = self.options = self.clocks = self.alone = None
        self.seq = np.asarray(self.row)["seq"]  # cheaper to write than a row
        row, context = self.row[0], self.context[0]
        row.rows, row.packets = size, self.packets.ctypes.data
        row.lists, row.counts = self.lists.ctypes.data, self.counts.ctypes.data
        context.reasons = self.reasons.ctypes.data
        for name, array in zip(Scratch._fields, self.scratch, strict=True):
            context[name] = array.ctypes.data

    def stage(self, options, clocks=None, raw=0):
        """Decoding, as a Stage: with `clocks` (CLOCK rows) it sets the frames' clocks too. `raw`: of BATCH rows."""
        self.options, self.clocks = options, clocks
        context = self.context[0]
        context.raw = raw
        context.options, context.clock = options.ctypes.data, 0 if clocks is None else clocks.ctypes.data
        return Stage("decoding", stage_address(decode_stage), self.context, Batch.decode)

    def point_at(self, other):
        """Use another batch's arrays of rows and lists, and its window."""
        self.packets, self.lists, self.counts, self.views = other.packets, other.lists, other.counts, other.views
        for name in ("packets", "lists", "counts", "window"):
            self.row[0][name] = other.row[0][name]

    def give(self, block, first_seq):
        """The block that is to be decoded next; it must stay until the batch is used up."""
        self.block, self.frames = block, len(block.frames)
        row = self.row[0]
        row["buf"], row["buf_bytes"] = block.buf.ctypes.data, len(block.buf)
        row["frames"], row["seq"] = block.frames.ctypes.data, first_seq

    def expect(self, most, first_seq):
        """The same where a stage before decoding finds the frames, at most so many."""
        self.block, self.frames, self.seq[0] = None, most, first_seq

    def decode(self):
        """The stage where it is called from Python."""
        row = self.row[0]
        frames = self.block.frames[row.first : row.first + row.count]
        if self.clocks is not None:
            row.clock = set_clock(frames, self.clocks)
        if row.raw != self.context[0].raw:
            return DONE
        work = self.packets, self.scratch, self.lists, self.counts, self.reasons
        fill(self.block.buf, frames, self.options, *work, int(row.seq) + int(row.first))
        return DONE

    def fill(self, block, options, first_seq, clock):
        """Decode a whole block whose clocks are set, the last to `clock`."""
        if len(block.frames) > len(self.packets):
            raise ValueError(f"a block of {len(block.frames)} frames for a batch of {len(self.packets)} rows")
        if self.alone is None or self.options is not options:
            self.alone = Chain([self.stage(options)])
        self.reasons[:] = 0
        self.give(block, first_seq)
        self.row[0]["clock"], self.row[0]["count"] = clock, 0
        self.counts[:] = 0
        for _ in self.alone.over(self, len(self.packets)):
            raise AssertionError("decoding makes no events")

    @property
    def buf(self):
        return self.block.buf

    @property
    def size(self):
        """Frames of the tile at hand."""
        return int(self.row[0]["count"])

    @property
    def clock(self):
        return int(self.row[0]["clock"])

    @property
    def numbers(self):
        """How many row numbers each list holds."""
        return self.counts.tolist()

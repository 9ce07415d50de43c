"""Several rings of one worker, read as one in order of time. Nothing is copied.

The rings lie side by side in one range of addresses, so one buffer holds the frames of all. A frame may go when every
other ring has a later one at hand, or nothing at all QUEUED_ns after the frame's block was seen. That a ring has
nothing is seen in the ring, not told by a clock: the kernel counts packets in the header of the block that it fills,
long before it hands the block over; so what is not there then comes later than all that was shown before. Stamps are
only compared with stamps, so their clock may be the system's or the cards' and may be stepped. Frames of one ring are
never reordered.

Order yields where it would do harm. While a block was at hand for too long, or a ring is mostly full, rings without a
frame are waited for no more; and a block that was seen too long before the one whose turn it is by its stamp, or
merely before it where the ring is mostly full, goes first. So no ring starves, however far its clock is from another's.
"""

import mmap
import time

import numpy as np
from numba import njit

from dataplane.capture.ring import (
    PACKETS_AT,
    WALK,
    enter_block,
    give_back,
    is_ours,
    leave_block,
    map_over,
    time_at,
    walk_block,
)
from dataplane.capture.source import CaptureError, u32
from dataplane.kernels import Kernel
from dataplane.memory import memory
from dataplane.records import FRAME, NEVER, Block, rows

QUEUED_ns = 1_000_000  # so long may a packet that has its stamp wait in a card or for a processor
HOLD_ns = 100_000_000  # beyond the time after which the kernel should have shown what it has
RUN_frames = 32  # that are looked at before they are walked: they are still in the cache then
FULL_SHARE = 3 / 4  # of a ring's blocks at hand: it is mostly full
MAP_NORESERVE = 0x4000  # mman.h: memory that is never used is not asked for
NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE  # where no ring is

LANE = np.dtype(  # a ring among others, or the place of one that is not there, with zeros at `base` and no blocks
    [
        ("ahead", np.int64),  # blocks at hand, from `block` on
        ("full", np.int64),  # with so many the ring is mostly full
        ("hold", np.int64),  # ns that a block may be held back
        ("walked", np.int64),  # frames
        *((name, WALK[name]) for name in WALK.names),  # last: else numba takes a LANE for a WALK, and says so
    ],
    align=True,
)


@njit
def note(mem, lane, seen, now):
    """Take down that `now` is when the blocks that came since the last time were seen."""
    while lane.ahead < lane.blocks:
        block = (lane.block + lane.ahead) % lane.blocks
        if not is_ours(mem, lane, block):
            break
        seen[block] = now
        lane.ahead += 1


@njit
def is_pressing(lane, seen, now):
    """The lane's frames must not be held back any longer."""
    return lane.ahead > 0 and (lane.ahead >= lane.full or now - seen[lane.block] > lane.hold)


@njit
def leave(lane):
    leave_block(lane)
    lane.ahead -= 1


@njit
def has_frame(mem, lane):
    """Whether the lane has a frame at hand, of the block that it is at or the next one."""
    while lane.left == 0 and lane.ahead > 0 and lane.shown < lane.most:
        enter_block(mem, lane)
        if lane.left == 0:
            leave(lane)
    return lane.left > 0


@njit
def is_empty(mem, lane):
    """The kernel holds no packet that it has not shown: none in the block that it fills."""
    start = lane.base + lane.block * lane.block_bytes
    return not is_ours(mem, lane, lane.block) and u32(mem, start + PACKETS_AT, lane.big) == 0


@njit
def earliest(mem, lanes):
    """The lane whose frame is next, -1: none, and the last time at which it still is; lanes in order at one time."""
    first, ts, last = -1, NEVER, NEVER
    for i in range(lanes.size):
        if has_frame(mem, lanes[i]):
            its = time_at(mem, lanes[i].at, lanes[i].big)
            if its < ts:
                first, ts, last = i, its, ts - 1
            else:
                last = min(last, its)
    return first, last


@njit
def is_overdue(lane, seen, since):
    """The lane's frame goes before one whose block was seen at `since`, whatever their stamps say."""
    before = since - seen[lane.block]
    return before > lane.hold or before > 0 and lane.ahead >= lane.full


@njit
def longest_overdue(lanes, seen, first, last):
    """What `earliest` has found, but where lanes are overdue the one that was seen first; its whole block may go."""
    found, since = first, seen[first, lanes[first].block]
    for i in range(lanes.size):
        earlier = seen[i, lanes[i].block] < seen[found, lanes[found].block]
        if earlier and lanes[i].left > 0 and is_overdue(lanes[i], seen[i], since):
            found, last = i, NEVER
    return found, last


@njit
def may_go(mem, lanes, age, pressing):
    """Whether a frame may go before those that lanes without one may bring; age: ns since its block was seen.

    A lane of which enough was shown goes on with the next call; that is never long.
    """
    sure = True
    for i in range(lanes.size):
        empty = lanes[i].ahead == 0 and (pressing or age >= QUEUED_ns and is_empty(mem, lanes[i]))
        sure &= lanes[i].left > 0 or empty
    return sure


@njit
def count_until(mem, lane, last, most):
    """How many frames of the lane's block go at once: the next one, and some behind it until the time `last`."""
    most, at, count = min(most, lane.left, RUN_frames), lane.at, 0
    while count < most and (count == 0 or time_at(mem, at, lane.big) <= last):
        at += u32(mem, at, lane.big)
        count += 1
    return count


@njit(nogil=True, cache=True)
def merge(buf, words, frames, lanes, seen, now):
    """Give back what the call before has shown, and fill `frames` with what may go; how many that were.

    seen: (lanes, blocks) when each block was first found at hand, by the clock of `now`.
    """
    mem, found, pressing = memory(buf), 0, False
    for i in range(lanes.size):
        give_back(words, lanes[i])
        note(mem, lanes[i], seen[i], now)
        pressing |= is_pressing(lanes[i], seen[i], now)
    while found < frames.size:
        first, last = earliest(mem, lanes)
        if pressing and first >= 0:  # else none is overdue
            first, last = longest_overdue(lanes, seen, first, last)
        if first < 0 or not may_go(mem, lanes, now - seen[first, lanes[first].block], pressing):
            break
        lane = lanes[first]
        count = count_until(mem, lane, last, frames.size - found)
        walk_block(buf, mem, frames, found, count, lane)
        found += count
        lane.walked += count
        if lane.left == 0:
            leave(lane)
    return found


def make_range(size):
    """Addresses for rings. CaptureError: there are not so many."""
    try:
        return mmap.mmap(-1, size, flags=NOTHING)
    except OSError as error:
        raise CaptureError(f"rings of {size >> 20} MiB cannot lie side by side ({error.strerror})") from error


class Merge:
    """What one worker reads of several rings, each at most `ring_bytes` and `blocks` large.

    margin_ns: within it the kernel should have shown a packet. Arrays that show the range keep it mapped; where a ring
    was there are zeros. CaptureError: there is no room for the range.
    """

    def __init__(self, count, ring_bytes, blocks, margin_ns):
        self.range = make_range(count * ring_bytes)
        self.buf, self.words = np.frombuffer(self.range, np.uint8), np.frombuffer(self.range, np.uint32)
        self.ring_bytes, self.hold_ns, self.rings = ring_bytes, margin_ns + HOLD_ns, [None] * count
        self.lanes, self.seen, self.merge = rows(LANE, count), np.zeros((count, blocks), np.int64), Kernel(merge)
        self.ahead, self.walked = (np.asarray(self.lanes[name]) for name in ("ahead", "walked"))  # quicker to ask
        for place in range(count):
            self._leave(place)
        self.take(rows(FRAME, 0))  # loads what is compiled

    def follow(self, rings):
        """Read these rings, None: none, each in its place. CaptureError: one cannot be mapped or unmapped."""
        for place, ring in enumerate(rings):
            if ring is not self.rings[place]:
                self._leave(place)
                if ring:
                    self._enter(place, ring)

    def _leave(self, place):
        base = place * self.ring_bytes
        if self.rings[place]:
            self._unmap(self.rings[place].name, base)
        self.lanes[place] = np.zeros((), LANE)
        self.lanes[place].base, self.rings[place] = base, None

    def _unmap(self, name, base):
        try:
            map_over(self.buf.ctypes.data + base, self.ring_bytes, NOTHING)
        except OSError as error:
            raise CaptureError(f"{name}: the ring could not be unmapped ({error.strerror})") from error

    def _enter(self, place, ring):
        lane, base = self.lanes[place], place * self.ring_bytes
        ring.move(self.buf.ctypes.data + base)
        for name in WALK.names:
            lane[name] = ring.state[0][name]
        lane.base, lane.hold, lane.full = base, self.hold_ns, int(lane.blocks * FULL_SHARE)
        self.rings[place] = ring

    def take(self, frames):
        """Fill `frames` from the rings; the Block, valid until the next call, without frames if none may go."""
        now = time.monotonic_ns()
        count = self.merge(self.buf, self.words, frames, self.lanes, self.seen, now)
        if count:
            for ring, walked in zip(self.rings, self.walked.tolist(), strict=True):
                if ring:
                    ring.walked = walked
        return Block(self.buf, frames[:count])

    @property
    def holding(self):
        """Whether frames are at hand that may not go yet, after a `take` that found none."""
        return any(self.ahead.tolist())

    def holds(self, ring):
        """Whether the ring has something at hand."""
        return ring in self.rings and self.ahead[self.rings.index(ring)] > 0

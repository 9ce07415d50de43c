"""The merge of rings by time, over memory that is written as the kernel does, against a slow twin."""

import errno
import random
import struct

import numpy as np
import pytest

from dataplane.capture import CaptureError, ring
from dataplane.capture import merge as module
from dataplane.capture.merge import HOLD_ns, Merge, QUEUED_ns
from dataplane.records import FRAME, JIT, rows
from tests.naive import merge as naive

BLOCKS, BLOCK_bytes, MOST = 8, 512, 2
RING_bytes, FULL = BLOCKS * BLOCK_bytes, 6
HEAD_bytes, FRAME_bytes, MAC = 48, 72, 52  # of a block's header, of a frame with its header, where its packet begins
PER_BLOCK = (BLOCK_bytes - HEAD_bytes) // FRAME_bytes
MARGIN_ns, RETIRE_ns = 16_000_000, 8_000_000
HOLD = MARGIN_ns + HOLD_ns
BASE_ns = 1_700_000_000 * 10**9
STEP_ns = 400_000
ETHERNET = 1


class Kernel:
    """A ring's other side: it fills blocks, hands them over when full or at `tick`, and drops what has no room.

    Stands for a ring.Ring too, as far as a Merge asks.
    """

    def __init__(self, place, merge):
        self.name, self.state, self.walked = "b0", rows(ring.WALK, 1), 0
        row = self.state[0]
        row.block_bytes, row.blocks, row.most, row.big, row.linktype = BLOCK_bytes, BLOCKS, MOST, ring.BIG, ETHERNET
        self.merge, self.base, self.moved = merge, place * RING_bytes, 0
        self.block, self.count, self.sent, self.dropped = 0, 0, [], 0

    def move(self, _address):
        self.moved += 1

    def _put(self, at, form, *values):
        data = struct.pack("=" + form, *values)
        self.merge.buf[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def _start(self):
        return self.base + self.block * BLOCK_bytes

    def _status(self):
        return int(self.merge.words[(self._start() + ring.STATUS_AT) // 4])

    def _open(self):
        """Begin a block, if it is free."""
        if self._status() == 0 and self.count == 0:
            self._put(self._start() + ring.PACKETS_AT, "I", 0)

    @property
    def hidden(self):
        """Packets of the block at hand; of its last use where it was not begun yet, because the ring was full."""
        return 0 if self._status() else int(self.merge.words[(self._start() + ring.PACKETS_AT) // 4])

    def arrive(self, ts, flags=0, tci=0):
        """A packet stamped `ts`; False: the ring is full."""
        if self._status():
            self.dropped += 1
            return False
        self._open()
        at, number = self._start() + HEAD_bytes + self.count * FRAME_bytes, len(self.sent)
        seconds, nanoseconds = divmod(ts, 10**9)
        self._put(at, "IIIIIIHHIIH", FRAME_bytes, seconds, nanoseconds, 20, 60, flags, MAC, 0, 0, tci, 0)
        self._put(at + MAC, "12sII", bytes(range(12)), self.base, number)
        self.count += 1
        self.sent.append(ts)
        self._put(self._start() + ring.PACKETS_AT, "II", self.count, HEAD_bytes)
        if self.count == PER_BLOCK:
            self.tick()
        return True

    def tick(self):
        """The retire time is over; the times of the block that is handed over, if one is."""
        times = self.sent[len(self.sent) - self.count :]
        if times:
            self._put(self._start() + ring.STATUS_AT, "I", ring.BLOCK_OURS)
            self.block, self.count = (self.block + 1) % BLOCKS, 0
        self._open()
        return times


def rings(count):
    """(Merge, its Kernels)"""
    merge = Merge(count, RING_bytes, BLOCKS, MARGIN_ns)
    kernels = [Kernel(place, merge) for place in range(count)]
    merge.follow(kernels)
    return merge, kernels


def take(merge, now, room=1000):
    """[(lane, time)] of one pass; each frame is the one that its ring has got."""
    frames = rows(FRAME, room)
    count = merge.merge(merge.buf, merge.words, frames, merge.lanes, merge.seen, now)
    found = []
    for frame in frames[:count]:
        at = int(frame.offset)
        *addresses, base, number = struct.unpack("=12sII", merge.buf[at : at + 20].tobytes())
        place = base // RING_bytes
        assert addresses == [bytes(range(12))] and merge.rings[place].sent[number] == frame.ts
        assert (frame.len, frame.caplen, frame.linktype, frame["flags"]) == (60, 20, ETHERNET, 0)
        found.append((place, int(frame.ts)))
    return found


def drain(merge, now):
    """All that goes without time passing, over as many passes as it takes."""
    found = []
    while part := take(merge, now):
        found += part
    return found


def test_frames_go_by_time():
    merge, (a, b) = rings(2)
    for ts in (1, 3, 4, 9):
        a.arrive(ts)
    for ts in (2, 4, 8, 10):
        b.arrive(ts)
    a.tick(), b.tick()
    assert take(merge, 0) == [(0, 1), (1, 2), (0, 3), (0, 4), (1, 4), (1, 8), (0, 9)]
    assert take(merge, 0) == [] and merge.holding and merge.holds(b) and not merge.holds(a)
    assert take(merge, QUEUED_ns) == [(1, 10)]
    assert not merge.holding


def test_a_reply_waits_for_its_request():
    merge, (a, b) = rings(2)
    a.arrive(1)
    b.arrive(2)
    b.tick()
    assert [take(merge, now) for now in (0, QUEUED_ns, HOLD)] == [[], [], []]
    a.tick()
    assert take(merge, HOLD) == [(0, 1), (1, 2)]


def test_what_is_not_shown_is_waited_for_so_long_only():
    merge, (a, b) = rings(2)
    a.arrive(1)
    b.arrive(2)
    b.tick()
    assert [take(merge, now) for now in (5, HOLD + 5, HOLD + 6)] == [[], [], [(1, 2)]]
    a.tick()
    assert [take(merge, HOLD + 7 + wait) for wait in (0, QUEUED_ns)] == [[], [(0, 1)]]


def test_a_ring_that_is_empty_is_not_waited_for():
    merge, (_, b) = rings(2)
    for ts in range(3 * PER_BLOCK):
        b.arrive(ts)
    assert take(merge, 0) == []
    assert drain(merge, QUEUED_ns) == [(1, ts) for ts in range(3 * PER_BLOCK)]


def test_a_ring_that_is_mostly_full_waits_no_more():
    merge, (a, b) = rings(2)
    a.arrive(0)
    for ts in range((FULL - 1) * PER_BLOCK):
        b.arrive(ts)
    assert take(merge, QUEUED_ns) == []
    for ts in range(PER_BLOCK):
        b.arrive(ts)
    assert len(take(merge, QUEUED_ns)) == MOST * PER_BLOCK
    assert take(merge, QUEUED_ns) == [] and b.dropped == 0  # there is room again


def test_a_ring_that_was_full_is_taken_whole():
    merge, (a, b) = rings(2)
    while b.arrive(5):
        pass
    a.arrive(9)
    assert drain(merge, 0) and drain(merge, QUEUED_ns) == []
    a.tick(), b.tick()
    assert drain(merge, QUEUED_ns)[-1] == (1, 5)
    assert take(merge, 2 * QUEUED_ns) == [(0, 9)]
    assert [lane.walked for lane in merge.lanes] == [1, BLOCKS * PER_BLOCK] and b.dropped == 1


def test_the_tag_of_a_frame_of_a_later_ring_is_put_back():
    merge, (_, b) = rings(2)
    b.arrive(1, ring.VLAN_VALID, tci=5)
    b.tick()
    frames = rows(FRAME, 8)
    merge.merge(merge.buf, merge.words, frames, merge.lanes, merge.seen, 0)
    assert merge.merge(merge.buf, merge.words, frames, merge.lanes, merge.seen, QUEUED_ns) == 1
    at = int(frames[0].offset)
    assert merge.buf[at : at + 16].tobytes() == bytes(range(12)) + b"\x81\x00\x00\x05"


def test_a_ring_that_leaves_and_another_in_its_place():
    merge, (a, b) = rings(2)
    for ts in range(2):
        a.arrive(ts), b.arrive(ts)
    a.tick(), b.tick()
    block = merge.take(rows(FRAME, 8))
    assert len(block.frames) == 3 and [a.walked, b.walked] == [2, 1]
    merge.follow([a, None])
    assert not merge.buf[RING_bytes:].any() and not block.buf[int(block.frames[1].offset)]  # no fault
    a.arrive(7), a.tick()
    assert take(merge, 0) == [] and take(merge, QUEUED_ns) == [(0, 7)]
    again = Kernel(1, merge)
    merge.follow([a, again])
    assert (a.moved, again.moved) == (1, 1)
    a.arrive(9), again.arrive(8)
    a.tick(), again.tick()
    assert take(merge, 0) == [(1, 8)] and take(merge, QUEUED_ns) == [(0, 9)]


def test_memory_that_cannot_be_had_is_one_sentence(monkeypatch):
    merge, _ = rings(2)

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(module, "map_over", refuse)
    with pytest.raises(CaptureError, match=r"^b0: the ring could not be unmapped \(Cannot allocate memory\)$"):
        merge.follow([None, None])
    monkeypatch.setattr(module.mmap, "mmap", refuse)
    with pytest.raises(CaptureError, match=r"^rings of 2 MiB cannot lie side by side \(Cannot allocate memory\)$"):
        Merge(2, 1 << 20, BLOCKS, MARGIN_ns)


@pytest.mark.parametrize("seed", range(20 if JIT else 8))
def test_every_pass_gives_what_the_twin_gives(seed):
    rand = random.Random(seed)
    count = rand.choice((1, 2, 2, 3, 4))
    merge, kernels = rings(count)
    lanes, now, found = [naive.Lane(MOST, FULL, HOLD) for _ in kernels], 0, 0
    for _ in range(600):
        now += rand.choice((0, 1, QUEUED_ns - 1, QUEUED_ns, RETIRE_ns, HOLD))
        for kernel, lane in zip(kernels, lanes):
            for _ in range(rand.choice((0, 0, 1, 4, 2 * PER_BLOCK))):
                before = len(kernel.sent)
                if kernel.arrive(rand.randrange(50)) and not kernel.count:
                    lane.show(kernel.sent[before + 1 - PER_BLOCK :])
            if rand.random() < 0.4 and (times := kernel.tick()):
                lane.show(times)
            lane.hidden = kernel.hidden
        room = rand.choice((1, 5, 100))
        expected = naive.take(lanes, room, now)
        assert take(merge, now, room) == expected
        assert merge.holding == any(lane.blocks for lane in lanes)
        found += len(expected)
    assert found > 300 and naive.QUEUED_ns == QUEUED_ns


class Traffic:
    """Packets of rings that come and are read at random times; `stamp(now)` is the clock of their stamps."""

    def __init__(self, seed, stamp):
        self.rand, self.stamp, self.now = random.Random(seed), stamp, 0
        self.merge, self.kernels = rings(self.rand.choice((2, 3)))
        self.coming, self.found, self.late_ns = [[] for _ in self.kernels], [], 0
        self.shown = [[] for _ in self.kernels]  # when each frame that was handed over was, of those not taken yet

    def run(self, steps):
        ticks = [self.rand.randrange(RETIRE_ns) for _ in self.kernels]
        for _ in range(steps):
            self.now += self.rand.randrange(1, STEP_ns)
            for place, kernel in enumerate(self.kernels):
                self._bring(place, kernel)
                if self.now >= ticks[place]:
                    ticks[place] += RETIRE_ns
                    kernel.tick()
                self._note(place, kernel)
            if self.rand.random() < 0.3:
                self._take()
        for place, kernel in enumerate(self.kernels):
            self.now += QUEUED_ns
            self._bring(place, kernel)
            kernel.tick()
            self._note(place, kernel)
        self._take()
        self.now += HOLD + 1
        self._take()

    def _bring(self, place, kernel):
        """Some packets get their stamp now, and are in the ring at most QUEUED_ns later."""
        waiting = self.coming[place]
        if self.rand.random() < (0.2, 0.02, 0.1)[place]:
            waiting.append((self.now, self.stamp(self.now)))
        while waiting and (waiting[0][0] + QUEUED_ns - STEP_ns <= self.now or self.rand.random() < 0.3):
            assert kernel.arrive(waiting.pop(0)[1])

    def _note(self, place, kernel):
        taken = sum(lane == place for lane, _ in self.found)
        shown = self.shown[place]
        shown += [self.now] * (len(kernel.sent) - kernel.count - taken - len(shown))

    def _take(self):
        for lane, ts in drain(self.merge, self.now):
            self.late_ns = max(self.late_ns, self.now - self.shown[lane].pop(0))
            self.found.append((lane, ts))

    def check_each(self):
        """Nothing is missing, and each ring's frames are in the order in which they came."""
        for place, kernel in enumerate(self.kernels):
            assert [ts for lane, ts in self.found if lane == place] == kernel.sent
            assert len(kernel.sent) > 10 and not kernel.dropped


@pytest.mark.parametrize("seed", range(10 if JIT else 4))
def test_in_order_however_it_is_cut_into_blocks_and_passes(seed):
    traffic = Traffic(seed, lambda now: BASE_ns + now)
    traffic.run(1500)
    traffic.check_each()
    times = [ts for _, ts in traffic.found]
    assert times == sorted(times)


@pytest.mark.parametrize("step_ns", [-3600 * 10**9, 3600 * 10**9, -5_000_000, 50_000_000])
@pytest.mark.parametrize("seed", range(3))
def test_a_clock_that_is_stepped_holds_nothing_up(seed, step_ns):
    traffic = Traffic(seed, lambda now: BASE_ns + now + (step_ns if now > 150_000_000 else 0))
    traffic.run(1500)
    traffic.check_each()
    assert traffic.late_ns < HOLD + 20_000_000  # and until the next pass


def test_a_clock_of_its_own_holds_nothing_up():
    """One card's clock is an hour behind: what it brings always seems to be earlier."""
    traffic = Traffic(1, lambda now: BASE_ns + now)
    behind = traffic.kernels[0]
    arrive = behind.arrive
    behind.arrive = lambda ts: arrive(ts - 3600 * 10**9)
    traffic.run(1500)
    traffic.check_each()
    assert traffic.late_ns < HOLD + 20_000_000


HOUR_ns = 3600 * 10**9
ROOM, FLOOD, SPELL = 4, 8, 8  # frames read in each of 1000 steps, packets that come on a flooded ring, steps of a block


def overloaded(ahead_ns, coming):
    """Kernels of two rings after 1000 steps; packets that come in each, the second's stamps are ahead."""
    merge, kernels = rings(2)
    for step in range(1000):
        now = step * RETIRE_ns // SPELL
        for kernel, count, ahead in zip(kernels, coming, (0, ahead_ns)):
            for _ in range(count):
                kernel.arrive(BASE_ns + now + ahead)
            if step % SPELL == 0:
                kernel.tick()
        take(merge, now, ROOM)
    return kernels


AHEAD_ns = [0, HOLD // 2, 200_000_000, HOUR_ns, -200_000_000, -HOUR_ns]


@pytest.mark.parametrize("ahead_ns", AHEAD_ns)
def test_a_ring_beside_one_that_is_flooded_loses_nothing(ahead_ns):
    flooded, quiet = overloaded(ahead_ns, (FLOOD, 1))
    assert quiet.dropped == 0 and flooded.dropped > 1000 * (FLOOD - ROOM)


@pytest.mark.parametrize("ahead_ns", AHEAD_ns)
def test_rings_that_are_flooded_share_what_there_is(ahead_ns):
    sent = [len(kernel.sent) for kernel in overloaded(ahead_ns, (FLOOD, FLOOD))]
    assert sum(sent) > 0.7 * 1000 * ROOM and min(sent) > 0.4 * sum(sent)

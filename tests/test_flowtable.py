"""Table, wheel and loop through a detector whose events tell everything, against the twin tests/naive/runner.py.

A packet says by itself what its state is to do: see `step`.
"""

import random

import numpy as np
import pytest
from numba import njit

from dataplane import runner as module
from dataplane.batch import Batch
from dataplane.capture import Block
from dataplane.chain import Chain
from dataplane.engine import delivery_order
from dataplane.flowtable import (
    AFTER,
    BEFORE,
    BLOCK_SLOTS,
    EMERGENCY_SLOTS,
    HEAD_WORDS,
    TICK_BITS,
    WHEEL_TICKS,
    find,
    give_back,
    low_word,
    new_tables,
    places,
    slots_for,
    table_bytes,
    take,
    tick_of,
)
from dataplane.records import FRAME, IP, JIT, PACKET, rows, rows_of
from dataplane.runner import ROOM_EVENTS, make_runners, runner_bytes
from detectors.base import DUE, END, FORGET, Detector, EventType, Field, event_row, state_row
from tests.naive.runner import drive, params_rows

BUFFER_EVENTS = module.BUFFER_EVENTS if JIT else 64 * ROOM_EVENTS  # interpreted, fewer packets fill it
FINISH_STATES = BUFFER_EVENTS - ROOM_EVENTS
TICK_NS = 1 << TICK_BITS
TURN_NS = WHEEL_TICKS * TICK_NS
SECOND_NS = 10**9

# What a packet asks for: `payload_len` is one of these, `ptp_time` how far off its deadline is, `ptp_correction` the
# distance of the deadlines after it, `ttl` their number.
QUIET, TELL, END_QUIETLY, END_TELLING = range(4)

STATE = state_row(("packets", np.int64), ("gap", np.int64), ("left", np.int64))
STATE_WORDS = STATE.itemsize // 8
FIELDS = (
    Field("packets", np.int64, "packets so far"),
    Field("asked", np.int64, "what the packet asked for"),
    Field("clock", np.int64, "that tick was given"),
    Field("why", np.int64, "reason that tick was given"),
)
STEPPED, TICKED = EventType("test.step", FIELDS, "a packet"), EventType("test.tick", FIELDS, "a deadline")


@njit
def key(pkt, params):
    return pkt.hash


@njit
def step(pkt, state, event, params):
    state.packets += 1
    state.gap, state.left = pkt.ptp_correction, pkt.ttl
    state.due = pkt.clock + pkt.ptp_time
    event.packets, event.asked, event.clock, event.why = state.packets, pkt.payload_len, 0, -1
    if pkt.payload_len >= 2:
        state.due = FORGET
    return pkt.payload_len & 1


@njit
def tick(state, clock, reason, event, params):
    """Every second tick of a state is silent."""
    event.packets, event.asked, event.clock, event.why = state.packets, 0, clock, reason
    state.left -= 1
    state.due = clock + state.gap if state.left >= 0 else FORGET
    return 0 if reason == DUE and state.left & 1 == 0 else 2


DETECTOR = Detector("test", IP, STATE, event_row(STEPPED, TICKED), (STEPPED, TICKED), (), key, step, tick)


def batch_of(packets, clock, listed=True):
    """A batch of PACKET rows as decoding would leave it, its capture clock at `clock`; `listed`: in the IP list."""
    batch = Batch(max(1, len(packets)))
    batch.give(Block(np.zeros(64, np.uint8), rows(FRAME, len(packets))), 0)
    batch.packets[: len(packets)] = packets
    batch.views[IP][: len(packets)] = np.arange(len(packets))
    batch.counts[IP], batch.row[0].clock = len(packets) if listed else 0, clock
    return batch


def batches(packets, cuts=()):
    """`packets` in batches that end at `cuts`."""
    for start, stop in zip((0, *cuts), (*cuts, len(packets)), strict=True):
        yield batch_of(packets[start:stop], int(packets["clock"][stop - 1]) if stop else 0)


@pytest.fixture(autouse=True)
def _buffers(monkeypatch):
    monkeypatch.setattr(module, "BUFFER_EVENTS", BUFFER_EVENTS)


def work(runner, batch):
    """Bytes of the events that a runner makes of a batch, part by part as they are taken."""
    parts = [runner.take() for _ in Chain([runner.stage()]).over(batch, batch.frames)]
    return parts + ([runner.take()] if runner.made else [])


@njit
def stumble(pkt, state, event, params):
    if pkt.ttl == 0:
        raise ValueError("broken")
    return 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_detector_that_fails_ends_the_run():
    """What a detector raises is never taken for a full event buffer."""
    broken = DETECTOR._replace(name="broken", step=stumble)
    (runner,) = make_runners(broken, params_rows(broken), 64, 1, 1)
    (batch,) = batches(packets_of([(0, key_of(1, 64), TELL, SECOND_NS, 0, 0)]))
    with pytest.raises((RuntimeError, ValueError), match="broken"):
        work(runner, batch)


class Replay:
    """The real runners over PACKET rows."""

    def __init__(self, packets, capacity=64, workers=1, cuts=()):
        self.runners = make_runners(DETECTOR, params_rows(DETECTOR), capacity, workers, max(1, len(packets)))
        self.most_live, self.parts = 0, []
        for batch in batches(packets, cuts):
            for runner in self.runners:
                self.parts += work(runner, batch)
            self.most_live = max(self.most_live, self.count("live"))
        self.live = [runner.live() for runner in self.runners]
        for runner, (slots, _) in zip(self.runners, self.live, strict=True):
            assert listed(runner) == sorted(slots.tolist())
        self.keys = [runner.table.keys[slots] for runner, (slots, _) in zip(self.runners, self.live, strict=True)]
        clock = int(packets["clock"][-1]) if len(packets) else 0
        for runner, (slots, _) in zip(self.runners, self.live, strict=True):
            for start in range(0, len(slots), FINISH_STATES):
                self.parts.append(runner.end(slots[start : start + FINISH_STATES], clock))

    def count(self, name):
        return sum(int(runner.table.control[0][name]) for runner in self.runners)

    def events(self):
        """In delivery order."""
        events = rows_of(np.concatenate([*self.parts, np.empty(0, np.uint8)]), DETECTOR.event)
        return events[delivery_order([(DETECTOR, events)])[:, 1]]


def told(events):
    """Events as lists, without the addresses that the twin has not."""
    names = [name for name in DETECTOR.event.names if name not in ("src", "dst")]
    return [tuple(int(event[name]) for name in names) for event in events]


def packets_of(asked):
    """PACKET rows of (clock, key, what, deadline, gap, left)."""
    packets = rows(PACKET, len(asked))
    for i, (clock, number, what, deadline, gap, left) in enumerate(asked):
        pkt = packets[i]
        pkt.clock = pkt.ts = clock
        pkt.seq, pkt.hash, pkt.addr, pkt.sport = i, number, -1, i % 65536
        pkt.payload_len, pkt.ptp_time, pkt.ptp_correction, pkt.ttl = what, deadline, gap, left
    return packets


def key_of(i, homes):
    """Keys that differ but begin their search at one of `homes` slots."""
    return np.uint64((i * 0x9E3779B97F4A7C15 & 0xFFFFFFFF00000000) | (i % homes * 37 % 65536) << 20 | i << 2 | 2)


DEADLINES = (
    0,
    1,
    -5,
    TICK_NS,
    3 * TICK_NS + 1,
    SECOND_NS,
    60 * SECOND_NS,
    TURN_NS,
    TURN_NS + 1,
    3 * TURN_NS,
    400 * SECOND_NS,
)


def chance(rng, keys, homes, count):
    """Packets of `keys` flows with deadlines that move nearer and farther, pauses, jumps of the clock."""
    clock, asked = rng.choice((0, -400 * SECOND_NS, 1_700_000_000 * SECOND_NS, -3 * TICK_NS)), []
    for _ in range(count):
        clock += rng.choice(
            (0, 0, 1, TICK_NS, rng.randrange(SECOND_NS), rng.randrange(20 * SECOND_NS) if rng.random() < 0.2 else 0)
        )
        if rng.random() < 0.01:
            clock += rng.choice((TURN_NS - 1, TURN_NS, 2 * TURN_NS + 5, 3600 * SECOND_NS))
        what = rng.choices((QUIET, TELL, END_QUIETLY, END_TELLING), (8, 4, 1, 1))[0]
        deadline = rng.choice((*DEADLINES, rng.randrange(10 * SECOND_NS), rng.randrange(200 * SECOND_NS)))
        gap = rng.choice((0, 1, -7, 5 * TICK_NS, SECOND_NS, rng.randrange(300 * SECOND_NS)))
        asked.append((clock, key_of(rng.randrange(keys), homes), what, deadline, gap, rng.choice((0, 0, 1, 2, 3))))
    return packets_of(asked)


@pytest.mark.parametrize("seed", range(40 if JIT else 12))
def test_random_packets(seed):
    rng = random.Random(seed)
    packets = chance(rng, rng.choice((1, 3, 20, 50)), rng.choice((1, 2, 64)), 300)
    expected = told(drive(DETECTOR, params_rows(DETECTOR)[0], packets))
    for workers in (1, 3):
        replay = Replay(packets, 64 << rng.randrange(3), workers, sorted(rng.sample(range(301), rng.randrange(6))))
        assert replay.count("emergency") == 0
        assert told(replay.events()) == expected
        balanced(replay)


def balanced(replay):
    ended = sum(len(slots) for slots, _ in replay.live)
    assert replay.count("live") == 0
    assert replay.count("created") == replay.count("expired") + replay.count("emergency") + ended
    table, left = replay.runners[0].table, np.concatenate([slots for slots, _ in replay.live])
    assert sorted(left) == np.flatnonzero(table.keys).tolist()
    assert not table.words.reshape(len(table.keys), -1)[table.keys == 0].any()  # free states are zero


def listed(runner):
    """Slots in the lists of the runner's wheel; every link forward has its link back."""
    links, wheel = runner.table.links.reshape(-1, HEAD_WORDS), int(runner.table.control[0].wheel)
    found = []
    for head in range(wheel, wheel + WHEEL_TICKS):
        slot = head
        while (after := int(links[slot, AFTER])) != head:
            assert int(links[after, BEFORE]) == slot
            found.append(after)
            slot = after
        assert int(links[head, BEFORE]) == slot
    return sorted(found)


@pytest.mark.parametrize("seed", range(20 if JIT else 6))
def test_a_table_too_small(seed):
    """Emergency: nothing is lost from the books, no key is in the table twice, and no block is fuller than allowed."""
    rng = random.Random(seed)
    packets = chance(rng, 500, rng.choice((1, 64)), 1500)
    replay = Replay(packets, 48, rng.choice((1, 2)), range(100, 1500, 100))
    assert replay.count("emergency") > 0
    assert replay.most_live <= EMERGENCY_SLOTS
    keys = np.concatenate(replay.keys)
    assert len(np.unique(keys)) == len(keys)
    balanced(replay)
    events = replay.events()
    stepped = events[events["code"] == 1]
    asked = packets["payload_len"]
    assert stepped["seq"].tolist() == np.flatnonzero((asked == TELL) | (asked == END_TELLING)).tolist()
    given_up = events[events["why"] == 1]
    assert len(given_up) == replay.count("emergency")
    assert (given_up["by_packet"] == 1).all()


@pytest.mark.parametrize("seed", range(8 if JIT else 3))
def test_emergency_does_not_depend_on_workers_or_batches(seed):
    packets = chance(random.Random(seed), 400, 64, 1200)
    expected = told(Replay(packets, 128).events())
    for workers, cuts in ((1, range(7, 1200, 50)), (2, (600,)), (4, range(64, 1200, 64))):
        assert told(Replay(packets, 128, workers, cuts).events()) == expected


def test_the_nearest_deadline_goes_first():
    """Of the first neighbours, the one that would have ended soonest."""
    asked = [(0, key_of(64 * i, 64), QUIET, (50 - i) * SECOND_NS, 0, 0) for i in range(8)]
    asked += [(0, key_of(64 * i, 64), QUIET, SECOND_NS, 0, 0) for i in range(8, EMERGENCY_SLOTS + 1)]
    replay = Replay(packets_of(asked), capacity=48)
    given_up = [event for event in replay.events() if event["why"] == 1]
    assert [int(event["seq"]) for event in given_up] == [7]
    assert [int(event["cause"]) for event in given_up] == [EMERGENCY_SLOTS]


def test_more_events_than_the_buffer_holds():
    """One batch, an event from each packet: the call is resumed and nothing is lost or told twice."""
    count = 2 * BUFFER_EVENTS + 100
    packets = packets_of([(i * 1000, key_of(i % 9, 64), TELL, SECOND_NS, 0, 0) for i in range(count)])
    replay = Replay(packets)
    assert len(replay.parts) >= count // BUFFER_EVENTS
    events = replay.events()
    assert events["seq"][:count].tolist() == list(range(count))
    assert (events["code"][:count] == 1).all()
    assert len(events) == count + 9


@pytest.mark.parametrize("late_ns", [3 * SECOND_NS, TURN_NS + 3 * SECOND_NS])
def test_more_deadlines_at_once_than_the_buffer_holds(late_ns):
    """The wheel stops where the buffer is full and goes on from there, before the packet that it stopped for.

    That packet is of a state whose deadline is among the last.
    """
    count = BUFFER_EVENTS + 500
    asked = [(0, key_of(i, 65536), QUIET, SECOND_NS + (i % 50) * TICK_NS, 0, 0) for i in range(count)]
    packets = packets_of([*asked, (late_ns, key_of(49, 65536), TELL, SECOND_NS, 0, 0)])
    replay = Replay(packets, capacity=4 * count, cuts=(count,))
    events = replay.events()
    assert replay.count("emergency") == 0
    assert replay.count("expired") == count
    ticks = events[:count]
    assert (ticks["code"] == 2).all()
    assert ticks["cause"].tolist() == sorted(range(count), key=lambda i: (i % 50, i))
    assert ticks["order"].tolist() == sorted(tick_of(SECOND_NS + (i % 50) * TICK_NS) << TICK_BITS for i in range(count))
    assert events["code"][count:].tolist() == [1, 2]
    assert events["packets"][count:].tolist() == [1, 1]  # a new state
    balanced(replay)


def test_more_deadlines_at_the_end_of_a_batch_than_the_buffer_holds():
    """Other detectors' packets alone move the clock: the call is resumed though no packet is left."""
    count = BUFFER_EVENTS + 500
    packets = packets_of([(0, key_of(i, 65536), QUIET, SECOND_NS, 0, 0) for i in range(count)])
    (runner,) = make_runners(DETECTOR, params_rows(DETECTOR), 4 * count, 1, count)
    (batch,) = batches(packets)
    assert work(runner, batch) == []
    parts = work(runner, batch_of(packets, 3 * SECOND_NS, listed=False))
    assert [len(part) // DETECTOR.event.itemsize for part in parts] == [FINISH_STATES, count - FINISH_STATES]
    events = rows_of(np.concatenate(parts), DETECTOR.event)
    assert sorted(events["cause"].tolist()) == list(range(count))
    assert runner.table.control[0].live == 0


def test_events_of_emergency_leave_room_for_the_packet():
    """Packets that make two events each, in one batch with a full buffer."""
    count = BUFFER_EVENTS
    packets = packets_of([(i, key_of(64 * i, 64), TELL, SECOND_NS, 0, 0) for i in range(count)])
    replay = Replay(packets, capacity=48)
    assert replay.count("emergency") == count - EMERGENCY_SLOTS
    assert len(replay.events()) == 2 * count
    balanced(replay)


def test_a_state_fires_before_the_packet_at_its_deadline():
    """Rounded up to a multiple of 2**24 ns: a packet at it starts a new state, one just before it keeps the old."""
    due = 100 * TICK_NS + 1
    for at, created in ((101 * TICK_NS - 1, 1), (101 * TICK_NS, 2)):
        replay = Replay(packets_of([(0, key_of(1, 1), QUIET, due, 0, 0), (at, key_of(1, 1), QUIET, due, 0, 0)]))
        assert replay.count("created") == created


def test_a_long_deadline_is_looked_at_once_a_turn_and_fires_once():
    asked = [(0, key_of(1, 1), QUIET, 10 * TURN_NS, 0, 0)]
    asked += [(i * SECOND_NS, key_of(2, 1), QUIET, TURN_NS, 0, 0) for i in range(1, 700)]
    events = Replay(packets_of(asked), cuts=range(1, 700)).events()
    assert [(int(e["order"]), int(e["cause"])) for e in events if e["why"] == DUE and e["cause"] == 0] == [
        (10 * TURN_NS, 0)
    ]
    assert [int(e["cause"]) for e in events if e["why"] == END] == [1]


def test_no_packets_no_events():
    replay = Replay(packets_of([]))
    assert len(replay.events()) == 0
    balanced(replay)


def test_key_0_is_not_for_the_detector():
    replay = Replay(packets_of([(0, np.uint64(0), TELL, SECOND_NS, 0, 0)]))
    assert len(replay.events()) == 0
    assert replay.count("created") == 0


# --- the table alone


@pytest.mark.parametrize("seed", range(12 if JIT else 4))
def test_find_against_a_dict(seed):
    """Random takes and frees in two blocks: each key is found where it was put, and a free slot for each other."""
    rng = random.Random(seed)
    table = new_tables(64, STATE)[0]
    at, control = places(table), table.control[0]
    there, homes = {}, rng.choice((1, 5, 128))
    for _ in range(1200):
        k = key_of(rng.randrange(90), homes)
        slot = int(find(at, k))
        assert slot == there[k] if k in there else slot < 0
        if k in there:
            if rng.random() < 0.6:
                give_back(at, control, slot, STATE_WORDS)
                del there[k]
        elif sum(s // BLOCK_SLOTS == block_of(k) for s in there.values()) < EMERGENCY_SLOTS:
            slot = int(take(at, control, k))
            assert slot not in there.values() and slot // BLOCK_SLOTS == block_of(k)
            there[k] = slot
    assert control.live == len(there)
    for k in list(there):
        give_back(at, control, there.pop(k), STATE_WORDS)
    assert control.live == 0 and control.created > 100
    assert not table.keys.any() and not table.tally.any()


def block_of(k):
    return int(k) >> 63


@pytest.mark.parametrize(
    "due", [0, 1, -1, TICK_NS, TICK_NS + 1, -TICK_NS, 2**62, -(2**62) - 1, 1_700_000_000 * SECOND_NS]
)
def test_tick_of_a_deadline_is_rounded_up(due):
    assert tick_of(due) == -(-due // TICK_NS)


@pytest.mark.parametrize("tick_number", [0, 1, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**38])
def test_low_word_is_signed(tick_number):
    assert low_word(tick_number) == int(np.int64(tick_number).astype(np.int32))


@pytest.mark.parametrize("capacity", [1, 48, 49, 1000, 65536, 262144])
def test_slots_leave_room(capacity):
    slots = slots_for(capacity)
    assert slots * 3 // 4 >= capacity and slots >= BLOCK_SLOTS
    assert slots == BLOCK_SLOTS or slots // 2 * 3 // 4 < capacity
    assert slots & (slots - 1) == 0


def test_memory_is_as_announced():
    for workers in (1, 3):
        runners = make_runners(DETECTOR, params_rows(DETECTOR), 1000, workers, 64)
        table = runners[0].table
        # `words` and `ends` are the same memory
        counted = table.keys, table.states, table.links, table.tally, table.used
        held = sum(array.nbytes for array in counted)
        held += sum(runner.events.nbytes for runner in runners)
        announced = runner_bytes(DETECTOR, 1000, workers)
        assert announced <= held <= announced + (workers - 1) * WHEEL_TICKS * 64
    assert table_bytes(1000, STATE) < 500_000 + slots_for(1000) * STATE.itemsize

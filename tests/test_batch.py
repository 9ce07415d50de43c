"""The capture clock against its definition; lists, counts and reasons of a batch."""

import random

import numpy as np
import pytest

from dataplane.batch import BACKWARD_MAX_NS, CLOCK_MAX_NS, FORWARD_MAX_NS, Batch, new_clock, set_clock
from dataplane.records import FRAME, IP, JIT, KINDS, NO_TIME, QUIC, TIME_NONE, TIME_RANGE, rows
from dataplane.wire import REASONS
from tests import packets as make
from tests.naive.clock import END_NS, HOUR_NS, MINUTE_NS, clocks
from tests.rows import block_of, fill

LEAST, MOST = -(2**63) + 1, 2**63 - 1


def frames_of(times):
    frames = rows(FRAME, len(times))
    for frame, ts in zip(frames, times, strict=True):
        frame.ts, frame.flags = (0, TIME_NONE) if ts is None else (ts, 0)
    return frames


def compare(times, cuts=()):
    """Hold the clock over frames in blocks that end at `cuts` against the twin."""
    clock, found = new_clock(), []
    for start, stop in zip((0, *cuts), (*cuts, len(times)), strict=True):
        frames = frames_of(times[start:stop])
        now = set_clock(frames, clock)
        found += frames["clock"].tolist()
        assert now == (found[-1] if found else 0)
    expected, counts = clocks(times)
    assert found == expected
    assert {name: int(clock[0][name]) for name in counts} == counts
    return found


S = 10**9
CASES = {
    "in order": [5 * S, 6 * S, 6 * S, 9 * S],
    "before 1970": [-5 * S, -4 * S, 0, 1],
    "a step back": [100 * S, 99 * S, 41 * S, 40 * S, 100 * S, 101 * S],
    "a step back beyond a minute": [100 * S, 40 * S - 1, 41 * S, 42 * S, 100 * S],
    "an hour ahead": [0, HOUR_NS, 2 * HOUR_NS, 3 * HOUR_NS],
    "more than an hour ahead": [0, HOUR_NS + 1, HOUR_NS + 2, 10 * HOUR_NS, 10 * HOUR_NS + 5],
    "one packet of another year": [0, S, 400 * 24 * HOUR_NS, 2 * S, 3 * S],
    "no timestamps": [None, None],
    "some without": [None, 5 * S, None, 4 * S, None, 6 * S],
    "extremes": [LEAST, MOST, LEAST, 0, MOST, MOST - 1, LEAST + 1, None, MOST],
    "extremes, the other way": [MOST, LEAST, MOST, 0],
    "the end of time": [END_NS - S, END_NS + S, END_NS + 2 * S, MOST, END_NS, END_NS - S, 0, S],
    "the end of time, step by step": [END_NS - S + i * S // 2 for i in range(6)],
    "nothing": [],
}


@pytest.mark.parametrize("name", CASES)
def test_clock(name):
    compare(CASES[name])
    compare(CASES[name], range(1, len(CASES[name])))


def test_limits_are_those_of_the_twin():
    assert (FORWARD_MAX_NS, BACKWARD_MAX_NS, CLOCK_MAX_NS) == (HOUR_NS, MINUTE_NS, END_NS)


def wander(rng, count):
    """Timestamps with pauses, steps back, jumps and gaps, anywhere in int64."""
    ts, times = rng.choice((0, 1_700_000_000 * S, LEAST, MOST, -HOUR_NS)), []
    for _ in range(count):
        how = rng.random()
        if how < 0.7:
            ts += rng.randrange(S)
        elif how < 0.85:
            ts -= rng.randrange(2 * MINUTE_NS)
        elif how < 0.95:
            ts += rng.randrange(-HOUR_NS, 2 * HOUR_NS)
        else:
            ts = rng.choice((0, LEAST, MOST, 2**62, -(2**62), rng.randrange(LEAST, MOST)))
        ts = min(max(ts, LEAST), MOST)
        times.append(None if rng.random() < 0.05 else ts)
    return times


@pytest.mark.parametrize("seed", range(60 if JIT else 20))
def test_clock_over_random_times(seed):
    rng = random.Random(seed)
    times = wander(rng, 400)
    found = compare(times, sorted(rng.sample(range(400), 5)))
    known = found[next((i for i, ts in enumerate(times) if ts is not None), len(times)) :]
    assert known == sorted(known)


def test_a_time_out_of_range_is_none():
    frames = frames_of([5, 6])
    frames[0].flags = TIME_RANGE
    clock = new_clock()
    assert set_clock(frames, clock) == 6
    assert frames["clock"].tolist() == [0, 6]
    assert clock[0].timeless == 1


def test_no_frames_no_time():
    clock = new_clock()
    assert set_clock(frames_of([]), clock) == 0
    assert clock[0].now == NO_TIME


# --- lists


def packet(port, body=b"x", kind=make.udp):
    return make.eth(make.ipv4("10.0.0.1", "10.0.0.2", kind(port, 9, body)))


FRAMES = {
    "ip": packet(5),
    "quic": packet(443),
    "echo": make.eth(make.ipv4("10.0.0.1", "10.0.0.2", make.icmp_echo(8, 1, 2))),
    "ptp": make.eth(make.sync(make.Clock(1), 1)),
    "stream": packet(5004, make.rtp(1, 2, 3)),
    "sandwich": packet(8620, make.probe(make.Probe(make.P1, 7))),
    None: make.eth(make.Layer(bytes(28), 0x0806)),
}
MEMBER_OF = {None: (), "ip": ("ip",), "ptp": ("ptp",)}


@pytest.mark.parametrize("seed", range(20))
def test_lists_hold_the_rows_of_their_kind_in_order(seed):
    rng = random.Random(seed)
    kinds = rng.choices(list(FRAMES), k=rng.randrange(300))
    batch = fill(block_of([(FRAMES[kind], len(FRAMES[kind]), 1) for kind in kinds]))
    for number, name in enumerate(KINDS):
        expected = [i for i, kind in enumerate(kinds) if name in MEMBER_OF.get(kind, ("ip", kind)) or number == IP]
        assert batch.views[number][: batch.numbers[number]].tolist() == expected
    assert [bool(h) for h in batch.packets["hash"][: len(kinds)]] == [kind not in (None, "ptp") for kind in kinds]
    assert batch.size == len(kinds)


def test_a_full_batch_all_in_one_list():
    """Common lists are written to at every packet, one place beyond the last."""
    batch = fill(block_of([(FRAMES["quic"], len(FRAMES["quic"]), 1)] * 64))
    assert batch.numbers[IP] == batch.numbers[QUIC] == 64
    assert batch.views[IP][:64].tolist() == batch.views[QUIC][:64].tolist() == list(range(64))


def test_reasons_are_counted_by_whether_a_detector_sees_the_packet():
    cut = FRAMES["ip"][:36]
    frames = [FRAMES["ip"], FRAMES["ptp"], FRAMES[None], cut, cut[:10], FRAMES["quic"]]
    batch = fill(block_of([(frame, len(frame), 1) for frame in frames]))
    unseen, seen = (dict(zip(REASONS, counts.tolist(), strict=True)) for counts in batch.reasons)
    assert {name: n for name, n in unseen.items() if n} == {"not_ip": 1, "short_link_header": 1}
    assert {name: n for name, n in seen.items() if n} == {"ok": 2, "not_ip": 1, "short_transport_header": 1}
    assert batch.reasons.sum() == len(frames)


def test_a_batch_forgets_the_last_block():
    many = block_of([(FRAMES["quic"], len(FRAMES["quic"]), 1)] * 8)
    batch = fill(many)
    batch.fill(block_of([(FRAMES["echo"], len(FRAMES["echo"]), 1)]), *_options(), 8, 0)
    assert batch.numbers == [1, 0, 1, 0, 0, 0]
    assert batch.reasons.sum() == 1
    assert (batch.size, batch.packets["seq"][0]) == (1, 8)


def _options():
    from dataplane.wire import decode_options

    return (decode_options(b"x"),)


def test_a_block_must_fit():
    block = block_of([(FRAMES["echo"], len(FRAMES["echo"]), 1)] * 3)
    with pytest.raises(ValueError, match="3 frames for a batch of 2 rows"):
        Batch(2).fill(block, *_options(), 0, 0)


def test_lists_are_as_long_as_the_batch():
    assert np.shape(fill(block_of([(b"", 0, 1)] * 5)).lists) == (len(KINDS), 6)

"""Pacing against the twin tests/naive/pacing.py, and what it promises whatever happens: rate, order, nothing lost."""

import random
from itertools import accumulate

import numpy as np
import pytest
from numba import njit

from dataplane.pacing import (
    NO_SLOT,
    SET_CE,
    SET_DSCP,
    SET_MARK,
    VERDICT,
    CREDIT_ns,
    class_at,
    flush,
    new_classes,
    new_pacer,
    next_due,
    offer,
    pacer_bytes,
    places,
    prepare,
    release,
    set_rate,
    set_rates,
)
from dataplane.records import JIT, META, NEVER, NF_ACCEPT, NF_DROP, rows
from tests.naive import pacing as naive

MS, SECOND = 10**6, 10**9
ECT0, NOT_ECT, CE = 2, 0, 3
ROOM = 4096
FATES = ("packets", "passed", "released", "flushed", "over_bytes", "over_time", "no_room", "held")


class Ours:
    """A pacer with classes of these settings; ids count from 0 over all classes."""

    def __init__(self, *settings, capacity=1000):
        classes = new_classes(len(settings))
        for row, setting in zip(classes, settings):
            for name, value in setting.items():
                row[name] = value
        self.pacer, self.classes = new_pacer(classes, capacity), classes
        self.at = places(self.pacer)
        self.verdict, self.out, self.meta = rows(VERDICT, 1), rows(VERDICT, ROOM), rows(META, 1)
        self.lengths = []

    def offer(self, index, length, now, tos=NOT_ECT):
        """What became of the packet, as the twin says it."""
        row, verdict, meta = self.classes[index], self.verdict[0], self.meta[0]
        meta["id"] = len(self.lengths)
        self.lengths.append(length)
        before = {name: int(row[name]) for name in (*FATES, "marked")}
        prepare(verdict, meta, length, row)
        sent = bool(offer(self.at, index, verdict, tos, now))
        fates = [name for name in FATES[1:] if row[name] != before[name]]
        assert len(fates) == 1 and row["packets"] == before["packets"] + 1
        assert sent == (fates != ["held"]) and (verdict["slot"] == NO_SLOT) == sent
        assert verdict["verdict"] == (NF_DROP if fates[0] in ("over_bytes", "over_time") else NF_ACCEPT)
        return "marked" if row["marked"] != before["marked"] else fates[0]

    def release(self, now, room=ROOM, call=release):
        """[(class, id)]; in calls of `room` each."""
        told = []
        while made := int(call(self.at, now, self.out, room)):
            part = self.out[:made]
            assert (part["verdict"] == NF_ACCEPT).all()
            told += [(int(v["class_index"]), int(v["id"])) for v in part]
            self.marked = [int(v["id"]) for v in part if v["flags"] & SET_CE]
            if made < room:
                break
        return told

    def balanced(self):
        """Each packet has one fate, and all slots are free or held."""
        for row in self.classes:
            assert row["packets"] == sum(row[name] for name in FATES[1:])
        control, slots, slot = self.pacer.control[0], 0, int(self.pacer.control[0].free)
        while slot != NO_SLOT:
            slots, slot = slots + 1, int(self.pacer.held["after"][slot])
        assert control.held == self.classes["held"].sum() == len(self.pacer.held) - slots
        return True


def both(rng, capacity):
    """A pacer and its twin, with settings by chance."""
    settings = [
        dict(
            rate=rng.choice((0, 1, 12_345, 1_000_003, 8_000_000, 999_999_937, 10**11)),
            credit_ns=rng.choice((0, 1, CREDIT_ns, 50 * MS)),
            limit_bytes=rng.choice((NEVER, 1500, 20_000)),
            limit_ns=rng.choice((NEVER, 0, 20 * MS)),
            mark_ns=rng.choice((NEVER, 0, 5 * MS)),
        )
        for _ in range(rng.choice((1, 2, 9)))
    ]
    twin = naive.Pacer([naive.Class(*setting.values()) for setting in settings], capacity)
    return Ours(*settings, capacity=capacity), twin


def step_ns(rng):
    return rng.choice((0, 0, 1, rng.randrange(20_000), rng.randrange(MS), rng.randrange(30 * MS), 3 * SECOND))


@pytest.mark.parametrize("seed", range(60 if JIT else 15))
def test_random_against_the_twin(seed):
    """Offers, releases with little room, rates that change: every fate, every departure and its order are the same."""
    rng = random.Random(seed)
    ours, twin = both(rng, rng.choice((0, 1, 7, 1000)))
    now, classes = rng.choice((0, 5, 10**15)), len(twin.classes)
    for _ in range(500):
        now += step_ns(rng)
        index, choice = rng.randrange(classes), rng.random()
        if choice < 0.7:
            length, tos = rng.choice((0, 1, 64, 1500, 65535)), rng.randrange(4)
            number = len(ours.lengths)
            assert ours.offer(index, length, now, tos) == twin.offer(index, (number, length, tos), now)
        elif choice < 0.85:
            same_departures(ours, twin.release(now), now, rng.choice((1, 2, ROOM)))
        else:
            rate = rng.choice((0, 1, 77_777, 8_000_000, 10**10))
            set_rate(ours.at, index, rate, now)
            twin.classes[index].set_rate(rate, now)
        same_state(ours, twin, now)
    assert ours.balanced()


def same_departures(ours, expected, now, room):
    """In order of departure; classes due at the same time in any order."""
    told = ours.release(now, room)
    for index in range(len(ours.classes)):
        assert [n for i, n in told if i == index] == [n for _, i, n, _ in expected if i == index]
    due = {n: at for at, i, n, _ in expected if ours.classes[i]["rate"]}
    order = [due[n] for _, n in told if n in due]
    assert order == sorted(order)


def same_state(ours, twin, now):
    for row, c in zip(ours.classes, twin.classes):
        assert row["held"] == len(c.queue) and row["held_bytes"] == sum(p[1] for p in c.queue)
        if c.rate and c.queue:
            assert row["next"] + (row["rest"] > 0) == c.due(now)
    if all(c.rate for c in twin.classes if c.queue):
        assert next_due(ours.at) == twin.next_due(now)
    else:
        assert next_due(ours.at) <= now


# --- what is promised


def saturated(rng, changes, credit_ns):
    """A class that always has packets, called at random times, its rate changed at random times.

    Rows (time, bits, rate then, bits * 10**9 that the rates were worth until then) of the packets that left.
    """
    rate = rng.choice((100_000, 1_000_003, 10**7, 10**9))
    ours, now, worth, left = Ours(dict(rate=rate, credit_ns=credit_ns)), 10**12, 0, []
    packet_ns = 6000 * SECOND // rate
    while len(left) < 400:
        while ours.classes[0]["held"] < 60 and len(left) < 400:
            if ours.offer(0, rng.choice((40, 1500, rng.randrange(1, 1501))), now) == "passed":
                left.append((now, len(ours.lengths) - 1, rate, worth))
        if rng.random() < changes:
            rate = max(1000, int(rate * rng.choice((0.001, 0.5, 0.97, 1.03, 2, 1000)))) if rate < 10**9 else 10**6
            set_rate(ours.at, 0, rate, now)
            packet_ns = 6000 * SECOND // rate
        left += [(now, number, rate, worth) for _, number in ours.release(now)]
        exact = rng.random() < 0.5 and ours.classes[0]["held"]
        step = int(next_due(ours.at)) - now if exact else rng.randrange(3 * packet_ns + 1)
        step = max(0, step) + rng.choice((0, 0, rng.randrange(2 * CREDIT_ns)))
        now, worth = now + step, worth + rate * step
    assert [number for _, number, _, _ in left] == list(range(len(left)))  # a FIFO
    return [(at, 8 * ours.lengths[number], rate, worth) for at, number, rate, worth in left]


@pytest.mark.parametrize("credit_ns", [0, CREDIT_ns, 20 * MS])
@pytest.mark.parametrize("seed", range(8 if JIT else 2))
def test_no_interval_sees_more_than_the_rate(seed, credit_ns):
    """Between any two departures: rate * (time + credit) and one packet at most, also while rates change."""
    rng = random.Random(seed)
    left = saturated(rng, rng.choice((0, 0.1, 0.5)), credit_ns)
    bits = list(accumulate((bits for _, bits, _, _ in left), initial=0))
    for i, (_, _, rate, worth) in enumerate(left):
        for j in range(i, len(left)):
            sent = (bits[j + 1] - bits[i]) * SECOND
            assert sent <= left[j][3] - worth + rate * credit_ns + 1500 * 8 * SECOND


@njit
def saturate(at, verdicts, count, now, late):
    """Keep class 0 busy until `count` packets have left, each call up to `late` ns late; how many have."""
    left, offered = 0, 0
    while left < count:
        while class_at(at, 0).held < 8:
            verdicts[0].length = 40 + offered * 7919 % 1461
            left += offer(at, 0, verdicts[0], 0, now)
            offered += 1
        due = next_due(at)
        if due > now:
            now = due + left * 104_729 % (late + 1)
        left += release(at, now, verdicts, 8)
    return left


@pytest.mark.parametrize("rate", [7, 1_000_003, 999_999_937])
def test_the_rate_is_exact_in_the_long_run(rate):
    """After any number of packets the next one is due at the ns that fractions say, though every call is late."""
    count, start = 300_000 if JIT else 1000, 10**12
    ours = Ours(dict(rate=rate, credit_ns=CREDIT_ns))
    left = int(saturate(ours.at, ours.out, count, start, CREDIT_ns))
    bits = 8 * sum(40 + n * 7919 % 1461 for n in range(left))
    work = bits * SECOND - CREDIT_ns * rate
    row = ours.classes[0]
    assert row["sent_bytes"] * 8 == bits
    assert (int(row["next"]) - start) * rate + int(row["rest"]) == work
    assert 0 <= row["rest"] < rate


@pytest.mark.parametrize("seed", range(10 if JIT else 3))
def test_nothing_is_lost_or_told_twice(seed):
    """Many classes: each id that was held comes once, by release or at last by flush, in the order of its class."""
    rng = random.Random(seed)
    rates = [rng.choice((100_000, 10**7, 0, 3)) for _ in range(40)]
    ours, now, held, told = Ours(*(dict(rate=rate) for rate in rates), capacity=150), 10**12, [], []
    for _ in range(1500):
        now += rng.randrange(200_000)
        index = rng.randrange(40)
        if ours.offer(index, 1000, now) == "held":
            held.append((index, len(ours.lengths) - 1))
        if rng.random() < 0.1:
            told += ours.release(now, rng.choice((1, 3, ROOM)))
        if rng.random() < 0.02:
            set_rates(ours.at, np.array([rng.choice((0, 3, 10**5, 10**8)) for _ in rates]), now)
    assert len(told) > 300 and ours.balanced()
    told += ours.release(now, 7, flush)
    assert sorted(told) == sorted(held)
    for index in range(40):
        assert [n for i, n in told if i == index] == [n for i, n in held if i == index]
    assert ours.balanced() and ours.pacer.control[0].held == 0 and next_due(ours.at) == NEVER


# --- one by one


def test_an_idle_class_has_earned_its_credit_and_no_more():
    """8 Mbit/s: 1000 bytes a ms. With 2 ms of credit: three packets at once, then one each ms."""
    ours, now = Ours(dict(rate=8_000_000, credit_ns=2 * MS)), 60 * SECOND
    assert [ours.offer(0, 1000, now) for _ in range(5)] == ["passed"] * 3 + ["held"] * 2
    assert next_due(ours.at) == now + MS
    assert ours.release(now + MS - 1) == []
    assert ours.release(now + MS) == [(0, 3)]
    assert ours.release(now + 3 * MS) == [(0, 4)]
    assert ours.classes[0]["wait_max"] == 3 * MS and ours.pacer.control[0].late_max == MS


@pytest.mark.parametrize(("late_ms", "left"), [(2, 3), (9, 3)])
def test_a_late_call_catches_up_its_credit(late_ms, left):
    ours = Ours(dict(rate=8_000_000, credit_ns=2 * MS))
    for _ in range(20):
        ours.offer(0, 1000, SECOND)
    assert len(ours.release(SECOND + MS + late_ms * MS)) == left


def test_classes_that_waited_for_us_together_are_not_in_step_afterwards():
    """Ten classes with a packet each ms, a tenth of a ms apart, before and after 7.3 ms in which nobody released."""
    ours = Ours(*[dict(rate=8_000_000, credit_ns=2 * MS) for _ in range(10)])
    for index in range(10):
        for _ in range(20):
            ours.offer(index, 1000, SECOND + index * MS // 10)
    now, steps = SECOND + 7 * MS + 3 * MS // 10, []
    ours.release(now)
    for _ in range(10):
        now = next_due(ours.at)
        assert len(ours.release(now)) == 1
        steps.append(now % MS)
    assert sorted(steps) == [index * MS // 10 for index in range(10)]


def test_departures_of_classes_are_in_order():
    """Packets of two classes, each ms and each 1.5 ms, released late."""
    ours = Ours(dict(rate=8_000_000, credit_ns=SECOND), dict(rate=8_000_000, credit_ns=SECOND))
    for index, length in ((0, 1000), (1, 1500)):
        while ours.offer(index, length, 10 * SECOND) == "passed":
            pass
        for _ in range(6):
            ours.offer(index, length, 10 * SECOND)
    times = {0: iter(range(1, 9)), 1: iter(0.5 + 1.5 * n for n in range(8))}  # ms
    told = [index for index, _ in ours.release(11 * SECOND)]
    order = [next(times[index]) for index in told]
    assert len(told) == 14 and order == sorted(order)


def test_a_higher_rate_is_no_burst_and_acts_at_once():
    """A packet that would wait 1 s at 8 kbit/s waits 1 us at 8 Gbit/s."""
    ours, now = Ours(dict(rate=8000, credit_ns=0)), SECOND
    assert [ours.offer(0, 1000, now) for _ in range(3)] == ["passed", "held", "held"]
    set_rate(ours.at, 0, 8 * 10**9, now)
    assert next_due(ours.at) == now + 1000
    assert ours.release(now) == []
    assert ours.release(now + 1000) == [(0, 1)]


def test_a_lower_rate_keeps_no_more_than_the_credit():
    """1 ms at 8 Gbit/s is 1 Mbyte; at 8 Mbit/s 1 ms is 1000 bytes."""
    ours, now = Ours(dict(rate=8 * 10**9, credit_ns=MS)), SECOND
    set_rate(ours.at, 0, 8_000_000, now)
    assert [ours.offer(0, 1000, now) for _ in range(3)] == ["passed", "passed", "held"]
    ours = Ours(dict(rate=8_000_000, credit_ns=MS))
    set_rate(ours.at, 0, 8 * 10**9, now)  # 1000 bytes were earned
    assert [ours.offer(0, 1000, now) for _ in range(3)] == ["passed", "passed", "held"]


def test_rates_at_the_ends_of_what_is_possible():
    ours, now = Ours(dict(rate=1, credit_ns=0)), SECOND
    ours.offer(0, 65535, now)
    ours.offer(0, 65535, now)
    assert next_due(ours.at) == now + 65535 * 8 * SECOND
    set_rate(ours.at, 0, 10**12, now)
    assert next_due(ours.at) == now + 525
    set_rate(ours.at, 0, 1, now)
    assert next_due(ours.at) == now + 65535 * 8 * SECOND
    idle = Ours(dict(rate=10**12, credit_ns=100 * SECOND))
    set_rate(idle.at, 0, 1, now)
    assert idle.classes[0]["next"] == now - 100 * SECOND


def test_no_rate():
    """Unpaced passes at once; a rate taken away frees what is held, one given begins without credit."""
    ours, now = Ours(dict(rate=8000)), SECOND
    assert [ours.offer(0, 1000, now) for _ in range(4)][-1] == "held"
    set_rate(ours.at, 0, 0, now)
    assert ours.offer(0, 1000, now) == "held"  # behind them
    assert next_due(ours.at) <= now
    assert [n for _, n in ours.release(now, 2)] == [1, 2, 3, 4]
    assert [ours.offer(0, 1000, now) for _ in range(9)] == ["passed"] * 9
    set_rate(ours.at, 0, 8000, now)
    assert [ours.offer(0, 1000, now) for _ in range(2)] == ["passed", "held"]


def test_limits():
    """8 Mbit/s; four packets may be held, or 2 ms expected."""
    ours, now = Ours(dict(rate=8_000_000, credit_ns=0, limit_bytes=4000)), SECOND
    assert [ours.offer(0, 1000, now) for _ in range(6)] == ["passed", *["held"] * 4, "over_bytes"]
    ours = Ours(dict(rate=8_000_000, credit_ns=0, limit_ns=2 * MS))
    assert [ours.offer(0, 1000, now) for _ in range(4)] == ["passed", "held", "held", "over_time"]
    assert ours.balanced()


def test_congestion_is_marked_on_packets_that_say_they_can():
    """RFC 3168, 5: ECT(0) and ECT(1); neither the others nor what has CE."""
    ours, now = Ours(dict(rate=8_000_000, credit_ns=0, mark_ns=MS)), SECOND
    fates = [ours.offer(0, 1000, now, tos) for tos in (0, ECT0, 0xB8 | ECT0, ECT0, 1, NOT_ECT, CE)]
    assert fates == ["passed", "held", "marked", "marked", "marked", "held", "held"]
    assert ours.release(now + SECOND) == [(0, 1)]
    ours.marked = []
    set_rate(ours.at, 0, 0, now + SECOND)
    ours.release(now + SECOND)
    assert ours.marked == [2, 3, 4] and ours.classes[0]["marked"] == 3


def test_without_room_the_packet_goes_on():
    ours, now = Ours(dict(rate=8_000_000, credit_ns=0), capacity=2), SECOND
    assert [ours.offer(0, 1000, now) for _ in range(4)] == ["passed", "held", "held", "no_room"]
    assert ours.pacer.control[0].held_max == 2
    ours.release(now + MS)
    assert ours.offer(0, 1000, now + MS) == "held"
    assert ours.balanced()


def test_a_verdict_says_what_the_class_sets():
    ours = Ours(dict(rate=8_000_000, credit_ns=0, mark=0xAB12, mark_mask=0xFF, dscp=46), {})
    meta, verdict = ours.meta[0], ours.verdict[0]
    meta["id"], meta["mark"], meta["queue"] = 0xFFFFFFFF, 0x80000034, 3
    prepare(verdict, meta, 100, ours.classes[0])
    assert (verdict["id"], verdict["mark"], verdict["queue"], verdict["dscp"]) == (0xFFFFFFFF, 0x80000012, 3, 46)
    assert verdict["flags"] == SET_MARK | SET_DSCP and verdict["length"] == 100
    prepare(verdict, meta, 100, ours.classes[1])
    assert verdict["flags"] == 0 and verdict["mark"] == 0x80000034


def test_a_thousand_classes_at_once():
    """All wait for the same tick, each for its own ns, also after a table of new rates."""
    ours = Ours(*(dict(rate=8_000_000 - n, credit_ns=0) for n in range(1000)))
    for _ in range(2):
        for index in range(1000):
            ours.offer(index, 100, SECOND)
    dues = [int(row["next"]) + (row["rest"] > 0) for row in ours.classes]
    assert next_due(ours.at) == min(dues)
    told = [dues[index] for index, _ in ours.release(SECOND + MS)]
    assert len(told) == 1000 and told == sorted(told)
    for index in range(1000):
        ours.offer(index, 100, SECOND + MS)
    set_rates(ours.at, np.arange(1, 1001), SECOND + MS)
    assert next_due(ours.at) == min(int(row["next"]) + (row["rest"] > 0) for row in ours.classes)


def test_memory_is_as_announced():
    pacer = new_pacer(new_classes(1000), 5000)
    arrays = (pacer.classes, pacer.held, *pacer.wheel, pacer.control)
    assert pacer_bytes(1000, 5000) == sum(array.nbytes for array in arrays)

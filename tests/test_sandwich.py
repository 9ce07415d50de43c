"""detectors/sandwich.py: gaps by hand, what spoils them, the probe format, and the twin on random sandwiches."""

import random
import re
import struct
from pathlib import Path

import pytest

from dataplane import wire
from dataplane.capture import open_capture
from dataplane.engine import Engine
from dataplane.records import NO_TIME, PROBE, SANDWICH, STREAM
from detectors.sandwich import DETECTOR, ENDED_BY, WHY
from tests.captures import pcap
from tests.naive.runner import drive, packets, params
from tests.naive.sandwich import sandwiches
from tests.packets import eth, ipv4, udp

P1, P2, P3 = 1, 2, 3
MS, S = 10**6, 10**9
D_NS, TIMEOUT_NS = 30 * MS, 2 * S
FORMAT = Path(__file__).parents[1] / "docs" / "probe-format.md"


def member(role, ts, session=7, round=0, ttl=1, d=D_NS, **more):
    fields = {"probe_role": role, "probe_session": session, "probe_round": round, "probe_ttl": ttl, "probe_d": d}
    return {"ts": ts, "hash": 1 + role, "proto": 17, "flags": PROBE, **fields, **more}


def plain(event):
    """An event row as the twin tells it."""
    is_gap = DETECTOR.events[event.code - 1].name == "sandwich.gap"
    told = {name: int(event[name]) for name in ("session", "round", "ttl_index", "d_ns")}
    for name in ("p1_ns", "p2_ns", "p3_ns"):
        told[name] = None if event[name] == NO_TIME else int(event[name])
    told["duplicates"] = int(event.duplicates)
    assert bool(event.p2_seen) == (told["p2_ns"] is not None)
    if is_gap:
        return {**told, "what": "gap", "gap_ns": int(event.gap_ns)}
    return {**told, "what": "incomplete", "reason": WHY[event.reason]}


def run(*members, **options):
    return drive(DETECTOR, params(DETECTOR, **options), packets(*members))


def only(*members):
    events = run(*members)
    assert len(events) == 1
    return plain(events[0])


def test_gap_is_the_growth_of_the_distance():
    event = only(member(P1, S), member(P3, S + D_NS + 120_000))
    assert event["what"] == "gap"
    assert event["gap_ns"] == 120_000
    assert event["p2_ns"] is None


def test_gap_may_be_negative():
    assert only(member(P1, S), member(P3, S + D_NS - 90_000))["gap_ns"] == -90_000


def test_gap_speaks_of_p3():
    (event,) = run(member(P2, S - 5), member(P1, S), member(P3, S + D_NS), member(P1, S + 9 * S, round=1))[:1]
    assert plain(event)["reason"] == "reordered"
    assert event.seq == 2
    assert event.order >= S - 5 + TIMEOUT_NS


def test_p2_between_its_neighbours_is_seen():
    event = only(member(P1, S), member(P2, S + D_NS), member(P3, S + D_NS + 200_000))
    assert (event["what"], event["p2_ns"]) == ("gap", S + D_NS)


@pytest.mark.parametrize(
    ("reason", "members"),
    [
        ("lost_p1", [(P3, S)]),
        ("lost_p1", [(P2, S), (P3, S + 5)]),
        ("lost_p3", [(P1, S)]),
        ("lost_p3", [(P1, S), (P2, S + D_NS)]),
        ("only_p2", [(P2, S)]),
        ("reordered", [(P3, S), (P1, S + 5)]),
        ("reordered", [(P1, S), (P3, S + D_NS), (P2, S + D_NS + 5)]),
    ],
)
def test_what_is_missing_is_told(reason, members):
    event = only(*(member(*m) for m in members))
    assert event["reason"] == reason


def test_members_that_contradict_give_no_gap():
    assert only(member(P1, S), member(P3, S + D_NS, d=D_NS + 1))["reason"] == "inconsistent"
    assert only(member(P1, S, d=-1), member(P3, S + D_NS, d=-1))["reason"] == "inconsistent"
    assert only(member(P1, -(2**62), clock=S), member(P3, S + D_NS))["reason"] == "inconsistent"


def test_duplicates_are_counted_and_the_first_copy_counts():
    event = only(member(P1, S), member(P1, S + 10), member(P3, S + D_NS + 50), member(P3, S + D_NS + 75))
    assert (event["duplicates"], event["gap_ns"]) == (2, 50)


def test_sandwiches_are_told_apart_by_session_round_and_ttl():
    keys = [dict(session=s, round=r, ttl=j) for s in (7, 8) for r in (0, 1) for j in (0, 1)]
    first = [member(P1, S + i, **key) for i, key in enumerate(keys)]
    last = [member(P3, S + D_NS + 10 * i, **key) for i, key in enumerate(keys)]
    assert [int(e.gap_ns) for e in run(*first, *last)] == [9 * i for i in range(8)]


def test_p2_to_another_receiver_belongs_to_the_sandwich():
    """Its addresses differ, so its flow does: the key holds neither."""
    event = only(member(P1, S, hash=5), member(P2, S + D_NS, hash=99), member(P3, S + D_NS + 7, hash=5))
    assert (event["gap_ns"], event["p2_ns"]) == (7, S + D_NS)


def test_timeout_and_end_of_input():
    events = run(member(P1, S), member(P1, 5 * S, round=1))
    assert [ENDED_BY[e.ended_by] for e in events] == ["timeout", "end_of_input"]
    early = run(member(P1, S), member(P3, S + 400 * MS), timeout="200ms")
    assert [WHY[e.reason] for e in early] == ["lost_p3", "lost_p1"]


def test_other_roles_are_not_for_it():
    assert run(member(0, S), member(4, S), member(255, S)) == []


def random_members(rng):
    made = []
    for round in range(40):
        for ttl in range(3):
            sent = S + round * 300 * MS + ttl * 90 * MS
            for role, at in ((P1, 0), (P2, D_NS), (P3, D_NS + 150_000)):
                for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2))):
                    d = D_NS if rng.random() < 0.97 else rng.choice((0, -5, 2**62, -(2**63)))
                    late = rng.choice((0, rng.randrange(300_000), rng.randrange(3 * S if rng.random() < 0.1 else MS)))
                    made.append(member(role, sent + at + late, round=round, ttl=ttl, d=d))
    return sorted(made, key=lambda m: m["ts"])


@pytest.mark.parametrize("seed", range(20))
def test_twin_on_random_sandwiches(seed):
    pkts = packets(*random_members(random.Random(seed)))
    found = [plain(e) for e in drive(DETECTOR, params(DETECTOR), pkts)]
    wanted = sandwiches(pkts, TIMEOUT_NS)
    assert sorted(found, key=str) == sorted(wanted, key=str)


def test_any_packets():
    """Whatever the fields hold, each sandwich ends in one event; the twin agrees."""
    rng = random.Random(2)
    extreme = (0, 1, -1, 2**62, -(2**62), 2**63 - 1, 1 - 2**63, S)
    made = []
    for clock in sorted(rng.randrange(20 * S) for _ in range(500)):
        role, ts, ttl, d = rng.randrange(6), rng.choice(extreme), rng.randrange(3), rng.choice(extreme)
        made.append(member(role, ts, 2**64 - 1, 2**32 - 1, ttl, d, clock=clock))
    pkts = packets(*made)
    found = [plain(e) for e in drive(DETECTOR, params(DETECTOR), pkts)]
    assert sorted(found, key=str) == sorted(sandwiches(pkts, TIMEOUT_NS), key=str)


# --- docs/probe-format.md


@pytest.fixture
def decode(tmp_path):
    """Function that gives (kinds, PACKET row) of a UDP payload."""

    def one(payload):
        frame = eth(ipv4("192.0.2.1", "198.51.100.1", udp(8620, 8620, payload)))
        path = tmp_path / "one.pcap"
        path.write_bytes(pcap([(1, 0, frame, len(frame))]))
        seen = []
        Engine([], None, wire.decode_options(b"test")).run(open_capture(path), lambda batch, _: seen.append(batch))
        (batch,) = seen
        return {kind for kind in (SANDWICH, STREAM) if batch.counts[kind]}, batch.packets[0]

    return one


def examples():
    """(role, payload) of each hex dump in the document: lines of an offset and bytes."""
    for block in re.findall(r"```hex\n(.*?)```", FORMAT.read_text(), re.S):
        lines = [line.split(maxsplit=1) for line in block.splitlines()]
        payload = b"".join(bytes.fromhex(digits) for _, digits in lines)
        assert [int(offset, 16) for offset, _ in lines] == list(range(0, len(payload), 8))
        yield payload


def test_the_documented_examples_decode(decode):
    p1, stream = examples()
    kinds, row = decode(p1)
    assert kinds == {SANDWICH}
    assert (row.probe_role, row.probe_ttl, row.probe_round, row.probe_seq) == (P1, 3, 5, 26)
    assert row.probe_session == 0x1F2E3D4C5B6A7988
    assert (row.probe_sent, row.probe_d) == (1_704_067_200_250_000_000, 30_000_000)
    kinds, row = decode(stream)
    assert kinds == {STREAM}
    assert (row.probe_role, row.probe_ttl, row.probe_round, row.probe_seq, row.probe_d) == (4, 0, 0, 199, 0)
    assert row.probe_session == 0x1F2E3D4C5B6A7988
    assert row.probe_sent == 1_704_067_209_950_000_000


def test_the_documented_offsets_are_the_ones_decoded(decode):
    """The document's table, turned into a struct format, reads the same as wire.py."""
    table = re.findall(r"^\| (\d+) \| (\d+) \| ([\w ]+) \|", FORMAT.read_text(), re.M)
    sizes = {name: (int(at), int(size)) for at, size, name in table}
    payload = struct.pack(">4sBBBBQIIqq", b"QTAP", 1, 3, 9, 0, 2**63 + 5, 2**32 - 2, 2**31 + 1, -2, 2**40)
    row = decode(payload)[1]
    signed = {"sent", "d"}
    fields = {"role": "probe_role", "ttl index": "probe_ttl", "session": "probe_session", "round": "probe_round"}
    for name, field in {**fields, "sequence": "probe_seq", "sent": "probe_sent", "d": "probe_d"}.items():
        at, size = sizes[name]
        assert int.from_bytes(payload[at : at + size], "big", signed=name in signed) == row[field], name


@pytest.mark.parametrize(("head", "size"), [(b"QTAP", 40), (b"QTAQ\1\1", 40), (b"QTAP\2\1", 40), (b"QTAP\1\1", 39)])
def test_what_is_no_probe(head, size, decode):
    assert decode(head.ljust(size, b"\0"))[0] == set()

"""Evidence: what a History gives back, against a list of everything; the files made of it, and their bounds."""

import random
import struct
from typing import NamedTuple

import numpy as np
import pytest

import detectors as registry
from dataplane.capture import open_capture
from dataplane.engine import Engine
from dataplane.evidence import History, pcapng
from dataplane.records import ENDS, FRAME, Block, rows
from qoetap import evidence
from qoetap.evidence import FILES_A_SECOND, Evidence
from qoetap.exits import USAGE, Exit
from qoetap.replay import engine_parts
from tests.helpers import Memory, settings_for
from tests.packets import address, eth, icmp_echo, icmpv6_echo, ipv4, ipv6, tcp, udp, vlan

UDP, TCP, ICMP, ICMPV6 = 17, 6, 1, 58
HOSTS = {4: ("10.0.0.1", "10.0.0.2", "10.0.0.3"), 6: ("2001:db8::1", "2001:db8::2", "2001:db8::3")}
SECOND_ns = 10**9


class Sent(NamedTuple):
    """A frame and what a person sees in it; no ends where they are not there or were cut off."""

    ts: int
    data: bytes
    length: int
    ends: tuple  # (version, protocol, {(address, port), (address, port)}) as a frozenset, or None


def transport(rng, version, proto, ports):
    if proto == UDP:
        return udp(*ports, rng.randbytes(rng.choice((0, 1, 30, 200, 1400))))
    if proto == TCP:
        return tcp(*ports, "A", rng.randbytes(rng.choice((0, 100, 1000))))
    kind = rng.choice((8, 0) if version == 4 else (128, 129))
    return (icmp_echo if version == 4 else icmpv6_echo)(kind, 1, rng.randrange(9), rng.randbytes(rng.randrange(64)))


def any_frame(rng, ts):
    """One Sent: of few flows in either direction, now and then no IP, cut, tagged."""
    if rng.random() < 0.1:
        data = eth(rng.randbytes(50), ethertype=0x0806)
        return Sent(ts, data, len(data), None)
    version = rng.choice((4, 4, 6))
    proto = rng.choice((UDP, TCP, ICMP if version == 4 else ICMPV6))
    source, target = rng.sample(HOSTS[version], 2)
    ports = rng.choice(((1000, 443), (443, 1000), (1000, 1001), (1001, 1000)))
    segment = transport(rng, version, proto, ports)
    packet = (ipv4 if version == 4 else ipv6)(source, target, segment)
    tagged = rng.random() < 0.2
    data = eth(vlan(5, packet) if tagged else packet)
    ends = frozenset([(source, ports[0]), (target, ports[1])]) if proto in (UDP, TCP) else frozenset([source, target])
    if rng.random() < 0.15:
        cut = rng.choice((0, 10, 14, 20, 30))
        return Sent(ts, data[:cut], len(data), None)
    return Sent(ts, data, len(data), (version, proto, ends))


def block_of(sent):
    """A Block of the frames, at odd places of its buffer."""
    frames, parts, at = rows(FRAME, len(sent)), [], 0
    for i, one in enumerate(sent):
        parts += [b"\xaa" * 3, one.data]
        frames[i].offset, frames[i].len, frames[i].caplen, frames[i].ts = at + 3, one.length, len(one.data), one.ts
        frames[i].linktype, frames[i].flags = 1, 0
        at += 3 + len(one.data)
    return Block(np.frombuffer(bytearray(b"".join(parts) + b"\xaa" * 64), np.uint8), frames)


def engine_of(*names):
    known = registry.load_all()
    parts, decode = engine_parts(settings_for(known, {"detectors": list(names)}), known)
    return Engine(parts, Memory([detector for detector, _, _ in parts]), decode, 1, 64)


def flow(version, proto, one, other):
    """(what an event says of it, ends as in Sent) of a flow between two ends (address, port)."""
    ends = frozenset([one, other] if proto in (UDP, TCP) else [one[0], other[0]])
    event = rows(np.dtype(ENDS, align=True), 1)[0]
    for name, end in (("src", one), ("dst", other)):
        event[name][: len(address(end[0]))] = np.frombuffer(address(end[0]), np.uint8)
    event.sport, event.dport, event.proto, event.ip_version = one[1], other[1], proto, version
    return event, (version, proto, ends)


FLOWS = [
    flow(version, proto, (one, ports[0]), (other, ports[1]))
    for version, icmp in ((4, ICMP), (6, ICMPV6))
    for proto in (UDP, TCP, icmp)
    for one, other in ((HOSTS[version][0], HOSTS[version][1]), (HOSTS[version][2], HOSTS[version][0]))
    for ports in ((1000, 443), (1001, 1000))
]


def check(history, sent, size):
    """All that History.packets gives is right, and all that must fit is there."""
    room, largest = size, max(len(one.data) for one in sent)
    surely = len(sent)  # from this number on everything has room
    while surely and room - len(sent[surely - 1].data) >= largest and len(sent) - surely < len(history.kept):
        surely -= 1
        room -= len(sent[surely].data)
    for event, ends in FLOWS:
        of_flow = [(n, (one.ts, 1, one.length, one.data)) for n, one in enumerate(sent) if one.ends == ends]
        found = history.packets(event, 0, 1 << 30)
        assert found == [packet for _, packet in of_flow][len(of_flow) - len(found) :]
        assert len(found) >= sum(n >= surely for n, _ in of_flow)


@pytest.mark.parametrize("seed", range(8))
def test_a_history_gives_the_last_packets_of_a_flow(seed):
    rng = random.Random(seed)
    size = rng.choice((4096, 8192, 20_000, 64_000))
    history, engine, sent = History(size), engine_of("flow"), []
    for _ in range(8):
        some = [any_frame(rng, (len(sent) + i) * 1000 + 10**18) for i in range(rng.randrange(1, 90))]
        engine.go_through(block_of(some), history.watch)
        sent += some
        check(history, sent, size)


def test_small_packets_are_bounded_by_rows():
    history, engine = History(64 * 128), engine_of("flow")
    frame = eth(ipv4(*HOSTS[4][:2], udp(1000, 443)))
    sent = [Sent(n, frame, len(frame), FLOWS[0][1]) for n in range(200)]
    engine.go_through(block_of(sent), history.watch)
    assert [ts for ts, *_ in history.packets(FLOWS[0][0], 0, 1 << 30)] == list(range(136, 200))


def test_a_packet_larger_than_the_room_is_cut():
    history, engine = History(4096), engine_of("flow")
    frame = eth(ipv4(*HOSTS[4][:2], udp(1000, 443, bytes(6000))))
    engine.go_through(block_of([Sent(5, frame, len(frame), None)] * 3), history.watch)
    assert history.packets(FLOWS[0][0], 0, 1 << 30) == [(5, 1, len(frame), frame[:4096])]


def test_only_packets_since_a_time_are_given():
    history, engine = History(1 << 16), engine_of("flow")
    frame = eth(ipv4(*HOSTS[4][:2], udp(1000, 443)))
    engine.go_through(block_of([Sent(n, frame, len(frame), None) for n in range(10)]), history.watch)
    assert [ts for ts, *_ in history.packets(FLOWS[0][0], 7, 1 << 30)] == [7, 8, 9]


def test_a_file_holds_what_was_given(tmp_path):
    packets = [(10**18 + 7, 1, 60, bytes(range(60))), (10**18 + 8, 101, 1500, b"\x45" * 33), (10**18 + 9, 1, 0, b"")]
    path = tmp_path / "one.pcapng"
    path.write_bytes(pcapng(packets, '{"é": 1}'))
    found = [
        (int(f.ts), int(f.linktype), int(f.len), bytes(block.buf[f.offset : f.offset + f.caplen]))
        for block in open_capture(path).blocks()
        for f in block.frames
    ]
    assert found == packets
    assert struct.unpack_from("=HH", path.read_bytes(), 24) == (1, 9)
    assert path.read_bytes()[28:37].decode() == '{"é": 1}'


def test_a_file_without_packets_is_one(tmp_path):
    path = tmp_path / "none.pcapng"
    path.write_bytes(pcapng([], "{}"))
    source = open_capture(path)
    assert sum(len(block.frames) for block in source.blocks()) == 0 and source.problem is None


# --- the files of an agent


class Tap:
    """Hands the events of an engine to Evidence."""

    def __init__(self, folder, files_most=1000):
        self.engine, self.history = engine_of("icmp_loop"), History(1 << 16)
        self.engine.sink, self.folder = self, folder
        self.evidence = Evidence(str(folder), ["icmp.rtt"], SECOND_ns, files_most, self.engine.detectors)

    def write(self, events):
        self.evidence.look(events, self.history)

    def round_trips(self, count, first=0):
        sent = []
        for n in range(first, first + count):
            pair = [(8, HOSTS[4][:2]), (0, HOSTS[4][1::-1])]
            frames = [eth(ipv4(*ends, icmp_echo(kind, 1, n))) for kind, ends in pair]
            sent += [Sent(n * 1000 + i, frame, len(frame), None) for i, frame in enumerate(frames)]
        self.engine.go_through(block_of(sent), self.history.watch)
        self.engine.hand_on()

    def close(self):
        """(files that are there, skipped)."""
        self.evidence.close()
        return len(list(self.folder.iterdir())), self.evidence.skipped


@pytest.fixture
def clock(monkeypatch):
    """Sets the monotonic clock, in seconds."""
    monkeypatch.setattr(evidence.time, "monotonic", lambda: clock.now)
    clock.now = 5.0
    return clock


def test_the_rate_is_bounded(tmp_path, clock):
    tap = Tap(tmp_path)
    tap.round_trips(FILES_A_SECOND + 3)
    assert tap.evidence.troubles() == [
        f"evidence: no more than {FILES_A_SECOND} files a second; what is left out is counted"
    ]
    clock.now = 6.0
    tap.round_trips(4, first=100)
    assert tap.evidence.troubles() == []  # it was said
    assert tap.close() == (FILES_A_SECOND + 4, 3)
    assert tap.evidence.summary() == f"{FILES_A_SECOND + 4} files of evidence, 3 events left none"


def test_the_number_of_files_is_bounded(tmp_path, clock):
    tap = Tap(tmp_path, files_most=2)
    tap.round_trips(5)
    (said,) = tap.evidence.troubles()
    assert "no more than 2 files (live.write_files)" in said
    assert tap.close() == (2, 3)


def test_two_events_of_one_instant_have_a_file_each(tmp_path, clock):
    for _ in range(2):
        tap = Tap(tmp_path)
        tap.round_trips(1)
        tap.evidence.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["icmp.rtt-1-1.pcapng", "icmp.rtt-1.pcapng"]


def test_a_folder_that_went_is_said_and_counted(tmp_path, clock):
    folder = tmp_path / "evidence"
    tap = Tap(folder)
    folder.rmdir()
    tap.round_trips(3)
    tap.evidence.close()
    assert tap.evidence.troubles() == [f"evidence: {folder}: No such file or directory; what is left out is counted"]
    assert (tap.evidence.written, tap.evidence.skipped) == (0, 3)


def test_nothing_happened():
    assert Evidence.summary(type("Nothing", (), {"written": 0, "skipped": 0})) is None


def test_an_event_that_there_is_not(tmp_path):
    with pytest.raises(Exit) as refused:
        Evidence(str(tmp_path), ["flow.begin"], 0, 1, registry.load_all().values())
    assert refused.value.status == USAGE and "there is no event 'flow.begin'" in str(refused.value)

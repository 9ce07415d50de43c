"""Captures sent over a veth pair give the events that `replay` gives.

What cannot be on a wire is made so first: a packet that was cut is filled up with zeros, another link layer becomes
Ethernet. The file of what is sent is replayed; live, the kernel's timestamps are replaced by those of the file.
"""

import collections
import json
import struct
import threading
import time

import pytest

import detectors as registry
from dataplane.capture import open_capture
from dataplane.capture.port import Port, Share
from dataplane.capture.ring import RingOptions
from dataplane.engine import Engine
from dataplane.records import CHECKED, JIT, Stretch
from pcaps.cases import CASES
from pcaps.make import make
from qoetap.lab import Link
from qoetap.replay import engine_parts
from tests import captures
from tests.golden import load
from tests.helpers import Memory, replay_events, settings_for
from tests.packets import eth, ipv4, udp

CORPUS = (
    "ndpi-1kxun.pcap", "ndpi-ptpv2.pcap", "ndpi-rtp.pcapng", "ndpi-youtube_quic.pcap", "ndpi-icmp-tunnel.pcap",
    "ndpi-ipv6_in_gtp.pcap", "ndpi-teams.pcap", "arkime-dot1ad.pcap", "arkime-gre-sample.pcap", "arkime-v6.pcap",
)  # fmt: skip
MTU_bytes, LEAST_bytes = 65535, 14
START_ns, BACK_ns, FORWARD_ns = 1_700_000_000 * 10**9, 10**9, 300 * 10**9
ADDRESSES = bytes.fromhex("020000000002020000000001")
T_IPV4, T_IPV6 = 0x0800, 0x86DD
CARRIED = {0: 4, 108: 4, 113: 16, 276: 20, 12: 0, 14: 0, 101: 0, 228: 0, 229: 0}  # bytes of other link layers
TYPE_AT = {113: 14, 276: 0}  # where those have the ethertype
PENDING_packets = 300  # sent before those before were seen


def on_the_wire(data, linktype):
    """The packet as an Ethernet frame, None where it cannot be one."""
    if linktype != 1 and linktype not in CARRIED:
        return None
    if linktype != 1:
        at, bare = TYPE_AT.get(linktype), data[CARRIED[linktype] :]
        if not bare:
            return None
        version = T_IPV6 if bare[0] >> 4 == 6 else T_IPV4
        ethertype = struct.pack(">H", version) if at is None else data[at : at + 2]
        data = ADDRESSES + ethertype + bare
    return data if LEAST_bytes <= len(data) <= MTU_bytes + LEAST_bytes else None


def sent_of(path):
    """[(ts, frame)] of what can be sent of a capture. Where its time jumps, as no wire's does, it stands still."""
    found, ts, last = [], START_ns, None
    for block in open_capture(path).blocks():
        for frame in block.frames:
            if not frame["flags"]:
                step = int(frame["ts"]) - (int(frame["ts"]) if last is None else last)
                last = int(frame["ts"])
                ts += step if -BACK_ns <= step <= FORWARD_ns else 0
            data = bytes(block.buf[frame.offset : frame.offset + frame.caplen])
            whole = data + bytes(max(0, min(int(frame.len), MTU_bytes) - len(data)))
            if (data := on_the_wire(whole, int(frame.linktype))) is not None:
                found.append((ts, data))
    return found


def write(path, sent):
    packets = [captures.enhanced(ts, data) for ts, data in sent]
    path.write_bytes(captures.section() + captures.interface(resolution=9) + b"".join(packets))


class Retimed(Share):
    """A share whose packets have the times of the file, and whose clock stands still between them."""

    def __init__(self, port, number, rows, times):
        super().__init__([port], number, rows)
        self.times, self.seen = times, 0

    def blocks(self):
        for block in super().blocks():
            if not isinstance(block, int):
                self._retime(block)
            yield block

    def _retime(self, block):
        for i in range(len(block.frames)):
            frame = block.frames[i]
            block.frames[i]["ts"] = self.times[bytes(block.buf[frame.offset : frame.offset + frame.caplen])].popleft()
        self.seen += len(block.frames)

    def elapsed(self, _now_ns):
        return 0


@pytest.mark.skipif(not JIT or CHECKED, reason="only compiled there are stretches")
def test_stretches_show_every_packet():
    """Also in tiles of other sizes, and where the ring is closed while somebody reads."""
    count, frames = 3000, [udp_frame(n) for n in range(3000)]
    with Link() as link:
        for rows in (4096, 1000, 7):
            port = link.receiver.inside(Port, link.receiver.interface, RingOptions(1 << 22, 1 << 16, 2))
            known = registry.load_all()
            parts, decode = engine_parts(settings_for(known, {}), known, b"one secret", 1)
            sink = Memory([detector for detector, _, _ in parts])
            engine = Engine(parts, sink, decode, batch_rows=rows)
            share = Share([port], 0, engine.block_frames, stretches=True)
            port.begin()
            thread = threading.Thread(target=engine.follow, args=(share.blocks(),))
            thread.start()
            with link.sender.socket() as sock:
                for frame in frames:
                    sock.send(frame)
            port.stop()
            share.stop()
            thread.join(20)
            assert not thread.is_alive()
            engine.end()
            told = engine.ledger.as_dict()
            assert told["packets"]["processed"] == engine.seen == count
            assert told["states"]["flow"]["ended"] == count
            blocks = Share([port], 0, engine.block_frames, stretches=True).blocks()
            assert isinstance(next(blocks), Stretch)
            port.close()
            assert port.closing  # not unmapped: somebody reads
            blocks.close()
            assert port.closing[0].close()


def udp_frame(n):
    return eth(ipv4("10.0.0.1", "10.0.0.2", udp(1000 + n, 53, bytes(20))))


class Receiver:
    """Workers on the far side of a link, as `qoetap live` has them."""

    def __init__(self, link, workers, options, sent):
        known = registry.load_all()
        settings = settings_for(known, options)
        self.times = collections.defaultdict(collections.deque)
        for ts, data in sent:
            self.times[data].append(ts)
        ring = RingOptions(1 << 24, 1 << 17, 2)
        self.port = link.receiver.inside(Port, link.receiver.interface, ring, workers)
        self.engines, self.shares, self.sinks = [], [], []
        for number in range(workers):
            parts, decode = engine_parts(settings, known, b"one secret", 1)
            self.sinks.append(Memory([detector for detector, _, _ in parts]))
            self.engines.append(Engine(parts, self.sinks[-1], decode, agent_id=settings.agent_id))
            self.shares.append(Retimed(self.port, number, self.engines[-1].block_frames, self.times))
        self.threads = [
            threading.Thread(target=engine.follow, args=(share.blocks(),))
            for engine, share in zip(self.engines, self.shares, strict=True)
        ]
        self.port.begin()
        for thread in self.threads:
            thread.start()

    @property
    def seen(self):
        return sum(share.seen for share in self.shares)

    def end(self):
        """The events of all workers."""
        self.port.stop()
        for share in self.shares:
            share.stop()
        for thread in self.threads:
            thread.join()
        latest = max(int(engine.clock[0]["now"]) for engine in self.engines)
        for engine in self.engines:
            engine.pass_time(latest)
            engine.end()
        counts = self.port.counts()
        self.port.close()
        assert counts.dropped == 0
        assert counts.received == sum(engine.ledger.seen for engine in self.engines)
        return [json.loads(line) for sink in self.sinks for line in bytes(sink.text).splitlines()]


def live_events(link, workers, options, sent):
    receiver = Receiver(link, workers, options, sent)
    with link.sender.socket() as sock:
        for n, (_, data) in enumerate(sent):
            sock.send(data)
            while n - receiver.seen > PENDING_packets:
                time.sleep(0.001)
    return receiver.end()


def aside(events):
    """Without packet numbers, which each worker counts for itself."""
    kept = [{name: value for name, value in event.items() if not name.startswith("pcap_")} for event in events]
    for event in kept:
        event.get("icmp_loop", {}).pop("request", None)
    return kept


def in_any_order(events):
    return sorted(json.dumps(event, sort_keys=True) for event in events)


@pytest.fixture(scope="module")
def link(root):
    with Link(mtu=MTU_bytes, offloads=False) as link:
        yield link


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pcaps")
    make(folder)
    return folder


def check_parity(link, path, workers, options, folder):
    sent = sent_of(path)
    if not sent:
        return 0
    write(folder / "sent.pcapng", sent)
    expected = aside(replay_events(folder / "sent.pcapng", **options))
    found = aside(live_events(link, workers, options, sent))
    if workers == 1:
        assert found == expected
    assert in_any_order(found) == in_any_order(expected)
    return len(expected)


@pytest.mark.parametrize("workers", [1, 2] if JIT else [2])
def test_scripted_captures(link, made, tmp_path, workers):
    events = 0
    for case in CASES[:: 1 if JIT else 5]:
        header, _ = load(made / f"{case.__name__}.expected.jsonl")
        options = {name: value for name, value in header.get("options", {}).items() if name != "workers"}
        events += check_parity(link, made / header["file"], workers, options, tmp_path)
    assert events > (450 if JIT else 50)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", CORPUS if JIT else CORPUS[::3])
def test_corpus(link, corpus, tmp_path, name, workers):
    assert check_parity(link, corpus / "pcaps" / name, workers, {}, tmp_path)

"""What TCP gets of the rates: ten connections, each in a class of its own; six of one class beside one of another.

What counts is what the receiver's acknowledgements say that it has got, also behind a gap: what it can hand on jumps
when a gap is filled, by up to all that the class holds.
"""

import contextlib
import selectors
import socket
import struct
import tempfile
import time

from bench.inline_parts import Inline, SETTLE_seconds, router
from bench.live_report import say
from bench.report import median
from qoetap.street import RECEIVER

FIRST_PORT = 5000
MTU_bytes, SEGMENT_bytes = 1500, 1448  # of an IP packet; of them payload, with TCP's timestamps
CHUNK_bytes = 1 << 16
CONNECT_seconds = 10
SND_MSS, SACKED, BYTES_ACKED, INFO_bytes = 16, 28, 120, 128  # offsets in struct tcp_info, linux/tcp.h
BAR = 0.01
CASES = {  # {class: (connections, bit/s)}
    "ten connections": {f"one{i}": (1, 2_000_000) for i in range(10)},
    "a browser": {"browser": (6, 6_000_000), "other": (1, 6_000_000)},
}


def ports(case):
    """{class: range of its connections' ports}."""
    told, first = {}, FIRST_PORT
    for name, (count, _) in case.items():
        told[name] = range(first, first + count)
        first += count
    return told


def classes(case):
    """The classes of the configuration."""
    ranges = {name: f"{found[0]}-{found[-1]}" for name, found in ports(case).items()}
    return [{"name": name, "match": {"proto": "tcp", "dport": ranges[name]}, "rate": case[name][1]} for name in case]


class Connection:
    """A connection through the router that is always full, from the sender to `port` of the receiver."""

    def __init__(self, street, port):
        where = RECEIVER.ipv4, port
        with street.receiver.inside(socket.create_server, where) as listener:
            self.mouth = street.sender.inside(socket.create_connection, where, CONNECT_seconds)
            self.ear, _ = listener.accept()
        self.port, self.buf = port, bytearray(CHUNK_bytes)
        for end in (self.mouth, self.ear):
            end.setblocking(False)

    def push(self):
        """Send what there is room for."""
        self.mouth.send(self.buf)

    def pull(self):
        """Receive what is there."""
        self.ear.recv_into(self.buf)

    def acknowledged(self):
        """Bytes that the other side says it has, whether it can hand them on or not."""
        info = self.mouth.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_bytes)
        (segment,), (sacked,) = struct.unpack_from("I", info, SND_MSS), struct.unpack_from("I", info, SACKED)
        return struct.unpack_from("Q", info, BYTES_ACKED)[0] + sacked * segment

    def close(self):
        self.mouth.close()
        self.ear.close()


class Transfer:
    """Connections that send and receive, in this thread, while `run` lasts."""

    def __init__(self, connections):
        self.connections, self.selector = connections, selectors.DefaultSelector()
        for one in connections:
            self.selector.register(one.mouth, selectors.EVENT_WRITE, one.push)
            self.selector.register(one.ear, selectors.EVENT_READ, one.pull)

    def run(self, seconds):
        """({port: bytes acknowledged so far}, when)."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            for key, _ in self.selector.select(left):
                with contextlib.suppress(BlockingIOError):
                    key.data()
        return {one.port: one.acknowledged() for one in self.connections}, time.perf_counter()

    def goodput(self, seconds):
        """{port: bit/s} over so long, after it has settled."""
        before, since = self.run(SETTLE_seconds)
        after, now = self.run(seconds)
        return {port: (after[port] - before[port]) * 8 / (now - since) for port in after}


def run(name, seconds):
    """{class: its goodput over its rate's share of payload} of a case."""
    case = CASES[name]
    with contextlib.ExitStack() as stack:
        folder, street = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(router())
        looking = stack.enter_context(Inline(street, folder, classes(case)))
        looking.ready()
        found = ports(case)
        made = [stack.enter_context(contextlib.closing(Connection(street, p))) for r in found.values() for p in r]
        goodput = Transfer(made).goodput(seconds)
        looking.stop()
    return {
        name: sum(goodput[port] for port in found[name]) / (rate * SEGMENT_bytes / MTU_bytes)
        for name, (_, rate) in case.items()
    }


def measure(args):
    """{case: {class: [ratio of each round]}}."""
    told = {name: {one: [] for one in case} for name, case in CASES.items()}
    for _ in range(args.rounds):
        for name, shares in told.items():
            for one, share in run(name, args.seconds).items():
                shares[one].append(share)
            say(f"  {name}: {', '.join(f'{found[-1]:.4f}' for found in shares.values())}")
    return told


def furthest(ratios):
    """The ratio that is furthest from 1."""
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def lines(found):
    """The table."""
    told = ["| | class | connections | rate, Mbit/s | goodput / (rate * 1448/1500), median | furthest from 1 |"]
    told += ["|---|---|---|---|---|---|"]
    for case, shares in found.items():
        for name, ratios in shares.items():
            count, rate = CASES[case][name]
            far = furthest(ratios)
            told.append(f"| {case} | {name} | {count} | {rate / 1e6:g} | {median(ratios):.4f} | {far:.4f} |")
    return told


def verdict(found):
    """[(what is asked, what was found, whether it is good)]."""
    told = []
    for case, shares in found.items():
        far = furthest([furthest(ratios) for ratios in shares.values()])
        told.append((f"{case}: goodput of each class within {BAR:.0%}", f"{far:.4f}", abs(far - 1) <= BAR))
    return told


def missing(found):
    """TCP accounts for its bytes itself."""
    return 0

"""Send traffic as fast as one process can, or at a rate, and count exactly what the kernel took. Needs root.

    python -m bench.senders --interface a0 --size 64 --flows 10000 --seconds 60 --json

A packet socket that bypasses queueing (packet(7), PACKET_QDISC_BYPASS) and sendmmsg(2), called from compiled code.
Sizes have the four bytes of the frame check sequence in them, which a packet socket does not send: 64 is captured as
60. Sizes and `imix` are datagrams like QUIC's between port 443 and clients whose address and port follow from the
flow's number; `mixed` are the conversations of frames.py, with lengths of their own.
"""

import argparse
import ctypes
import errno
import json
import signal
import socket
import sys
import time

import numpy as np
from numba import njit

from bench import frames

SOL_PACKET, QDISC_BYPASS = 263, 20  # linux/if_packet.h
FCS_bytes = 4
IMIX, MIXED = 0, -1  # LOAD.length, when it is not a length
BATCH_frames = 64  # of one sendmmsg
SLOT_bytes = 2048
HEADERS_bytes = 128  # no frame has more bytes that are not zero
SLICE_packets = 1024  # between two looks at the clock
SLEEP_seconds = 0.0005
BURST_seconds = 0.01  # what the machine stops for longer is not caught up
BUFFER_bytes = 4 << 20
SPREAD = 1 << 22  # flow numbers between two senders that are told apart by --first

LOAD = np.dtype(  # what is sent, and where the sender stands
    [
        ("fd", np.int64),
        ("messages", np.int64),  # address of the mmsghdr array
        ("length", np.int64),  # bytes of a frame, or IMIX, or MIXED
        ("flows", np.int64),  # at a time
        ("lowest", np.int64),  # number of a living flow; the others follow it
        ("seed", np.int64),
        ("made", np.int64),  # frames in the buffer
        ("taken", np.int64),  # of them by the kernel
        ("bytes", np.int64),  # taken in all
    ],
    align=True,
)
FLOW = np.dtype([("number", np.int64), *((name, frames.STATE[name]) for name in frames.STATE.names)], align=True)
VECTOR = np.dtype([("address", np.uint64), ("length", np.uint64)])  # struct iovec
MESSAGE = np.dtype(  # struct mmsghdr of 64-bit Linux
    [
        ("name", np.uint64),
        ("name_length", np.uint64),
        ("vectors", np.uint64),
        ("vector_count", np.uint64),
        ("control", np.uint64),
        ("control_length", np.uint64),
        ("flags", np.uint64),
        ("sent", np.uint64),
    ]
)
MESSAGE_bytes = MESSAGE.itemsize

sendmmsg = ctypes.CDLL(None).sendmmsg
sendmmsg.argtypes, sendmmsg.restype = (ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int), ctypes.c_int


@njit
def datagram(buf, at, now, length):
    """A UDP datagram like a short-header QUIC packet, over IPv4; it has no checksum, which RFC 768 allows."""
    flow = now.flow
    now.who = np.int64(frames.mix(np.uint64(99), np.uint64(flow)) >> np.uint64(4)) & ~3 | flow & 3
    now.client, now.server, now.v6 = 0x0A000001 + flow // 4, 0xC6120000 + (flow & 0xFFFF), 0
    now.reverse, now.transport_len = now.draw & 1, length - 34
    frames.ethernet(buf, at, 0, now)
    frames.ipv4(buf, at + 14, now, 17)
    payload = frames.ports(buf, at + 34, now, frames.client_port(now.who), 443)
    frames.put16(buf, at + 38, now.transport_len)
    buf[payload] = 0x40
    return length


@njit
def imix_length(draw):
    size = draw % 12
    return frames.IMIX_BYTES[0] if size < 7 else frames.IMIX_BYTES[1] if size < 11 else frames.IMIX_BYTES[2]


@njit
def conversation(buf, at, now, flow, seed):
    """The next frame of a conversation of frames.py, the first one where the flow is new in its place."""
    buf[at : at + HEADERS_bytes] = 0
    if flow.number != now.flow:
        flow.number, flow.count, flow.sent = now.flow, 0, 0
        flow.seq[0], flow.seq[1] = 0, 0
    return frames.write(buf, at, flow, now, seed)


@njit
def make_frame(buf, at, load, now, flows):
    """Write the next frame at `at`, of a living flow drawn at random; its length."""
    seed = np.uint64(load.seed)
    draw = frames.mix(seed, np.uint64(now.number))
    place = np.int64((draw >> np.uint64(16)) % np.uint64(load.flows))
    now.flow = load.lowest + (place - load.lowest) % load.flows
    now.draw = np.int64(frames.mix(draw, np.uint64(1)) >> np.uint64(2))
    now.number += 1
    if flows is None:  # known when compiled: what the other branch needs takes five seconds
        return datagram(buf, at, now, imix_length(now.draw >> 1) if load.length == IMIX else load.length)
    return conversation(buf, at, now, flows[place], seed)


@njit
def make_batch(buf, load, now, flows, vectors):
    for i in range(vectors.size):
        vectors[i].length = make_frame(buf, i * SLOT_bytes, load, now, flows)
    load.made, load.taken = vectors.size, 0


@njit(nogil=True)  # not cached: numba would not notice an edit in frames.py
def send(buf, loads, nows, flows, vectors, most):
    """Send up to `most` frames; how many the kernel took. Fewer: it refused the one that is next in the buffer."""
    load, left = loads[0], most
    while left > 0:
        if load.taken == load.made:
            make_batch(buf, load, nows[0], flows, vectors)
        count = min(left, load.made - load.taken)
        took = sendmmsg(load.fd, load.messages + load.taken * MESSAGE_bytes, count, 0)
        if took <= 0:
            break
        for i in range(took):
            load.bytes += np.int64(vectors[load.taken + i].length)
        load.taken += took
        left -= took
    return most - left


class Bucket:
    """How many packets may go at a time: `rate` a second, or as many as wanted where it is None."""

    def __init__(self, rate, now):
        self.rate, self.at, self.tokens = rate, now, 1.0
        self.most = max(1.0, (rate or 0) * BURST_seconds)

    def take(self, now, most):
        """The number of packets, at most `most`, that may be sent at `now` (seconds)."""
        if self.rate is None:
            return most
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.rate)
        self.at = now
        count = min(most, int(self.tokens))
        self.tokens -= count
        return count

    @property
    def wait(self):
        """Seconds until there is something to take, and not so short that the sender does nothing but wake up."""
        return max(SLEEP_seconds, (1 - self.tokens) / self.rate)


class Sender:
    """Frames of `flows` flows at a time, out of `sock`, a packet socket that is bound to its interface.

    length: bytes without the check sequence, or IMIX, or MIXED; churn: flows that end and begin each second;
    first: number of the first flow, so that two senders have none in common.
    """

    def __init__(self, sock, length, flows, churn=0.0, first=0):
        self.sock, self.churn, self.first, self.refused, self.stopped = sock, churn, first, 0, False
        self.sock.setsockopt(SOL_PACKET, QDISC_BYPASS, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_bytes)
        self.buf = np.zeros(BATCH_frames * SLOT_bytes, np.uint8)
        self.flows = np.full(flows, -1, FLOW).view(np.recarray) if length == MIXED else None
        self.nows = np.zeros(1, frames.NOW).view(np.recarray)
        self.vectors = np.zeros(BATCH_frames, VECTOR).view(np.recarray)
        self.vectors.address = self.buf.ctypes.data + np.arange(BATCH_frames, dtype=np.uint64) * np.uint64(SLOT_bytes)
        self.messages = np.zeros(BATCH_frames, MESSAGE).view(np.recarray)
        places = np.arange(BATCH_frames, dtype=np.uint64) * np.uint64(VECTOR.itemsize)
        self.messages.vectors, self.messages.vector_count = self.vectors.ctypes.data + places, 1
        self.loads = np.zeros(1, LOAD).view(np.recarray)
        load = self.loads[0]
        load.fd, load.messages, load.length = sock.fileno(), self.messages.ctypes.data, length
        load.flows, load.lowest, load.seed = flows, first, first + 1
        self.send(0)  # compiles, so that it takes no time of `run`

    def send(self, most):
        """Send up to `most` packets; how many the kernel took. OSError: it cannot go on."""
        self.nows[0].ts = time.time_ns()
        with np.errstate(over="ignore"):  # hashes wrap; only interpreted code would warn
            took = send(self.buf, self.loads, self.nows, self.flows, self.vectors, most)
        return took if took == most else took + self._again()

    def _again(self):
        """Send the refused frame once more, to hear the reason: 1 if the kernel took it now."""
        load = self.loads[0]
        at = int(load.taken) * SLOT_bytes
        try:
            load.bytes += self.sock.send(self.buf[at : at + int(self.vectors[load.taken].length)])
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                raise
            self.refused += 1
            time.sleep(SLEEP_seconds)
            return 0
        load.taken += 1
        return 1

    def run(self, seconds, rate=None, packets=None):
        """Send for so long, or until `stopped` or so many packets; what was sent, as a dict."""
        start = now = time.perf_counter()
        bucket, sent, left = Bucket(rate, now), 0, sys.maxsize if packets is None else packets
        while now < start + seconds and left > sent and not self.stopped:
            self.loads[0].lowest = self.first + int((now - start) * self.churn)
            count = bucket.take(now, min(SLICE_packets, left - sent))
            if count:
                sent += self.send(count)
            else:
                time.sleep(bucket.wait)
            now = time.perf_counter()
        load = self.loads[0]
        begun = int(load.lowest - self.first + load.flows)
        told = {"sent": sent, "bytes": int(load.bytes), "refused": self.refused}
        return told | {"flows_begun": begun, "seconds": now - start}

    def stop(self, *_):
        """As a signal handler: send no more."""
        self.stopped = True


def length_of(text):
    """LOAD.length of the option --size. ValueError: not a size."""
    named = {"imix": IMIX, "mixed": MIXED}
    if text in named:
        return named[text]
    if not text.isdecimal() or not frames.MIN_BYTES + FCS_bytes <= int(text) <= SLOT_bytes:
        raise argparse.ArgumentTypeError(f"{text!r} is not imix, mixed or a number of bytes from 64 to {SLOT_bytes}")
    return int(text) - FCS_bytes


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.senders", description=__doc__.splitlines()[0])
    parser.add_argument("--interface", required=True, help="where the packets go out")
    parser.add_argument("--size", type=length_of, default="64", help="bytes of a frame, or imix, or mixed (default 64)")
    parser.add_argument("--flows", type=int, default=10_000, help="that live at a time (default 10000)")
    parser.add_argument("--churn", type=float, default=0.0, help="flows that end, and begin, each second (default 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first flow (default 0)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--packets", type=int, help="how many at most (default: no limit)")
    parser.add_argument("--rate", type=float, help="packets a second (default: as many as can be)")
    parser.add_argument("--wait", action="store_true", help="say `ready`, then wait for a line on standard input")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    args = parser.parse_args(argv)
    if args.flows < 1 or (args.rate is not None and args.rate <= 0):
        parser.error("--flows and --rate must be more than 0")
    return args


def why(error, interface):
    """One sentence on what keeps the sender from sending."""
    known = {
        errno.EPERM: "sending frames needs the privilege CAP_NET_RAW: run as root",
        errno.ENODEV: f"there is no interface {interface!r}: `ip link` lists those there are",
        errno.ENETDOWN: f"{interface} is down: ip link set dev {interface} up",
        errno.EMSGSIZE: f"the frames are too long for {interface}: ip link set dev {interface} mtu 9000",
    }
    return known.get(error.errno, f"{interface}: {error.strerror}")


def may_begin(sender, wait):
    """Whether to send; TERM and INT stop it from now on. wait: say `ready`, and wait for a line on standard input."""
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, sender.stop)
    if not wait:
        return True
    print("ready", flush=True)
    return bool(sys.stdin.readline())


def main(argv=None):
    """Exit 0; 1 with one sentence if the kernel does not send, and where --wait was for nothing."""
    args = arguments(argv)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((args.interface, 0))
            sender = Sender(sock, args.size, args.flows, args.churn, args.first)
            if not may_begin(sender, args.wait):
                return 1  # whoever started it has ended
            told = sender.run(args.seconds, args.rate, args.packets)
    except OSError as error:
        print(f"bench.senders: {why(error, args.interface)}", file=sys.stderr)
        return 1
    text = "{sent:,} packets, {bytes:,} bytes in {seconds:.1f} s, refused {refused:,} times".format(**told)
    print(json.dumps(told) if args.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Decoded packets as lines of text: tab-separated, JSON, or columns for a person. One kernel call a batch.

Knows PACKET rows and the bytes of their addresses, no header. A column without a value is written as the style says.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.kernels import Kernel
from dataplane.records import PORTS, TIME_NONE, TIME_RANGE, UDP_LENGTH, UNWANTED
from dataplane.text import put_int, put_ipv4, put_ipv6, put_padded, put_text
from dataplane.wire import SHORT_TRANSPORT

COLUMNS = ("number", "ts_ns", "caplen", "len", "ip_version", "src", "dst", "proto", "a", "b", "udp_len")
NUMBER, TS, CAPLEN, LEN, VERSION, SRC, DST, PROTO, A, B, UDP_LEN = range(len(COLUMNS))
TEXTS = (SRC, DST, PROTO)  # quoted in JSON
DASHED = (TS, VERSION, PROTO)  # "-" where unknown in tab-separated lines; the others are empty
WIDTHS = (7, 19, 6, 6, 10, 24, 24, 6, 5, 5, 7)  # for a person

ABSENT = np.iinfo(np.int64).min
LINE_BYTES = 400  # no line is longer
PROTOCOLS = ((17, "udp"), (6, "tcp"), (1, "icmp"), (58, "icmpv6"))
UDP, TCP, ICMP, ICMPV6 = (number for number, _ in PROTOCOLS)
NANOSECONDS = 10**9


class Style(NamedTuple):
    """Texts of a style in one array; row c of the others is (position, length) of column c's text."""

    text: np.ndarray  # uint8
    before: np.ndarray  # (columns + 1, 2) what stands before a value; the last: behind the line
    after: np.ndarray  # behind a value
    unknown: np.ndarray  # instead of before, value and after
    names: np.ndarray  # (4, 2) of the protocols
    widths: np.ndarray  # values are padded to


def make_style(before, after, unknown, widths=(0,) * len(COLUMNS)):
    """Style of lists of bytes."""
    pool, places = b"", []
    for texts in (before, after, unknown, [name.encode() for _, name in PROTOCOLS]):
        place = np.zeros((len(texts), 2), np.int64)
        for i, text in enumerate(texts):
            place[i] = len(pool), len(text)
            pool += text
        places.append(place)
    return Style(np.frombuffer(pool, np.uint8).copy(), *places, np.array(widths, np.int64))


def tsv_style():
    """As the digest of a capture wants it: number|time_ns or -|…, with tabs."""
    before = [b"\t" if c else b"" for c in range(len(COLUMNS))]
    unknown = [text + (b"-" if c in DASHED else b"") for c, text in enumerate(before)]
    return make_style([*before, b"\n"], [b""] * len(COLUMNS), unknown)


def json_style():
    keys = [b'%s"%s":' % (b"," if c else b"{", name.encode()) for c, name in enumerate(COLUMNS)]
    before = [key + (b'"' if c in TEXTS else b"") for c, key in enumerate(keys)]
    after = [b'"' if c in TEXTS else b"" for c in range(len(COLUMNS))]
    return make_style([*before, b"}\n"], after, [key + b"null" for key in keys])


def table_style():
    before = [b" " if c else b"" for c in range(len(COLUMNS))]
    unknown = [text + b"-".ljust(width) for text, width in zip(before, WIDTHS, strict=True)]
    return make_style([*before, b"\n"], [b""] * len(COLUMNS), unknown, WIDTHS)


def table_header():
    return " ".join(n.ljust(w) for n, w in zip(COLUMNS, WIDTHS, strict=True)).encode() + b"\n"


@njit
def protocol_of(pkt):
    """Index into PROTOCOLS of what the transport columns speak of, -1 where they are empty."""
    if pkt.proto == UDP:
        return 0 if pkt.flags & UDP_LENGTH else -1
    if not pkt.flags & PORTS:
        return -1
    if pkt.proto == TCP:
        return 1
    if pkt.proto == ICMP:
        return 2
    return 3 if pkt.proto == ICMPV6 else -1


@njit
def gather(frame, pkt, number, values):
    """Fill `values` (columns,) for one packet; addresses stand for themselves."""
    values[:] = ABSENT
    values[NUMBER], values[CAPLEN], values[LEN] = number, frame.caplen, frame.len
    if not frame.flags & TIME_NONE:
        values[TS] = frame.ts
    if pkt.addr < 0:
        return
    values[VERSION], values[SRC], values[DST] = pkt.ip_version, 0, 0
    protocol = protocol_of(pkt)
    if protocol < 0:
        return
    values[PROTO], values[A] = protocol, pkt.sport
    if protocol < 2 or pkt.reason != SHORT_TRANSPORT:
        values[B] = pkt.dport
    if protocol == 0:
        length = np.int64(pkt.payload_len) + 8
        values[UDP_LEN] = length if length <= 0xFFFF else 0  # a jumbogram's field is 0 (RFC 2675, 4)


@njit
def put_wide_time(out, at, seconds, nsec):
    """seconds * 10**9 + nsec, which int64 cannot hold."""
    if seconds < 0 and nsec > 0:
        seconds, nsec = seconds + 1, NANOSECONDS - nsec
    at = put_int(out, at, seconds)
    return put_padded(out, at, np.int64(nsec), np.int64(9))


@njit
def put_address(out, at, buf, start, version):
    """The address at `start` of the block's buffer, by RFC 5952."""
    words = np.zeros(2, np.int64)
    for k in range(4 if version == 4 else 16):
        words[k >> 3] |= np.int64(buf[start + k]) << ((k & 7) << 3)
    return put_ipv4(out, at, words, 0) if version == 4 else put_ipv6(out, at, words, 0)


@njit
def put_value(out, at, column, values, frame, pkt, buf):
    if column == SRC:
        return put_address(out, at, buf, pkt.addr, pkt.ip_version)
    if column == DST:
        return put_address(out, at, buf, pkt.addr + (4 if pkt.ip_version == 4 else 16), pkt.ip_version)
    if column == TS and frame.flags & TIME_RANGE:
        return put_wide_time(out, at, frame.ts, np.int64(frame.nsec))
    return put_int(out, at, values[column])


@njit
def put_style(out, at, style, place):
    return put_text(out, at, style.text, place[0], place[1])


@njit(nogil=True, cache=True)
def write_lines(buf, frames, packets, style, first, out):
    """Write a line for each frame that is wanted, numbered from `first` on, into `out`; the bytes written."""
    at, values = 0, np.zeros(UDP_LEN + 1, np.int64)
    for i in range(frames.size):
        frame, pkt = frames[i], packets[i]
        if frame.flags & UNWANTED:
            continue
        gather(frame, pkt, first + i, values)
        for c in range(UDP_LEN + 1):
            if values[c] == ABSENT:
                at = put_style(out, at, style, style.unknown[c])
                continue
            at = put_style(out, at, style, style.before[c])
            began = at
            if c == PROTO:
                at = put_style(out, at, style, style.names[values[c]])
            else:
                at = put_value(out, at, c, values, frame, pkt, buf)
            at = put_style(out, at, style, style.after[c])
            while at - began < style.widths[c]:
                out[at] = 32
                at += 1
        at = put_style(out, at, style, style.before[UDP_LEN + 1])
    return at


class Listing:
    """Writes batches in one style, into a buffer that it uses again."""

    kernel = Kernel(write_lines)

    def __init__(self, style, batch_rows):
        self.style, self.out = style, np.empty(LINE_BYTES * batch_rows, np.uint8)

    def lines(self, batch, block, first):
        """Text of the block's packets, numbered from `first` on: a memoryview that holds until the next call."""
        size = self.kernel(block.buf, block.frames, batch.packets, self.style, first, self.out)
        return memoryview(self.out)[:size]

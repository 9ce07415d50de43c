"""Rows: what a frame, a packet and an event look like in memory. This file knows no header bytes and no detector.

A capture source fills FRAME rows, `wire` makes one PACKET row of each, detectors read PACKET rows and fill EVENT rows.
Time is int64 nanoseconds since 1970. `ts` is what the capture says; `clock` is the capture clock, which never runs
backwards: deadlines are set in it, durations are measured with `ts`.
"""

import functools
import os
from typing import NamedTuple

import numpy as np

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
CHECKED = not JIT or os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")  # every access to an array is

LINE_BYTES = 64  # a cache line
NO_TIME = np.iinfo(np.int64).min  # a frame without a timestamp
NEVER = np.iinfo(np.int64).max  # a deadline that does not come

# FRAME.flags
TIME_NONE, TIME_RANGE = 1, 2  # no timestamp; one that does not fit int64 ns: `ts` holds seconds, `nsec` the rest
UNWANTED = 4  # the filter did not let it pass: as if it were not there, but that it has a number

FRAME = np.dtype(
    [
        ("offset", np.int64),  # of the first byte in the block's buffer
        ("ts", np.int64),
        ("clock", np.int64),  # filled by batch.py
        ("len", np.uint32),  # bytes on the wire
        ("caplen", np.int32),  # bytes captured
        ("nsec", np.int32),  # only with TIME_RANGE
        ("linktype", np.uint16),  # LINKTYPE_ number of the pcap registry
        ("flags", np.uint16),
    ],
    align=True,
)

NF_DROP, NF_ACCEPT = 0, 1  # linux/netfilter.h
META = np.dtype(  # what a queue of the firewall says of a packet besides its bytes, one row beside each FRAME row
    [
        ("id", np.uint32),  # of the packet in its queue
        ("mark", np.uint32),  # of the firewall
        ("indev", np.int32),  # indices of the interfaces, 0: none
        ("outdev", np.int32),
        ("queue", np.int32),  # index into our queues
        ("hook", np.uint8),  # NF_INET_
    ],
    align=True,
)

# Index lists that a batch holds, of packet rows by kind. IP: all rows; those without a hash are no IP, and no detector
# of this kind is asked about them. QUIC: UDP from port 443, server to client
IP, QUIC, ECHO, PTP, STREAM, SANDWICH = range(6)
KINDS = ("ip", "quic", "echo", "ptp", "stream", "sandwich")

# PACKET.flags
REVERSE = 1 << 0  # the packet's source is the higher end of its flow's ordered pair
VLAN, PPPOE, MPLS, SNAP = 1 << 1, 1 << 2, 1 << 3, 1 << 4
OPTIONS = 1 << 5  # IPv4 options or an IPv6 extension header
FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_ATOMIC = 1 << 6, 1 << 7, 1 << 8
TUNNEL = 1 << 9  # the row speaks of the inner header
PORTS = 1 << 10  # sport and dport (ICMP: type and code) were captured
UDP_LENGTH = 1 << 11  # the UDP length field was captured
TCP_HEADER = 1 << 12  # 20 bytes of TCP header were captured
VERSION_MISMATCH = 1 << 13  # ethertype or link type and version nibble disagree
OUT_OF_SCOPE = 1 << 14  # IP behind a layer that is not entered (NSH, Cisco metadata)
TIMELESS = 1 << 15  # no usable timestamp: `ts` is the capture clock
RTP, PROBE = 1 << 16, 1 << 17  # what a packet in the STREAM list is
SELF = 1 << 18  # of an echo: source and destination address are equal, so REVERSE does not tell the direction

_PACKET = {  # name: (type, offset); one cache line that every packet fills, a second one by kind
    "ts": ("i8", 0),
    "clock": ("i8", 8),
    "seq": ("i8", 16),  # 0-based number of the packet in the run, over all files
    "hash": ("u8", 24),  # keyed hash of addresses, protocol and ports, the same for both directions; 0: no flow
    "addr": ("i8", 32),  # offset of the source address in the block's buffer, the destination follows
    "len": ("u4", 40),  # frame length on the wire
    "payload_len": ("i4", 44),  # transport payload by the headers' length fields, not by what was captured
    "dport": ("u2", 48),  # ICMP: code
    "sport": ("u2", 50),  # ICMP: type
    "flags": ("u4", 52),  # its high byte is `reason`
    "reason": ("u1", 55),  # where decoding stopped, wire.REASONS
    "proto": ("u1", 56),  # IP protocol number after extension headers
    "ttl": ("u1", 57),
    "ip_version": ("u1", 58),  # 4, 6 or 0
    "tos": ("u1", 59),  # ToS or traffic class
    "tcp_flags": ("u1", 60),
    "first_byte": ("u1", 61),  # of the UDP payload
    "vlan": ("u2", 62),  # outermost VLAN id, 0 none
    "ports": ("u4", 48),  # both ports, and the eight bytes from `proto` on, as one word: to clear them
    "small": ("u8", 56),
    # kind QUIC
    # (behind the fields of other kinds, for such a packet may be in their lists too)
    "quic_client": ("u8", 120),  # keyed hash of the destination address
    # kind ECHO
    "icmp_id": ("u2", 64),
    "icmp_seq": ("u2", 66),
    # kind PTP (IEEE 1588-2019, 13.3)
    "ptp_clock": ("u8", 64),  # sourcePortIdentity.clockIdentity
    "ptp_requesting_clock": ("u8", 72),  # requestingPortIdentity, in responses
    "ptp_correction": ("i8", 80),  # correctionField, ns * 2**16
    "ptp_time": ("i8", 88),  # the body's timestamp in ns, NO_TIME where it has none
    "ptp_port": ("u2", 96),
    "ptp_requesting_port": ("u2", 98),
    "ptp_seq": ("u2", 100),
    "ptp_flags": ("u2", 102),  # flagField as one big-endian word, twoStepFlag is 0x0200
    "ptp_type": ("u1", 104),
    "ptp_version": ("u1", 105),  # major
    "ptp_domain": ("u1", 106),
    "ptp_interval": ("i1", 107),  # logMessageInterval
    "ptp_sdo": ("u2", 108),  # sdoId: majorSdoId << 8 | minorSdoId
    "ptp_pair": ("u8", 112),  # keyed hash of the two addresses (IP or MAC), the same both ways; 0: sent to a group
    # kind STREAM with RTP (RFC 3550, 5.1)
    "rtp_ssrc": ("u4", 64),
    "rtp_time": ("u4", 68),
    "rtp_seq": ("u2", 72),
    "rtp_type": ("u1", 74),  # payload type
    "rtp_marker": ("u1", 75),
    # kinds SANDWICH and STREAM with PROBE (docs/probe-format.md)
    "probe_session": ("u8", 64),
    "probe_sent": ("i8", 72),  # ns since 1970 by the sender's clock
    "probe_d": ("i8", 80),  # ns between P1 and P2
    "probe_round": ("u4", 88),
    "probe_seq": ("u4", 92),
    "probe_ttl": ("u1", 96),  # TTL index j
    "probe_role": ("u1", 97),
}
PACKET = np.dtype(
    {
        "names": list(_PACKET),
        "formats": [fmt for fmt, _ in _PACKET.values()],
        "offsets": [at for _, at in _PACKET.values()],
        "itemsize": 128,
        "aligned": True,
    }
)

TTL_BIT, VERSION_BIT, TOS_BIT, TCP_FLAGS_BIT, FIRST_BYTE_BIT = (  # where a field begins in `small`
    8 * (_PACKET[name][1] - _PACKET["small"][1]) for name in ("ttl", "ip_version", "tos", "tcp_flags", "first_byte")
)

# A decoded batch, by the addresses of its arrays
BATCH = np.dtype(
    [
        ("buf", np.int64),
        ("buf_bytes", np.int64),
        ("packets", np.int64),  # PACKET rows of the tile at hand
        ("rows", np.int64),  # room for so many
        ("frames", np.int64),  # FRAME rows of the block
        ("seq", np.int64),  # number of its first packet
        ("lists", np.int64),  # int32, (kinds, rows + 1)
        ("counts", np.int64),  # int64, (kinds,)
        ("first", np.int64),  # the tile: its first frame in the block, its frames
        ("count", np.int64),
        ("clock", np.int64),  # capture clock after its last frame
        # With several workers, see relay.py
        ("due", np.int64),  # events are delivered after this tile
        ("raw", np.int64),  # whoever takes the tile is to decode it
        ("ready", np.int64),  # by then it has: number of the last such tile, counted from 1
        ("unused", np.int64),  # no two rows in one cache line
        ("window", np.int64),  # where a stage that reads is to put `rows` FRAME rows and the bytes; 0: where it likes
    ],
    align=True,
)

# Who an event or a table's slot speaks of: both ends as the first packet had them, IPv4 in the first four bytes
ENDS = [
    ("src", np.uint8, 16),
    ("dst", np.uint8, 16),
    ("sport", np.uint16),
    ("dport", np.uint16),
    ("vlan", np.uint16),
    ("proto", np.uint8),
    ("ip_version", np.uint8),  # 4, 6 or 0: then there are no addresses
]

# What every event row begins with; the detector's own fields follow
EVENT = [
    ("ts", np.int64),
    ("order", np.int64),  # capture clock at which it became known: events are delivered in this order
    ("seq", np.int64),  # packet it speaks of, 0-based over all files
    ("cause", np.int64),  # seq of the packet at which it was made; by a deadline: of the packet that made the state
    ("by_packet", np.uint8),  # 0: made by a deadline; at the same `order` those come first
    ("code", np.uint8),  # 1-based index into Detector.events
    *ENDS,
]


class Rows(np.ndarray):
    """An array of Row: `rows.ts` is the field, as with np.recarray."""

    def __getattr__(self, name):
        fields = np.ndarray.__getattribute__(self, "dtype").fields
        if fields is None or name not in fields:
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name, value):
        if name in (np.ndarray.__getattribute__(self, "dtype").fields or ()):
            self[name][...] = value
        else:
            np.ndarray.__setattr__(self, name, value)


class Stretch(NamedTuple):
    """Instead of Blocks: a chain.Stage that reads frames by itself, tile by tile, as long as it can; `after` all others
    come these.

    BATCH.window, where it is set, must have room for `window_bytes`.
    """

    stage: object
    window_bytes: int
    after: tuple = ()


class Block(NamedTuple):
    """Frames of one buffer: `buf` uint8[n], `frames` rows of FRAME with offsets into `buf`."""

    buf: np.ndarray
    frames: np.recarray


def _as_rows(value):
    dtype = _row(value.dtype)
    return value.view(dtype) if isinstance(value, np.void) else value.view(dtype=dtype, type=Rows)


@functools.cache
def _row(dtype):
    """A dtype whose rows are as interpreted code sees them: attributes are fields, also where numpy has one of that
    name (`flags`)."""
    fields = {name: _field(*dtype.fields[name][:2]) for name in dtype.names}
    return np.dtype((type("Row", (np.void,), {"__slots__": (), **fields}), dtype))


def _field(dtype, at):
    """The attribute for a field."""
    if dtype.base.names is None:
        return property(
            lambda row: np.void.getfield(row, dtype, at), lambda row, value: np.void.setfield(row, value, dtype, at)
        )
    return property(lambda row: _as_rows(np.void.getfield(row, dtype, at)))


def rows(dtype, count):
    """`count` zeroed rows of `dtype`, from the start of a cache line: the one allocator of row arrays.

    Attribute access to a row works compiled and, through _row, interpreted too. Pages are taken on first use.
    """
    return rows_of(zeros(int(count) * dtype.itemsize), dtype)


def zeros(size):
    """`size` zeroed bytes in cache lines of their own: two cores that write to one line wait for each other."""
    room = np.zeros(size + -size % LINE_BYTES + LINE_BYTES, np.uint8)
    first = -room.ctypes.data % LINE_BYTES
    return room[first : first + size]


def rows_of(data, dtype):
    """Rows of `dtype` in the memory of the uint8 array `data`."""
    return data.view(_record(dtype), np.recarray) if JIT else _as_rows(data.view(dtype))


@functools.cache
def _record(dtype):
    """The dtype that np.recarray would make of `dtype`, in 20 us or more, at every view."""
    return np.dtype((np.record, dtype))

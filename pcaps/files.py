"""Capture files to bytes: pcap and pcapng, whole files and single blocks. Shares no code with pcapfile.py."""

import struct
from typing import NamedTuple

ETHERNET, RAW, NULL, LOOP, SLL, SLL2, RAW_IPV4, RAW_IPV6 = 1, 101, 0, 108, 113, 276, 228, 229  # LINKTYPE_
MAGIC_US, MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
SNAPLEN_BYTES = 262144
TSRESOL, TSOFFSET = 9, 14  # pcapng options of an interface block


class Record(NamedTuple):
    ts_ns: int
    data: bytes
    length: int | None = None  # on the wire, where more than was captured
    interface: int = 0


# --- pcap


def pcap(records, linktype=ETHERNET, order="<", unit="us", snaplen=SNAPLEN_BYTES):
    """A whole file; times that are no whole microseconds are cut in a file of unit "us"."""
    return pcap_header(linktype, order, unit, snaplen) + b"".join(pcap_record(r, order, unit, snaplen) for r in records)


def pcap_header(linktype=ETHERNET, order="<", unit="us", snaplen=SNAPLEN_BYTES):
    magic = MAGIC_NS if unit == "ns" else MAGIC_US
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)


def pcap_record(record, order="<", unit="us", snaplen=SNAPLEN_BYTES):
    seconds, fraction = divmod(record.ts_ns, 1_000_000_000)
    data = record.data[:snaplen]
    fraction //= 1 if unit == "ns" else 1000
    length = len(record.data) if record.length is None else record.length
    return struct.pack(order + "IIII", seconds % 2**32, fraction, len(data), length) + data


# --- pcapng


class Interface(NamedTuple):
    linktype: int = ETHERNET
    resolution: int | None = None  # if_tsresol; None: microseconds, the option left out
    offset_s: int = 0  # if_tsoffset
    snaplen: int = 0


def pcapng(records, interfaces=(Interface(),), order="<"):
    """A whole file of one section with enhanced packet blocks."""
    blocks = [section(order), *(interface(i, order) for i in interfaces)]
    return b"".join([*blocks, *(enhanced(r, interfaces[r.interface], order) for r in records)])


def block(kind, body, order="<"):
    body += b"\0" * (-len(body) % 4)
    total = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + total + body + total


def section(order="<"):
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(fields, order="<"):
    options = b""
    if fields.resolution is not None:
        options += struct.pack(order + "HHB3x", TSRESOL, 1, fields.resolution)
    if fields.offset_s:
        options += struct.pack(order + "HHq", TSOFFSET, 8, fields.offset_s)
    if options:
        options += bytes(4)
    return block(1, struct.pack(order + "HHI", fields.linktype, 0, fields.snaplen) + options, order)


def ticks(ts_ns, fields):
    """The time in the interface's own unit: powers of ten, or of two where the high bit is set."""
    resolution = 6 if fields.resolution is None else fields.resolution
    per_s = 2 ** (resolution & 127) if resolution & 128 else 10**resolution
    return (ts_ns - fields.offset_s * 1_000_000_000) * per_s // 1_000_000_000


def enhanced(record, fields=Interface(), order="<"):
    time = ticks(record.ts_ns, fields)
    length = len(record.data) if record.length is None else record.length
    head = struct.pack(order + "IIIII", record.interface, time >> 32, time & 0xFFFFFFFF, len(record.data), length)
    return block(6, head + record.data, order)


def simple(data, order="<", length=None):
    """Simple packet block: the first interface, no time."""
    return block(3, struct.pack(order + "I", len(data) if length is None else length) + data, order)


def obsolete(record, fields=Interface(), order="<"):
    """Packet block of the earlier drafts."""
    time = ticks(record.ts_ns, fields)
    length = len(record.data) if record.length is None else record.length
    words = (record.interface, 0, time >> 32, time & 0xFFFFFFFF, len(record.data), length)
    return block(2, struct.pack(order + "HHIIII", *words) + record.data, order)


def statistics(order="<"):
    """Interface statistics block: no packet, to be skipped."""
    return block(5, struct.pack(order + "III", 0, 0, 0), order)

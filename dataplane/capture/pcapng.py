"""pcapng files: packet blocks in one kernel, section and interface blocks in Python, all others skipped.

Source: draft-ietf-opsawg-pcapng, sections 3.1 (blocks), 4.1 to 4.4 and appendix A (obsolete packet block). Where a
block is damaged, reading stops as wiretap's does.
"""

import struct

import numpy as np
from numba import njit

from dataplane.capture.source import (
    CONTROL,
    DAMAGED,
    FULL,
    MORE,
    WALK,
    CaptureError,
    MAX_CAPLEN_bytes,
    Source,
    u16,
    u32,
)  # fmt: skip
from dataplane.kernels import Kernel
from dataplane.memory import memory
from dataplane.records import NO_TIME, TIME_NONE, TIME_RANGE, rows

SHB, IDB, PB, SPB, EPB = 0x0A0D0D0A, 1, 2, 3, 6
SHB_BYTES = struct.pack(">I", SHB)  # the same in both byte orders
BYTE_ORDER_MAGIC = 0x1A2B3C4D
SHB_MIN_bytes, IDB_MIN_bytes = 28, 20
BLOCK_MIN_bytes, BLOCK_MAX_bytes = 12, 16 << 20  # wiretap's MAX_BLOCK_SIZE
PACKET_MIN_bytes, SPB_MIN_bytes = 32, 16
PACKET_DATA, SPB_DATA = 28, 12  # offset of the packet's bytes in its block
INTERFACES_MAX = 65536
OPT_END, IF_TSRESOL, IF_TSOFFSET = 0, 9, 14

SECONDS_MAX = 1 << 62  # seconds since 1970 saturate here
SECONDS_NS_MAX = 9_223_372_035  # whole seconds that fit int64 ns with any fraction
POWER_MAX = (19, 63)  # largest exponent of if_tsresol: a second must fit 64 bits

# row.why
LENGTH, MISMATCH, SHORT, CAPLEN, INTERFACE_ID = range(1, 6)
REASONS = {
    LENGTH: "block length {} is out of range",
    MISMATCH: "the two lengths of a block differ, the second is {}",
    SHORT: "packet block is too small for {} captured bytes",
    CAPLEN: "packet block claims {} captured bytes, more than 262144",
    INTERFACE_ID: "packet of interface {}, which was not described",
}

PCAPNG = np.dtype([*WALK, ("interfaces", np.int64)], align=True)
INTERFACE = np.dtype(
    [
        ("factor_ns", np.uint64),  # of one unit, up to microseconds and nanoseconds without offset; else 0
        ("plain_max", np.uint64),  # largest timestamp for which factor_ns does
        ("units", np.uint64),  # in a second
        ("scale", np.uint64),  # decimal: between units and ns
        ("offset_s", np.int64),
        ("binary", np.int64),  # 1: units are 2**exponent
        ("exponent", np.int64),
        ("linktype", np.int64),
        ("snaplen", np.int64),
    ],
    align=True,
)


@njit
def fraction_ns(rest, interface):
    """Nanoseconds of `rest` units, less than a second; rounded down, exact for any resolution."""
    if interface.binary == 0:
        return rest * interface.scale if interface.exponent <= 9 else rest // interface.scale
    giga, half = np.uint64(1_000_000_000), np.uint64(32)
    if interface.exponent <= 32:
        return (rest * giga) >> np.uint64(interface.exponent)
    low = (rest & np.uint64(0xFFFFFFFF)) * giga
    return ((rest >> half) * giga + (low >> half)) >> np.uint64(interface.exponent - 32)


@njit
def stamp(high, low, interface, frame):
    """Set the time of `frame` from a 64-bit count of the interface's units."""
    count = (np.uint64(high) << np.uint64(32)) | np.uint64(low)
    frame.flags = 0
    frame.nsec = 0
    if count <= interface.plain_max and interface.factor_ns != np.uint64(0):
        frame.ts = np.int64(count * interface.factor_ns)
        return
    seconds = count // interface.units
    nsec = np.int64(fraction_ns(count - seconds * interface.units, interface))
    whole = np.int64(min(seconds, np.uint64(SECONDS_MAX))) + interface.offset_s
    if -SECONDS_NS_MAX <= whole <= SECONDS_NS_MAX:
        frame.ts = whole * 1_000_000_000 + nsec
    else:
        frame.ts, frame.nsec, frame.flags = whole, nsec, TIME_RANGE


@njit
def packet(mem, pos, kind, frame, row, interfaces):
    """Fill `frame` from the whole packet block at `pos`; 0, or why it cannot be."""
    big, size = row.big, (u32(mem, pos + 4, row.big) + 3) & ~3
    if size < (SPB_MIN_bytes if kind == SPB else PACKET_MIN_bytes):
        row.detail = size
        return LENGTH
    number = 0 if kind == SPB else u32(mem, pos + 8, big) if kind == EPB else u16(mem, pos + 8, big)
    if number >= row.interfaces:
        row.detail = number
        return INTERFACE_ID
    interface = interfaces[number]
    if kind == SPB:
        length, at, room = u32(mem, pos + 8, big), SPB_DATA, size - SPB_MIN_bytes
        caplen = min(length, interface.snaplen)
        frame.ts, frame.nsec, frame.flags = NO_TIME, 0, TIME_NONE
    else:
        caplen, length = u32(mem, pos + 20, big), u32(mem, pos + 24, big)
        at, room = PACKET_DATA, size - PACKET_MIN_bytes
        stamp(u32(mem, pos + 12, big), u32(mem, pos + 16, big), interface, frame)
    if caplen > room or caplen > MAX_CAPLEN_bytes:
        row.detail = caplen
        return SHORT if caplen > room else CAPLEN
    frame.offset = pos + at
    frame.len = length
    frame.caplen = caplen
    frame.linktype = interface.linktype
    return 0


@njit(nogil=True, cache=True)
def walk(buf, frames, state, interfaces):
    """Fill `frames` from row.count on; CONTROL at a section or interface block, which is left to the caller."""
    mem, row = memory(buf), state[0]
    pos, end, n, big, status = row.pos, row.end, row.count, row.big, FULL
    while n < frames.size:
        if end - pos < BLOCK_MIN_bytes:
            status, row.need = MORE, BLOCK_MIN_bytes
            break
        kind, length = u32(mem, pos, big), u32(mem, pos + 4, big)
        if kind == SHB:
            status = CONTROL
            break
        size = (length + 3) & ~3
        if length < BLOCK_MIN_bytes or size > BLOCK_MAX_bytes:
            status, row.why, row.detail = DAMAGED, LENGTH, length
            break
        if end - pos < size:
            status, row.need = MORE, size
            break
        if u32(mem, pos + size - 4, big) != length:
            status, row.why, row.detail = DAMAGED, MISMATCH, u32(mem, pos + size - 4, big)
            break
        if kind == IDB:
            status = CONTROL
            break
        if kind == EPB or kind == SPB or kind == PB:
            row.why = packet(mem, pos, kind, frames[n], row, interfaces)
            if row.why != 0:
                status = DAMAGED
                break
            n += 1
        pos += size
    row.pos, row.count = pos, n
    return status


_walk = Kernel(walk)


class Damage(Exception):
    """A section or interface block that cannot be read; str() is the reason."""


def options(body, order):
    """Yield (code, value) of the options in `body`, to opt_endofopt or the end. Damage: one reaches over the end."""
    at = 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if at + 4 + length > len(body):
            raise Damage(f"option {code} of {length} bytes does not fit its block")
        if code == OPT_END:
            return
        yield code, body[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4


def describe(body, order):
    """INTERFACE row of an interface description block with body `body` (4.2)."""
    linktype, _reserved, snaplen = struct.unpack_from(order + "HHI", body)
    resolution, offset_s = 6, 0
    for code, value in options(body[8:], order):
        if code == IF_TSRESOL and len(value) == 1:
            resolution = value[0]
        elif code == IF_TSOFFSET and len(value) == 8:
            offset_s = struct.unpack(order + "q", value)[0]
    binary, exponent = resolution >> 7, resolution & 0x7F
    if exponent > POWER_MAX[binary]:
        raise Damage(f"timestamp resolution {(10, 2)[binary]}^-{exponent} is too fine to be read")
    row = rows(INTERFACE, 1)[0]
    row.linktype, row.snaplen = linktype, snaplen or MAX_CAPLEN_bytes
    row.binary, row.exponent = binary, exponent
    row.units = (10, 2)[binary] ** exponent
    row.scale = 10 ** abs(9 - exponent) if not binary else 1
    row.offset_s = max(-SECONDS_MAX, min(SECONDS_MAX - 1, offset_s))
    if not binary and exponent <= 9 and offset_s == 0:
        row.factor_ns, row.plain_max = row.scale, (2**63 - 1) // int(row.scale)
    elif int(row.units) == 1 and offset_s == 0:
        row.factor_ns, row.plain_max = 10**9, SECONDS_NS_MAX
    return row


class PcapngSource(Source):
    """A pcapng file. CaptureError: its first section header is cut short, damaged or of an unknown version."""

    def __init__(self, name, feed, block_frames, hold):
        super().__init__(name, feed, PCAPNG, block_frames, hold)
        self._interfaces = rows(INTERFACE, 8)
        try:
            self._section()
        except Damage as damage:
            raise CaptureError(f"{name}: pcapng section header at byte 0{feed.where}: {damage}") from None

    def walk(self, frames):
        return _walk(self.feed.buf, frames, self.state, self._interfaces)

    def why(self):
        return REASONS[int(self.row["why"])].format(int(self.row["detail"]))

    def control(self):
        """Read the section or interface block at `pos`; None, or why it cannot be."""
        try:
            if self._bytes(0, 4) == SHB_BYTES:
                self._section()
            else:
                self._interface()
        except Damage as damage:
            return str(damage)

    def _bytes(self, start, stop):
        """Bytes from `start` to `stop` after `pos`."""
        return bytes(self.feed.buf[self.pos + start : self.pos + stop])

    def _body(self, order, least_bytes):
        """Body of the block at `pos`. Damage: it is cut short or its lengths are wrong."""
        length = struct.unpack(order + "I", self._bytes(4, 8))[0]
        size = (length + 3) & ~3
        if length < least_bytes or size > BLOCK_MAX_bytes:
            raise Damage(REASONS[LENGTH].format(length))
        self._require(size)
        second = struct.unpack(order + "I", self._bytes(size - 4, size))[0]
        if second != length:
            raise Damage(REASONS[MISMATCH].format(second))
        return self._bytes(8, size - 4)

    def _require(self, need):
        if not self.require(need):
            raise Damage(self.feed.failure or f"cut short, {self.feed.end - self.pos} of {need} bytes are left")

    def _section(self):
        """Read a section header block: from here on its byte order holds and there are no interfaces."""
        self._require(BLOCK_MIN_bytes)
        magic = self._bytes(8, 12)
        order = {struct.pack(o + "I", BYTE_ORDER_MAGIC): o for o in "<>"}.get(magic)
        if order is None:
            raise Damage(f"byte-order magic 0x{magic.hex()} is unknown")
        body = self._body(order, SHB_MIN_bytes)
        major, minor = struct.unpack_from(order + "HH", body, 4)
        if major != 1:
            raise Damage(f"pcapng version {major}.{minor} is not supported, only 1.x is")
        list(options(body[16:], order))
        self.row["big"], self.row["interfaces"] = order == ">", 0
        self.row["pos"] += len(body) + BLOCK_MIN_bytes

    def _interface(self):
        """Read an interface description block: the section has one more interface."""
        order, number = "<>"[self.row["big"]], int(self.row["interfaces"])
        body = self._body(order, IDB_MIN_bytes)
        if number == INTERFACES_MAX:
            raise Damage(f"more than {INTERFACES_MAX} interfaces in a section")
        if number == self._interfaces.size:
            table = rows(INTERFACE, 2 * number)
            table[:number] = self._interfaces
            self._interfaces = table
        self._interfaces[number] = describe(body, order)
        self.row["interfaces"] = number + 1
        self.row["pos"] += len(body) + BLOCK_MIN_bytes

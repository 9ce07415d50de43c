"""Evidence: the last packets are kept in memory, so that those of a flow can be looked at when an event speaks of it.

A History is what one worker keeps: a ring of bytes and a ring of rows. When an event is made, the packets of its flow
are written as a pcapng (draft-ietf-opsawg-pcapng) whose comment is the event itself.
"""

import struct
from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.kernels import Kernel
from dataplane.records import rows

KEPT = np.dtype(  # a packet that is kept
    [
        ("ts", np.int64),
        ("at", np.int64),  # its bytes, in the ring
        ("source", np.int64),  # its source address behind `at`; the destination follows
        ("len", np.int32),
        ("caplen", np.int32),
        ("sport", np.uint16),
        ("dport", np.uint16),
        ("linktype", np.uint16),
        ("proto", np.uint8),
        ("ip_version", np.uint8),
    ],
    align=True,
)
PLACE = np.dtype([("next_row", np.int64), ("next_byte", np.int64), ("first_row", np.int64)], align=True)
BYTES_A_ROW = 128  # room in the ring for each row: less than that is no packet worth keeping
ICMP = (1, 58)
ADDRESS_bytes = {4: 4, 6: 16}


@njit(nogil=True, cache=True)
def keep(buf, frames, packets, ring, kept, places):
    """Copy the frames to the ring, over the oldest. `packets`: their PACKET rows."""
    place = places[0]
    for i in range(frames.size):
        frame, packet = frames[i], packets[i]
        size = min(np.int64(frame.caplen), ring.size)
        at = place.next_byte if place.next_byte + size <= ring.size else 0
        row = kept[place.next_row % kept.size]
        if place.next_row - place.first_row == kept.size:
            place.first_row += 1
        if at < place.next_byte:  # begins anew: what lies behind is lost to what comes
            _free(kept, places, place.next_byte, ring.size)
        _free(kept, places, at, at + size)
        ring[at : at + size] = buf[frame.offset : frame.offset + size]
        row.ts, row.at, row.source, row.len, row.caplen = packet.ts, at, packet.addr - frame.offset, frame.len, size
        row.sport, row.dport, row.linktype = packet.sport, packet.dport, frame.linktype
        row.proto, row.ip_version = packet.proto, packet.ip_version
        place.next_row += 1
        place.next_byte = at + size


@njit(inline="always")
def _free(kept, places, low, high):
    """Forget the oldest rows whose bytes begin in [low, high)."""
    place = places[0]
    while place.first_row < place.next_row:
        at = kept[place.first_row % kept.size].at
        if not low <= at < high:
            break
        place.first_row += 1


class Wanted(NamedTuple):
    """Whose packets are asked for: the ends of an event."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    proto: int
    ip_version: int

    @classmethod
    def of(cls, event):
        size = ADDRESS_bytes.get(int(event["ip_version"]), 0)
        src, dst = bytes(event["src"][:size]), bytes(event["dst"][:size])
        return cls(src, dst, *(int(event[name]) for name in ("sport", "dport", "proto", "ip_version")))


class History:
    """The last packets that one worker saw, as many as fit `size` bytes."""

    def __init__(self, size):
        self.ring = np.zeros(size, np.uint8)
        self.kept, self.places = rows(KEPT, max(64, size // BYTES_A_ROW)), rows(PLACE, 1)
        self.keep = Kernel(keep)

    def watch(self, batch, block):
        """Keep the packets of a batch that was decoded."""
        self.keep(block.buf, block.frames, batch.packets[: batch.frames], self.ring, self.kept, self.places)

    def packets(self, wanted, since):
        """[(ts, linktype, len, bytes)] of the flow since `since` ns, in the order in which they came.

        ICMP and what has no address: all of that protocol between the two, or of all.
        """
        first, after = int(self.places[0]["first_row"]), int(self.places[0]["next_row"])
        found = np.asarray(self.kept)[np.arange(first, after) % len(self.kept)]
        there = (found["ts"] >= since) & (found["proto"] == wanted.proto) & (found["ip_version"] == wanted.ip_version)
        if wanted.proto not in ICMP:
            there &= self._ports(found, wanted.sport, wanted.dport) | self._ports(found, wanted.dport, wanted.sport)
        found = found[there]
        if wanted.src:
            found = found[self._between(found, wanted.src + wanted.dst) | self._between(found, wanted.dst + wanted.src)]
        return [(int(row["ts"]), int(row["linktype"]), int(row["len"]), self._bytes(row)) for row in found]

    @staticmethod
    def _ports(found, sport, dport):
        return (found["sport"] == sport) & (found["dport"] == dport)

    def _between(self, found, ends):
        """Which rows have these two addresses, source first."""
        at = np.minimum(found["at"] + found["source"], len(self.ring) - len(ends))
        return (self.ring[at[:, None] + np.arange(len(ends))] == np.frombuffer(ends, np.uint8)).all(axis=1)

    def _bytes(self, row):
        return self.ring[row["at"] : row["at"] + row["caplen"]].tobytes()


def pcapng(packets, comment):
    """Bytes of a pcapng with the packets of History.packets, times in ns; `comment` (text) belongs to the section."""
    linktypes = list(dict.fromkeys(linktype for _, linktype, _, _ in packets)) or [1]
    parts = [_block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(1, comment.encode()) + bytes(4))]
    parts += [_block(1, struct.pack("=HHI", n, 0, 0) + _option(9, b"\x09") + bytes(4)) for n in linktypes]
    for ts, linktype, length, data in packets:
        interface = linktypes.index(linktype)
        head = struct.pack("=IIIII", interface, ts >> 32, ts & 0xFFFFFFFF, len(data), length)
        parts.append(_block(6, head + data))
    return b"".join(parts)


def _block(kind, body):
    body += bytes(-len(body) % 4)
    return struct.pack("=II", kind, len(body) + 12) + body + struct.pack("=I", len(body) + 12)


def _option(code, value):
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)

"""Evidence: the last packets are kept in memory, so that those of a flow can be looked at when an event speaks of it.

A History is what one worker keeps: a ring of bytes and a ring of rows. When an event is made, the packets of its flow
are written as a pcapng (draft-ietf-opsawg-pcapng) whose comment is the event itself.
"""

import struct

import numpy as np
from numba import njit

from dataplane.kernels import Kernel
from dataplane.records import FRAME, PACKET, rows

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
WANTED = np.dtype(  # whose packets are asked for
    [
        ("since", np.int64),  # ns
        ("size", np.int64),  # bytes of both addresses, 0 where there are none
        ("with_ports", np.int64),
        ("ends", np.uint8, 32),  # source and destination as they follow each other in a packet
        ("ends_back", np.uint8, 32),
        ("sport", np.uint16),
        ("dport", np.uint16),
        ("proto", np.uint8),
        ("ip_version", np.uint8),
    ],
    align=True,
)
PLACE = np.dtype([("next_row", np.int64), ("next_byte", np.int64), ("first_row", np.int64)], align=True)
ROWS_LEAST = 64
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


@njit(nogil=True, cache=True)
def find(kept, places, ring, wanted, found):
    """Fill `found` with the numbers of the rows that `wanted` asks for, oldest first; how many."""
    place, want, count = places[0], wanted[0], 0
    for number in range(place.first_row, place.next_row):
        row = kept[number % kept.size]
        if row.ts < want.since or row.proto != want.proto or row.ip_version != want.ip_version:
            continue
        if _sent(ring, row, want, want.ends, want.sport, want.dport) or _sent(
            ring, row, want, want.ends_back, want.dport, want.sport
        ):
            found[count] = number % kept.size
            count += 1
    return count


@njit(inline="always")
def _sent(ring, row, want, ends, sport, dport):
    """Whether the packet has these ends, source first."""
    if want.with_ports and (row.sport != sport or row.dport != dport):
        return False
    start, same = row.at + row.source, 0
    if row.source < 0 or start + want.size > ring.size:  # there are no addresses
        return want.size == 0
    while same < want.size and ring[start + same] == ends[same]:
        same += 1
    return same == want.size


def wanted_of(event, since):
    """WANTED row (1,): the packets between the ends of an event since a time."""
    wanted, size = rows(WANTED, 1), ADDRESS_bytes.get(int(event["ip_version"]), 0)
    ends = [event[name][:size] for name in ("src", "dst")]
    for name in ("sport", "dport", "proto", "ip_version"):
        wanted[name] = event[name]
    wanted["ends"][0, : 2 * size], wanted["ends_back"][0, : 2 * size] = np.hstack(ends), np.hstack(ends[::-1])
    wanted["since"], wanted["size"], wanted["with_ports"] = since, 2 * size, int(event["proto"]) not in ICMP
    return wanted


def rows_of_size(size):
    return max(ROWS_LEAST, size // BYTES_A_ROW)


def history_bytes(size):
    """Memory that a History of `size` takes."""
    return size + rows_of_size(size) * (KEPT.itemsize + 8)


class History:
    """The last packets that one worker saw, as many as fit `size` bytes."""

    def __init__(self, size):
        self.ring = np.zeros(size, np.uint8)
        self.kept, self.places = rows(KEPT, rows_of_size(size)), rows(PLACE, 1)
        self.found = np.zeros(len(self.kept), np.int64)
        self.keep, self.find = Kernel(keep), Kernel(find)
        self.keep(self.ring[:1].copy(), rows(FRAME, 0), rows(PACKET, 0), self.ring, self.kept, self.places)
        self.find(self.kept, self.places, self.ring, rows(WANTED, 1), self.found)  # both: loads what is compiled

    def watch(self, batch, block):
        """Keep the packets of a batch that was decoded."""
        self.keep(block.buf, block.frames, batch.packets[: batch.frames], self.ring, self.kept, self.places)

    def packets(self, event, since, most_bytes):
        """[(ts, linktype, len, bytes)] of the event's flow since `since` ns, in order: the last `most_bytes` of them.

        ICMP and what has no address: all of that protocol between the two, or of all.
        """
        count = self.find(self.kept, self.places, self.ring, wanted_of(event, since), self.found)
        found = np.asarray(self.kept)[self.found[:count]]
        behind = np.cumsum(found["caplen"][::-1], dtype=np.int64)[::-1]  # bytes from each packet to the last
        found = found[behind <= most_bytes]
        return [(int(row["ts"]), int(row["linktype"]), int(row["len"]), self._bytes(row)) for row in found]

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

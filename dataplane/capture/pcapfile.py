"""pcap files: the file header in Python, the records in one kernel (draft-ietf-opsawg-pcap; libpcap's savefile.c).

Counts follow wiretap: a record cut short by the end is no packet, more than 262144 captured bytes are damage.
"""

import struct

import numpy as np
from numba import njit

from dataplane.capture.source import DAMAGED, FULL, MORE, WALK, CaptureError, MAX_CAPLEN_bytes, Source, u32
from dataplane.capture.stretch import Reading, begin, context_of, finish, refill
from dataplane.kernels import Kernel
from dataplane.memory import array_at, memory
from dataplane.records import CHECKED

HEADER_bytes = 24
RECORD_bytes, RECORD_MODIFIED_bytes = 16, 24
MAGICS = {0xA1B2C3D4: (1000, RECORD_bytes), 0xA1B23C4D: (1, RECORD_bytes), 0xA1B2CD34: (1000, RECORD_MODIFIED_bytes)}
RESERVED = 0x03FF0000  # bits of the network field between the link type and the FCS length

# Order of the two lengths in a record: before version 2.3 the other way round, in 2.3 either (libpcap, sf-pcap.c)
IN_ORDER, DOUBTFUL, SWAPPED = range(3)

PCAP = np.dtype(
    [
        *WALK,
        ("header_bytes", np.int64),  # of a record
        ("unit_ns", np.int64),  # of the fraction of a second
        ("linktype", np.int64),
        ("order", np.int64),
    ],
    align=True,
)


@njit(nogil=True, cache=True)
def walk(buf, frames, state):
    """Fill `frames` from row.count on; FULL, MORE or DAMAGED. Seconds and fraction are unsigned, taken as they are."""
    mem, row = memory(buf), state[0]
    pos, end, n, status = row.pos, row.end, row.count, FULL
    big, header_bytes, unit_ns, order, linktype = row.big, row.header_bytes, row.unit_ns, row.order, row.linktype
    while n < frames.size:
        if end - pos < header_bytes:
            status, row.need = MORE, header_bytes
            break
        caplen, length = u32(mem, pos + 8, big), u32(mem, pos + 12, big)
        if order != IN_ORDER and (order == SWAPPED or caplen > length):
            caplen, length = length, caplen
        if caplen > MAX_CAPLEN_bytes:
            status, row.detail = DAMAGED, caplen
            break
        if end - pos - header_bytes < caplen:
            status, row.need = MORE, header_bytes + caplen
            break
        frame = frames[np.uint64(n)]
        frame.offset = pos + header_bytes
        frame.ts = u32(mem, pos, big) * 1_000_000_000 + u32(mem, pos + 4, big) * unit_ns
        frame.len = length
        frame.caplen = caplen
        frame.linktype = linktype
        frame.nsec = 0
        frame.flags = 0
        pos += header_bytes + caplen
        n += 1
    row.pos, row.count = pos, n
    return status


_walk = Kernel(walk)


def read_stage(context, batch):
    """Reading, as a stage; see stretch.py."""
    c = context_of(context)
    state = array_at(c.walk, 1, PCAP)
    buf, frames = begin(c, batch, state[0])
    c.status = walk(buf, frames, state)
    while c.status == MORE and refill(c, state[0]):
        c.status = walk(buf, frames, state)
    return finish(c, batch, state[0])


def byte_order(head):
    """'<' or '>' of a pcap file that begins with the bytes `head`, None if it is none."""
    for order in "<>":
        if len(head) >= 4 and struct.unpack(order + "I", head[:4])[0] in MAGICS:
            return order
    return None


class PcapSource(Source):
    """A pcap file of any byte order and resolution. CaptureError: header cut short, version or link type unknown."""

    def __init__(self, name, feed, block_frames, hold):
        super().__init__(name, feed, PCAP, block_frames, hold)
        if not self.require(HEADER_bytes):
            raise CaptureError(f"{name}: pcap file header cut short at byte {feed.base + feed.end} of 24")
        self._header(bytes(feed.buf[:HEADER_bytes]))

    def _header(self, head):
        order = byte_order(head)
        magic, major, minor, _zone, _sigfigs, _snaplen, network = struct.unpack(order + "IHHiIII", head)
        if major != 2:
            raise CaptureError(f"{self.name}: pcap version {major}.{minor} is not supported, only 2.x is")
        if network & RESERVED:
            raise CaptureError(f"{self.name}: not a pcap file, reserved bits of its link type 0x{network:08x} are set")
        row = self.row
        row["pos"], row["big"] = HEADER_bytes, order == ">"
        row["unit_ns"], row["header_bytes"] = MAGICS[magic]
        row["linktype"] = network & 0xFFFF
        row["order"] = SWAPPED if minor < 3 else DOUBTFUL if minor == 3 else IN_ORDER

    def reading(self):
        return None if CHECKED or self.feed.fd < 0 else Reading(self.feed, self.state, read_stage, self.block_frames)

    def walk(self, frames):
        return _walk(self.feed.buf, frames, self.state)

    def why(self):
        return f"record claims {self.row['detail']} captured bytes, more than {MAX_CAPLEN_bytes}"

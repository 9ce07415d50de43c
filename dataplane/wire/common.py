"""The common frame without detours: Ethernet with at most one tag, plain IPv4, TCP or UDP in one piece. The same row as
layer by layer.

Nine frames of ten are of this kind. Layer by layer, a row's fields are written as they are found; here they are put
together first and written once, and nothing that varies from packet to packet at random is a branch.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, byte, select
from dataplane.records import CUT, PORTS, REVERSE, SELF, TCP_HEADER, UDP_LENGTH, VLAN
from dataplane.wire.fields import ETHERNET, ROW_LENGTH_MAX, T_8021Q, TCP, UDP
from dataplane.wire.flowhash import flow4

LEAST_BYTES = 54  # Ethernet 14, IPv4 20, TCP 20
LEAST_TOTAL_BYTES = 40  # the same without Ethernet
PLAIN_IPV4 = 0x080045  # ethertype IPv4, version 4, a header of five words
FRAGMENT_BITS = 0x3FFF  # more fragments, fragment offset


@njit(forceinline=True)
def common_network(mem, frame):
    """Offset of the IPv4 header of a frame that decode_common may read, else -1."""
    if (frame.linktype != ETHERNET) | (frame.flags != 0) | (frame.caplen < LEAST_BYTES):
        return -1
    start = frame.offset
    at = start + 14 + 4 * (be16(mem, start + 12) == T_8021Q)
    protocol = byte(mem, at + 9)
    plain = (be32(mem, at - 2) >> 8 == PLAIN_IPV4) & (be16(mem, at + 6) & FRAGMENT_BITS == 0)
    whole = (be16(mem, at + 2) >= LEAST_TOTAL_BYTES) & (start + frame.caplen - at >= LEAST_TOTAL_BYTES)
    return at if plain & whole & ((protocol == TCP) | (protocol == UDP)) else -1


@njit(forceinline=True)
def decode_common(mem, frame, at, options, row):
    """Fill `row` from a frame with its IPv4 header at `at`, all but what UDP payloads tell; whether it is UDP."""
    start, caplen, length, ts, clock = frame.offset, frame.caplen, frame.len, frame.ts, frame.clock
    protocol, total, transport = byte(mem, at + 9), be16(mem, at + 2), at + 20
    sport, dport = be16(mem, transport), be16(mem, transport + 2)
    udp, tagged = protocol == UDP, at - start > 14
    source, target = be32(mem, at + 12) << 16 | sport, be32(mem, at + 16) << 16 | dport
    tcp_payload = max(0, total - 20 - (byte(mem, transport + 12) >> 4) * 4)
    payload_len = select(udp, be16(mem, transport + 4) - 8, tcp_payload)
    tos_ttl = byte(mem, at + 1) << 16 | byte(mem, at + 8) << 40
    own = select(udp, byte(mem, transport + 8) << 32, byte(mem, transport + 13) << 24)
    vlan = select(tagged, be16(mem, at - 4) & 0x0FFF, 0)
    flags = select(udp, PORTS | UDP_LENGTH, PORTS | TCP_HEADER) | (caplen < length) * CUT | tagged * VLAN
    row.hash = flow4(options, min(source, target), max(source, target), protocol)
    row.ts, row.clock, row.addr, row.len = ts, clock, at + 12, min(length, ROW_LENGTH_MAX)
    row.payload_len, row.ports = payload_len, sport | dport << 16
    row.flags = flags | (source > target) * REVERSE | (source >> 16 == target >> 16) * SELF
    row.small = np.uint64(protocol | 4 << 8 | tos_ttl | own | vlan << 48)
    return udp

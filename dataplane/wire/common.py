"""The common frame without detours: Ethernet with at most one tag, plain IPv4 or IPv6, TCP or UDP in one piece. The
same row as layer by layer.

Nineteen frames of twenty are of this kind. Layer by layer, a row's fields are written as they are found; here they are
put together first and written once, and nothing that varies from packet to packet is a branch: a wrong guess costs
tens of cycles.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, byte, select, signed64
from dataplane.records import (
    CUT,
    FIRST_BYTE_BIT,
    PORTS,
    REVERSE,
    SELF,
    TCP_FLAGS_BIT,
    TCP_HEADER,
    TOS_BIT,
    TTL_BIT,
    UDP_LENGTH,
    VERSION_BIT,
    VLAN,
    VLAN_BIT,
)
from dataplane.wire.application import application, for_ptp, marked
from dataplane.wire.fields import ETHERNET, ROW_LENGTH_MAX, T_8021Q, T_IPV4, TCP, UDP
from dataplane.wire.flowhash import flow4, flow6

LEAST_BYTES = 54  # Ethernet 14, IPv4 20, TCP 20
LEAST_TOTAL_BYTES = 40  # the same without Ethernet
PLAIN_IPV4 = 0x45 << 56  # first eight bytes: version 4, a header of five words, neither more fragments nor an offset
PLAIN_IPV4_MASK = -1 << 56 | 0x3FFF
PLAIN_IPV6 = 0x86DD6  # ethertype IPv6, version 6


@njit(forceinline=True)
def network_at(mem, frame):
    """Offset of what follows Ethernet and at most one tag."""
    return frame.offset + 14 + 4 * (be16(mem, frame.offset + 12) == T_8021Q)


@njit(forceinline=True)
def common_ipv4(mem, frame):
    """Offset of the IPv4 header of a frame that decode_ipv4 may read, else -1."""
    if (frame.linktype != ETHERNET) | (frame.flags != 0) | (frame.caplen < LEAST_BYTES):
        return -1
    at = network_at(mem, frame)
    first, protocol = signed64(mem, at), byte(mem, at + 9)
    plain = (be16(mem, at - 2) == T_IPV4) & (first & PLAIN_IPV4_MASK == PLAIN_IPV4)
    whole = (total_length(first) >= LEAST_TOTAL_BYTES) & (frame.offset + frame.caplen - at >= LEAST_TOTAL_BYTES)
    return at if plain & whole & ((protocol == TCP) | (protocol == UDP)) else -1


@njit(forceinline=True)
def total_length(first):
    """Of an IPv4 header, by its first eight bytes."""
    return first >> 32 & 0xFFFF


@njit(forceinline=True)
def decode_ipv4(mem, frame, at, options, row):
    """Fill `row`, all but what UDP payloads tell; whether it is UDP."""
    first, second, ports = signed64(mem, at), signed64(mem, at + 8), be32(mem, at + 20)
    host, peer = second & 0xFFFFFFFF, be32(mem, at + 16)
    source, target = host << 16 | ports >> 16, peer << 16 | ports & 0xFFFF
    row.hash, row.addr = flow4(options, source, target, second >> 48 & 255), at + 12
    small = second >> 48 & 0xFFFF | 4 << VERSION_BIT | (first >> 48 & 255) << TOS_BIT
    flags = (source > target) * REVERSE | (host == peer) * SELF
    return rest(mem, frame, at, at + 20, total_length(first) - 20, flags, small, row)


@njit(forceinline=True)
def common_ipv6(mem, frame):
    """The same for IPv6 and decode_ipv6."""
    if (frame.linktype != ETHERNET) | (frame.flags != 0) | (frame.caplen < LEAST_BYTES + 24):
        return -1
    at = network_at(mem, frame)
    protocol = byte(mem, at + 6)
    plain = (be32(mem, at - 2) >> 12 == PLAIN_IPV6) & (be16(mem, at + 4) >= 20)
    return at if plain & ((protocol == TCP) | (protocol == UDP)) else -1


@njit
def decode_ipv6(mem, frame, at, options, row):
    """The same."""
    row.proto, row.flags, row.addr = byte(mem, at + 6), 0, at + 8
    row.hash = flow6(mem, options, row, be16(mem, at + 40), be16(mem, at + 42))
    small = byte(mem, at + 7) << TTL_BIT | byte(mem, at + 6) | 6 << VERSION_BIT | (be16(mem, at) >> 4 & 255) << TOS_BIT
    return rest(mem, frame, at, at + 40, be16(mem, at + 4), np.int64(row.flags), small, row)


@njit(forceinline=True)
def rest(mem, frame, network, at, length, flags, small, row):
    """What is the same in both versions: the frame's own fields, its tag, the transport header at `at`."""
    head, in_tcp = signed64(mem, at), be16(mem, at + 12)  # data offset, TCP flags
    udp, tagged = small & 255 == UDP, network - frame.offset > 14
    row.payload_len = select(udp, (head >> 16 & 0xFFFF) - 8, max(0, length - (in_tcp >> 12) * 4))
    row.ports = head >> 48 & 0xFFFF | (head >> 32 & 0xFFFF) << 16
    flags |= select(udp, PORTS | UDP_LENGTH, PORTS | TCP_HEADER) | tagged * VLAN
    small |= select(udp, byte(mem, at + 8) << FIRST_BYTE_BIT, (in_tcp & 255) << TCP_FLAGS_BIT)
    row.small = np.uint64(small | select(tagged, be16(mem, network - 4) & 0x0FFF, 0) << VLAN_BIT)
    row.ts, row.clock, row.len = frame.ts, frame.clock, min(frame.len, ROW_LENGTH_MAX)
    row.flags = flags | (frame.caplen < frame.len) * CUT
    return udp


@njit(forceinline=True)
def asked(row):
    """Whether such a UDP packet is to be asked what application it carries."""
    return marked(np.int64(row.first_byte)) | for_ptp(row.sport) | for_ptp(row.dport)


@njit
def udp_application(mem, frame, options, row):
    """The list of the application that such a UDP packet carries."""
    four, at = row.ip_version == 4, row.addr
    end = select(four, at - 12 + be16(mem, at - 10), at + 32 + be16(mem, at - 4))
    return application(mem, at + select(four, 16, 40), min(frame.offset + frame.caplen, end), row, options)

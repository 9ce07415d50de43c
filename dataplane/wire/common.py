"""The common frame without detours: Ethernet with at most one tag, plain IPv4 or IPv6, TCP or UDP in one piece. The
same row as layer by layer.

Nineteen frames of twenty are of this kind. Layer by layer, a row's fields are written as they are found; here they are
put together first and written once, and nothing that varies from packet to packet is a branch: a wrong guess costs
tens of cycles.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, byte, select
from dataplane.records import CUT, IP, PORTS, QUIC, REVERSE, SELF, TCP_HEADER, UDP_LENGTH, VLAN
from dataplane.wire.application import application, for_ptp, marked
from dataplane.wire.fields import ETHERNET, HTTPS, ROW_LENGTH_MAX, T_8021Q, TCP, UDP
from dataplane.wire.flowhash import flow4, flow6

LEAST_BYTES = 54  # Ethernet 14, IPv4 20, TCP 20
LEAST_TOTAL_BYTES = 40  # the same without Ethernet
PLAIN_IPV4 = 0x080045  # ethertype IPv4, version 4, a header of five words
PLAIN_IPV6 = 0x86DD6  # ethertype IPv6, version 6
FRAGMENT_BITS = 0x3FFF  # more fragments, fragment offset


@njit(forceinline=True)
def common_ipv4(mem, frame):
    """Offset of the IPv4 header of a frame that decode_ipv4 may read, else -1."""
    if (frame.linktype != ETHERNET) | (frame.flags != 0) | (frame.caplen < LEAST_BYTES):
        return -1
    start = frame.offset
    at = start + 14 + 4 * (be16(mem, start + 12) == T_8021Q)
    protocol = byte(mem, at + 9)
    plain = (be32(mem, at - 2) >> 8 == PLAIN_IPV4) & (be16(mem, at + 6) & FRAGMENT_BITS == 0)
    whole = (be16(mem, at + 2) >= LEAST_TOTAL_BYTES) & (start + frame.caplen - at >= LEAST_TOTAL_BYTES)
    return at if plain & whole & ((protocol == TCP) | (protocol == UDP)) else -1


@njit(forceinline=True)
def decode_ipv4(mem, frame, at, options, row):
    """Fill `row`, all but what UDP payloads tell; whether it is UDP."""
    protocol, sport, dport = byte(mem, at + 9), be16(mem, at + 20), be16(mem, at + 22)
    source, target = be32(mem, at + 12) << 16 | sport, be32(mem, at + 16) << 16 | dport
    row.hash, row.addr = flow4(options, min(source, target), max(source, target), protocol), at + 12
    small = protocol | 4 << 8 | byte(mem, at + 1) << 16 | byte(mem, at + 8) << 40
    flags = (source > target) * REVERSE | (source >> 16 == target >> 16) * SELF
    return rest(mem, frame, at, at + 20, be16(mem, at + 2) - 20, flags, small, row)


@njit(forceinline=True)
def common_ipv6(mem, frame):
    """The same for IPv6 and decode_ipv6."""
    if (frame.linktype != ETHERNET) | (frame.flags != 0) | (frame.caplen < LEAST_BYTES + 24):
        return -1
    start = frame.offset
    at = start + 14 + 4 * (be16(mem, start + 12) == T_8021Q)
    protocol = byte(mem, at + 6)
    plain = (be32(mem, at - 2) >> 12 == PLAIN_IPV6) & (be16(mem, at + 4) >= 20)
    return at if plain & ((protocol == TCP) | (protocol == UDP)) else -1


@njit
def decode_ipv6(mem, frame, at, options, row):
    """The same."""
    row.proto, row.flags, row.addr = byte(mem, at + 6), 0, at + 8
    row.hash = flow6(mem, options, row, be16(mem, at + 40), be16(mem, at + 42))
    small = byte(mem, at + 6) | 6 << 8 | (be16(mem, at) >> 4 & 255) << 16 | byte(mem, at + 7) << 40
    return rest(mem, frame, at, at + 40, be16(mem, at + 4), np.int64(row.flags), small, row)


@njit(forceinline=True)
def rest(mem, frame, network, at, length, flags, small, row):
    """What is the same in both versions: the frame's own fields, its tag, the transport header at `at`."""
    udp, tagged = small & 255 == UDP, network - frame.offset > 14
    tcp_payload = max(0, length - (byte(mem, at + 12) >> 4) * 4)
    row.payload_len = select(udp, be16(mem, at + 4) - 8, tcp_payload)
    row.ports = be16(mem, at) | be16(mem, at + 2) << 16
    flags |= select(udp, PORTS | UDP_LENGTH, PORTS | TCP_HEADER) | tagged * VLAN
    small |= select(udp, byte(mem, at + 8) << 32, byte(mem, at + 13) << 24)
    row.small = np.uint64(small | select(tagged, be16(mem, network - 4) & 0x0FFF, 0) << 48)
    row.ts, row.clock, row.len = frame.ts, frame.clock, min(frame.len, ROW_LENGTH_MAX)
    row.flags = flags | (frame.caplen < frame.len) * CUT
    return udp


@njit(forceinline=True)
def udp_kinds(row):
    """The lists of such a UDP packet, but for those of applications; whether it is to be asked what it carries."""
    asked = marked(np.int64(row.first_byte)) | for_ptp(row.sport) | for_ptp(row.dport)
    return 1 << IP | (row.sport == HTTPS) << QUIC, asked


@njit
def udp_application(mem, frame, options, row):
    """The list of the application that such a UDP packet carries."""
    four, at = row.ip_version == 4, row.addr
    end = select(four, at - 12 + be16(mem, at - 10), at + 32 + be16(mem, at - 4))
    return application(mem, at + select(four, 16, 40), min(frame.offset + frame.caplen, end), row, options)

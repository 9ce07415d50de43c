"""The common frame without detours: Ethernet with at most one tag, plain IPv4 or IPv6, TCP or UDP in one piece. The
same row as layer by layer.

Nineteen frames of twenty are of this kind. Layer by layer, a row's fields are written as they are found; here they are
put together first and written once. What varies from packet to packet is no branch, for a wrong guess costs tens of
cycles: batch.py first sorts the frames, then each sort has a loop in which all is the same.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, byte, signed64
from dataplane.records import (
    FIRST_BYTE_BIT,
    IP,
    PORTS,
    QUIC,
    REVERSE,
    TCP_FLAGS_BIT,
    TCP_HEADER,
    TOS_BIT,
    TTL_BIT,
    UDP_LENGTH,
    VERSION_BIT,
    VLAN,
)
from dataplane.wire.application import application, for_ptp, marked
from dataplane.wire.fields import ETHERNET, HTTPS, T_8021Q, TCP, UDP
from dataplane.wire.flowhash import flow4, flow6

ETHERNET_BYTES, TAG_BYTES = 14, 4
LEAST_BYTES = 54  # Ethernet 14, IPv4 20, TCP 20
LEAST_TOTAL_BYTES = 40  # the same without Ethernet
PLAIN_IPV4 = 0x080045 << 40  # eight bytes from the ethertype on: IPv4, a header of five words
PLAIN_IPV4_MASK = -1 << 40
FRAGMENT_MASK = 0x3FFF << 16  # four bytes from IPv4's flags on: more fragments, fragment offset; then TTL, protocol
PLAIN_IPV6 = 0x86DD6  # ethertype IPv6, version 6


@njit(forceinline=True)
def framed(frame):
    """Whether Ethernet and a whole header of IPv4 and TCP may be read."""
    return (frame.linktype == ETHERNET) & (frame.flags == 0) & (frame.caplen >= LEAST_BYTES)


@njit(forceinline=True)
def plain_ipv4(mem, at):
    """The protocol in a plain IPv4 header at `at`, behind its ethertype; 0 if there is none."""
    first, second = signed64(mem, at - 2), be32(mem, at + 6)
    whole = first >> 16 & 0xFFFF >= LEAST_TOTAL_BYTES
    return ((first & PLAIN_IPV4_MASK == PLAIN_IPV4) & (second & FRAGMENT_MASK == 0) & whole) * (second & 255)


@njit(forceinline=True)
def common_protocol(mem, frame):
    """TCP or UDP if decode_tcp4 or decode_udp4 may read the frame, behind untagged Ethernet; else something else."""
    return plain_ipv4(mem, frame.offset + ETHERNET_BYTES) if framed(frame) else 0


@njit(forceinline=True)
def decode_tcp4(mem, frame, at, options, row):
    """Fill `row` from a plain IPv4 header at `at` and TCP behind it."""
    small = byte(mem, at + 33) << TCP_FLAGS_BIT
    row.payload_len = max(0, be16(mem, at + 2) - 20 - (byte(mem, at + 32) >> 4) * 4)
    finish4(mem, frame, at, options, TCP, TCP_HEADER, small, row)


@njit(forceinline=True)
def decode_udp4(mem, frame, at, options, row):
    """The same for UDP, all but what its payload tells."""
    small = byte(mem, at + 28) << FIRST_BYTE_BIT
    row.payload_len = be16(mem, at + 24) - 8
    finish4(mem, frame, at, options, UDP, UDP_LENGTH, small, row)


@njit(forceinline=True)
def finish4(mem, frame, at, options, protocol, flags, small, row):
    """What is the same for both."""
    ports = be32(mem, at + 20)
    source, target = be32(mem, at + 12) << 16 | ports >> 16, be32(mem, at + 16) << 16 | ports & 0xFFFF
    row.hash, row.addr, row.ports = flow4(options, source, target, protocol), at + 12, ports
    row.small = np.uint64(small | be16(mem, at + 8) | 4 << VERSION_BIT | byte(mem, at + 1) << TOS_BIT)
    row.ts, row.clock, row.len = frame.ts, frame.clock, frame.len
    row.flags = PORTS | flags | (source > target) * REVERSE


@njit
def decode_common(mem, frame, options, row):
    """Fill `row` from a common frame with a tag or of IPv6; the bit set of its lists, -1 if it is none."""
    if not framed(frame):
        return -1
    tagged = be16(mem, frame.offset + 12) == T_8021Q
    at = frame.offset + ETHERNET_BYTES + TAG_BYTES * tagged
    left, protocol = frame.offset + frame.caplen - at, plain_ipv4(mem, at)
    if protocol == TCP and left >= LEAST_TOTAL_BYTES:
        decode_tcp4(mem, frame, at, options, row)
    elif protocol == UDP and left >= LEAST_TOTAL_BYTES:
        decode_udp4(mem, frame, at, options, row)
    elif left >= LEAST_TOTAL_BYTES + 20 and plain_ipv6(mem, at):
        decode_ipv6(mem, frame, at, options, row)
    else:
        return -1
    if tagged:
        row.vlan = be16(mem, at - 4) & 0x0FFF
        row.flags |= VLAN
    return udp_kinds(mem, frame, options, row) if row.proto == UDP else 1 << IP


@njit(forceinline=True)
def plain_ipv6(mem, at):
    """Whether a plain IPv6 header with TCP or UDP behind it is at `at`, behind its ethertype."""
    protocol = byte(mem, at + 6)
    plain = (be32(mem, at - 2) >> 12 == PLAIN_IPV6) & (be16(mem, at + 4) >= 20)
    return plain & ((protocol == TCP) | (protocol == UDP))


@njit
def decode_ipv6(mem, frame, at, options, row):
    """Fill `row` from such a header and what is behind it, all but what UDP's payload tells."""
    protocol, ports = byte(mem, at + 6), be32(mem, at + 40)
    small = byte(mem, at + 7) << TTL_BIT | protocol | 6 << VERSION_BIT | (be16(mem, at) >> 4 & 255) << TOS_BIT
    row.proto, row.addr, row.ports = protocol, at + 8, ports
    if protocol == UDP:
        row.payload_len, row.flags = be16(mem, at + 44) - 8, PORTS | UDP_LENGTH
        small |= byte(mem, at + 48) << FIRST_BYTE_BIT
    else:
        row.payload_len = max(0, be16(mem, at + 4) - (byte(mem, at + 52) >> 4) * 4)
        row.flags = PORTS | TCP_HEADER
        small |= byte(mem, at + 53) << TCP_FLAGS_BIT
    row.hash = flow6(mem, options, row, ports >> 16, ports & 0xFFFF)
    row.small = np.uint64(small)
    row.ts, row.clock, row.len = frame.ts, frame.clock, frame.len


@njit(forceinline=True)
def asked(row):
    """Whether such a UDP packet is to be asked what application it carries."""
    return marked(np.int64(row.first_byte)) | for_ptp(row.sport) | for_ptp(row.dport)


@njit
def udp_kinds(mem, frame, options, row):
    """The lists of such a UDP packet."""
    kinds = 1 << IP | (row.sport == HTTPS) << QUIC
    return kinds | (udp_application(mem, frame, options, row) if asked(row) else 0)


@njit
def udp_application(mem, frame, options, row):
    """The list of the application that such a UDP packet carries."""
    if row.ip_version == 4:
        at, end = row.addr + 16, row.addr - 12 + be16(mem, row.addr - 10)
    else:
        at, end = row.addr + 40, row.addr + 32 + be16(mem, row.addr - 4)
    return application(mem, at, min(frame.offset + frame.caplen, end), row, options)

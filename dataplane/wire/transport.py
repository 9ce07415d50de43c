"""Ports or type and code, and the payload's length. Each returns the lists that the packet belongs to."""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, be64, byte
from dataplane.records import ECHO, FRAGMENT_LATER, PORTS, QUIC, SELF, TCP_HEADER, UDP_LENGTH
from dataplane.wire.application import application, for_ptp, marked
from dataplane.wire.fields import (
    HTTPS,
    ICMP,
    ICMPV6,
    SCTP,
    SHORT_TRANSPORT,
    TCP,
    UDP,
    stop,
)


@njit
def transport(mem, at, end, row, length, options):
    """Ports or type and code, TCP flags, payload length; the lists that the packet belongs to.

    Written with selects where a random mix of TCP and UDP would make a processor guess wrong.
    """
    row.payload_len = length
    protocol, left = np.int64(row.proto), end - at
    if row.flags & FRAGMENT_LATER:
        return 0
    if protocol != TCP and protocol != UDP:
        return other_transport(mem, at, end, row)
    if left < 4:
        stop(row, SHORT_TRANSPORT)
        return 0
    sport, dport = be16(mem, at), be16(mem, at + 2)
    row.sport, row.dport = sport, dport
    if left < (6 if protocol == UDP else 20):
        row.flags |= PORTS
        stop(row, SHORT_TRANSPORT)
        return 0
    udp = protocol == UDP
    row.flags |= PORTS | (UDP_LENGTH if udp else TCP_HEADER)
    row.payload_len = payload(mem, at, length, udp)
    row.tcp_flags = 0 if udp else byte(mem, at + 13 if left >= 14 else at)
    row.first_byte = byte(mem, at + 8) if left > 8 and udp else 0
    kinds = (udp & (sport == HTTPS)) << QUIC
    if udp & (left > 8) & (marked(np.int64(row.first_byte)) | for_ptp(sport) | for_ptp(dport)):
        kinds |= application(mem, at + 8, end, row, options)
    return kinds


@njit
def payload(mem, at, length, udp):
    """Payload bytes: UDP by its length field (0 in a jumbogram: RFC 2675, 4), TCP by its data offset (RFC 9293)."""
    field = be16(mem, at + 4)
    if udp:
        return (length if field == 0 and length > 0xFFFF else field) - 8
    return max(0, length - (byte(mem, at + 12) >> 4) * 4)


@njit
def other_transport(mem, at, end, row):
    protocol = row.proto
    if (protocol == ICMP and row.ip_version == 4) or (protocol == ICMPV6 and row.ip_version == 6):
        return icmp(mem, at, end, row)
    if protocol == SCTP:
        if end - at < 4:
            stop(row, SHORT_TRANSPORT)
        else:
            row.sport, row.dport = be16(mem, at), be16(mem, at + 2)
            row.flags |= PORTS
    return 0


@njit
def icmp(mem, at, end, row):
    """RFC 792 and RFC 4443; echo requests and replies go to their list."""
    if end - at < 1:
        stop(row, SHORT_TRANSPORT)
        return 0
    row.sport = byte(mem, at)
    row.flags |= PORTS
    if end - at < 2:
        stop(row, SHORT_TRANSPORT)
        return 0
    row.dport = byte(mem, at + 1)
    echo = row.sport == 8 or row.sport == 0 if row.ip_version == 4 else row.sport == 128 or row.sport == 129
    if not echo or end - at < 8:
        return 0
    row.flags |= SELF if sent_to_itself(mem, row) else 0
    row.icmp_id = be16(mem, at + 4)
    row.icmp_seq = be16(mem, at + 6)
    return 1 << ECHO


@njit
def sent_to_itself(mem, row):
    """Whether source and destination address are the same."""
    at = row.addr
    if row.ip_version == 4:
        return be32(mem, at) == be32(mem, at + 4)
    return be64(mem, at) == be64(mem, at + 16) and be64(mem, at + 8) == be64(mem, at + 24)

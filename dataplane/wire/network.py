"""IPv4 and IPv6. Each returns (protocol, transport's offset, end of what may be read, transport bytes on the wire).

Protocol -1 means stop.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, byte
from dataplane.records import FRAGMENT_ATOMIC, FRAGMENT_FIRST, FRAGMENT_LATER, OPTIONS, VERSION_MISMATCH
from dataplane.wire.fields import (
    BAD_IP,
    DESTINATION,
    EXTENSIONS_MAX,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    ROUTING,
    SHORT_EXTENSION,
    SHORT_IP,
    T_IPV4,
    T_IPV6,
    TCP,
    UDP,
    stop,
)


@njit
def network(mem, at, end, row, ethertype, uncaptured):
    if end <= at:
        stop(row, SHORT_IP)
        return -1, at, end, 0
    version = byte(mem, at) >> 4
    if (ethertype == T_IPV4 and version == 6) or (ethertype == T_IPV6 and version == 4):
        row.flags |= VERSION_MISMATCH
    elif version == 4 and ethertype != T_IPV6:
        return ipv4(mem, at, end, row, uncaptured)
    elif version == 6 and ethertype != T_IPV4:
        return ipv6(mem, at, end, row, uncaptured)
    stop(row, BAD_IP)
    return -1, at, end, 0


@njit
def ipv4(mem, at, end, row, uncaptured):
    """RFC 791. A total length of 0 is segmentation offload: the frame's length stands in."""
    if end - at < 20:
        stop(row, SHORT_IP)
        return -1, at, end, 0
    header = (byte(mem, at) & 15) * 4
    total = be16(mem, at + 2)
    if header < 20 or (total != 0 and total < header):
        stop(row, BAD_IP)
        return -1, at, end, 0
    row.ip_version = 4
    row.tos = byte(mem, at + 1)
    row.ttl = byte(mem, at + 8)
    row.proto = byte(mem, at + 9)
    row.addr = at + 12
    if header > 20:
        row.flags |= OPTIONS
    fragment = be16(mem, at + 6)
    if fragment & 0x1FFF:
        row.flags |= FRAGMENT_LATER
    elif fragment & 0x2000:
        row.flags |= FRAGMENT_FIRST
    if total:
        end = min(end, at + total)
    else:
        total = end - at + uncaptured
    return np.int64(row.proto), at + header, end, total - header


@njit
def ipv6(mem, at, end, row, uncaptured):
    """RFC 8200. A payload length of 0 is a jumbogram: the frame's length stands in."""
    if end - at < 40:
        stop(row, SHORT_IP)
        return -1, at, end, 0
    length = be16(mem, at + 4)
    row.ip_version = 6
    row.tos = (be16(mem, at) >> 4) & 255
    row.ttl = byte(mem, at + 7)
    row.addr = at + 8
    if length:
        end = min(end, at + 40 + length)
    else:
        length = end - at - 40 + uncaptured
    protocol = byte(mem, at + 6)
    row.proto = protocol
    at += 40
    if protocol == TCP or protocol == UDP or protocol == ICMPV6:
        return protocol, at, end, length
    return extensions(mem, at, end, row, protocol, length)


@njit
def extensions(mem, at, end, row, protocol, length):
    """Skip hop-by-hop, routing, fragment and destination options (RFC 8200, 4); any other header ends the chain."""
    for _ in range(EXTENSIONS_MAX):
        row.proto = protocol
        if protocol != HOP_BY_HOP and protocol != ROUTING and protocol != FRAGMENT and protocol != DESTINATION:
            return protocol, at, end, length
        row.flags |= OPTIONS
        if end - at < 8:
            break
        size = 8
        if protocol == FRAGMENT:
            fragment = be16(mem, at + 2)
            if fragment & 0xFFF8:
                row.flags |= FRAGMENT_LATER
            else:
                row.flags |= FRAGMENT_FIRST if fragment & 1 else FRAGMENT_ATOMIC
        else:
            size = (byte(mem, at + 1) + 1) * 8
        protocol = byte(mem, at)
        at += size
        length -= size
        if row.flags & FRAGMENT_LATER:
            row.proto = protocol
            return protocol, at, end, length
    stop(row, SHORT_EXTENSION)
    return -1, at, end, length

"""Where the packet inside a tunnel begins, as (ethertype, offset); ethertype 0 where there is none."""

from numba import njit

from dataplane.memory import be16, byte
from dataplane.wire.fields import (
    GENEVE,
    GRE,
    GTPU,
    GTPU_PDU,
    IP6_IN_IP,
    IPIP,
    T_6IN4,
    T_BRIDGE,
    T_GENEVE,
    T_GRE,
    T_GTPU,
    T_IPIP,
    T_IPV4,
    T_IPV6,
    T_RAW_IP,
    T_VXLAN,
    TAGS_MAX,
    UDP,
    VXLAN,
)


@njit
def inner(mem, at, end, row, tunnels):
    protocol = row.proto
    if protocol == UDP:
        return inner_udp(mem, at + 8, end, be16(mem, at + 2), tunnels) if end - at > 8 else (0, at)
    if protocol == GRE and tunnels & T_GRE:
        return gre(mem, at, end)
    if protocol == IPIP and tunnels & T_IPIP:
        return T_IPV4, at
    if protocol == IP6_IN_IP and tunnels & T_6IN4:
        return T_IPV6, at
    return 0, at


@njit
def inner_udp(mem, at, end, port, tunnels):
    if port == VXLAN and tunnels & T_VXLAN and end - at >= 22 and byte(mem, at) & 0x08:  # RFC 7348, 5
        return be16(mem, at + 20), at + 22
    if port == GENEVE and tunnels & T_GENEVE and end - at >= 8:  # RFC 8926, 3.4
        ethertype, body = be16(mem, at + 2), at + 8 + (byte(mem, at) & 63) * 4
        if ethertype == T_BRIDGE and end - body >= 14:
            return be16(mem, body + 12), body + 14
        return ethertype, body
    if port == GTPU and tunnels & T_GTPU:
        return gtpu(mem, at, end)
    return 0, at


@njit
def gtpu(mem, at, end):
    """3GPP TS 29.281, 5.1 and 5.2: optional fields and extension headers, then an IP packet."""
    if end - at < 8 or byte(mem, at) >> 5 != 1 or byte(mem, at + 1) != GTPU_PDU:
        return 0, at
    flags = byte(mem, at) & 7
    at += 8
    if flags:
        if end - at < 4:
            return 0, at
        following = byte(mem, at + 3) if flags & 4 else 0
        at += 4
        for _ in range(TAGS_MAX):
            if following == 0 or end - at < 4 or byte(mem, at) == 0:
                break
            size = byte(mem, at) * 4
            if end - at < size:
                return 0, at
            following = byte(mem, at + size - 1)
            at += size
    return T_RAW_IP, at


@njit
def gre(mem, at, end):
    """RFC 2784 and RFC 2890, version 0."""
    if end - at < 4 or byte(mem, at + 1) & 7:
        return 0, at
    flags, ethertype = byte(mem, at), be16(mem, at + 2)
    at += 4 + 4 * ((flags >> 7) + ((flags >> 5) & 1) + ((flags >> 4) & 1))
    if ethertype == T_BRIDGE:
        return (be16(mem, at + 12), at + 14) if end - at >= 14 else (0, at)
    return ethertype, at

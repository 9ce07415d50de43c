"""Link layers, and what may stand between them and IP. Each returns (ethertype, offset behind it); 0 means stop."""

from numba import njit

from dataplane.memory import be16, be32, byte
from dataplane.records import MPLS, OUT_OF_SCOPE, PPPOE, SNAP, VLAN
from dataplane.wire.fields import (
    ETHERNET,
    IPV4_LINK,
    IPV6_LINK,
    LENGTH_MAX,
    LOOP,
    NOT_ENTERED,
    NOT_IP,
    NULL,
    RAW,
    RAW_BSD,
    RAW_OPENBSD,
    SHORT_LINK,
    SLL,
    SLL2,
    T_8021AD,
    T_8021Q,
    T_ARP,
    T_CMD,
    T_IPV4,
    T_IPV6,
    T_MPLS,
    T_MPLS_UP,
    T_NSH,
    T_PPPOE,
    T_PTP,
    T_QINQ,
    T_RAW_IP,
    TAGS_MAX,
    UNKNOWN_ETHERTYPE,
    UNKNOWN_LINK,
    stop,
)


@njit
def ethernet(mem, at, end, row):
    if end - at < 14:
        stop(row, SHORT_LINK)
        return 0, at
    return be16(mem, at + 12), at + 14


@njit
def cooked(mem, at, end, row, size):
    """Linux SLL: 16 bytes, protocol last; SLL2: 20 bytes, protocol first."""
    if end - at < size:
        stop(row, SHORT_LINK)
        return 0, at
    return be16(mem, at + (14 if size == 16 else 0)), at + size


@njit
def loopback(mem, at, end, row):
    """BSD null and loop: a 4-byte address family, of either byte order for null."""
    if end - at < 4:
        stop(row, SHORT_LINK)
        return 0, at
    family = be32(mem, at)
    if family > 0xFFFF:
        high = byte(mem, at + 3) << 8 | byte(mem, at + 2)
        family = high << 16 | byte(mem, at + 1) << 8 | byte(mem, at)
    if family == 2:
        return T_IPV4, at + 4
    if family == 24 or family == 28 or family == 30:
        return T_IPV6, at + 4
    stop(row, NOT_IP)
    return 0, at


@njit
def link(mem, at, end, row, kind):
    if kind == ETHERNET:
        return ethernet(mem, at, end, row)
    if kind == SLL or kind == SLL2:
        return cooked(mem, at, end, row, 16 if kind == SLL else 20)
    if kind == RAW or kind == RAW_BSD or kind == RAW_OPENBSD:
        return T_RAW_IP, at
    if kind == IPV4_LINK:
        return T_IPV4, at
    if kind == IPV6_LINK:
        return T_IPV6, at
    if kind == NULL or kind == LOOP:
        return loopback(mem, at, end, row)
    stop(row, UNKNOWN_LINK)
    return 0, at


@njit
def vlan(mem, at, end, row):
    if end - at < 4:
        stop(row, SHORT_LINK)
        return 0, at
    if not row.flags & VLAN:
        row.vlan = be16(mem, at) & 0x0FFF
    row.flags |= VLAN
    return be16(mem, at + 2), at + 4


@njit
def mpls(mem, at, end, row):
    """Label stack (RFC 3032); behind the last label only IP is entered, told by its version nibble."""
    row.flags |= MPLS
    while end - at >= 5:
        bottom = byte(mem, at + 2) & 1
        at += 4
        if bottom:
            version = byte(mem, at) >> 4
            if version == 4 or version == 6:
                return T_RAW_IP, at
            stop(row, NOT_ENTERED)
            return 0, at
    stop(row, SHORT_LINK)
    return 0, at


@njit
def pppoe(mem, at, end, row):
    """PPPoE session (RFC 2516) and the PPP protocol field, of one or two bytes (RFC 1661, 6.5)."""
    row.flags |= PPPOE
    if end - at < 8:
        stop(row, SHORT_LINK)
        return 0, at
    protocol, size = (byte(mem, at + 6), 7) if byte(mem, at + 6) & 1 else (be16(mem, at + 6), 8)
    if protocol == 0x0021:
        return T_IPV4, at + size
    if protocol == 0x0057:
        return T_IPV6, at + size
    stop(row, NOT_IP)
    return 0, at


@njit
def llc(mem, at, end, row):
    """802.2; only SNAP with OUI 0 (RFC 1042) leads on."""
    if end - at >= 8 and be32(mem, at) == 0xAAAA0300 and be16(mem, at + 4) == 0:
        row.flags |= SNAP
        return be16(mem, at + 6), at + 8
    stop(row, NOT_IP)
    return 0, at


@njit
def to_network(mem, at, end, row, ethertype):
    """Walk tags and labels until an ethertype with a network layer behind it; 0 where there is none."""
    for _ in range(TAGS_MAX):
        if ethertype == T_IPV4 or ethertype == T_IPV6 or ethertype == T_RAW_IP or ethertype == T_PTP or ethertype == 0:
            return ethertype, at
        if ethertype == T_8021Q or ethertype == T_8021AD or ethertype == T_QINQ:
            ethertype, at = vlan(mem, at, end, row)
        elif ethertype == T_MPLS or ethertype == T_MPLS_UP:
            ethertype, at = mpls(mem, at, end, row)
        elif ethertype == T_PPPOE:
            ethertype, at = pppoe(mem, at, end, row)
        elif ethertype <= LENGTH_MAX:
            ethertype, at = llc(mem, at, end, row)
        else:
            return leave(row, ethertype), at
    stop(row, NOT_ENTERED)
    return 0, at


@njit
def leave(row, ethertype):
    """No way to IP from here: say why."""
    if ethertype == T_NSH or ethertype == T_CMD:
        row.flags |= OUT_OF_SCOPE
        stop(row, NOT_ENTERED)
    elif ethertype == T_ARP or ethertype > 0x8700:
        stop(row, NOT_IP)
    else:
        stop(row, UNKNOWN_ETHERTYPE)
    return 0

"""Keyed hashes of addresses and ports: sums of products of keyed pairs, of which the high halves are strongly universal
(Thorup, "High speed hashing for integers and strings", 3.5); two of them make 64 bits. Whoever does not know the keys
cannot aim at a slot.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, be64, byte
from dataplane.records import IP, REVERSE, SELF
from dataplane.wire.fields import ICMP, ICMPV6


@njit
def flow(mem, options, row, kinds):
    """Give the row its keyed hash and direction; the lists it belongs to, IP among them."""
    if row.addr < 0:
        return kinds
    icmp = row.proto == ICMP or row.proto == ICMPV6
    low, high = (0, 0) if icmp else (np.int64(row.sport), np.int64(row.dport))
    if row.ip_version == 4:
        source, target = be32(mem, row.addr) << 16 | low, be32(mem, row.addr + 4) << 16 | high
        row.flags |= (REVERSE if source > target else 0) | (SELF if source >> 16 == target >> 16 else 0)
        first, last = min(source, target), max(source, target)
        ports = (first & 0xFFFF) << 16 | (last & 0xFFFF)
        row.hash = hash4(options, first >> 16, last >> 16, ports, np.int64(row.proto))
    else:
        row.hash = flow6(mem, options, row, low, high)
    return kinds | 1 << IP


@njit(forceinline=True)
def pair(options, i, x, y):
    return (options.keys[i] + np.uint64(x)) * (options.keys[i + 1] + np.uint64(y))


@njit(forceinline=True)
def join(upper, lower):
    """One word of the high halves of two, stirred; never 0.

    Unstirred, 1 secret in 60 put most of 2**18 clients with successive addresses into a few blocks of the flow table.
    """
    word = (upper & np.uint64(0xFFFFFFFF00000000)) | (lower >> np.uint64(32))
    word = (word ^ (word >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (word ^ (word >> np.uint64(32))) | np.uint64(1)


@njit(forceinline=True)
def hash4(options, first, last, ports, proto):
    upper = options.keys[8] + pair(options, 0, first, last) + pair(options, 2, ports, proto)
    lower = options.keys[9] + pair(options, 4, first, last) + pair(options, 6, ports, proto)
    return join(upper, lower)


@njit
def flow6(mem, options, row, low, high):
    """The same over IPv6 addresses: each end is eight bytes, eight bytes and a port."""
    source, target = row.addr, row.addr + 16
    s0, s1, t0, t1 = be64(mem, source), be64(mem, source + 8), be64(mem, target), be64(mem, target + 8)
    if s0 > t0 or (s0 == t0 and (s1 > t1 or (s1 == t1 and low > high))):
        source, target, low, high = target, source, high, low
        row.flags |= REVERSE
    row.flags |= SELF if s0 == t0 and s1 == t1 else 0
    ports, proto = low << 16 | high, np.int64(row.proto)
    upper = options.keys[30] + pair(options, 10, ports, proto)
    lower = options.keys[31] + pair(options, 12, ports, proto)
    for i in range(4):
        x, y = be32(mem, source + 4 * i), be32(mem, target + 4 * i)
        upper += pair(options, 14 + 2 * i, x, y)
        lower += pair(options, 22 + 2 * i, x, y)
    return join(upper, lower)


@njit
def one_address(mem, options, row, at):
    """Keyed hash of the address at `at`, of the row's IP version."""
    if row.ip_version == 4:
        return hash4(options, be32(mem, at), 0, 0, 0)
    return hash4(options, be32(mem, at), be32(mem, at + 4), be32(mem, at + 8), be32(mem, at + 12))


@njit
def address_pair(mem, options, row):
    """Keyed hash of the packet's two addresses, the same both ways; 0 for a multicast destination."""
    target = row.addr + (4 if row.ip_version == 4 else 16)
    first = byte(mem, target)
    if first == 0xFF or (row.ip_version == 4 and first >> 4 == 0xE):
        return np.uint64(0)
    return one_address(mem, options, row, row.addr) + one_address(mem, options, row, target)


@njit
def mac_pair(mem, options, frame):
    """The same for the MAC addresses of an Ethernet frame (the group bit: IEEE 802-2014, 8.2.2)."""
    at = frame.offset
    if byte(mem, at) & 1:
        return np.uint64(0)
    target = hash4(options, be32(mem, at), be16(mem, at + 4), 0, 1)
    return target + hash4(options, be32(mem, at + 6), be16(mem, at + 10), 0, 1)

"""Keyed hashes of addresses and ports: 128-bit products of keyed pairs of words, as NH of UMAC makes them (Black,
Halevi, Krawczyk, Krovetz, Rogaway, "UMAC: fast and secure message authentication"), or for IPv4 of both ends under one
key, folded to 64 bits by a further key and stirred. Whoever does not know the keys cannot aim at a slot.
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, be64, byte, high_product
from dataplane.records import IP, REVERSE
from dataplane.wire.fields import FACTOR, FOLD, ICMP, ICMPV6

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit
def flow(mem, options, row, kinds):
    """Give the row its keyed hash and direction; the lists it belongs to, IP among them."""
    if row.addr < 0:
        return kinds
    icmp = row.proto == ICMP or row.proto == ICMPV6
    sport, dport = (0, 0) if icmp else (np.int64(row.sport), np.int64(row.dport))
    if row.ip_version == 4:
        source, target = be32(mem, row.addr) << 16 | sport, be32(mem, row.addr + 4) << 16 | dport
        row.flags |= REVERSE if source > target else 0
        row.hash = flow4(options, source, target, np.int64(row.proto))
    else:
        row.hash = flow6(mem, options, row, sport, dport)
    return kinds | 1 << IP


@njit(forceinline=True)
def product(options, i, x, y):
    """The words x and y, each under a key of its own, multiplied and folded."""
    x, y = np.uint64(x) + options.keys[i], np.uint64(y) + options.keys[i + 1]
    return x * y + high_product(x, y) * options.keys[FOLD]


@njit(forceinline=True)
def stir(word, factor=GOLDEN):
    """The same word, all its bits mixed by an odd factor; never 0.

    Unstirred, 1 secret in 60 put most of 2**18 clients with successive addresses into a few blocks of the flow table.
    """
    word = (word ^ (word >> np.uint64(32))) * factor
    return (word ^ (word >> np.uint64(32))) | np.uint64(1)


@njit(forceinline=True)
def flow4(options, source, target, protocol):
    """Hash of two ends, each an IPv4 address and a port in 48 bits, under one key for both: the same both ways.

    (x + k)(y + k) is the same for two pairs only if x y + k (x + y) is: for but a few of the 2**64 keys k. Where x + y
    is the same the difference is known, though, so it is stirred by a secret factor.
    """
    key = options.keys[0] + np.uint64(protocol << 48)
    x, y = np.uint64(source) + key, np.uint64(target) + key
    return stir(x * y + high_product(x, y) * options.keys[FOLD], options.keys[FACTOR])


@njit
def flow6(mem, options, row, sport, dport):
    """The same over IPv6 addresses, the ends in order: each is eight bytes, eight bytes and a port."""
    source, target = row.addr, row.addr + 16
    s0, s1, t0, t1 = be64(mem, source), be64(mem, source + 8), be64(mem, target), be64(mem, target + 8)
    if s0 > t0 or (s0 == t0 and (s1 > t1 or (s1 == t1 and sport > dport))):
        s0, s1, t0, t1, sport, dport = t0, t1, s0, s1, dport, sport
        row.flags |= REVERSE
    ports = sport << 24 | dport << 8 | np.int64(row.proto)
    return stir(product(options, 2, s0, t0) + product(options, 4, s1, t1) + product(options, 6, ports, 0))


@njit
def one_address(mem, options, row, at):
    """Keyed hash of the address at `at`, of the row's IP version."""
    if row.ip_version == 4:
        return stir(product(options, 8, be32(mem, at), 0))
    return stir(product(options, 10, be64(mem, at), be64(mem, at + 8)))


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
    target = product(options, 12, be32(mem, at), be16(mem, at + 4))
    return stir(target) + stir(product(options, 12, be32(mem, at + 6), be16(mem, at + 10)))

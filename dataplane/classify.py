"""The class of a packet: the first rule that covers it. Knows PACKET rows, META rows and addresses, no header.

A rule covers a packet if all its fields do. What a packet does not have is covered only by a field that says any: later
fragments and ICMP have no ports, so no rule with ports covers them; what could not be decoded has no address, protocol
or DSCP. A direction is a pair of interfaces.

Rules are looked through once a flow: the class is kept in a cache under the packet's keyed flow hash, mixed with all
that rules see and the hash does not tell. A key belongs to one cache line of eight, which are compared at once; two
packets are taken for one only if 63 bits of their keys are equal.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.memory import be32, be64, lowest_bit, matches, memory, put, row_at
from dataplane.records import PORTS, REVERSE, rows, zeros

DEFAULT = 0  # the class of what no rule covers
CLASSES_MAX = 65536
CACHE_ENTRIES, LINE_ENTRIES = 65536, 8
TOP, NO_FLOW, EMPTY = np.uint64(1 << 63), np.uint64(0), np.uint64(0)
ANY, UNKNOWN = -1, -2  # in a rule; of a packet
ICMP, ICMPV6 = 1, 58  # IANA, protocol numbers: their rows have type and code in place of ports
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd, 2**64 divided by the golden ratio

# An address is two words, big-endian; IPv4 is the low half of the second
RULE = np.dtype(
    [
        *((f"{end}{part}{i}", np.uint64) for end in ("src", "dst") for part in ("", "_mask") for i in (0, 1)),
        ("sport_low", np.int32),  # ANY: also what has no ports
        ("sport_high", np.int32),
        ("dport_low", np.int32),
        ("dport_high", np.int32),
        ("mark", np.uint32),  # firewall mark, bits within the mask
        ("mark_mask", np.uint32),
        ("indev", np.int32),  # interface index, 0 any
        ("outdev", np.int32),
        ("proto", np.int16),  # after IPv6 extension headers, ANY
        ("dscp", np.int16),  # ANY
        ("family", np.uint8),  # 4, 6 or 0: both, then without prefixes
        ("class_index", np.uint16),
    ],
    align=True,
)

# A packet as rules see it
SEEN = np.dtype(
    [
        *((name, np.uint64) for name in ("src0", "src1", "dst0", "dst1")),
        *((name, np.int32) for name in ("sport", "dport", "proto", "dscp", "family")),
    ],
    align=True,
)

ENTRY = np.dtype([("class_index", np.uint16)])  # of the cache, beside its key

CLASSIFIER = np.dtype(
    [
        ("rules", np.int64),
        ("found", np.int64),  # packets whose class was in the cache
        ("missed", np.int64),
    ],
    align=True,
)


class Classifier(NamedTuple):
    """The arrays of a classifier."""

    rules: np.ndarray
    keys: np.ndarray  # uint64, CACHE_ENTRIES
    entries: np.ndarray
    seen: np.ndarray
    control: np.ndarray


def new_rules(count):
    """RULE rows that cover everything and lead to DEFAULT."""
    rules = rows(RULE, count)
    for name in ("sport_low", "dport_low", "proto", "dscp"):
        rules[name] = ANY
    rules["sport_high"] = rules["dport_high"] = 0xFFFF
    return rules


def set_prefix(rule, end, network):
    """Restrict the "src" or "dst" of a RULE row to an ipaddress.ip_network, and the rule to its family."""
    for name, value in ((end, network.network_address), (f"{end}_mask", network.netmask)):
        rule[f"{name}0"], rule[f"{name}1"] = int(value) >> 64, int(value) & 0xFFFFFFFFFFFFFFFF
    rule["family"] = network.version


def new_classifier(rules):
    """A classifier by these RULE rows, in their order."""
    control = rows(CLASSIFIER, 1)
    control[0].rules = len(rules)
    keys = zeros(8 * CACHE_ENTRIES).view(np.uint64)
    return Classifier(rules, keys, rows(ENTRY, CACHE_ENTRIES), rows(SEEN, 1), control)


def classifier_bytes(rules):
    """Memory of a classifier with so many rules."""
    cache = CACHE_ENTRIES * (8 + ENTRY.itemsize)
    return rules * RULE.itemsize + cache + SEEN.itemsize + CLASSIFIER.itemsize


@njit(forceinline=True)
def rule_places(classifier):
    """Handles of a classifier's arrays (see memory.py), under the same names: what the functions below take as `at`."""
    rules, keys, entries = memory(classifier.rules), memory(classifier.keys), memory(classifier.entries)
    return Classifier(rules, keys, entries, memory(classifier.seen), memory(classifier.control))


@njit(forceinline=True)
def classify(at, mem, pkt, meta):
    """The packet's class; `mem`: handle of the buffer that pkt.addr is an offset in."""
    key, control = key_of(pkt, meta), row_at(at.control, 0, CLASSIFIER)
    line = np.int64(key >> np.uint64(20)) & CACHE_ENTRIES - LINE_ENTRIES
    there = matches(at.keys, line, key)
    if there and pkt.hash != NO_FLOW:
        control.found += 1
        return np.int64(row_at(at.entries, line + lowest_bit(there), ENTRY).class_index)
    control.missed += 1
    index = match(at, mem, pkt, meta)
    if pkt.hash != NO_FLOW:
        free = matches(at.keys, line, EMPTY)
        entry = line + (lowest_bit(free) if free else control.missed & LINE_ENTRIES - 1)
        put(at.keys, entry, key)
        row_at(at.entries, entry, ENTRY).class_index = index
    return index


@njit(forceinline=True)
def key_of(pkt, meta):
    """64 bits of all that rules see, the highest set: none is like EMPTY."""
    devices = np.uint64(meta.indev) | np.uint64(meta.outdev) << np.uint64(32)
    way = 64 * (pkt.flags & REVERSE != 0) + 128 * (pkt.flags & PORTS != 0) + (np.int64(pkt.tos) >> 2)
    rest = np.uint64(meta.mark) | np.uint64(way) << np.uint64(32)
    return stir(stir(pkt.hash, devices), rest) | TOP


@njit(forceinline=True)
def stir(word, more):
    """For each `more` another one-to-one map."""
    word = (word ^ more) * GOLDEN
    return word ^ (word >> np.uint64(32))


@njit
def match(at, mem, pkt, meta):
    """The class of the first rule that covers the packet."""
    seen, count = row_at(at.seen, 0, SEEN), row_at(at.control, 0, CLASSIFIER).rules
    see(mem, pkt, seen)
    for i in range(count):
        rule = row_at(at.rules, i, RULE)
        if covers(rule, seen, meta):
            return np.int64(rule.class_index)
    return DEFAULT


@njit
def see(mem, pkt, seen):
    """Fill the SEEN row."""
    at, proto, known = pkt.addr, np.int64(pkt.proto), pkt.addr >= 0
    ports = (pkt.flags & PORTS != 0) & (proto != ICMP) & (proto != ICMPV6)
    seen.sport, seen.dport = (pkt.sport, pkt.dport) if ports else (ANY, ANY)
    seen.family, seen.proto, seen.dscp = 0, UNKNOWN, UNKNOWN
    seen.src0 = seen.src1 = seen.dst0 = seen.dst1 = np.uint64(0)
    if known:
        seen.family, seen.proto, seen.dscp = pkt.ip_version, proto, np.int64(pkt.tos) >> 2
    if known and pkt.ip_version == 4:
        seen.src1, seen.dst1 = np.uint64(be32(mem, at)), np.uint64(be32(mem, at + 4))
    elif known:
        seen.src0, seen.src1, seen.dst0, seen.dst1 = (
            be64(mem, at), be64(mem, at + 8), be64(mem, at + 16), be64(mem, at + 24),
        )  # fmt: skip


@njit(forceinline=True)
def covers(rule, seen, meta):
    """Whether a rule covers a packet: one branch on what is compared at once."""
    apart = ((seen.src0 ^ rule.src0) & rule.src_mask0) | ((seen.src1 ^ rule.src1) & rule.src_mask1)
    apart |= ((seen.dst0 ^ rule.dst0) & rule.dst_mask0) | ((seen.dst1 ^ rule.dst1) & rule.dst_mask1)
    ports = (seen.sport >= rule.sport_low) & (seen.sport <= rule.sport_high)
    ports &= (seen.dport >= rule.dport_low) & (seen.dport <= rule.dport_high)
    kind = ((rule.proto == ANY) | (rule.proto == seen.proto)) & ((rule.dscp == ANY) | (rule.dscp == seen.dscp))
    kind &= (rule.family == 0) | (rule.family == seen.family)
    where = ((rule.indev == 0) | (rule.indev == meta.indev)) & ((rule.outdev == 0) | (rule.outdev == meta.outdev))
    return (apart == np.uint64(0)) & ports & kind & where & ((meta.mark ^ rule.mark) & rule.mark_mask == 0)

"""Identifiers of an event's flow: Community ID version 1, seed 0, and the short id made of the same SHA-1.

Source: github.com/corelight/community-id-spec; for ICMP the event row's ports hold type and code.
"""

import numpy as np
from numba import njit

from dataplane.records import EVENT
from dataplane.text import byte, put_hex, read, unit

_HEAD = np.dtype(EVENT, align=True).fields
SRC, DST, SPORT, DPORT = (_HEAD[name][1] for name in ("src", "dst", "sport", "dport"))
PROTO, IP_VERSION = (_HEAD[name][1] for name in ("proto", "ip_version"))

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132

# Scratch words: the SHA-1 message in units of 16 bits, its schedule, the digest, 1 once the digest is made
SCHEDULE, DIGEST, READY, SCRATCH = 32, 112, 117, 118
WORD = 0xFFFFFFFF

BASE64 = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8).astype(np.int64)


def _answers(*pairs):
    """ICMP type -> type of its answer or question, -1 where it has none."""
    table = np.full(256, -1, np.int64)
    for a, b in pairs:
        table[a], table[b] = b, a
    return table


# Community ID v1: types that answer each other stand in for the ports (pycommunityid icmp.py, icmp6.py, as in Zeek)
ANSWERS = _answers((8, 0), (13, 14), (15, 16), (10, 9), (17, 18))
ANSWERS_V6 = _answers((128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145))


@njit
def sha1(scratch):
    """SHA-1 (FIPS 180-4, 6.1.2) of the one padded block in scratch; the five words go to DIGEST."""
    for t in range(16):
        scratch[SCHEDULE + t] = scratch[2 * t] << 16 | scratch[2 * t + 1]
    for t in range(SCHEDULE + 16, DIGEST):
        x = scratch[t - 3] ^ scratch[t - 8] ^ scratch[t - 14] ^ scratch[t - 16]
        scratch[t] = (x << 1 | x >> 31) & WORD
    a, b, c, d, e = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0
    for t in range(SCHEDULE, SCHEDULE + 20):
        x = ((a << 5 | a >> 27) + (d ^ (b & (c ^ d))) + e + 0x5A827999 + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    for t in range(SCHEDULE + 20, SCHEDULE + 40):
        x = ((a << 5 | a >> 27) + (b ^ c ^ d) + e + 0x6ED9EBA1 + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    for t in range(SCHEDULE + 40, SCHEDULE + 60):
        x = ((a << 5 | a >> 27) + ((b & c) | (d & (b | c))) + e + 0x8F1BBCDC + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    for t in range(SCHEDULE + 60, SCHEDULE + 80):
        x = ((a << 5 | a >> 27) + (b ^ c ^ d) + e + 0xCA62C1D6 + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    scratch[DIGEST] = (a + 0x67452301) & WORD
    scratch[DIGEST + 1] = (b + 0xEFCDAB89) & WORD
    scratch[DIGEST + 2] = (c + 0x98BADCFE) & WORD
    scratch[DIGEST + 3] = (d + 0x10325476) & WORD
    scratch[DIGEST + 4] = (e + 0xC3D2E1F0) & WORD


@njit
def has_ports(words, row, proto):
    """Whether the protocol has ports and they are known: a later fragment's are both zero."""
    return (proto == TCP or proto == UDP or proto == SCTP) and read(words, row + SPORT, np.int64(-4)) != 0


@njit
def ports_of(words, row):
    """Community ID's ports: (source, destination, has ports, may be swapped)."""
    proto = byte(words, row + PROTO)
    sport, dport = read(words, row + SPORT, np.int64(2)), read(words, row + DPORT, np.int64(2))
    if proto == ICMP or proto == ICMPV6:
        answer = ANSWERS[sport & 255] if proto == ICMP else ANSWERS_V6[sport & 255]
        return sport, dport if answer < 0 else answer, True, answer >= 0
    return sport, dport, has_ports(words, row, proto), True


@njit
def swapped(words, row, sport, dport):
    """Whether the source is the greater end: by address, then by port."""
    for k in range(0, 16, 2):
        a, b = unit(words, row + SRC + k), unit(words, row + DST + k)
        if a != b:
            return a > b
    return sport > dport


@njit
def digest(words, row, scratch):
    """SHA-1 of the row's flow: Community ID v1, seed 0 (github.com/corelight/community-id-spec)."""
    sport, dport, ported, both_ways = ports_of(words, row)
    first, second = row + SRC, row + DST
    if both_ways and swapped(words, row, sport, dport):
        first, second, sport, dport = second, first, dport, sport
    units = 2 if byte(words, row + IP_VERSION) == 4 else 8
    scratch[:SCHEDULE] = 0  # the first unit is the seed
    for k in range(units):
        scratch[1 + k] = unit(words, first + 2 * k)
        scratch[1 + units + k] = unit(words, second + 2 * k)
    end = 2 * units + 1
    scratch[end] = byte(words, row + PROTO) << 8
    if ported:
        scratch[end + 1], scratch[end + 2] = sport, dport
        end += 2
    scratch[end + 1] = 0x8000
    scratch[SCHEDULE - 1] = 16 * (end + 1)  # bits
    sha1(scratch)


@njit
def digest_byte(scratch, k):
    return (scratch[DIGEST + (k >> 2)] >> (24 - 8 * (k & 3))) & 255


@njit
def make_digest(words, row, scratch):
    """The digest of a row is made once."""
    if scratch[READY] == 0:
        digest(words, row, scratch)
        scratch[READY] = 1


@njit
def put_flow_id(out, at, words, row, scratch):
    """The digest's first 8 bytes."""
    make_digest(words, row, scratch)
    return put_hex(out, at, scratch[DIGEST] << 32 | scratch[DIGEST + 1], np.int64(16))


@njit
def put_community_id(out, at, words, row, scratch):
    """ "1:" and the digest's 20 bytes in base64 (RFC 4648, section 4)."""
    make_digest(words, row, scratch)
    out[at], out[at + 1] = 49, 58  # 1:
    at += 2
    for k in range(0, 21, 3):
        last = digest_byte(scratch, k + 2) if k < 18 else 0
        word = digest_byte(scratch, k) << 16 | digest_byte(scratch, k + 1) << 8 | last
        for shift in range(18, -1, -6):
            out[at] = BASE64[(word >> shift) & 63]
            at += 1
    out[at - 1] = 61  # =
    return at

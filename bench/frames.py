"""The frames of the benchmark traffic: one function per kind of conversation. This file shares no code with wire.py.

`write` puts the next frame of a conversation into a zeroed buffer. What a frame holds depends on the conversation's
number, on how many packets it had before (its STATE row), on the time and on one random word (the NOW row).
"""

import numpy as np
from numba import njit

TCP, QUIC, IQN, RTP, DNS, ECHO, PTP, STREAM, SANDWICH = range(9)
NAMES = ("tcp", "quic", "quic with IQN candidates", "rtp", "dns", "icmp echo", "ptp", "probe stream", "sandwich")
PER_THOUSAND = (680, 215, 5, 45, 35, 12, 3, 3, 2)  # of the conversations, and so of the packets
KINDS = np.random.RandomState(7).permutation(np.repeat(np.arange(9, dtype=np.uint8), PER_THOUSAND))
IPV6_ONE_IN, VLAN_ONE_IN = 20, 32
MAX_BYTES = 1600
MIN_BYTES = 60  # without the frame check sequence, as captures have it
IMIX_BYTES = (60, 590, 1514)  # simple IMIX 64, 594, 1518 without the frame check sequence
QUIC_BYTES = np.array([1200, 1228, 1232, 1250, 1252, 1292], np.int64)  # full datagrams of servers in use
HANDSHAKE_PACKETS = 4
PTP_TYPES, PTP_CONTROLS = (0x0, 0x8, 0x1, 0x9), (0, 2, 1, 3)
SANDWICH_D_NS = 1_000_000
SYN, ACK, PSH = 0x02, 0x10, 0x08

STATE = np.dtype([("count", np.int64), ("sent", np.int64), ("seq", np.uint32, 2)], align=True)
NOW = np.dtype(  # where the generator stands, and the packet being written
    [
        ("number", np.int64),
        ("ts", np.int64),
        ("flow", np.int64),
        ("who", np.int64),  # 60 random bits of the conversation, the lowest two those of its number
        ("draw", np.int64),  # 62 random bits of the packet
        ("kind", np.int64),
        ("v6", np.int64),
        ("client", np.int64),
        ("server", np.int64),
        ("overhead", np.int64),  # bytes before the transport header
        ("reverse", np.int64),  # from the server
        ("transport_len", np.int64),  # bytes of the transport
        ("written", np.int64),  # of them not zero, rounded up to even
    ],
    align=True,
)


@njit
def mix(a, b):
    """64 random bits of two words (finaliser of splitmix64)."""
    z = a + (b + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit
def put16(buf, at, value):
    buf[at] = (value >> 8) & 0xFF
    buf[at + 1] = value & 0xFF


@njit
def put32(buf, at, value):
    put16(buf, at, (value >> 16) & 0xFFFF)
    put16(buf, at + 2, value & 0xFFFF)


@njit
def put64(buf, at, value):
    put32(buf, at, (value >> 32) & 0xFFFFFFFF)
    put32(buf, at + 4, value & 0xFFFFFFFF)


@njit
def put32le(buf, at, value):
    for i in range(4):
        buf[at + i] = (value >> (8 * i)) & 0xFF


@njit
def sum16(buf, start, end):
    """Sum of the big-endian words of an even number of bytes."""
    total = 0
    for i in range(start, end, 2):
        total += (np.int64(buf[i]) << 8) + np.int64(buf[i + 1])
    return total


@njit
def put_checksum(buf, at, total):
    """RFC 1071: the complement of the one's complement sum."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    put16(buf, at, 0xFFFF - total)


# Bodies: each sets `reverse`, writes the transport (but length and checksum), returns (its bytes, bytes written of it)


@njit
def ports(buf, at, now, client, server):
    """Both ports; returns where the UDP payload begins."""
    put16(buf, at, server if now.reverse else client)
    put16(buf, at + 2, client if now.reverse else server)
    return at + 8


@njit
def tcp_flags(count, data):
    if count < 3:
        return SYN if count == 0 else SYN | ACK if count == 1 else ACK
    return ACK | PSH if data else ACK


@njit
def tcp(buf, at, state, now):
    """IMIX sizes; handshake first, then data mostly from the server."""
    count, size, who = state.count, now.draw % 12, now.who
    length = IMIX_BYTES[0] if size < 7 or count < 3 else IMIX_BYTES[1] if size < 11 else IMIX_BYTES[2]
    data = 0 if length == IMIX_BYTES[0] else length - now.overhead - 20
    now.reverse = count == 1 if count < 3 else ((now.draw >> 8) % 5 != 0) == (data > 0)
    side = 1 if now.reverse else 0
    if count == 0:
        state.seq[0], state.seq[1] = who & 0xFFFFFF, (who >> 8) & 0xFFFFFF
    ports(buf, at, now, client_port(who), 443 if who % 4 < 2 else 80 if who % 4 == 2 else 8443)
    flags = tcp_flags(count, data > 0)
    put32(buf, at + 4, np.int64(state.seq[side]))
    put32(buf, at + 8, np.int64(state.seq[1 - side]) if flags & ACK else 0)
    put16(buf, at + 12, 0x5000 | flags)
    put16(buf, at + 14, 64240)
    state.seq[side] = np.uint32((np.int64(state.seq[side]) + data + (1 if flags & SYN else 0)) & 0xFFFFFFFF)
    return 20 + data, 20


@njit
def client_port(who):
    """Four conversations share a client address, each has its own port range."""
    return 20_000 + 10_000 * (who & 3) + (who >> 8) % 10_000


@njit
def quic(buf, at, state, now):
    """Handshake with padded long headers, then full datagrams and small ones; kind IQN: half in the IQN size range."""
    if state.count < HANDSHAKE_PACKETS:
        return quic_handshake(buf, at, state, now)
    draw = now.draw
    now.reverse = draw % 10 < 6
    size = 35 + (draw >> 8) % 46
    if now.reverse and now.kind == IQN:
        size = 1160 + (draw >> 16) % 8 if (draw >> 8) % 2 else 1292
    elif now.reverse:
        size = QUIC_BYTES[(now.who >> 16) % 6] if (draw >> 8) % 5 else 40 + (draw >> 16) % 1060
    body = ports(buf, at, now, client_port(now.who), 443)
    buf[body] = 0x40 | (draw >> 32) & 0x3F
    put64(buf, body + 1, now.who)
    return 8 + size, 18


@njit
def quic_handshake(buf, at, state, now):
    """RFC 9000, 17.2: two Initials (with a token length, 0), then two Handshakes; both connection ids have 8 bytes."""
    initial = state.count < 2
    now.reverse = state.count in (1, 2)
    body = ports(buf, at, now, client_port(now.who), 443)
    buf[body] = 0xC0 if initial else 0xE0
    buf[body + 4] = 1  # version
    buf[body + 5] = buf[body + 14] = 8
    put64(buf, body + 6, now.who)
    put64(buf, body + 15, now.who + 1)
    after = 24 if initial else 23
    put16(buf, body + after, 0x4000 | (1200 - (after + 2)))
    return 8 + 1200, 34


@njit
def rtp(buf, at, state, now):
    """G.711, 20 ms; one packet in 256 is lost before the tap, one in 256 comes twice."""
    now.reverse = 1
    who, draw = now.who, now.draw
    body = ports(buf, at, now, client_port(who) & ~1, 16_384 + 2 * (who >> 40) % 8_000)
    jump = 2 if draw % 256 == 1 else 0 if draw % 256 == 2 else 1
    state.seq[0] = np.uint32((np.int64(state.seq[0]) + jump) & 0xFFFFFFFF)
    put16(buf, body, 0x8000 | (0x80 if state.count == 0 else 0))
    put16(buf, body + 2, (who + np.int64(state.seq[0])) & 0xFFFF)
    put32(buf, body + 4, (who + 160 * np.int64(state.seq[0])) & 0xFFFFFFFF)
    put32(buf, body + 8, (who >> 20) & 0xFFFFFFFF)
    return 8 + 12 + 160, 20


@njit
def dns(buf, at, state, now):
    """A query for aaaaaaaa.com with eight letters of the conversation, and its answer."""
    now.reverse = state.count % 2
    body = ports(buf, at, now, client_port(now.who), 53)
    put16(buf, body, (now.who + state.count // 2) & 0xFFFF)
    put16(buf, body + 2, 0x8180 if now.reverse else 0x0100)
    put16(buf, body + 4, 1)
    buf[body + 12] = 8
    for i in range(8):
        buf[body + 13 + i] = 97 + (now.who >> (4 * i)) % 26
    put32(buf, body + 21, 0x03636F6D)
    put32(buf, body + 26, 0x00010001)
    if not now.reverse:
        return 8 + 30, 38
    put16(buf, body + 6, 1)
    put32(buf, body + 30, 0xC00C0001)  # the name asked for, A
    put32(buf, body + 34, 0x00010000)
    put32(buf, body + 38, 0x012C0004)
    put32(buf, body + 42, 0xC6336401)
    return 8 + 46, 54


@njit
def echo(buf, at, state, now):
    """56 bytes of payload, as ping sends."""
    now.reverse = state.count % 2
    buf[at] = 128 + now.reverse if now.v6 else 8 * (1 - now.reverse)
    put16(buf, at + 4, (now.who >> 8) & 0xFFFF)
    put16(buf, at + 6, (state.count // 2) & 0xFFFF)
    return 64, 8


@njit
def ptp_time(buf, at, ts):
    put32(buf, at + 2, ts // 1_000_000_000)
    put32(buf, at + 6, ts % 1_000_000_000)


@njit
def ptp(buf, at, state, now):
    """Two-step, end-to-end: Sync, Follow_Up, Delay_Req, Delay_Resp between one master (the server) and one slave."""
    which = state.count % 4
    now.reverse = which != 2
    port = 319 if which in (0, 2) else 320
    body = ports(buf, at, now, port, port)
    size = 54 if which == 3 else 44
    buf[body], buf[body + 1] = PTP_TYPES[which], 2
    put16(buf, body + 2, size)
    put16(buf, body + 6, 0x0200 if which == 0 else 0)
    put64(buf, body + 20, now.who if now.reverse else now.who + 1)
    put16(buf, body + 28, 1)
    put16(buf, body + 30, (state.count // 4) & 0xFFFF)
    buf[body + 32] = PTP_CONTROLS[which]
    if which == 0 or which == 2:
        state.sent = now.ts
    else:
        ptp_time(buf, body + 34, state.sent + (10_000 if which == 3 else -10_000))
    if which == 3:
        put64(buf, body + 44, now.who + 1)
        put16(buf, body + 52, 1)
    return 8 + size, 8 + size


@njit
def probe(buf, at, state, now):
    """qoetap's probe format: magic, version, role, j, flags, session, round, sequence, send time, d."""
    sandwich = now.kind == SANDWICH
    now.reverse = 0
    body = ports(buf, at, now, client_port(now.who), 17_000)
    rounds = state.count // 3 if sandwich else 0
    put32(buf, body, 0x51544150)
    buf[body + 4] = 1
    buf[body + 5] = 1 + state.count % 3 if sandwich else 4
    buf[body + 6] = 1 + rounds % 8 if sandwich else 0
    put64(buf, body + 8, now.who)
    put32(buf, body + 16, rounds)
    put32(buf, body + 20, state.count)
    put64(buf, body + 24, now.ts - 5_000_000)
    put64(buf, body + 32, SANDWICH_D_NS if sandwich else 0)
    return 48, 48


@njit
def body(buf, at, state, now):
    """Write the transport part; returns (its bytes, bytes written of it)."""
    kind = now.kind
    if kind == TCP:
        return tcp(buf, at, state, now)
    if kind in (QUIC, IQN):
        return quic(buf, at, state, now)
    if kind == RTP:
        return rtp(buf, at, state, now)
    if kind == DNS:
        return dns(buf, at, state, now)
    if kind == ECHO:
        return echo(buf, at, state, now)
    if kind == PTP:
        return ptp(buf, at, state, now)
    return probe(buf, at, state, now)


# Headers below the transport


@njit
def ethernet(buf, at, vlan, now):
    """Two stations, locally administered; the ethertype stands just before the network header."""
    buf[at], buf[at + 5] = 2, 2 - now.reverse
    buf[at + 6], buf[at + 11] = 2, 1 + now.reverse
    if vlan:
        put16(buf, at + 12, 0x8100)
        put16(buf, at + 14, vlan)
        at += 4
    put16(buf, at + 12, 0x86DD if now.v6 else 0x0800)


@njit
def ipv4(buf, at, now, proto):
    """Header without options; returns the sum of the addresses for the pseudo header."""
    buf[at] = 0x45
    put16(buf, at + 2, 20 + now.transport_len)
    put16(buf, at + 6, 0x4000)
    buf[at + 8], buf[at + 9] = 57 if now.reverse else 64, proto
    put32(buf, at + 12, now.server if now.reverse else now.client)
    put32(buf, at + 16, now.client if now.reverse else now.server)
    put_checksum(buf, at + 10, sum16(buf, at, at + 20))
    return sum16(buf, at + 12, at + 20)


@njit
def ipv6(buf, at, now, proto):
    """Header without extensions, addresses 2001:db8::<IPv4>; returns the sum of the addresses."""
    put32(buf, at, 0x60000000)
    put16(buf, at + 4, now.transport_len)
    buf[at + 6], buf[at + 7] = proto, 57 if now.reverse else 64
    for i in range(2):
        put32(buf, at + 8 + 16 * i, 0x20010DB8)
        put32(buf, at + 20 + 16 * i, now.server if now.reverse == 1 - i else now.client)
    return sum16(buf, at + 8, at + 40)


@njit
def seal(buf, at, now, proto, pseudo):
    """Length and checksum of the transport; bytes after `written` are zero."""
    if proto == 17:
        put16(buf, at + 4, now.transport_len)
    where = at + (16 if proto == 6 else 6 if proto == 17 else 2)
    total = sum16(buf, at, at + now.written)
    put_checksum(buf, where, total if proto == 1 else total + pseudo + proto + now.transport_len)


@njit
def write(buf, at, state, now, seed):
    """Write the next frame of conversation `now.flow` at `at`; returns its length on the wire."""
    flow = now.flow
    now.who = np.int64(mix(seed + np.uint64(99), np.uint64(flow)) >> np.uint64(4)) & ~3 | flow & 3
    now.kind, now.v6 = KINDS[flow % 1000], flow // 3 % IPV6_ONE_IN == 0
    now.client, now.server = (0x0A000001 + flow // 4, 0xC6120000 + ((now.who >> 8) & 0x7FFF) * 4 + (flow & 3))
    vlan = 100 + flow % 8 if flow // 7 % VLAN_ONE_IN == 0 else 0
    network = at + (18 if vlan else 14)
    transport = network + (40 if now.v6 else 20)
    now.overhead = transport - at
    now.transport_len, now.written = body(buf, transport, state, now)
    proto = 6 if now.kind == TCP else (58 if now.v6 else 1) if now.kind == ECHO else 17
    ethernet(buf, at, vlan, now)
    pseudo = ipv6(buf, network, now, proto) if now.v6 else ipv4(buf, network, now, proto)
    seal(buf, transport, now, proto, pseudo)
    state.count += 1
    return max(MIN_BYTES, now.overhead + now.transport_len)

"""UDP payloads to bytes: PTP, RTP, probes, QUIC look-alikes. Shares no code with wire.py."""

import struct
from typing import NamedTuple

from pcaps.packets import PTP as PTP_ETHERTYPE
from pcaps.packets import Layer

# --- PTP (IEEE 1588-2019, clause 13)

SYNC, DELAY_REQ, PDELAY_REQ, PDELAY_RESP, FOLLOW_UP, DELAY_RESP = 0, 1, 2, 3, 8, 9
PDELAY_RESP_FOLLOW_UP, ANNOUNCE, SIGNALING, MANAGEMENT = 10, 11, 12, 13
PTP_CONTROL = {SYNC: 0, DELAY_REQ: 1, FOLLOW_UP: 2, DELAY_RESP: 3, MANAGEMENT: 4}  # 5 otherwise
TWO_STEP, UNICAST = 0x0200, 0x0400
PTP_EVENT_PORT, PTP_GENERAL_PORT = 319, 320
PTP_GROUP4, PTP_PEER_GROUP4, PTP_GROUP6, PTP_PEER_GROUP6 = "224.0.1.129", "224.0.0.107", "ff0e::181", "ff02::6b"
PTP_MAC, PTP_PEER_MAC = bytes.fromhex("011b19000000"), bytes.fromhex("0180c200000e")
INTERVAL_UNSPECIFIED = 0x7F


class Clock(NamedTuple):
    """sourcePortIdentity, with what every message of the port carries."""

    identity: int
    port: int = 1
    domain: int = 0
    minor: int = 0  # minorVersionPTP: 1 for PTPv2.1


def ptp(kind, clock, seq, body, correction_ns=0, flags=0):
    """Header and body; the correction may be a fraction of a nanosecond."""
    interval = INTERVAL_UNSPECIFIED if kind in (DELAY_REQ, PDELAY_REQ, PDELAY_RESP, PDELAY_RESP_FOLLOW_UP) else 0
    header = struct.pack(">BBHBBH", kind, clock.minor << 4 | 2, 34 + len(body), clock.domain, 0, flags)
    header += struct.pack(">qI", round(correction_ns * 65536), 0) + port_identity(clock)
    header += struct.pack(">HBB", seq % 65536, PTP_CONTROL.get(kind, 5), interval)
    return Layer(header + body, PTP_ETHERTYPE)


def timestamp(ns):
    """48-bit seconds, 32-bit nanoseconds."""
    seconds, nanoseconds = divmod(ns, 1_000_000_000)
    return struct.pack(">HII", seconds >> 32, seconds & 0xFFFFFFFF, nanoseconds)


def port_identity(clock):
    return struct.pack(">QH", clock.identity, clock.port)


def sync(clock, seq, origin_ns=0, correction_ns=0, flags=0):
    return ptp(SYNC, clock, seq, timestamp(origin_ns), correction_ns, flags)


def follow_up(clock, seq, precise_origin_ns, correction_ns=0, flags=0):
    return ptp(FOLLOW_UP, clock, seq, timestamp(precise_origin_ns), correction_ns, flags)


def delay_req(clock, seq, origin_ns=0, correction_ns=0, flags=0):
    return ptp(DELAY_REQ, clock, seq, timestamp(origin_ns), correction_ns, flags)


def delay_resp(clock, seq, receive_ns, requester, correction_ns=0, flags=0):
    return ptp(DELAY_RESP, clock, seq, timestamp(receive_ns) + port_identity(requester), correction_ns, flags)


def pdelay_req(clock, seq, origin_ns=0, correction_ns=0):
    return ptp(PDELAY_REQ, clock, seq, timestamp(origin_ns) + bytes(10), correction_ns)


def pdelay_resp(clock, seq, receipt_ns, requester, correction_ns=0, flags=0):
    return ptp(PDELAY_RESP, clock, seq, timestamp(receipt_ns) + port_identity(requester), correction_ns, flags)


def pdelay_resp_follow_up(clock, seq, origin_ns, requester, correction_ns=0):
    return ptp(PDELAY_RESP_FOLLOW_UP, clock, seq, timestamp(origin_ns) + port_identity(requester), correction_ns)


def announce(clock, seq, utc_offset_s=37):
    quality = struct.pack(">BBH", 6, 0x21, 0x4E5D)
    body = timestamp(0) + struct.pack(">hBB4sBQHB", utc_offset_s, 0, 128, quality, 128, clock.identity, 0, 0x20)
    return ptp(ANNOUNCE, clock, seq, body, flags=0x003C)


def signaling(clock, seq, target):
    """REQUEST_UNICAST_TRANSMISSION of Announce, every second for 300 s (16.1.4.1)."""
    return ptp(SIGNALING, clock, seq, port_identity(target) + struct.pack(">HHBbI", 4, 6, ANNOUNCE << 4, 0, 300))


def management(clock, seq, target):
    """GET of NULL_MANAGEMENT (15.5.3.1.1)."""
    return ptp(MANAGEMENT, clock, seq, port_identity(target) + struct.pack(">BBBBHHH", 0, 0, 0, 0, 1, 2, 0))


# --- RTP (RFC 3550, 5.1)


def rtp(ssrc, seq, time, payload=b"", payload_type=0, marker=False):
    return struct.pack(">BBHII", 0x80, marker << 7 | payload_type, seq % 65536, time % 2**32, ssrc) + payload


# --- probes (docs/probe-format.md)

PROBE_MAGIC, PROBE_PORT, PROBE_BYTES = b"QTAP", 8620, 40
P1, P2, P3, STREAM = 1, 2, 3, 4


class Probe(NamedTuple):
    role: int
    session: int
    round: int = 0
    sequence: int = 0
    sent_ns: int = 0
    d_ns: int = 0
    ttl: int = 0  # TTL index j


def probe(fields, size=PROBE_BYTES):
    """The payload of `size` bytes."""
    role, session, round_, sequence, sent_ns, d_ns, ttl = fields
    head = PROBE_MAGIC + struct.pack(">BBBBQIIqq", 1, role, ttl, 0, session, round_, sequence, sent_ns, d_ns)
    return head + bytes(size - len(head))


# --- QUIC (RFC 9000, 17): first byte and connection ids, then random-looking bytes


def quic_short(rng, size):
    """1-RTT packet of `size` bytes."""
    return bytes([0x40 | rng.randrange(0x20)]) + rng.randbytes(size - 1)


def quic_long(rng, size, kind=0):
    """Packet of `size` bytes with a long header: kind 0 Initial, 2 Handshake."""
    ids = bytes([8]) + rng.randbytes(8) + bytes([8]) + rng.randbytes(8)
    head = bytes([0xC0 | kind << 4]) + struct.pack(">I", 1) + ids + (b"\0" if kind == 0 else b"")
    return head + struct.pack(">H", 0x4000 | size - len(head) - 2) + rng.randbytes(size - len(head) - 2)

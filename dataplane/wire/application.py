"""What a UDP payload is: PTP by port, probes by magic, RTP by its first two bytes. Each returns the packet's list."""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, be64, byte, signed64
from dataplane.records import NO_TIME, PROBE, PTP, RTP, SANDWICH, STREAM
from dataplane.wire.fields import (
    PROBE_BYTES,
    PROBE_MAGIC,
    PROBE_VERSION,
    PTP_BODY_BYTES,
    PTP_EVENT,
    PTP_GENERAL,
    ROLE_STREAM,
    RTP_BYTES,
)
from dataplane.wire.flowhash import address_pair


@njit(forceinline=True)
def marked(first):
    """Whether a UDP payload's first byte may be that of RTP or of our probes."""
    return (first >> 6 == 2) | (first == PROBE_MAGIC >> 24)


@njit(forceinline=True)
def for_ptp(port):
    return (port == PTP_EVENT) | (port == PTP_GENERAL)


@njit
def application(mem, at, end, row, options):
    """What the UDP payload is: PTP by port, our probes by magic, RTP by its first two bytes."""
    if for_ptp(row.dport) or for_ptp(row.sport):
        row.ptp_pair = address_pair(mem, options, row)
        return ptp(mem, at, end, row)
    first = row.first_byte
    if first >> 6 == 2:
        return rtp(mem, at, end, row)
    if first == PROBE_MAGIC >> 24:
        return probe(mem, at, end, row)
    return 0


@njit
def rtp(mem, at, end, row):
    """RFC 3550, 5.1; packet types 192 to 223 in the second byte are RTCP (RFC 5761, 4)."""
    second = byte(mem, at + 1) if end - at >= RTP_BYTES else 200
    if 192 <= second <= 223:
        return 0
    row.flags |= RTP
    row.rtp_type = second & 127
    row.rtp_marker = second >> 7
    row.rtp_seq = be16(mem, at + 2)
    row.rtp_time = be32(mem, at + 4)
    row.rtp_ssrc = be32(mem, at + 8)
    return 1 << STREAM


@njit
def probe(mem, at, end, row):
    """docs/probe-format.md."""
    if end - at < PROBE_BYTES or be32(mem, at) != PROBE_MAGIC or byte(mem, at + 4) != PROBE_VERSION:
        return 0
    row.flags |= PROBE
    row.probe_role = byte(mem, at + 5)
    row.probe_ttl = byte(mem, at + 6)
    row.probe_session = be64(mem, at + 8)
    row.probe_round = be32(mem, at + 16)
    row.probe_seq = be32(mem, at + 20)
    row.probe_sent = signed64(mem, at + 24)
    row.probe_d = signed64(mem, at + 32)
    return 1 << STREAM if row.probe_role == ROLE_STREAM else 1 << SANDWICH


@njit
def ptp(mem, at, end, row):
    """IEEE 1588-2019, 13.3 and 13.5 to 13.8. A message shorter than its type allows, or cut before that, is refused."""
    if end - at < 34:
        return 0
    kind = byte(mem, at) & 15
    version = byte(mem, at + 1) & 15
    length = be16(mem, at + 2)
    if version != 2 or PTP_BODY_BYTES[kind] == 0 or length < PTP_BODY_BYTES[kind] or end - at < PTP_BODY_BYTES[kind]:
        return 0
    row.ptp_type = kind
    row.ptp_version = version
    row.ptp_domain = byte(mem, at + 4)
    row.ptp_sdo = (byte(mem, at) >> 4) << 8 | byte(mem, at + 5)
    row.ptp_flags = be16(mem, at + 6)
    row.ptp_correction = signed64(mem, at + 8)
    row.ptp_clock = be64(mem, at + 20)
    row.ptp_port = be16(mem, at + 28)
    row.ptp_seq = be16(mem, at + 30)
    row.ptp_interval = byte(mem, at + 33) - ((byte(mem, at + 33) >> 7) << 8)
    row.ptp_time = NO_TIME if kind > 11 else ptp_timestamp(mem, at + 34)
    responses = kind == 3 or kind == 9 or kind == 10
    row.ptp_requesting_clock = be64(mem, at + 44) if responses else np.uint64(0)
    row.ptp_requesting_port = be16(mem, at + 52) if responses else 0
    return 1 << PTP


@njit
def ptp_timestamp(mem, at):
    """48-bit seconds and 32-bit nanoseconds; NO_TIME where int64 nanoseconds cannot hold it."""
    seconds = (be16(mem, at) << 32) | be32(mem, at + 2)
    nanoseconds = be32(mem, at + 6)
    if seconds > 9_000_000_000 or nanoseconds >= 1_000_000_000:
        return NO_TIME
    return seconds * 1_000_000_000 + nanoseconds

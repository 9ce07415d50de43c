"""Header bytes: the only package that knows them. One frame in, one PACKET row out; each layer checks its length first.

Functions take a handle of the buffer (memory.py), the offset `at` of their layer and the offset `end` behind the last
byte they may read. Bytes past `end` are never read, whatever the headers claim. `decode` returns the lists the packet
belongs to, as a bit set.
"""

import numpy as np
from numba import njit

from dataplane.records import FRAGMENT_LATER, TIME_NONE, TIME_RANGE, TIMELESS, TUNNEL, UNWANTED, VLAN
from dataplane.wire.application import ptp
from dataplane.wire.common import (
    ETHERNET_BYTES,
    asked,
    common_protocol,
    decode_common,
    decode_tcp4,
    decode_udp4,
    udp_application,
)
from dataplane.wire.fields import (
    DECODE,
    ETHERNET,
    FILTERED,
    HTTPS,
    LINK_TYPES,
    NOT_IP,
    OK,
    PAYLOAD_MAX,
    REASONS,
    SHORT_TRANSPORT,
    T_IPV4,
    T_PTP,
    TCP,
    TUNNELS,
    UDP,
    decode_options,
    stop,
)
from dataplane.wire.flowhash import flow, mac_pair, one_address
from dataplane.wire.link import link, to_network
from dataplane.wire.network import network
from dataplane.wire.transport import transport
from dataplane.wire.tunnel import inner

__all__ = [
    "DECODE",
    "ETHERNET_BYTES",
    "FILTERED",
    "HTTPS",
    "LINK_TYPES",
    "OK",
    "REASONS",
    "SHORT_TRANSPORT",
    "TCP",
    "TUNNELS",
    "UDP",
    "asked",
    "client_of",
    "common_protocol",
    "decode",
    "decode_common",
    "decode_options",
    "decode_tcp4",
    "decode_udp4",
    "udp_application",
]


@njit
def start(frame, row):
    """A row for a frame of which nothing is known yet."""
    timeless = frame.flags & (TIME_NONE | TIME_RANGE)
    row.ts = frame.clock if timeless else frame.ts
    row.clock = frame.clock
    row.hash = np.uint64(0)
    row.addr = -1
    row.len = frame.len
    row.payload_len = 0
    row.ports = 0
    row.flags = TIMELESS if timeless else 0
    row.small = np.uint64(0)


@njit
def decode(mem, frame, options, row):
    """Fill `row` from any frame, layer by layer; the bit set of lists (records.KINDS) it belongs to."""
    start(frame, row)
    if frame.flags & UNWANTED:
        row.flags = 0
        stop(row, FILTERED)
        return 0
    at, end = frame.offset, frame.offset + frame.caplen
    ethertype, at = link(mem, at, end, row, frame.linktype)
    if ethertype != T_IPV4:
        ethertype, at = to_network(mem, at, end, row, ethertype)
        if ethertype == T_PTP:
            stop(row, NOT_IP)
            row.ptp_pair = mac_pair(mem, options, frame) if frame.linktype == ETHERNET else np.uint64(0)
            return ptp(mem, at, end, row)
    if ethertype == 0:
        stop(row, NOT_IP)
        return 0
    uncaptured = max(0, min(np.int64(row.len), PAYLOAD_MAX) - frame.caplen)
    protocol, at, end, length = network(mem, at, end, row, ethertype, uncaptured)
    if protocol < 0:
        return flow(mem, options, row, 0)
    if options.tunnels and not row.flags & (FRAGMENT_LATER | TUNNEL):
        ethertype, body = inner(mem, at, end, row, options.tunnels)
        if ethertype:
            return decode_inner(mem, body, end, row, options, ethertype)
    return flow(mem, options, row, transport(mem, at, end, row, length, options))


@njit
def decode_inner(mem, at, end, row, options, ethertype):
    """The packet inside a tunnel: what was learned of the outer network layer is replaced."""
    row.flags = (row.flags & (TIMELESS | VLAN)) | TUNNEL
    vlan_id, row.small, row.ports, row.addr = row.vlan, np.uint64(0), 0, -1
    row.vlan = vlan_id
    ethertype, at = to_network(mem, at, end, row, ethertype)
    if ethertype == 0 or ethertype == T_PTP:
        stop(row, NOT_IP)
        return 0
    protocol, at, end, length = network(mem, at, end, row, ethertype, 0)
    if protocol < 0:
        return flow(mem, options, row, 0)
    return flow(mem, options, row, transport(mem, at, end, row, length, options))


@njit
def client_of(mem, options, row):
    """Keyed hash of the destination address."""
    return one_address(mem, options, row, row.addr + (4 if row.ip_version == 4 else 16))

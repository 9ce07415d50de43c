"""Header bytes: the only file that knows them. One frame in, one PACKET row out; lengths are checked before each layer.

Functions take the buffer, the offset `at` of their layer and the offset `end` behind the last byte they may read. Bytes
past `end` are never read, whatever the headers claim. `decode` returns the lists the packet belongs to, as a bit set.
"""

import hashlib

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, be64, byte, signed64
from dataplane.records import (
    CUT,
    ECHO,
    FRAGMENT_ATOMIC,
    FRAGMENT_FIRST,
    FRAGMENT_LATER,
    IP,
    MPLS,
    NO_TIME,
    OPTIONS,
    OUT_OF_SCOPE,
    PORTS,
    PPPOE,
    PROBE,
    PTP,
    QUIC,
    REVERSE,
    RTP,
    SANDWICH,
    SELF,
    SNAP,
    STREAM,
    TCP_HEADER,
    TIME_NONE,
    TIME_RANGE,
    TIMELESS,
    TUNNEL,
    UDP_LENGTH,
    VERSION_MISMATCH,
    VLAN,
    rows,
)

# Why decoding stopped: PACKET.reason
REASONS = (
    "ok",
    "not_ip",  # ARP, LLDP, STP …: nothing is wrong, there is no IP header
    "unknown_link_type",
    "unknown_ethertype",
    "out_of_scope",  # IP behind a layer that is not entered: NSH, Cisco metadata, MPLS pseudowire
    "short_link_header",
    "short_ip_header",
    "bad_ip_header",  # header length below 20, total length below the header, wrong version
    "short_extension_header",
    "short_transport_header",
)
(OK, NOT_IP, UNKNOWN_LINK, UNKNOWN_ETHERTYPE, NOT_ENTERED, SHORT_LINK, SHORT_IP, BAD_IP, SHORT_EXTENSION, SHORT_TRANSPORT) = range(10)

# Link types (LINKTYPE_ registry)
NULL, ETHERNET, RAW_BSD, RAW_OPENBSD, RAW, LOOP, SLL, IPV4_LINK, IPV6_LINK, SLL2 = 0, 1, 12, 14, 101, 108, 113, 228, 229, 276

# Ethertypes (IANA)
T_IPV4, T_ARP, T_IPV6, T_PTP, T_NSH, T_CMD, T_BRIDGE = 0x0800, 0x0806, 0x86DD, 0x88F7, 0x894F, 0x8909, 0x6558
T_8021Q, T_8021AD, T_QINQ, T_MPLS, T_MPLS_UP, T_PPPOE = 0x8100, 0x88A8, 0x9100, 0x8847, 0x8848, 0x8864
T_RAW_IP = 0x10000  # ours: the version nibble decides
LENGTH_MAX = 1500  # an ethertype field up to here is an 802.3 length

# IP protocol numbers (IANA)
HOP_BY_HOP, ICMP, IPIP, TCP, UDP, IP6_IN_IP, ROUTING, FRAGMENT, GRE, ICMPV6, DESTINATION, SCTP = 0, 1, 4, 6, 17, 41, 43, 44, 47, 58, 60, 132
TAGS_MAX = 16  # tags, labels and tunnel extensions followed before giving up
EXTENSIONS_MAX = 256  # IPv6 extension headers followed before giving up

# UDP ports
PTP_EVENT, PTP_GENERAL, HTTPS, VXLAN, GENEVE, GTPU = 319, 320, 443, 4789, 6081, 2152
GTPU_PDU = 255  # message type that carries a user packet

# Tunnels entered one level deep, on request: bits of OPTIONS_ROW.tunnels
TUNNELS = ("gre", "ipip", "6in4", "vxlan", "geneve", "gtpu")
T_GRE, T_IPIP, T_6IN4, T_VXLAN, T_GENEVE, T_GTPU = (1 << i for i in range(6))

HASH_KEYS = 32  # random words of DECODE.keys: 0 to 9 for IPv4, the others for IPv6
DECODE = np.dtype([("keys", np.uint64, HASH_KEYS), ("tunnels", np.int64)], align=True)



def decode_options(secret, tunnels=0):
    """DECODE rows (1,): hash keys drawn from the bytes `secret`, which nobody outside may know, and tunnels to enter."""
    options = rows(DECODE, 1)
    options[0].keys[:] = np.frombuffer(hashlib.shake_256(secret).digest(8 * HASH_KEYS), np.uint64)
    options[0].tunnels = tunnels
    return options


PROBE_MAGIC, PROBE_VERSION, PROBE_BYTES = 0x51544150, 1, 40  # "QTAP", docs/probe-format.md
ROLE_STREAM = 4
RTP_BYTES = 12
PTP_BODY_BYTES = (44, 44, 54, 54, 0, 0, 0, 0, 44, 54, 54, 64, 44, 48, 0, 0)  # least messageLength by messageType


@njit(forceinline=True)
def stop(row, reason):
    """Note why the row ends here; the first reason stands."""
    if row.reason == OK:
        row.reason = reason


@njit(forceinline=True)
def start(frame, row):
    """A row for a frame of which nothing is known yet."""
    timeless, cut = frame.flags & (TIME_NONE | TIME_RANGE), frame.caplen < frame.len
    row.ts = frame.clock if timeless else frame.ts
    row.clock = frame.clock
    row.hash = np.uint64(0)
    row.addr = -1
    row.len = min(frame.len, 2147483647)
    row.payload_len = 0
    row.ports = 0
    row.flags = (TIMELESS if timeless else 0) | (CUT if cut else 0)
    row.small = np.uint64(0)


# --- link layers: each returns (ethertype, offset of what follows); ethertype 0 means stop


@njit(forceinline=True)
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
        family = (be16(mem, at + 2) >> 8) << 24 | (be16(mem, at + 2) & 255) << 16 | byte(mem, at + 1) << 8 | byte(mem, at)
    if family == 2:
        return T_IPV4, at + 4
    if family == 24 or family == 28 or family == 30:
        return T_IPV6, at + 4
    stop(row, NOT_IP)
    return 0, at


@njit(forceinline=True)
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


# --- what may stand between the link layer and IP: the same shape


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


# --- network layer: each returns (protocol, offset of the transport, end of what may be read, transport bytes on the
#     wire); protocol -1 means stop


@njit(forceinline=True)
def network(mem, at, end, row, ethertype, uncaptured):
    if end <= at:
        stop(row, SHORT_IP)
        return -1, at, end, 0
    version = byte(mem, at) >> 4
    if (ethertype == T_IPV4 and version == 6) or (ethertype == T_IPV6 and version == 4):
        row.flags |= VERSION_MISMATCH
    elif version == 4 and ethertype != T_IPV6:
        return ipv4(mem, at, end, row, uncaptured)
    elif version == 6 and ethertype != T_IPV4:
        return ipv6(mem, at, end, row, uncaptured)
    stop(row, BAD_IP)
    return -1, at, end, 0


@njit(forceinline=True)
def ipv4(mem, at, end, row, uncaptured):
    """RFC 791. A total length of 0 is segmentation offload: the frame's length stands in."""
    if end - at < 20:
        stop(row, SHORT_IP)
        return -1, at, end, 0
    header = (byte(mem, at) & 15) * 4
    total = be16(mem, at + 2)
    if header < 20 or (total != 0 and total < header):
        stop(row, BAD_IP)
        return -1, at, end, 0
    row.ip_version = 4
    row.tos = byte(mem, at + 1)
    row.ttl = byte(mem, at + 8)
    row.proto = byte(mem, at + 9)
    row.addr = at + 12
    if header > 20:
        row.flags |= OPTIONS
    fragment = be16(mem, at + 6)
    if fragment & 0x1FFF:
        row.flags |= FRAGMENT_LATER
    elif fragment & 0x2000:
        row.flags |= FRAGMENT_FIRST
    if total:
        end = min(end, at + total)
    else:
        total = end - at + uncaptured
    return np.int64(row.proto), at + header, end, total - header


@njit
def ipv6(mem, at, end, row, uncaptured):
    """RFC 8200. A payload length of 0 is a jumbogram: the frame's length stands in."""
    if end - at < 40:
        stop(row, SHORT_IP)
        return -1, at, end, 0
    length = be16(mem, at + 4)
    row.ip_version = 6
    row.tos = (be16(mem, at) >> 4) & 255
    row.ttl = byte(mem, at + 7)
    row.addr = at + 8
    if length:
        end = min(end, at + 40 + length)
    else:
        length = end - at - 40 + uncaptured
    protocol = byte(mem, at + 6)
    row.proto = protocol
    at += 40
    if protocol == TCP or protocol == UDP or protocol == ICMPV6:
        return protocol, at, end, length
    return extensions(mem, at, end, row, protocol, length)


@njit
def extensions(mem, at, end, row, protocol, length):
    """Skip hop-by-hop, routing, fragment and destination options (RFC 8200, 4); any other header ends the chain."""
    for _ in range(EXTENSIONS_MAX):
        row.proto = protocol
        if protocol != HOP_BY_HOP and protocol != ROUTING and protocol != FRAGMENT and protocol != DESTINATION:
            return protocol, at, end, length
        row.flags |= OPTIONS
        if end - at < 8:
            break
        size = 8
        if protocol == FRAGMENT:
            fragment = be16(mem, at + 2)
            if fragment & 0xFFF8:
                row.flags |= FRAGMENT_LATER
            else:
                row.flags |= FRAGMENT_FIRST if fragment & 1 else FRAGMENT_ATOMIC
        else:
            size = (byte(mem, at + 1) + 1) * 8
        protocol = byte(mem, at)
        at += size
        length -= size
        if row.flags & FRAGMENT_LATER:
            row.proto = protocol
            return protocol, at, end, length
    stop(row, SHORT_EXTENSION)
    return -1, at, end, length


# --- transport layer: each returns the lists the packet belongs to


@njit(forceinline=True)
def transport(mem, at, end, row, length, options):
    """Ports or type and code, TCP flags, payload length; the lists that the packet belongs to.

    Written with selects where a random mix of TCP and UDP would make a processor guess wrong.
    """
    row.payload_len = length
    protocol, left = np.int64(row.proto), end - at
    if row.flags & FRAGMENT_LATER:
        return 0
    if protocol != TCP and protocol != UDP:
        return other_transport(mem, at, end, row)
    if left < 4:
        stop(row, SHORT_TRANSPORT)
        return 0
    sport, dport = be16(mem, at), be16(mem, at + 2)
    row.sport, row.dport = sport, dport
    if left < (6 if protocol == UDP else 20):
        row.flags |= PORTS
        stop(row, SHORT_TRANSPORT)
        return 0
    udp = protocol == UDP
    row.flags |= PORTS | (UDP_LENGTH if udp else TCP_HEADER)
    row.payload_len = payload(mem, at, length, udp)
    row.tcp_flags = 0 if udp else byte(mem, at + 13 if left >= 14 else at)
    row.first_byte = byte(mem, at + 8) if left > 8 and udp else 0
    kinds = (udp & (sport == HTTPS)) << QUIC
    if kinds:
        target = row.addr + (4 if row.ip_version == 4 else 16)
        row.quic_client = one_address(mem, options, row, target)
    if udp & (left > 8) & (marked(np.int64(row.first_byte)) | for_ptp(sport) | for_ptp(dport)):
        kinds |= application(mem, at + 8, end, row, options)
    return kinds


@njit(forceinline=True)
def payload(mem, at, length, udp):
    """Payload bytes: UDP by its length field (0 in a jumbogram, RFC 2675, 4), TCP by its data offset (RFC 9293, 3.1)."""
    field = be16(mem, at + 4)
    if udp:
        return (length if field == 0 and length > 0xFFFF else field) - 8
    return max(0, length - (byte(mem, at + 12) >> 4) * 4)


@njit(forceinline=True)
def marked(first):
    """Whether a UDP payload's first byte may be that of RTP or of our probes."""
    return (first >> 6 == 2) | (first == PROBE_MAGIC >> 24)


@njit(forceinline=True)
def for_ptp(port):
    return (port == PTP_EVENT) | (port == PTP_GENERAL)


@njit
def other_transport(mem, at, end, row):
    protocol = row.proto
    if (protocol == ICMP and row.ip_version == 4) or (protocol == ICMPV6 and row.ip_version == 6):
        return icmp(mem, at, end, row)
    if protocol == SCTP:
        if end - at < 4:
            stop(row, SHORT_TRANSPORT)
        else:
            row.sport, row.dport = be16(mem, at), be16(mem, at + 2)
            row.flags |= PORTS
    return 0


@njit
def icmp(mem, at, end, row):
    """RFC 792 and RFC 4443; echo requests and replies go to their list."""
    if end - at < 1:
        stop(row, SHORT_TRANSPORT)
        return 0
    row.sport = byte(mem, at)
    row.flags |= PORTS
    if end - at < 2:
        stop(row, SHORT_TRANSPORT)
        return 0
    row.dport = byte(mem, at + 1)
    echo = row.sport == 8 or row.sport == 0 if row.ip_version == 4 else row.sport == 128 or row.sport == 129
    if not echo or end - at < 8:
        return 0
    row.icmp_id = be16(mem, at + 4)
    row.icmp_seq = be16(mem, at + 6)
    return 1 << ECHO


# --- applications


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
    """IEEE 1588-2019, 13.3 and 13.5 to 13.8. A messageLength below the type's least or beyond the packet is refused."""
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


# --- tunnels: where the inner packet begins, as (ethertype, offset); ethertype 0 where there is none


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


# --- the whole packet


@njit(forceinline=True)
def decode(mem, frame, options, row):
    """Fill `row` from one frame; the bit set of lists (records.KINDS) it belongs to."""
    start(frame, row)
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
    uncaptured = max(0, np.int64(row.len) - frame.caplen)
    protocol, at, end, length = network(mem, at, end, row, ethertype, uncaptured)
    if protocol < 0:
        return flow(mem, options, row, 0)
    if options.tunnels and not row.flags & (FRAGMENT_LATER | TUNNEL):
        ethertype, body = inner(mem, at, end, row, options.tunnels)
        if ethertype:
            return decode_inner(mem, body, end, row, options, ethertype, uncaptured)
    return flow(mem, options, row, transport(mem, at, end, row, length, options))


@njit
def decode_inner(mem, at, end, row, options, ethertype, uncaptured):
    """The packet inside a tunnel: what was learned of the outer network layer is replaced."""
    row.flags = (row.flags & (TIMELESS | CUT | VLAN)) | TUNNEL
    vlan_id, row.small, row.ports, row.addr = row.vlan, np.uint64(0), 0, -1
    row.vlan = vlan_id
    ethertype, at = to_network(mem, at, end, row, ethertype)
    if ethertype == 0 or ethertype == T_PTP:
        stop(row, NOT_IP)
        return 0
    protocol, at, end, length = network(mem, at, end, row, ethertype, uncaptured)
    if protocol < 0:
        return flow(mem, options, row, 0)
    return flow(mem, options, row, transport(mem, at, end, row, length, options))


# --- flow hash: sums of products of keyed pairs, of which the high halves are strongly universal (Thorup, "High speed
#     hashing for integers and strings", 3.5); two of them make 64 bits. Whoever does not know the keys cannot aim at a slot.


@njit(forceinline=True)
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
    """One word of the high halves of two; never 0."""
    return (upper & np.uint64(0xFFFFFFFF00000000)) | (lower >> np.uint64(32)) | np.uint64(1)


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

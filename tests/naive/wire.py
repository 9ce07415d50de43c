"""Slow twin of dataplane.wire: one frame decoded with struct, from the RFCs. Knows no row, no offset of ours.

    found = decode(frame, on_the_wire, linktype, tunnels={"gre"})

gives a dict: `reason`, `flags` (names in records), `lists` (names in records.KINDS), addresses as bytes, and the fields
of PACKET by name. Fields that belong to a list are there if the packet is in it.
"""

import struct

TAGS_MAX = 16  # tags, and labels as one, that are looked through: IP must be reached by then
EXTENSIONS_MAX = 256
LENGTH_MAX = 2**31 - 1  # of a frame

TAGGED, LABELLED, PPPOE_SESSION = (0x8100, 0x88A8, 0x9100), (0x8847, 0x8848), 0x8864
IPV4, ARP, IPV6, PTP, BRIDGED, BY_NIBBLE = 0x0800, 0x0806, 0x86DD, 0x88F7, 0x6558, "by version nibble"
NSH, CISCO_METADATA = 0x894F, 0x8909
OFFICIAL_FROM = 0x8700  # IANA: protocols above are known not to be IP
ICMP, IPIP, TCP, UDP, IP6_IN_IP, GRE, ICMPV6, SCTP = 1, 4, 6, 17, 41, 47, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
BSD_INET, BSD_INET6 = 2, (24, 28, 30)
PTP_LEAST = {
    0: 44,
    1: 44,
    2: 54,
    3: 54,
    8: 44,
    9: 54,
    10: 54,
    11: 64,
    12: 44,
    13: 48,
}  # IEEE 1588-2019, 13.6 to 13.12, 15.4
INT64_SECONDS = 9_000_000_000


class Stop(Exception):
    """Decoding stops; args[0] is the reason."""


def need(data, size, reason):
    if len(data) < size:
        raise Stop(reason)


def u16(data, at):
    return struct.unpack_from(">H", data, at)[0]


def decode(frame, length, linktype, tunnels=()):
    """frame: bytes captured; length: bytes on the wire."""
    p = dict(
        reason="ok", flags=set(), lists=set(), src=None, dst=None, ip_version=0, proto=0, sport=0, dport=0, tos=0,
        ttl=0, tcp_flags=0, first_byte=0, vlan=0, payload_len=0,
    )  # fmt: skip
    try:
        packet(p, frame, max(0, min(length, LENGTH_MAX) - len(frame)), linktype, tunnels)
    except Stop as stopped:
        p["reason"] = stopped.args[0]
    if p["src"] is not None:
        direction(p)
    return p


def packet(p, frame, missing, linktype, tunnels):
    ethertype, data = tags(p, *link(frame, linktype))
    if ethertype == PTP:
        p["reason"] = "not_ip"
        ptp(p, data)
        return
    data, size = network(p, ethertype, data, missing)
    inside = None if "FRAGMENT_LATER" in p["flags"] else tunnelled(p, data, tunnels)
    if inside is not None:
        enter(p)
        ethertype, data = tags(p, *inside)
        if ethertype == PTP:
            raise Stop("not_ip")
        data, size = network(p, ethertype, data, missing)
    transport(p, data, size)


def enter(p):
    """From here on the row speaks of what is inside the tunnel."""
    p["flags"] = p["flags"] & {"VLAN"} | {"TUNNEL"}
    p.update(src=None, dst=None, ip_version=0, proto=0, tos=0, ttl=0)


def direction(p):
    """In the list of IP packets; which end is the higher one, and whether both ends of an echo are the same host."""
    p["lists"].add("ip")
    icmp = p["proto"] in (ICMP, ICMPV6)
    source, target = (p["src"], 0 if icmp else p["sport"]), (p["dst"], 0 if icmp else p["dport"])
    if source > target:
        p["flags"].add("REVERSE")
    if p["src"] == p["dst"] and "echo" in p["lists"]:
        p["flags"].add("SELF")


# --- link layer and tags: (ethertype, what follows)


def link(data, kind):
    if kind == 1:  # Ethernet
        need(data, 14, "short_link_header")
        return u16(data, 12), data[14:]
    if kind == 113:  # SLL
        need(data, 16, "short_link_header")
        return u16(data, 14), data[16:]
    if kind == 276:  # SLL2
        need(data, 20, "short_link_header")
        return u16(data, 0), data[20:]
    if kind in (12, 14, 101):
        return BY_NIBBLE, data
    if kind in (228, 229):
        return (IPV4 if kind == 228 else IPV6), data
    if kind in (0, 108):  # null and loop
        need(data, 4, "short_link_header")
        family = min(struct.unpack(">I", data[:4]) + struct.unpack("<I", data[:4]))
        if family == BSD_INET:
            return IPV4, data[4:]
        if family in BSD_INET6:
            return IPV6, data[4:]
        raise Stop("not_ip")
    raise Stop("unknown_link_type")


def tags(p, ethertype, data):
    """Behind the last tag, label, session header or LLC: the ethertype of IP or PTP."""
    for _ in range(TAGS_MAX):
        if ethertype in (IPV4, IPV6, PTP, BY_NIBBLE):
            return ethertype, data
        if ethertype in TAGGED:
            ethertype, data = tag(p, data)
        elif ethertype in LABELLED:
            ethertype, data = labels(p, data)
        elif ethertype == PPPOE_SESSION:
            ethertype, data = session(p, data)
        elif 0 < ethertype <= 1500:
            ethertype, data = snap(p, data)
        elif ethertype in (NSH, CISCO_METADATA):
            p["flags"].add("OUT_OF_SCOPE")
            raise Stop("out_of_scope")
        else:
            raise Stop("not_ip" if ethertype in (0, ARP) or ethertype > OFFICIAL_FROM else "unknown_ethertype")
    raise Stop("out_of_scope")


def tag(p, data):
    """IEEE 802.1Q-2018, 9.6."""
    need(data, 4, "short_link_header")
    if "VLAN" not in p["flags"]:
        p["vlan"] = u16(data, 0) % 4096
    p["flags"].add("VLAN")
    return u16(data, 2), data[4:]


def labels(p, data):
    """RFC 3032, 2.1."""
    p["flags"].add("MPLS")
    bottom = False
    while not bottom:
        need(data, 5, "short_link_header")
        bottom, data = data[2] & 1, data[4:]
    if data[0] >> 4 not in (4, 6):
        raise Stop("out_of_scope")
    return BY_NIBBLE, data


def session(p, data):
    """RFC 2516, 4; RFC 1661, 2 and 6.5: a protocol number ends with its first odd byte."""
    p["flags"].add("PPPOE")
    need(data, 8, "short_link_header")
    size = 1 if data[6] & 1 else 2
    number = int.from_bytes(data[6 : 6 + size], "big")
    if number not in (0x21, 0x57):
        raise Stop("not_ip")
    return (IPV4 if number == 0x21 else IPV6), data[6 + size :]


def snap(p, data):
    """RFC 1042: LLC AA AA 03 and OUI 0."""
    if len(data) < 8 or data[:6] != bytes.fromhex("aaaa03000000"):
        raise Stop("not_ip")
    p["flags"].add("SNAP")
    return u16(data, 6), data[8:]


# --- network layer: (captured bytes of the transport, their number on the wire)


def network(p, ethertype, data, missing):
    need(data, 1, "short_ip_header")
    version = data[0] >> 4
    if (ethertype, version) in ((IPV4, 6), (IPV6, 4)):
        p["flags"].add("VERSION_MISMATCH")
        raise Stop("bad_ip_header")
    if version not in (4, 6):
        raise Stop("bad_ip_header")
    return (ipv4 if version == 4 else ipv6)(p, data, missing)


def ipv4(p, data, missing):
    """RFC 791, 3.1; total length 0: segmentation offload."""
    need(data, 20, "short_ip_header")
    first, tos, total, _, fragment, ttl, proto, _, src, dst = struct.unpack(">BBHHHBBH4s4s", data[:20])
    header = first % 16 * 4
    if header < 20 or 0 < total < header:
        raise Stop("bad_ip_header")
    p.update(ip_version=4, src=src, dst=dst, tos=tos, ttl=ttl, proto=proto)
    p["flags"] |= {"OPTIONS"} if header > 20 else set()
    if fragment % 8192:
        p["flags"].add("FRAGMENT_LATER")
    elif fragment & 0x2000:
        p["flags"].add("FRAGMENT_FIRST")
    size = total or len(data) + missing
    return data[header : total or None], size - header


def ipv6(p, data, missing):
    """RFC 8200, 3 and 4; payload length 0: a jumbogram (RFC 2675)."""
    need(data, 40, "short_ip_header")
    word, length, proto, ttl, src, dst = struct.unpack(">IHBB16s16s", data[:40])
    p.update(ip_version=6, src=src, dst=dst, tos=word >> 20 & 255, ttl=ttl, proto=proto)
    size = length or len(data) + missing - 40
    data = data[40 : 40 + length if length else None]
    for _ in range(EXTENSIONS_MAX):
        if proto not in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
            return data, size
        p["flags"].add("OPTIONS")
        need(data, 8, "short_extension_header")
        part = fragment_part(u16(data, 2)) if proto == FRAGMENT else None
        used = 8 if proto == FRAGMENT else 8 + 8 * data[1]
        proto, data, size = data[0], data[used:], size - used
        p["flags"] |= {part} if part else set()
        p["proto"] = proto
        if part == "FRAGMENT_LATER":
            return data, size
    raise Stop("short_extension_header")


def fragment_part(word):
    """RFC 8200, 4.5; RFC 6946."""
    if word >> 3:
        return "FRAGMENT_LATER"
    return "FRAGMENT_FIRST" if word & 1 else "FRAGMENT_ATOMIC"


# --- tunnels: (ethertype, what is inside), None where there is none to enter


def tunnelled(p, data, tunnels):
    proto = p["proto"]
    if proto == GRE and "gre" in tunnels:
        return gre(data)
    if proto == IPIP and "ipip" in tunnels:
        return IPV4, data
    if proto == IP6_IN_IP and "6in4" in tunnels:
        return IPV6, data
    if proto == UDP and len(data) > 8:
        name = {4789: "vxlan", 6081: "geneve", 2152: "gtpu"}.get(u16(data, 2))
        if name in tunnels:
            return {"vxlan": vxlan, "geneve": geneve, "gtpu": gtpu}[name](data[8:])
    return None


def gre(data):
    """RFC 2784, 2 and RFC 2890, 2: checksum, key and sequence number are there by flag."""
    if len(data) < 4 or data[1] & 7:
        return None
    words = sum(1 for bit in (0x80, 0x20, 0x10) if data[0] & bit)
    ethertype, body = u16(data, 2), data[4 + 4 * words :]
    if ethertype == BRIDGED:
        return (u16(body, 12), body[14:]) if len(body) >= 14 and u16(body, 12) else None
    return (ethertype, body) if ethertype else None


def vxlan(data):
    """RFC 7348, 5: the I flag, a network id, a frame."""
    return (u16(data, 20), data[22:]) if len(data) >= 22 and data[0] & 8 and u16(data, 20) else None


def geneve(data):
    """RFC 8926, 3.4."""
    if len(data) < 8 or not u16(data, 2):
        return None
    ethertype, body = u16(data, 2), data[8 + data[0] % 64 * 4 :]
    if ethertype == BRIDGED and len(body) >= 14:
        return (u16(body, 12), body[14:]) if u16(body, 12) else None
    return ethertype, body


def gtpu(data):
    """3GPP TS 29.281, 5.1 and 5.2.1: version 1, message type 255, optional word, extension headers."""
    if len(data) < 8 or data[0] >> 5 != 1 or data[1] != 255:
        return None
    flags, data = data[0] & 7, data[8:]
    if not flags:
        return BY_NIBBLE, data
    if len(data) < 4:
        return None
    following, data = (data[3] if flags & 4 else 0), data[4:]
    for _ in range(TAGS_MAX):
        if following == 0 or len(data) < 4 or data[0] == 0:
            break
        size = data[0] * 4
        if len(data) < size:
            return None
        following, data = data[size - 1], data[size:]
    return BY_NIBBLE, data


# --- transport layer


def transport(p, data, size):
    p["payload_len"] = size
    if "FRAGMENT_LATER" in p["flags"]:
        return
    if p["proto"] == UDP:
        udp(p, data, size)
    elif p["proto"] == TCP:
        tcp(p, data, size)
    elif p["proto"] == SCTP:
        ports(p, data)
    elif (p["proto"], p["ip_version"]) in ((ICMP, 4), (ICMPV6, 6)):
        icmp(p, data)


def ports(p, data):
    need(data, 4, "short_transport_header")
    p["sport"], p["dport"] = struct.unpack(">HH", data[:4])
    p["flags"].add("PORTS")


def tcp(p, data, size):
    """RFC 9293, 3.1."""
    ports(p, data)
    need(data, 20, "short_transport_header")
    p["flags"].add("TCP_HEADER")
    p["payload_len"], p["tcp_flags"] = max(0, size - (data[12] >> 4) * 4), data[13]


def udp(p, data, size):
    """RFC 768; RFC 2675, 4: length 0 in a jumbogram."""
    ports(p, data)
    need(data, 6, "short_transport_header")
    p["flags"].add("UDP_LENGTH")
    length = u16(data, 4)
    p["payload_len"] = (size if length == 0 and size > 65535 else length) - 8
    body, both = data[8:], (p["sport"], p["dport"])
    if p["sport"] == 443:
        p["lists"].add("quic")
    if body:
        p["first_byte"] = body[0]
        application(p, body, both)


def application(p, body, both):
    if 319 in both or 320 in both:
        ptp(p, body)
    elif body[0] >> 6 == 2:
        rtp(p, body)
    elif body[:5] == b"QTAP\1" and len(body) >= 40:
        probe(p, body)


def icmp(p, data):
    """RFC 792; RFC 4443, 2.1 and 4."""
    need(data, 1, "short_transport_header")
    p["flags"].add("PORTS")
    p["sport"] = data[0]
    need(data, 2, "short_transport_header")
    p["dport"] = data[1]
    if data[0] in ((8, 0) if p["ip_version"] == 4 else (128, 129)) and len(data) >= 8:
        p["lists"].add("echo")
        p["icmp_id"], p["icmp_seq"] = struct.unpack(">HH", data[4:8])


# --- applications


def rtp(p, body):
    """RFC 3550, 5.1; RFC 5761, 4: what would be RTCP is none."""
    if len(body) < 12 or 192 <= body[1] <= 223:
        return
    p["lists"].add("stream")
    p["flags"].add("RTP")
    p["rtp_marker"], p["rtp_type"] = divmod(body[1], 128)
    p["rtp_seq"], p["rtp_time"], p["rtp_ssrc"] = struct.unpack(">HII", body[2:12])


def probe(p, body):
    """docs/probe-format.md."""
    names = ("role", "ttl", "session", "round", "seq", "sent", "d")
    p.update(zip((f"probe_{name}" for name in names), struct.unpack(">BBxQIIqq", body[5:40]), strict=True))
    p["flags"].add("PROBE")
    p["lists"].add("stream" if p["probe_role"] == 4 else "sandwich")


def ptp(p, body):
    """IEEE 1588-2019, 13.3.1 and 13.5 to 13.9."""
    if len(body) < 34:
        return
    first, version, length, domain, minor_sdo, flags, correction = struct.unpack(">BBHBBHq", body[:16])
    kind = first % 16
    least = PTP_LEAST.get(kind)
    if version % 16 != 2 or least is None or length < least or len(body) < least:
        return
    clock, port, seq, _, interval = struct.unpack(">QHHBb", body[20:34])
    p["lists"].add("ptp")
    p.update(
        ptp_type=kind, ptp_version=2, ptp_domain=domain, ptp_sdo=first // 16 * 256 + minor_sdo, ptp_flags=flags,
        ptp_correction=correction, ptp_clock=clock, ptp_port=port, ptp_seq=seq, ptp_interval=interval,
        ptp_time=None if kind > 11 else ptp_time(body), ptp_requesting_clock=0, ptp_requesting_port=0,
    )  # fmt: skip
    if kind in (3, 9, 10):
        p["ptp_requesting_clock"], p["ptp_requesting_port"] = struct.unpack(">QH", body[44:54])


def ptp_time(body):
    """48 bits of seconds and 32 of nanoseconds; None where they are no time or too late for int64 nanoseconds."""
    seconds, nanoseconds = int.from_bytes(body[34:40], "big"), int.from_bytes(body[40:44], "big")
    return None if seconds > INT64_SECONDS or nanoseconds >= 10**9 else seconds * 10**9 + nanoseconds

"""Headers to bytes, outermost call first: `eth(vlan(7, ipv4(A, B, udp(53, 53, b"..."))))`. Shares no code with wire.py.

A function takes the layer above and returns a Layer: bytes that know by which number the layer below speaks of them and
where their checksum goes. Lengths and checksums are right; to break them, `patch` the result.
"""

import ipaddress
import struct

MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
IPV4, IPV6, VLAN, QINQ, MPLS, PPPOE, PTP, BRIDGED = 0x0800, 0x86DD, 0x8100, 0x88A8, 0x8847, 0x8864, 0x88F7, 0x6558
ICMP, IGMP, IPIP, TCP, UDP, IP6_IN_IP, GRE, ICMPV6, SCTP = 1, 2, 4, 6, 17, 41, 47, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, NO_NEXT_HEADER, DESTINATION = 0, 43, 44, 59, 60
TCP_FLAGS = "FSRPAUEC"  # RFC 9293, 3.1, from the lowest bit
CRC32C = 0x82F63B78  # RFC 9260, appendix A, reflected


class Layer(bytes):
    """Bytes with `ethertype` or `proto`, their number in the layer below; `checksum_at` None: none is left to fill."""

    def __new__(cls, data, ethertype=None, proto=None, checksum_at=None):
        layer = super().__new__(cls, data)
        layer.ethertype, layer.proto, layer.checksum_at = ethertype, proto, checksum_at
        return layer


def patch(data, at, new):
    """`data` with the bytes from `at` on replaced by `new`; it stays what it was for the layer below."""
    patched = data[:at] + new + data[at + len(new) :]
    return Layer(patched, data.ethertype, data.proto, data.checksum_at) if isinstance(data, Layer) else patched


def checksum(data):
    """Internet checksum (RFC 1071)."""
    data = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CRC32C if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def address(text):
    """4 or 16 bytes of an address given as text."""
    return ipaddress.ip_address(text).packed


# --- link layer


def eth(layer, src=MAC_A, dst=MAC_B, ethertype=None):
    return dst + src + struct.pack(">H", layer.ethertype if ethertype is None else ethertype) + layer


def vlan(vid, layer, tpid=VLAN, priority=0):
    """802.1Q tag; with tpid QINQ the service tag of 802.1ad."""
    return Layer(struct.pack(">HH", priority << 13 | vid, layer.ethertype) + layer, tpid)


def pppoe(session, layer):
    """Session stage (RFC 2516, 4)."""
    protocol = {IPV4: 0x0021, IPV6: 0x0057}[layer.ethertype]
    return Layer(struct.pack(">BBHHH", 0x11, 0, session, len(layer) + 2, protocol) + layer, PPPOE)


def mpls(labels, layer, ttl=64):
    """Label stack, outermost first (RFC 3032, 2.1)."""
    words = [label << 12 | (i == len(labels) - 1) << 8 | ttl for i, label in enumerate(labels)]
    return Layer(struct.pack(f">{len(words)}I", *words) + layer, MPLS)


def llc_snap(layer):
    """802.3 frame body: the length takes the ethertype's place (RFC 1042)."""
    body = bytes.fromhex("aaaa03000000") + struct.pack(">H", layer.ethertype) + layer
    return Layer(body, len(body))


def sll(layer, kind=0, src=MAC_A):
    """LINKTYPE_LINUX_SLL (113); kind 0 to us, 4 sent by us."""
    return struct.pack(">HHH8sH", kind, 1, 6, src, layer.ethertype) + layer


def sll2(layer, kind=0, src=MAC_A, interface=2):
    """LINKTYPE_LINUX_SLL2 (276)."""
    return struct.pack(">HHIHBB8s", layer.ethertype, 0, interface, 1, kind, 6, src) + layer


def null(layer, order="<", family6=30):
    """LINKTYPE_NULL (0) in the byte order of the capturing host; LINKTYPE_LOOP (108) with order ">"."""
    return struct.pack(order + "I", 2 if layer.ethertype == IPV4 else family6) + layer


# --- network layer


def filled(segment, src, dst):
    """The segment with its checksum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1)."""
    at = segment.checksum_at
    if at is None:
        return bytes(segment)
    pseudo = src + dst + struct.pack(">HH" if len(src) == 4 else ">IHBB", *pseudo_tail(segment, len(src) == 4))
    total = checksum(pseudo + segment) or (0xFFFF if segment.proto == UDP else 0)
    return bytes(patch(bytes(segment), at, struct.pack(">H", total)))


def pseudo_tail(segment, ip4):
    return (segment.proto, len(segment)) if ip4 else (len(segment), 0, 0, segment.proto)


def ipv4(src, dst, segment, tos=0, ttl=64, options=b""):
    """RFC 791, not fragmented; `options` is padded to words with zeros."""
    src, dst = address(src), address(dst)
    return ipv4_part(src, dst, segment.proto, filled(segment, src, dst), (tos, 0, 0x4000, ttl), options)


def ipv4_part(src, dst, proto, body, fields, options=b""):
    """One IPv4 packet; `fields` is (ToS, identification, flags and fragment offset, TTL)."""
    options = options + b"\0" * (-len(options) % 4)
    tos, ident, fragment, ttl = fields
    length = 20 + len(options)
    header = struct.pack(">BBHHHBBH", 0x40 | length // 4, tos, length + len(body), ident, fragment, ttl, proto, 0)
    header += src + dst + options
    return Layer(patch(header, 10, struct.pack(">H", checksum(header))) + body, IPV4)


def ipv4_fragments(src, dst, segment, size, ident, tos=0):
    """The packets of a fragmented segment, `size` (a multiple of 8) bytes of it in each."""
    src, dst = address(src), address(dst)
    body = filled(segment, src, dst)
    starts = range(0, len(body), size)
    marks = [(0x2000 if at + size < len(body) else 0) | at // 8 for at in starts]
    parts = [body[at : at + size] for at in starts]
    return [ipv4_part(src, dst, segment.proto, p, (tos, ident, mark, 64)) for p, mark in zip(parts, marks)]


def ipv6(src, dst, segment, tos=0, ttl=64, extensions=()):
    """RFC 8200; `extensions` are (number, body) pairs as made by hop_by_hop() and its like, outermost first."""
    src, dst = address(src), address(dst)
    return ipv6_part(src, dst, chain(extensions, segment.proto, filled(segment, src, dst)), tos, ttl)


def ipv6_part(src, dst, numbered, tos=0, ttl=64):
    following, body = numbered
    header = struct.pack(">IHBB", 6 << 28 | tos << 20, len(body), following, ttl)
    return Layer(header + src + dst + body, IPV6)


def chain(extensions, proto, body):
    """(first next-header number, extension headers and body)."""
    for number, extension in reversed(extensions):
        body, proto = bytes([proto]) + extension + body, number
    return proto, body


def ipv6_fragments(src, dst, segment, size, ident):
    """The packets of a fragmented segment; a `size` that holds it all gives one atomic fragment (RFC 6946)."""
    src, dst = address(src), address(dst)
    body = filled(segment, src, dst)
    made = []
    for at in range(0, len(body), size):
        mark = struct.pack(">BHI", 0, at | (at + size < len(body)), ident)
        made.append(ipv6_part(src, dst, chain([(FRAGMENT, mark)], segment.proto, body[at : at + size])))
    return made


def hop_by_hop():
    """Six bytes of padding (RFC 8200, 4.2); the next-header byte is put before it by chain()."""
    return HOP_BY_HOP, bytes([0, 1, 4, 0, 0, 0, 0])


def destination_options():
    return DESTINATION, bytes([1, 1, 12]) + bytes(12)


def routing(*segments):
    """Segment routing header with no segment left (RFC 8754, 2)."""
    last = len(segments) - 1
    return ROUTING, bytes([2 * len(segments), 4, 0, last, 0, 0, 0]) + b"".join(address(s) for s in segments)


# --- transport layer


def udp(sport, dport, payload=b""):
    return Layer(struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload, proto=UDP, checksum_at=6)


def tcp(sport, dport, flags, payload=b"", seq=0, ack=0):
    """RFC 9293; `flags` as letters, "SA" for SYN and ACK."""
    bits = sum(1 << TCP_FLAGS.index(letter) for letter in flags)
    header = struct.pack(">HHIIBBHHH", sport, dport, seq % 2**32, ack % 2**32, 0x50, bits, 65535, 0, 0)
    return Layer(header + payload, proto=TCP, checksum_at=16)


def icmp(kind, code, rest=b""):
    """RFC 792; `rest` follows the checksum."""
    message = struct.pack(">BBH", kind, code, 0) + rest
    return Layer(patch(message, 2, struct.pack(">H", checksum(message))), proto=ICMP)


def icmp_echo(kind, ident, seq, payload=b""):
    """kind 8 request, 0 reply."""
    return icmp(kind, 0, struct.pack(">HH", ident, seq) + payload)


def icmpv6(kind, code, rest=b""):
    return Layer(struct.pack(">BBH", kind, code, 0) + rest, proto=ICMPV6, checksum_at=2)


def icmpv6_echo(kind, ident, seq, payload=b""):
    """kind 128 request, 129 reply."""
    return icmpv6(kind, 0, struct.pack(">HH", ident, seq) + payload)


def igmp(group, kind=0x16):
    """RFC 2236: 0x11 query, 0x16 version 2 report, 0x17 leave."""
    message = struct.pack(">BBH", kind, 0, 0) + address(group)
    return Layer(patch(message, 2, struct.pack(">H", checksum(message))), proto=IGMP)


def sctp(sport, dport, payload=b"", tag=1, tsn=1):
    """One DATA chunk (RFC 9260, 3.3.1)."""
    chunk = struct.pack(">BBHIHHI", 0, 3, 16 + len(payload), tsn, 0, 0, 0) + payload
    packet = struct.pack(">HHII", sport, dport, tag, 0) + chunk + b"\0" * (-len(chunk) % 4)
    return Layer(patch(packet, 8, struct.pack("<I", crc32c(packet))), proto=SCTP)


# --- tunnels


def ipip(packet):
    """IPv4 in IP (RFC 2003) or IPv6 in IP (RFC 4213), by the packet inside."""
    return Layer(packet, proto=IPIP if packet.ethertype == IPV4 else IP6_IN_IP)


def gre(layer, key=None, seq=None):
    """RFC 2784, with key and sequence number of RFC 2890 where given."""
    fields = [value for value in (key, seq) if value is not None]
    flags = (0x2000 if key is not None else 0) | (0x1000 if seq is not None else 0)
    return Layer(struct.pack(f">HH{len(fields)}I", flags, layer.ethertype, *fields) + layer, proto=GRE)


def bridged(frame):
    """An Ethernet frame as what GRE and Geneve carry."""
    return Layer(frame, BRIDGED)


def vxlan(vni, frame):
    """UDP payload, port 4789 (RFC 7348, 5)."""
    return struct.pack(">II", 0x08 << 24, vni << 8) + frame


def geneve(vni, layer, options=b""):
    """UDP payload, port 6081 (RFC 8926, 3.4); `options` in words of 4 bytes."""
    return struct.pack(">BBHI", len(options) // 4, 0, layer.ethertype, vni << 8) + options + layer


def gtpu(teid, packet, seq=None):
    """UDP payload, port 2152 (3GPP TS 29.281, 5.1), with a sequence number where given."""
    optional = b"" if seq is None else struct.pack(">HBB", seq, 0, 0)
    flags = 0x30 | (0 if seq is None else 2)
    return struct.pack(">BBHI", flags, 255, len(optional) + len(packet), teid) + optional + packet

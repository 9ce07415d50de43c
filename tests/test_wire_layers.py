"""Bytes in, row out: one literal frame for each layer that is decoded, and for each reason to stop."""

import pytest

from tests.rows import address, decoded

MACS = "02 00 00 00 00 02  02 00 00 00 00 01"
UDP = "13 88 00 35  00 0c 00 00  61 62 63 64"  # 5000 -> 53, "abcd"
IP4 = "45 00 00 20  00 00 40 00  40 11 00 00  c0 00 02 01  c6 33 64 02"  # 192.0.2.1 -> 198.51.100.2, 32 bytes, UDP
SRC6, DST6 = "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01", "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 02"
IP6 = f"6b 80 00 00  00 0c 11 3f  {SRC6} {DST6}"  # traffic class 0xb8, UDP, hop limit 63
OUTER = "45 00 00 40  00 00  00 00  40 {} 00 00  0a 00 00 01  0a 00 00 02"  # 10.0.0.1 -> 10.0.0.2, 64 bytes
FOUR = dict(ip_version=4, src=address("192.0.2.1"), dst=address("198.51.100.2"), ttl=64)
SIX = dict(ip_version=6, src=address("2001:db8::1"), dst=address("2001:db8::2"), tos=0xB8, ttl=63)
DATAGRAM = dict(proto=17, sport=5000, dport=53, payload_len=4, first_byte=0x61, lists={"ip"}, reason="ok")
UDP4, UDP6 = {**FOUR, **DATAGRAM}, {**SIX, **DATAGRAM}
FOUND = {"PORTS", "UDP_LENGTH"}
ALL = ("gre", "ipip", "6in4", "vxlan", "geneve", "gtpu")


def plain(flags=(), **fields):
    return {**UDP4, "flags": FOUND | set(flags), **fields}


def plain6(flags=(), **fields):
    return {**UDP6, "flags": FOUND | set(flags), **fields}


def nothing(reason, *flags):
    return dict(reason=reason, lists=set(), flags=set(flags), src=None, dst=None, ip_version=0)


def ip4(proto, length, fragment="00 00"):
    """192.0.2.1 -> 198.51.100.2 with that protocol and total length, as hex."""
    return f"45 00 {length >> 8:02x} {length & 255:02x} 00 00 {fragment} 40 {proto:02x} 00 00 c0 00 02 01 c6 33 64 02"


def ip6(following, length):
    return f"6b 80 00 00 {length >> 8:02x} {length & 255:02x} {following:02x} 3f {SRC6} {DST6}"


LINKS = [
    ("ethernet", 1, f"{MACS} 08 00 {IP4} {UDP}", plain()),
    ("ethernet with padding", 1, f"{MACS} 08 00 {IP4} {UDP} 00 00 00 00", plain()),
    ("ethernet, IPv6", 1, f"{MACS} 86 dd {IP6} {UDP}", plain6()),
    ("arp", 1, f"{MACS} 08 06 00 01 08 00 06 04 00 01", nothing("not_ip")),
    ("lldp", 1, f"{MACS} 88 cc 02 07 04", nothing("not_ip")),
    ("length 0", 1, f"{MACS} 00 00 aa aa 03 00", nothing("not_ip")),
    ("xns", 1, f"{MACS} 06 00 00 00 00 00", nothing("unknown_ethertype")),
    ("nsh", 1, f"{MACS} 89 4f 00 06 01 01", nothing("out_of_scope", "OUT_OF_SCOPE")),
    ("cisco metadata", 1, f"{MACS} 89 09 01 01 00 01", nothing("out_of_scope", "OUT_OF_SCOPE")),
    ("802.1q", 1, f"{MACS} 81 00 60 07 08 00 {IP4} {UDP}", plain({"VLAN"}, vlan=7)),
    ("802.1q, type 0", 1, f"{MACS} 81 00 60 07 00 00 {IP4}", nothing("not_ip", "VLAN")),
    ("802.1ad", 1, f"{MACS} 88 a8 0f ff 81 00 00 01 86 dd {IP6} {UDP}", plain6({"VLAN"}, vlan=4095)),
    ("priority tag", 1, f"{MACS} 91 00 e0 00 81 00 00 09 08 00 {IP4} {UDP}", plain({"VLAN"}, vlan=0)),
    ("15 tags", 1, f"{MACS} {'81 00 00 05 ' * 15} 08 00 {IP4} {UDP}", plain({"VLAN"}, vlan=5)),
    ("too many tags", 1, f"{MACS} {'81 00 00 05 ' * 17} 08 00 {IP4} {UDP}", nothing("out_of_scope", "VLAN")),
    ("mpls", 1, f"{MACS} 88 47 00 01 01 40 {IP4} {UDP}", plain({"MPLS"})),
    ("mpls, two labels", 1, f"{MACS} 88 48 00 01 00 40 00 02 01 40 {IP6} {UDP}", plain6({"MPLS"})),
    ("mpls pseudowire", 1, f"{MACS} 88 47 00 01 01 40 00 00 00 00 {MACS}", nothing("out_of_scope", "MPLS")),
    ("pppoe", 1, f"{MACS} 88 64 11 00 00 01 00 22 00 21 {IP4} {UDP}", plain({"PPPOE"})),
    ("pppoe, IPv6, one byte", 1, f"{MACS} 88 64 11 00 00 01 00 35 57 {IP6} {UDP}", plain6({"PPPOE"})),
    ("pppoe, lcp", 1, f"{MACS} 88 64 11 00 00 01 00 06 c0 21 01 01", nothing("not_ip", "PPPOE")),
    (
        "pppoe in qinq",
        1,
        f"{MACS} 88 a8 00 03 81 00 00 04 88 64 11 00 00 01 00 22 00 21 {IP4} {UDP}",
        plain({"VLAN", "PPPOE"}, vlan=3),
    ),
    ("snap", 1, f"{MACS} 00 28 aa aa 03 00 00 00 08 00 {IP4} {UDP}", plain({"SNAP"})),
    ("snap of another oui", 1, f"{MACS} 00 28 aa aa 03 00 00 0c 20 00 {IP4}", nothing("not_ip")),
    ("spanning tree", 1, f"{MACS} 00 26 42 42 03 00 00 00 00 00", nothing("not_ip")),
    ("sll", 113, f"00 00 00 01 00 06 02 00 00 00 00 01 00 00 08 00 {IP4} {UDP}", plain()),
    ("sll2", 276, f"86 dd 00 00 00 00 00 02 00 01 00 06 02 00 00 00 00 01 00 00 {IP6} {UDP}", plain6()),
    ("null, little", 0, f"02 00 00 00 {IP4} {UDP}", plain()),
    ("null, big", 0, f"00 00 00 02 {IP4} {UDP}", plain()),
    ("null, IPv6 of FreeBSD", 0, f"1c 00 00 00 {IP6} {UDP}", plain6()),
    ("null, IPv6 of NetBSD, big", 0, f"00 00 00 18 {IP6} {UDP}", plain6()),
    ("null, another family", 0, f"07 00 00 00 {IP4} {UDP}", nothing("not_ip")),
    ("loop", 108, f"00 00 00 1e {IP6} {UDP}", plain6()),
    ("raw", 101, f"{IP4} {UDP}", plain()),
    ("raw, IPv6", 101, f"{IP6} {UDP}", plain6()),
    ("raw of BSD", 12, f"{IP4} {UDP}", plain()),
    ("raw of OpenBSD", 14, f"{IP6} {UDP}", plain6()),
    ("raw, neither", 101, "50 00 00 00", nothing("bad_ip_header")),
    ("IPv4 link", 228, f"{IP4} {UDP}", plain()),
    ("IPv6 link", 229, f"{IP6} {UDP}", plain6()),
    ("IPv6 in an IPv4 link", 228, f"{IP6} {UDP}", nothing("bad_ip_header", "VERSION_MISMATCH")),
    ("IPv4 as IPv6", 1, f"{MACS} 86 dd {IP4} {UDP}", nothing("bad_ip_header", "VERSION_MISMATCH")),
    ("802.11", 105, "08 02 00 00", nothing("unknown_link_type")),
]

LONG = dict(ip_version=4, lists={"ip"}, reason="ok")
FRAGMENTED = {**SIX, "lists": {"ip"}, "reason": "ok"}
NETWORKS = [
    (
        "IPv4 options",
        101,
        f"46 b8 00 24 00 00 00 00 01 11 00 00 c0 00 02 01 c6 33 64 02 94 04 00 00 {UDP}",
        plain({"OPTIONS"}, tos=0xB8, ttl=1),
    ),
    ("IPv4 first fragment", 101, f"{ip4(17, 32, '20 00')} {UDP}", plain({"FRAGMENT_FIRST"})),
    (
        "IPv4 later fragment",
        101,
        f"{ip4(17, 32, '20 01')} {UDP}",
        {**FOUR, **LONG, "proto": 17, "sport": 0, "payload_len": 12, "flags": {"FRAGMENT_LATER"}},
    ),
    (
        "IPv4 last fragment",
        101,
        f"{ip4(6, 28, '00 b9')} 00 00 00 00 00 00 00 00",
        {**FOUR, **LONG, "proto": 6, "sport": 0, "payload_len": 8, "flags": {"FRAGMENT_LATER"}},
    ),
    ("IPv4, do not fragment", 101, f"{ip4(17, 32, '40 00')} {UDP}", plain()),
    (
        "IPv4 total length 0",
        101,
        f"{ip4(6, 0)} 00 50 04 00 00 00 00 01 00 00 00 02 50 18 ff ff 00 00 00 00 61 62 63",
        {
            **FOUR,
            **LONG,
            "proto": 6,
            "sport": 80,
            "dport": 1024,
            "payload_len": 3,
            "tcp_flags": 0x18,
            "flags": {"PORTS", "TCP_HEADER"},
        },
    ),
    (
        "IPv4 header length 4",
        101,
        "44 00 00 20 00 00 00 00 40 11 00 00 c0 00 02 01 c6 33 64 02",
        nothing("bad_ip_header"),
    ),
    ("IPv4 total length below its header", 101, f"{ip4(17, 19)} {UDP}", nothing("bad_ip_header")),
    (
        "IPv4 total length ends in the ports",
        101,
        f"{ip4(17, 23)} {UDP}",
        {**FOUR, "reason": "short_transport_header", "flags": set(), "sport": 0, "lists": {"ip"}, "payload_len": 3},
    ),
    (
        "IPv6 extensions",
        101,
        f"{ip6(0, 52)} 2b 00 01 04 00 00 00 00  3c 00 04 00 00 00 00 00  2c 01 01 0c {'00 ' * 12}"
        f" 11 00 00 00 00 00 00 07 {UDP}",
        plain6({"OPTIONS", "FRAGMENT_ATOMIC"}),
    ),
    ("IPv6 first fragment", 101, f"{ip6(44, 20)} 11 00 00 01 00 00 00 07 {UDP}", plain6({"OPTIONS", "FRAGMENT_FIRST"})),
    (
        "IPv6 later fragment",
        101,
        f"{ip6(44, 20)} 3a 00 00 08 00 00 00 07 {UDP}",
        {**FRAGMENTED, "proto": 58, "sport": 0, "payload_len": 12, "flags": {"OPTIONS", "FRAGMENT_LATER"}},
    ),
    ("IPv6 no next header", 101, f"{ip6(59, 0)}", {**FRAGMENTED, "proto": 59, "payload_len": 0, "flags": set()}),
    (
        "IPv6 authentication ends the chain",
        101,
        f"{ip6(51, 24)} 11 04 00 00 {'00 ' * 8} {UDP}",
        {**FRAGMENTED, "proto": 51, "sport": 0, "payload_len": 24, "flags": set()},
    ),
    (
        "IPv6 extension beyond the packet",
        101,
        f"{ip6(60, 8)} 11 0f 01 04 00 00 00 00",
        {**SIX, "reason": "short_transport_header", "lists": {"ip"}, "proto": 17, "payload_len": 8 - 128},
    ),
    (
        "IPv6 cut extension",
        101,
        f"{ip6(0, 8)} 11 00",
        {**SIX, "reason": "short_extension_header", "lists": {"ip"}, "proto": 0, "flags": {"OPTIONS"}},
    ),
    (
        "IPv6 jumbo option",
        101,
        f"{ip6(0, 0)} 06 00 c2 04 00 01 00 24 00 50 04 00 00 00 00 01 00 00 00 02 50 10 00 00 00 00 00 00",
        {**SIX, "reason": "ok", "proto": 6, "sport": 80, "payload_len": 0, "flags": {"OPTIONS", "PORTS", "TCP_HEADER"}},
    ),
]

INNER = f"{IP4} {UDP}"
INNER_FRAME = f"{MACS} 81 00 00 06 08 00 {INNER}"
TUNNELLED, TUNNELLED6 = plain({"TUNNEL"}), plain6({"TUNNEL"})
IN_UDP = OUTER.format("11") + " c0 00 {} 00 2c 00 00 "


def in_udp(port, body):
    return IN_UDP.format(f"{port >> 8:02x} {port & 255:02x}").replace("00 40", "00 80", 1) + body


TUNNELS = [
    ("gre", 101, f"{OUTER.format('2f')} 00 00 08 00 {INNER}", TUNNELLED),
    (
        "gre with checksum, key, sequence",
        101,
        f"{OUTER.format('2f').replace('00 40', '00 80', 1)} b0 00 86 dd {'00 ' * 12} {IP6} {UDP}",
        TUNNELLED6,
    ),
    (
        "gre, bridged",
        101,
        f"{OUTER.format('2f').replace('00 40', '00 80', 1)} 00 00 65 58 {INNER_FRAME}",
        plain({"TUNNEL", "VLAN"}, vlan=6),
    ),
    (
        "gre version 1",
        101,
        f"{OUTER.format('2f')} 30 01 88 0b 00 00 00 00",
        {**LONG, "src": address("10.0.0.1"), "dst": address("10.0.0.2"), "proto": 47, "flags": set()},
    ),
    ("gre with arp", 101, f"{OUTER.format('2f')} 00 00 08 06 00 01 08 00", nothing("not_ip", "TUNNEL")),
    ("ip in ip", 101, f"{OUTER.format('04')} {INNER}", TUNNELLED),
    (
        "ip in ip, later fragment",
        101,
        f"{OUTER.format('04').replace('00 00  00 00  40', '00 00  00 01  40', 1)} {INNER}",
        {**LONG, "src": address("10.0.0.1"), "proto": 4, "flags": {"FRAGMENT_LATER"}},
    ),
    ("IPv4 in IPv6", 101, f"{ip6(4, 32)} {INNER}", TUNNELLED),
    ("6in4", 101, f"{OUTER.format('29').replace('00 40', '00 80', 1)} {IP6} {UDP}", TUNNELLED6),
    ("vxlan", 101, in_udp(4789, f"08 00 00 00 00 00 07 00 {INNER_FRAME}"), plain({"TUNNEL", "VLAN"}, vlan=6)),
    (
        "vxlan without network id",
        101,
        in_udp(4789, f"00 00 00 00 00 00 07 00 {INNER_FRAME}"),
        {**LONG, "src": address("10.0.0.1"), "dport": 4789, "flags": FOUND},
    ),
    (
        "vxlan with ptp",
        101,
        in_udp(4789, f"08 00 00 00 00 00 07 00 {MACS} 88 f7 00 02 00 2c"),
        nothing("not_ip", "TUNNEL"),
    ),
    ("geneve", 101, in_udp(6081, f"01 00 08 00 00 00 07 00 01 02 80 00 {INNER}"), TUNNELLED),
    ("geneve, bridged", 101, in_udp(6081, f"00 00 65 58 00 00 07 00 {INNER_FRAME}"), plain({"TUNNEL", "VLAN"}, vlan=6)),
    ("gtp-u", 101, in_udp(2152, f"30 ff 00 20 00 00 00 01 {INNER}"), TUNNELLED),
    ("gtp-u with sequence", 101, in_udp(2152, f"32 ff 00 38 00 00 00 01 00 09 00 00 {IP6} {UDP}"), TUNNELLED6),
    (
        "gtp-u with extensions",
        101,
        in_udp(2152, f"34 ff 00 30 00 00 00 01 00 00 00 85 01 10 00 c0 02 11 22 33 44 55 66 00 {INNER}"),
        TUNNELLED,
    ),
    (
        "gtp-u echo request",
        101,
        in_udp(2152, "32 01 00 04 00 00 00 00 00 09 00 00"),
        {**LONG, "src": address("10.0.0.1"), "dport": 2152, "flags": FOUND},
    ),
]

ECHO = dict(ip_version=4, lists={"ip", "echo"}, flags={"PORTS"}, icmp_id=0x1234, icmp_seq=7, first_byte=0)
CLOCK, REQUESTER = "00 1b 19 ff fe 00 00 01 00 02", "00 1b 19 ff fe 00 00 09 00 03"
STAMP = "00 00 65 92 00 80 1d cd 65 00"  # 1704067200.5 s


def ptp(kind, length, tail, flags="00 00", sdo="0"):
    return (
        f"{sdo}{kind:x} 12 {length >> 8:02x} {length & 255:02x} 05 00 {flags}"
        f" ff ff ff ff ff ff 80 00 00 00 00 00 {CLOCK}"
        f" 00 2a 00 f9 {tail}"
    )


PTP = dict(
    ptp_version=2, ptp_domain=5, ptp_correction=-32768, ptp_clock=0x001B19FFFE000001, ptp_port=2, ptp_seq=42,
    ptp_interval=-7, ptp_time=1_704_067_200_500_000_000, ptp_flags=0, ptp_sdo=0, ptp_requesting_clock=0,
    ptp_requesting_port=0, reason="not_ip", lists={"ptp"}, ip_version=0, flags=set(),
)  # fmt: skip
ANSWERED = dict(ptp_requesting_clock=0x001B19FFFE000009, ptp_requesting_port=3)
PTP_NAMES = {
    0: "sync", 1: "delay_req", 2: "pdelay_req", 3: "pdelay_resp", 8: "follow_up", 9: "delay_resp",
    10: "pdelay_resp_follow_up", 11: "announce", 12: "signaling", 13: "management",
}  # fmt: skip
PTP_TAILS = {
    2: f"{STAMP} {'00 ' * 10}",
    3: f"{STAMP} {REQUESTER}",
    9: f"{STAMP} {REQUESTER}",
    10: f"{STAMP} {REQUESTER}",
    11: f"{STAMP} 00 25 00 80 06 21 4e 5d 80 00 1b 19 ff fe 00 00 01 00 00 20",
    12: REQUESTER,
    13: f"{REQUESTER} 00 00 00 00",
}


def ptp_message(kind):
    tail = PTP_TAILS.get(kind, STAMP)
    answered = ANSWERED if kind in (3, 9, 10) else {}
    timeless = {"ptp_time": None} if kind > 11 else {}
    data = f"{MACS} 88 f7 {ptp(kind, 34 + len(bytes.fromhex(tail)), tail)}"
    return f"ptp {PTP_NAMES[kind]}", 1, data, {**PTP, "ptp_type": kind, **answered, **timeless}


def datagram(ports, body):
    """IPv4 with a UDP payload given as hex."""
    size = len(bytes.fromhex(body))
    return f"{ip4(17, 28 + size)} {ports} {size + 8 >> 8:02x} {size + 8 & 255:02x} 00 00 {body}"


SYNC = ptp(0, 44, STAMP, "02 00", sdo="1")
RTP_HEADER = "80 e0 00 07 00 00 03 20 de ad be ef"
PROBE_HEADER = (
    "51 54 41 50 01 {} 03 00 1f 2e 3d 4c 5b 6a 79 88 00 00 00 05 00 00 00 1a"
    " 17 a6 10 17 10 4b b2 80 00 00 00 00 01 c9 c3 80"
)
PROBE = dict(
    probe_ttl=3, probe_session=0x1F2E3D4C5B6A7988, probe_round=5, probe_seq=26, probe_sent=1_704_067_200_250_000_000,
    probe_d=30_000_000, flags=FOUND | {"PROBE"}, payload_len=40,
)  # fmt: skip
TRANSPORTS = [
    (
        "tcp",
        101,
        f"{ip4(6, 46)} 04 00 01 bb 00 00 00 01 00 00 00 02 60 12 ff ff 00 00 00 00 02 04 05 b4 61 62",
        {
            **FOUR,
            **LONG,
            "proto": 6,
            "sport": 1024,
            "dport": 443,
            "tcp_flags": 0x12,
            "payload_len": 2,
            "first_byte": 0,
            "flags": {"PORTS", "TCP_HEADER"},
        },
    ),
    (
        "tcp, data offset beyond the packet",
        101,
        f"{ip4(6, 40)} 04 00 01 bb 00 00 00 01 00 00 00 02 f0 10 ff ff 00 00 00 00",
        {**FOUR, **LONG, "payload_len": 0, "tcp_flags": 0x10, "flags": {"PORTS", "TCP_HEADER"}},
    ),
    (
        "udp length 0",
        101,
        f"{ip4(17, 28)} 13 88 00 35 00 00 00 00",
        {**UDP4, "payload_len": -8, "first_byte": 0, "flags": FOUND},
    ),
    (
        "quic",
        101,
        datagram("01 bb c3 50", "40 01 02 03"),
        {**FOUR, "lists": {"ip", "quic"}, "first_byte": 0x40, "flags": FOUND},
    ),
    (
        "quic to the server",
        101,
        datagram("c3 50 01 bb", "c0 00 00 00 01"),
        {**FOUR, "lists": {"ip"}, "first_byte": 0xC0},
    ),
    (
        "icmp echo request",
        101,
        f"{ip4(1, 28)} 08 00 00 00 12 34 00 07",
        {**FOUR, **ECHO, "sport": 8, "dport": 0, "payload_len": 8},
    ),
    ("icmp echo reply", 101, f"{ip4(1, 28)} 00 00 00 00 12 34 00 07", {**FOUR, **ECHO, "sport": 0, "dport": 0}),
    (
        "icmp unreachable",
        101,
        f"{ip4(1, 56)} 03 01 00 00 00 00 00 00 {IP4} 13 88 00 35 00 0c 00 00",
        {**FOUR, **LONG, "sport": 3, "dport": 1, "flags": {"PORTS"}},
    ),
    (
        "icmp of one byte",
        101,
        f"{ip4(1, 21)} 08",
        {**FOUR, "reason": "short_transport_header", "lists": {"ip"}, "sport": 8, "flags": {"PORTS"}},
    ),
    (
        "icmpv6 echo request",
        101,
        f"{ip6(58, 8)} 80 00 00 00 12 34 00 07",
        {**SIX, **ECHO, "ip_version": 6, "sport": 128},
    ),
    ("icmpv6 echo reply", 101, f"{ip6(58, 8)} 81 00 00 00 12 34 00 07", {**SIX, **ECHO, "ip_version": 6, "sport": 129}),
    (
        "icmpv6 in IPv4",
        101,
        f"{ip4(58, 28)} 80 00 00 00 12 34 00 07",
        {**FOUR, **LONG, "proto": 58, "sport": 0, "flags": set()},
    ),
    (
        "igmp",
        101,
        f"{ip4(2, 28)} 16 00 00 00 e0 00 00 fb",
        {**FOUR, **LONG, "proto": 2, "sport": 0, "payload_len": 8, "flags": set()},
    ),
    (
        "sctp",
        101,
        f"{ip4(132, 32)} 0b 59 0b 5a 00 00 00 01 00 00 00 00",
        {**FOUR, **LONG, "proto": 132, "sport": 2905, "dport": 2906, "payload_len": 12, "flags": {"PORTS"}},
    ),
    (
        "rtp",
        101,
        datagram("13 88 13 8a", RTP_HEADER),
        {
            **FOUR,
            "lists": {"ip", "stream"},
            "rtp_ssrc": 0xDEADBEEF,
            "rtp_time": 800,
            "rtp_seq": 7,
            "rtp_type": 96,
            "rtp_marker": 1,
            "flags": FOUND | {"RTP"},
        },
    ),
    (
        "rtcp",
        101,
        datagram("13 89 13 8b", "80 c8 00 06 de ad be ef 00 00 00 00"),
        {**FOUR, "lists": {"ip"}, "flags": FOUND},
    ),
    (
        "probe P1",
        101,
        datagram("21 ac 21 ac", PROBE_HEADER.format("01")),
        {**PROBE, "probe_role": 1, "lists": {"ip", "sandwich"}},
    ),
    (
        "probe stream",
        101,
        datagram("21 ac 21 ac", PROBE_HEADER.format("04")),
        {**PROBE, "probe_role": 4, "lists": {"ip", "stream"}},
    ),
    (
        "probe of version 2",
        101,
        datagram("21 ac 21 ac", PROBE_HEADER.format("04").replace("50 01", "50 02")),
        {"lists": {"ip"}},
    ),
    *map(ptp_message, PTP_NAMES),
    (
        "ptp over udp4",
        101,
        datagram("01 3f 01 3f", SYNC),
        {
            **PTP,
            "ptp_type": 0,
            "ptp_flags": 0x0200,
            "ptp_sdo": 0x100,
            "reason": "ok",
            "ip_version": 4,
            "lists": {"ip", "ptp"},
            "flags": FOUND,
        },
    ),
    (
        "ptp over udp6",
        101,
        f"{ip6(17, 52)} 01 40 01 40 00 34 00 00 {SYNC}",
        {"lists": {"ip", "ptp"}, "ptp_seq": 42, **SIX},
    ),
    ("ptp behind a tag", 1, f"{MACS} 81 00 00 05 88 f7 {SYNC}", {"lists": {"ptp"}, "vlan": 5, "ptp_domain": 5}),
    ("ptp of a reserved type", 1, f"{MACS} 88 f7 {ptp(4, 44, STAMP)}", nothing("not_ip")),
    ("ptp version 1", 1, f"{MACS} 88 f7 {ptp(0, 44, STAMP).replace('00 12', '00 01', 1)}", nothing("not_ip")),
    ("ptp shorter than its type", 1, f"{MACS} 88 f7 {ptp(9, 44, STAMP)} {REQUESTER}", nothing("not_ip")),
    (
        "ptp time beyond int64",
        1,
        f"{MACS} 88 f7 {ptp(0, 44, '00 02 ff ff ff ff 00 00 00 00')}",
        {"lists": {"ptp"}, "ptp_time": None},
    ),
    (
        "ptp nanoseconds of a second",
        1,
        f"{MACS} 88 f7 {ptp(0, 44, '00 00 00 00 00 01 3b 9a ca 00')}",
        {"ptp_time": None},
    ),
]

LAYERS = [
    (name, linktype, tunnels, bytes.fromhex(data), expected)
    for cases, tunnels in ((LINKS, ()), (NETWORKS, ()), (TUNNELS, ALL), (TRANSPORTS, ()))
    for name, linktype, data, expected in cases
]


@pytest.mark.parametrize("layer", LAYERS, ids=[layer[0] for layer in LAYERS])
def test_bytes_in_row_out(layer):
    _, linktype, tunnels, data, expected = layer
    found = decoded([(data, len(data), linktype)], tunnels)[0]
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer[2]], ids=[x[0] for x in LAYERS if x[2]])
def test_tunnels_are_entered_on_request_only(layer):
    _, linktype, _, data, _ = layer
    found = decoded([(data, len(data), linktype)])[0]
    assert "TUNNEL" not in found["flags"]
    assert found["ip_version"] == data[0] >> 4

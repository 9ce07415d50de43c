"""Numbers of headers by their registries' names, why decoding stopped, and what a decoder is told."""

import hashlib

import numpy as np
from numba import njit

from dataplane.records import rows

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
    "filtered",  # nothing is wrong and nothing was looked at
)
OK, NOT_IP, UNKNOWN_LINK, UNKNOWN_ETHERTYPE, NOT_ENTERED = range(5)
SHORT_LINK, SHORT_IP, BAD_IP, SHORT_EXTENSION, SHORT_TRANSPORT, FILTERED = range(5, 11)

# Link types (LINKTYPE_ registry)
NULL, ETHERNET, RAW_BSD, RAW_OPENBSD, RAW = 0, 1, 12, 14, 101
LOOP, SLL, IPV4_LINK, IPV6_LINK, SLL2 = 108, 113, 228, 229, 276
LINK_TYPES = (NULL, ETHERNET, RAW_BSD, RAW_OPENBSD, RAW, LOOP, SLL, IPV4_LINK, IPV6_LINK, SLL2)  # all that are decoded

# Ethertypes (IANA)
T_IPV4, T_ARP, T_IPV6, T_PTP, T_NSH, T_CMD, T_BRIDGE = 0x0800, 0x0806, 0x86DD, 0x88F7, 0x894F, 0x8909, 0x6558
T_8021Q, T_8021AD, T_QINQ, T_MPLS, T_MPLS_UP, T_PPPOE = 0x8100, 0x88A8, 0x9100, 0x8847, 0x8848, 0x8864
T_RAW_IP = 0x10000  # ours: the version nibble decides
PAYLOAD_MAX = 2**31 - 1  # what PACKET.payload_len can say
LENGTH_MAX = 1500  # an ethertype field up to here is an 802.3 length

# IP protocol numbers (IANA)
ICMP, IPIP, TCP, UDP, IP6_IN_IP, GRE, ICMPV6, SCTP = 1, 4, 6, 17, 41, 47, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
TAGS_MAX = 16  # tags, labels and tunnel extensions followed before giving up
EXTENSIONS_MAX = 256  # IPv6 extension headers followed before giving up

# UDP ports
PTP_EVENT, PTP_GENERAL, HTTPS, VXLAN, GENEVE, GTPU = 319, 320, 443, 4789, 6081, 2152
GTPU_PDU = 255  # message type that carries a user packet

# Tunnels entered one level deep, on request: bits of DECODE.tunnels
TUNNELS = ("gre", "ipip", "6in4", "vxlan", "geneve", "gtpu")
T_GRE, T_IPIP, T_6IN4, T_VXLAN, T_GENEVE, T_GTPU = (1 << i for i in range(6))

# Of DECODE.keys: those that stir the flows of IPv4 and fold products, odd; 0 is of IPv4, the others go by pairs
FACTOR, FOLD = 1, 14
HASH_KEYS = 15
DECODE = np.dtype([("keys", np.uint64, HASH_KEYS), ("tunnels", np.int64)], align=True)


def decode_options(secret, tunnels=0):
    """DECODE rows (1,): hash keys drawn from `secret`, bytes that nobody outside may know, and tunnels to enter."""
    options = rows(DECODE, 1)
    options[0].keys[:] = np.frombuffer(hashlib.shake_256(secret).digest(8 * HASH_KEYS), np.uint64)
    for odd in (FACTOR, FOLD):
        options[0].keys[odd] |= np.uint64(1)
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

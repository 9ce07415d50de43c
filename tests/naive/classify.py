"""Slow twin of dataplane.classify, from the definition: rules are dicts; what one does not name it does not mind.

src, dst: ipaddress networks; sport, dport: (low, high); proto, dscp; mark: (value, mask); indev, outdev; family
"""

import ipaddress

NO_PORTS = (1, 58)  # ICMP


def covers(rule, packet, meta):
    """packet: as tests.naive.wire decodes it; meta: dict of mark, indev, outdev."""
    return all(TESTS[name](value, packet, meta) for name, value in rule.items())


def address(packet, end):
    return ipaddress.ip_address(packet[end]) if packet["src"] is not None else None


def in_network(network, found):
    return found is not None and found.version == network.version and found in network


def in_range(bounds, packet, end):
    known = "PORTS" in packet["flags"] and packet["proto"] not in NO_PORTS
    return known and bounds[0] <= packet[end] <= bounds[1]


TESTS = {
    "src": lambda network, packet, meta: in_network(network, address(packet, "src")),
    "dst": lambda network, packet, meta: in_network(network, address(packet, "dst")),
    "sport": lambda bounds, packet, meta: in_range(bounds, packet, "sport"),
    "dport": lambda bounds, packet, meta: in_range(bounds, packet, "dport"),
    "proto": lambda number, packet, meta: packet["src"] is not None and packet["proto"] == number,
    "dscp": lambda number, packet, meta: packet["src"] is not None and packet["tos"] // 4 == number,
    "family": lambda number, packet, meta: packet["src"] is not None and packet["ip_version"] == number,
    "mark": lambda pair, packet, meta: meta["mark"] & pair[1] == pair[0] & pair[1],
    "indev": lambda number, packet, meta: meta["indev"] == number,
    "outdev": lambda number, packet, meta: meta["outdev"] == number,
}


def first(rules, packet, meta):
    """Number of the first rule that covers the packet, from 1 on; 0 if none does."""
    return next((n for n, rule in enumerate(rules, 1) if covers(rule, packet, meta)), 0)

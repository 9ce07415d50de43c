"""What a class may match: header values as people write them, as tuples inside, and as text again.

A value may be a list: any of its values matches. Keys that are left out match everything.
"""

import ipaddress
import re
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, model_validator

from qoetap.keys import Section, fields_of

PORTED = (6, 17, 132)  # protocols whose ports are decoded: TCP, UDP, SCTP
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "sctp": 132}
DSCPS = {  # the registry of IANA, by RFC 2474, 2597, 3246, 5865, 8622
    **{f"cs{n}": 8 * n for n in range(8)},
    **{f"af{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)},
    "ef": 46, "va": 44, "le": 1, "df": 0,
}  # fmt: skip
PORT_MAX, PROTOCOL_MAX, DSCP_MAX, MARK_MAX = 65535, 255, 63, 0xFFFFFFFF
ENTRIES_MAX = 64  # of a list
INTERFACE = r"[^\s/:]{1,15}"  # dev_valid_name of the kernel, IFNAMSIZ is 16


class Mark(NamedTuple):
    """Bits `value` of a firewall mark under `mask`."""

    value: int
    mask: int = MARK_MAX


def every(one):
    """Parser of a value or a list of values, of which `one` parses each; a sorted tuple without repetitions."""

    def parse(value):
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not 1 <= len(values) <= ENTRIES_MAX:
            raise ValueError(f"write a value or a list of 1 to {ENTRIES_MAX} values")
        return tuple(sorted({one(v) for v in values}, key=_order))

    return parse


def _order(value):
    return (value.version, value) if hasattr(value, "version") else value


def network(value):
    """IPv4Network or IPv6Network of an address or a prefix."""
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return value
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        return ipaddress.ip_network(value, strict=True)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f"has bits behind the prefix, write {ipaddress.ip_network(value, False)}") from None
        raise ValueError("write an address or a prefix: 192.0.2.1, 10.0.0.0/8, 2001:db8::/32") from None


def whole(value, most):
    """A whole number from 0 to `most` of a number or its digits, None for anything else."""
    digits = isinstance(value, int) and not isinstance(value, bool)
    digits = digits or (isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value, re.ASCII))
    return int(value) if digits and 0 <= int(value) <= most else None


def port_range(value):
    """(low, high) of a port or of LOW-HIGH."""
    low, dash, high = (value, "", "") if not isinstance(value, str) else value.replace(" ", "").partition("-")
    ends = value if isinstance(value, tuple) else (whole(low, PORT_MAX), whole(high if dash else low, PORT_MAX))
    if None in ends or ends[0] > ends[1]:
        raise ValueError(f"write a port from 0 to {PORT_MAX} or a range: 443, 1000-2000")
    return ends


def named(names, most, what):
    """Parser of a number to `most`, or of one of `names`."""

    def parse(value):
        number = names.get(value.lower()) if isinstance(value, str) else None
        number = whole(value, most) if number is None else number
        if number is None:
            raise ValueError(f"write {what} as a number from 0 to {most} or as one of {', '.join(names)}")
        return number

    return parse


def parse_mark(value):
    """Mark of 0x10 or 0x10/0xff."""
    if isinstance(value, Mark):
        return value
    text, slash, mask = str(value).replace(" ", "").partition("/")
    numbers = [_mark_bits(text), _mark_bits(mask) if slash else MARK_MAX]
    if isinstance(value, bool) or None in numbers:
        raise ValueError("write a mark as its value, and the bits that count behind a slash: 0x10, 0x10/0xff")
    if numbers[0] & ~numbers[1]:
        raise ValueError(f"{numbers[0]:#x} has bits outside of the mask {numbers[1]:#x}")
    return Mark(*numbers)


def _mark_bits(text):
    found = re.fullmatch(r"0x([0-9a-fA-F]{1,8})|([0-9]{1,10})", text, re.ASCII)
    number = None if not found else int(found[1], 16) if found[1] else int(found[2])
    return None if number is None or number > MARK_MAX else number


def interface(value):
    if not isinstance(value, str) or not re.fullmatch(INTERFACE, value) or value in (".", ".."):
        raise ValueError("write the name of an interface, at most 15 characters: eth0")
    return value


parse_dscp = named(DSCPS, DSCP_MAX, "a DSCP")

Networks = Annotated[tuple, BeforeValidator(every(network))]
Ports = Annotated[tuple, BeforeValidator(every(port_range))]
Protocols = Annotated[tuple, BeforeValidator(every(named(PROTOCOLS, PROTOCOL_MAX, "a protocol")))]
Dscps = Annotated[tuple, BeforeValidator(every(parse_dscp))]
Interfaces = Annotated[tuple, BeforeValidator(every(interface))]
MarkBits = Annotated[Mark, BeforeValidator(parse_mark)]
Dscp = Annotated[int, BeforeValidator(parse_dscp)]


def or_list(one):
    """Writer of a tuple: its only value alone."""
    return lambda values: one(values[0]) if len(values) == 1 else [one(v) for v in values]


def port_text(ends):
    return ends[0] if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def mark_text(mark):
    return f"{mark.value:#x}" if mark.mask == MARK_MAX else f"{mark.value:#x}/{mark.mask:#x}"


def name_of(names):
    """Writer of a number by its name."""
    known = {number: name for name, number in reversed(names.items())}
    return lambda number: known.get(number, number)


MATCH = {  # key: (type, default, help)
    "src": (Networks | None, None, "source address or prefix, or a list"),
    "dst": (Networks | None, None, "destination, the same"),
    "sport": (Ports | None, None, "source port or range, 1000-2000, or a list; of TCP, UDP and SCTP"),
    "dport": (Ports | None, None, "destination port, the same"),
    "proto": (Protocols | None, None, f"IP protocol, a number or {', '.join(PROTOCOLS)}, or a list"),
    "dscp": (Dscps | None, None, "DSCP, a number or a name such as ef, af41, cs5, or a list"),
    "mark": (MarkBits | None, None, "firewall mark: 0x10, or 0x10/0xff, where only the bits of 0xff count"),
    "in": (Interfaces | None, None, "interface by which it came, or a list"),
    "out": (Interfaces | None, None, "interface by which it leaves, or a list"),
    "verdict": (str | None, None, "instead of all others: flows that mitigation gives the class for this event"),
}  # fmt: skip
HEADERS = tuple(key for key in MATCH if key != "verdict")

MATCH_TEXT = {
    "src": or_list(str), "dst": or_list(str), "sport": or_list(port_text), "dport": or_list(port_text),
    "proto": or_list(name_of(PROTOCOLS)), "dscp": or_list(name_of(DSCPS)), "mark": mark_text,
    "in": or_list(str), "out": or_list(str), "verdict": str,
}  # fmt: skip


class MatchRules(Section):
    """What must hold between the keys of a match."""

    @model_validator(mode="after")
    def _consistent(self):
        told = [key for key in HEADERS if getattr(self, key) is not None]
        if self.verdict is not None and told:
            raise ValueError(f"verdict stands alone: leave out {', '.join(told)}")
        if self.sport or self.dport:
            if self.proto and not set(self.proto) <= set(PORTED):
                raise ValueError("sport and dport are of tcp, udp and sctp: leave out other protocols")
        if self.src and self.dst and not {n.version for n in self.src} & {n.version for n in self.dst}:
            raise ValueError("matches nothing, because of src and dst one is IPv4 and one IPv6")
        return self


MATCH_FIELDS = fields_of(MATCH)


def protocols_of(match):
    """Protocols that can match; None: all."""
    return PORTED if match.proto is None and (match.sport or match.dport) else match.proto

"""From a user's prefix to what belongs to the longest prefix that covers it, IPv4 and IPv6. Pure.

A dict for each length in use: a look-up is one hash for each of them, however many prefixes there are.
"""

import ipaddress
import re

USER_bits = {4: 24, 6: 56}  # what a user's prefix is cut to: no more is needed or asked (RFC 7871, section 11.1)

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_GROUP = "[0-9A-Fa-f]{1,4}"
_LAST = f"(?:{_GROUP}:{_GROUP}|{_IPV4})"
_IPV6 = "|".join([  # RFC 3986, section 3.2.2
    f"(?:{_GROUP}:){{6}}{_LAST}",
    f"::(?:{_GROUP}:){{5}}{_LAST}",
    *(f"(?:(?:{_GROUP}:){{0,{n}}}{_GROUP})?::(?:{_GROUP}:){{{4 - n}}}{_LAST}" for n in range(5)),
    f"(?:(?:{_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}",
    f"(?:(?:{_GROUP}:){{0,6}}{_GROUP})?::",
])  # fmt: skip
PATTERN = f"^(?:{_IPV4}(?:/(?:3[0-2]|[12]?[0-9]))?|(?:{_IPV6})(?:/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$"
_FITS = re.compile(PATTERN.replace("$", r"\Z"))


def network_of(text):
    """The network of an address or prefix (PATTERN); bits behind the prefix are ignored. ValueError: it is none.

    An IPv4 address mapped into IPv6 (RFC 4291, 2.5.5.2) is the IPv4 one.
    """
    if not _FITS.match(text):
        raise ValueError(f"{text!r} is no address or prefix, write it as 10.1.2.0/24 or 2001:db8:1::/48")
    network = ipaddress.ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if network.version == 6 and network.prefixlen >= 96 else None
    return ipaddress.ip_network((mapped, network.prefixlen - 96)) if mapped is not None else network


def cut(network):
    """The network, or the one of USER_bits around it if that is larger."""
    bits = USER_bits[network.version]
    return network if network.prefixlen <= bits else network.supernet(new_prefix=bits)


class Prefixes:
    """{prefix: value}, asked by longest match."""

    def __init__(self):
        self.by_length = {4: {}, 6: {}}  # {version: {length: {leading bits: value}}}, longest first

    def add(self, prefix, value):
        """prefix: an ip_network or its text. KeyError: it is there already; its argument is the value it has."""
        network = ipaddress.ip_network(prefix)
        lengths = self.by_length[network.version]
        if network.prefixlen not in lengths:
            lengths[network.prefixlen] = {}
            self.by_length[network.version] = dict(sorted(lengths.items(), reverse=True))
        values = self.by_length[network.version][network.prefixlen]
        bits = _bits(network, network.prefixlen)
        if bits in values:
            raise KeyError(values[bits])
        values[bits] = value

    def find(self, network):
        """(length, value) of the longest prefix that covers all of the network; None without one."""
        for length, values in self.by_length[network.version].items():
            if length <= network.prefixlen:
                bits = _bits(network, length)
                if bits in values:
                    return length, values[bits]
        return None


def _bits(network, length):
    return int(network.network_address) >> (network.max_prefixlen - length)

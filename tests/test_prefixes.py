"""Longest-prefix match agrees with the definition, IPv4 and IPv6."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.prefixes import Prefixes, cut, network_of

V4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda p: ipaddress.IPv4Network(p, strict=False))
V6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda p: ipaddress.IPv6Network(p, strict=False))
NEAR = st.tuples(st.integers(0, 3), st.integers(0, 32)).map(  # some that lie within each other
    lambda p: ipaddress.IPv4Network((0x0A010200 + p[0], p[1]), strict=False)
)
NETWORK = V4 | V6 | NEAR


def naive(known, user):
    """The longest of the prefixes that hold all of the user's."""
    covers = [p for p in known if p.version == user.version and user.subnet_of(p)]
    return max(covers, key=lambda p: p.prefixlen, default=None)


@given(st.sets(NETWORK, max_size=30), st.lists(NETWORK, min_size=1, max_size=10))
def test_the_longest_prefix_that_covers_a_user_counts(known, users):
    prefixes = Prefixes()
    for prefix in known:
        prefixes.add(prefix, str(prefix))
    for user in [*users, *known]:
        wanted = naive(known, user)
        assert prefixes.find(user) == (wanted and (wanted.prefixlen, str(wanted)))


def test_thousands_of_them():
    prefixes = Prefixes()
    for number in range(1 << 14):
        prefixes.add(ipaddress.ip_network((0x0A000000 + (number << 8), 24)), number)
    prefixes.add("0.0.0.0/0", "others")
    assert prefixes.find(network_of("10.3.7.9")) == (24, 3 * 256 + 7)
    assert prefixes.find(network_of("10.3.7.9/23")) == prefixes.find(network_of("192.0.2.1")) == (0, "others")


def test_a_prefix_belongs_to_one():
    prefixes = Prefixes()
    prefixes.add("10.0.0.0/8", "north")
    with pytest.raises(KeyError, match="north"):
        prefixes.add("10.0.0.0/8", "south")


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/24", "10.1.2.0/24"),
        ("2001:db8:1:2::9/48", "2001:db8:1::/48"),
        ("::", "::/128"),
        ("1:2:3:4:5:6:192.0.2.1/0", "::/0"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:10.1.2.3/120", "10.1.2.0/24"),
    ],
)
def test_addresses_and_prefixes_are_read(text, network):
    assert str(network_of(text)) == network


@pytest.mark.parametrize(
    "text",
    ["", "abc", "10.1.2", "10.1.2.256", "10.1.2.3/33", "10.1.2.3/255.0.0.0", "010.1.2.3", "10.1.2.3\n", "fe80::1%eth0",
     "1:2:3:4:5:6:7:8:9", "1::2::3", "::/129", "12345::", "٣.1.2.3"],
)  # fmt: skip
def test_what_is_no_prefix_is_refused(text):
    with pytest.raises(ValueError, match="is no address or prefix"):
        network_of(text)


@given(V4 | V6)
def test_what_python_writes_is_read(network):
    mapped = network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped
    assert mapped or network_of(str(network)) == network


@pytest.mark.parametrize(
    ("text", "network"),
    [("10.1.2.3", "10.1.2.0/24"), ("10.0.0.0/8", "10.0.0.0/8"), ("2001:db8:1:234::9", "2001:db8:1:200::/56")],
)
def test_a_user_is_cut_to_what_may_be_asked(text, network):
    assert str(cut(network_of(text))) == network

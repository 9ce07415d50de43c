"""A Street forwards what is sent, through its bottleneck, and leaves nothing behind."""

import os
import shutil
import socket
import struct
import time
from contextlib import ExitStack

import pytest
from conftest import require

from qoetap import street as module
from qoetap.exits import RUN_ERROR, Exit
from qoetap.lab import NAMESPACES, remove_leftovers
from qoetap.street import RECEIVER, SENDER, Street
from tests.live import wait_until

PORT = 5000
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
HEADERS_bytes = 14 + 20 + 8  # Ethernet, IPv4, UDP


@pytest.fixture(autouse=True, scope="module")
def _tools(root):
    for name in ("ip", "tc"):
        require(shutil.which(name), f"{name} is not installed (apt install iproute2)")


@pytest.fixture
def street():
    with Street() as made:
        yield made


def udp(end, place, family="ipv4", port=0):
    """A UDP socket at the place."""
    if family == "ipv6":
        require(os.path.isdir("/proc/sys/net/ipv6"), "the kernel has no IPv6")
    sock = end.inside(socket.socket, FAMILIES[family], socket.SOCK_DGRAM)
    sock.bind((getattr(place, family), port))
    sock.settimeout(5)
    return sock


def sides(street):
    return street.sender, street.near, street.far, street.receiver


@pytest.mark.parametrize("family", FAMILIES)
def test_it_forwards_in_both_directions(street, family):
    with udp(street.sender, SENDER, family) as here, udp(street.receiver, RECEIVER, family, PORT) as there:
        here.sendto(b"there", (getattr(RECEIVER, family), PORT))
        data, (address, port, *_) = there.recvfrom(100)
        assert (data, address) == (b"there", getattr(SENDER, family))
        there.sendto(b"back", (address, port))
        assert here.recv(100) == b"back"


def test_it_is_silent_otherwise(street):
    time.sleep(1.2)  # routers and groups would be asked for within a second
    assert not any(any(end.counters().values()) for end in sides(street))


def test_large_datagrams_arrive_as_the_packets_they_were_sent_as(street):
    with udp(street.sender, SENDER) as here, udp(street.receiver, RECEIVER, port=PORT) as there:
        here.sendto(bytes(10_000), (RECEIVER.ipv4, PORT))
        assert len(there.recv(20_000)) == 10_000
        assert street.receiver.counters()["rx_packets"] == 7


SO_TIMESTAMPNS = 35  # asm-generic/socket.h


def arrivals(there, count):
    """Seconds between the first and the last of so many datagrams, by the kernel's timestamps."""
    found = []
    for _ in range(count):
        seconds, nanoseconds = struct.unpack("qq", there.recvmsg(2000, 100)[1][0][2])
        found.append(seconds + nanoseconds / 1e9)
    return found[-1] - found[0]


def test_the_bottleneck_has_its_rate(street):
    """101 packets of 1,000 bytes at 4 Mbit/s: 100 gaps of 2 ms, less what the burst lets through at once."""
    street.bottleneck(4_000_000, 2000, 1000)
    with udp(street.sender, SENDER) as here, udp(street.receiver, RECEIVER, port=PORT) as there:
        there.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        begun = time.monotonic()
        for _ in range(101):
            here.sendto(bytes(1000 - HEADERS_bytes), (RECEIVER.ipv4, PORT))
        meanwhile = time.monotonic() - begun
        assert 0.19 < arrivals(there, 101) < 1 + meanwhile


def test_the_bottleneck_drops_what_would_wait_too_long_and_goes_away(street):
    street.bottleneck(1_000_000, 2000, 100)
    street.bottleneck(4_000_000, 2000, 20)  # in its place
    with udp(street.sender, SENDER) as here, udp(street.receiver, RECEIVER, port=PORT) as there:
        begun = time.monotonic()
        for _ in range(100):
            here.sendto(bytes(1000 - HEADERS_bytes), (RECEIVER.ipv4, PORT))
        meanwhile = (time.monotonic() - begun) / 0.002  # 2 ms a packet
        wait_until(lambda: street.receiver.counters()["rx_packets"] >= 8)
        time.sleep(0.2)
        assert street.receiver.counters()["rx_packets"] <= 14 + meanwhile  # 20 ms are 10, and the burst
        street.no_bottleneck()
        assert street.far.counters()["tx_dropped"] == 0 and there.recv(2000)
        before = street.receiver.counters()["rx_packets"]
        for _ in range(100):
            here.sendto(b"", (RECEIVER.ipv4, PORT))
        wait_until(lambda: street.receiver.counters()["rx_packets"] == before + 100)


def test_a_bottleneck_that_tc_refuses(street):
    with pytest.raises(Exit, match="`tc .* failed: ") as caught:
        street.bottleneck(1_000_000, 0, 10)
    assert caught.value.status == RUN_ERROR


def test_two_streets_do_not_meet():
    with ExitStack() as stack:
        one, two = stack.enter_context(Street()), stack.enter_context(Street())
        assert not set(one.namespaces) & set(two.namespaces)
        with udp(one.sender, SENDER) as here, udp(two.receiver, RECEIVER, port=PORT):
            here.sendto(b"", (RECEIVER.ipv4, PORT))
        wait_until(lambda: one.receiver.counters()["rx_packets"] == 1)
        assert two.receiver.counters()["rx_packets"] == 0


def test_nothing_stays_after_an_exception():
    with pytest.raises(ZeroDivisionError), Street() as street:
        assert set(street.namespaces) <= set(os.listdir(NAMESPACES))
        raise ZeroDivisionError
    assert not set(street.namespaces) & set(os.listdir(NAMESPACES))
    street.close()  # once more does no harm


def test_nothing_stays_when_it_cannot_be_made(monkeypatch):
    monkeypatch.setattr(module, "FAR", SENDER._replace(ipv4="10.0.2.999"))
    before = set(os.listdir(NAMESPACES)) if NAMESPACES.is_dir() else set()
    with pytest.raises(Exit, match=r"10\.0\.2\.999"):
        Street()
    left = set(os.listdir(NAMESPACES)) - before
    assert not [name for name in left if name.startswith(f"qoetap-{os.getpid()}-")]
    assert remove_leftovers() == []


def test_without_ipv6_there_is_ipv4(monkeypatch):
    monkeypatch.setattr(module, "_has_ipv6", lambda: False)
    with Street() as street, udp(street.sender, SENDER) as here, udp(street.receiver, RECEIVER, port=PORT) as there:
        here.sendto(b"there", (RECEIVER.ipv4, PORT))
        assert there.recv(100) == b"there"

"""Which worker the kernel gives a packet to: both directions between two hosts go together, whatever is around them."""

import errno
import ipaddress
import random

import pytest

from dataplane.capture import CaptureError, ring
from dataplane.capture.port import Port
from dataplane.capture.ring import Ring, RingOptions
from tests.live import wait_until
from tests.packets import (
    PTP_GROUP4,
    PTP_GROUP6,
    PTP_MAC,
    QINQ,
    Clock,
    delay_req,
    eth,
    hop_by_hop,
    icmp_echo,
    icmpv6_echo,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    mpls,
    pppoe,
    sync,
    tcp,
    udp,
    vlan,
)

RING = RingOptions(1 << 18, 1 << 16, 1)
CLOCK = Clock(0x020000FFFE000001)
AROUND = {  # what may stand between Ethernet and IP
    "nothing": lambda packet: packet,
    "a tag": lambda packet: vlan(5, packet),
    "another's tag": lambda packet: vlan(6, packet),
    "two tags": lambda packet: vlan(5, vlan(7, packet), tpid=QINQ),
    "two tags of one kind": lambda packet: vlan(5, vlan(7, packet)),
    "three tags": lambda packet: vlan(5, vlan(6, vlan(7, packet))),
    "pppoe": lambda packet: pppoe(3, packet),
    "a tag and pppoe": lambda packet: vlan(5, pppoe(3, packet)),
    "two tags and pppoe": lambda packet: vlan(5, vlan(7, pppoe(3, packet)), tpid=QINQ),
    "a label": lambda packet: mpls([100], packet),
    "two labels": lambda packet: mpls([100, 200], packet),
    "three labels": lambda packet: mpls([100, 200, 300], packet),
    "a tag and a label": lambda packet: vlan(5, mpls([100], packet)),
}


class Group:
    """Rings of one interface; says which got a frame."""

    def __init__(self, link, workers):
        self.port = link.receiver.inside(Port, "b0", RING, workers)
        self.port.begin()
        self.socket = link.sender.socket()

    def counts(self):
        return [ring.count().received for ring in self.port.rings]

    def worker_of(self, frame):
        before = self.counts()
        self.socket.send(frame)
        after = wait_until(lambda: sum(now := self.counts()) > sum(before) and now)
        (number,) = [n for n, (old, new) in enumerate(zip(before, after)) if new > old]
        return number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.port.close()


@pytest.fixture
def group(link):
    with Group(link, 4) as made:
        yield made


def between(one, other):
    """Packets that two hosts may exchange."""
    version = ipaddress.ip_address(one).version
    ip, fragments, echo = (ipv4, ipv4_fragments, icmp_echo) if version == 4 else (ipv6, ipv6_fragments, icmpv6_echo)
    request = 8 if version == 4 else 128
    for source, target, ports in ((one, other, (5000, 443)), (other, one, (443, 5000))):
        yield ip(source, target, udp(*ports, bytes(40)))
        yield ip(source, target, tcp(*ports, "A"))
        yield ip(source, target, udp(7, 9))
        yield ip(source, target, echo(request, 1, 1))
        yield from fragments(source, target, udp(*ports, bytes(3000)), 1024, 99)
    if version == 6:
        yield ipv6(one, other, udp(5000, 443, bytes(40)), extensions=[hop_by_hop()])
    else:
        yield ipv4(one, other, udp(5000, 443, bytes(40)), options=bytes([1] * 8))


PAIRS = [("10.0.0.1", "198.51.100.7"), ("192.0.2.200", "192.0.2.201"), ("2001:db8::1", "2001:db8:1::77")]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_two_hosts_have_one_worker(group, pair):
    found = {name: {group.worker_of(eth(wrap(p))) for p in between(*pair)} for name, wrap in AROUND.items()}
    assert len(found["nothing"]) == 1
    assert found == dict.fromkeys(AROUND, found["nothing"])


def ptp_messages():
    for message in (sync(CLOCK, 1), delay_req(CLOCK, 1)):
        yield eth(message, dst=PTP_MAC)
        yield eth(vlan(5, message), dst=PTP_MAC)
    for port in (319, 320):
        payload = bytes(sync(CLOCK, 1))
        for packet in (
            ipv4("10.0.0.77", PTP_GROUP4, udp(port, port, payload)),
            ipv4("10.0.0.77", "10.0.3.9", udp(port, port, payload)),
            ipv4("10.0.0.77", "10.0.3.9", udp(port, port, payload), options=bytes([1] * 4)),
            ipv6("2001:db8::77", PTP_GROUP6, udp(port, port, payload)),
        ):
            yield from (eth(packet), eth(vlan(5, packet)))


def test_ptp_and_what_is_not_ip_goes_to_the_first(group):
    others = [eth(bytes(46), ethertype=0x0806), eth(bytes(60), ethertype=0x88CC), eth(vlan(5, sync(CLOCK, 1)))]
    assert {group.worker_of(frame) for frame in [*ptp_messages(), *others]} == {0}


def test_a_fragment_with_the_look_of_ptp_stays_with_its_flow(group):
    """What stands where a later fragment has its data is no port."""
    payload = (320).to_bytes(2) * 1500
    for pair in (("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "10.0.0.3"), ("10.0.0.1", "10.0.0.4")):
        parts = ipv4_fragments(*pair, udp(5000, 443, payload), 1000, 7)
        assert len({group.worker_of(eth(part)) for part in parts}) == 1


def test_damaged_packets_are_received(group):
    whole = bytes(eth(ipv4("10.0.0.1", "10.0.0.2", udp(1, 2, bytes(20)))))
    for frame in (whole[:15], whole[:20], whole[:34], eth(bytes(4), ethertype=0x8847), eth(b"", ethertype=0x8864)):
        assert group.worker_of(frame) == 0


def random_pairs(count):
    rng = random.Random(1)
    return [tuple(str(ipaddress.ip_address(rng.randrange(1 << 24, 224 << 24))) for _ in "ab") for _ in range(count)]


def neighbours(count):
    """Clients of one network that talk to one server."""
    return [(str(ipaddress.ip_address("10.1.0.0") + n), "198.51.100.7") for n in range(1, count + 1)]


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("pairs_of", [random_pairs, neighbours])
def test_hosts_are_spread(link, workers, pairs_of):
    pairs = pairs_of(1000)
    with Group(link, workers) as group:
        for source, target in pairs:
            group.socket.send(eth(ipv4(source, target, udp(5000, 443))))
        counts = wait_until(lambda: sum(now := group.counts()) == len(pairs) and now)
    fair = len(pairs) / workers
    assert all(0.8 * fair < count < 1.2 * fair for count in counts), counts


def test_hosts_of_ipv6_are_spread(link):
    rng = random.Random(1)
    with Group(link, 4) as group:
        for n in range(1000):
            client = ipaddress.ip_address("2001:db8::") + (n << 64) + rng.getrandbits(64)
            group.socket.send(eth(ipv6(str(client), "2001:db8:ffff::1", udp(5000, 443))))
        counts = wait_until(lambda: sum(now := group.counts()) == 1000 and now)
    assert all(200 < count < 300 for count in counts), counts


def test_the_group_may_be_the_kernels_first(link, monkeypatch):
    """Its number is 0, which a group has once after each start of the machine."""
    join, joined = Ring.join, []

    def join_the_first(self, group, by_flow):
        with monkeypatch.context() as patch:
            if not joined:
                patch.setattr(ring, "FANOUT_UNIQUE", 0)
            joined.append(join(self, group, by_flow))
        return joined[-1]

    monkeypatch.setattr(Ring, "join", join_the_first)
    with Group(link, 2) as group:
        workers = {group.worker_of(eth(ipv4(*pair, udp(5000, 443)))) for pair in random_pairs(40)}
        assert sum(group.counts()) == 40
    assert joined == [0, 0] and workers == {0, 1}


def test_a_group_on_an_interface_that_is_down(link, monkeypatch):
    """Kernels before 6.13 refuse it as if the group were wrong."""
    put = Ring._set

    def refuse(self, option, value):
        if option == ring.FANOUT:
            raise OSError(errno.EINVAL, "Invalid argument")
        put(self, option, value)

    monkeypatch.setattr(Ring, "_set", refuse)
    with pytest.raises(CaptureError, match=r"^b0: no fanout group could be made \(Invalid argument\)$"):
        link.receiver.inside(Port, "b0", RING, 2)
    link.receiver.down()
    try:
        with pytest.raises(CaptureError, match=r"^b0: is down: ip link set dev b0 up$"):
            link.receiver.inside(Port, "b0", RING, 2)
    finally:
        link.receiver.up()

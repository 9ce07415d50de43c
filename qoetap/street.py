"""A street: sender - router - receiver, each a namespace, for what sits on a path. Needs root.

A Fork is two such streets that share router and receiver. As on a Link nothing but what is sent on purpose passes:
neighbours are written down instead of asked for, and no interface asks for routes. Packets that the router forwards go
through its FORWARD chains and then, in the qdisc of its interface to the receiver, through the bottleneck, if there is
one (ip-route(8), tc-tbf(8)).
"""

import json
from pathlib import Path
from typing import NamedTuple

from qoetap.lab import End, Lab, run

CONF = Path("/proc/sys/net")  # of the reader's namespace


class Place(NamedTuple):
    """Where an interface is: addresses, and the link-layer address (locally administered, IEEE 802, 8.4.4.2)."""

    ipv4: str
    ipv6: str
    mac: str


# Link N is 10.0.N.0/24 and fd00:0:0:N::/64: 1 and 2 make a street, 3 and 4 the other one of a fork
SENDER = Place("10.0.1.2", "fd00:0:0:1::2", "02:00:00:00:01:02")
NEAR = Place("10.0.1.1", "fd00:0:0:1::1", "02:00:00:00:01:01")
FAR = Place("10.0.2.1", "fd00:0:0:2::1", "02:00:00:00:02:01")
RECEIVER = Place("10.0.2.2", "fd00:0:0:2::2", "02:00:00:00:02:02")
OTHER_SENDER = Place("10.0.3.2", "fd00:0:0:3::2", "02:00:00:00:03:02")
OTHER_NEAR = Place("10.0.3.1", "fd00:0:0:3::1", "02:00:00:00:03:01")
OTHER_FAR = Place("10.0.4.1", "fd00:0:0:4::1", "02:00:00:00:04:01")
OTHER_RECEIVER = Place("10.0.4.2", "fd00:0:0:4::2", "02:00:00:00:04:02")


def _has_ipv6():
    return (CONF / "ipv6").is_dir()


def _configure(settings):
    """Write settings below /proc/sys/net; those of a family that the kernel lacks are left out."""
    for name, value in settings.items():
        if (CONF / name).exists():
            (CONF / name).write_text(value)


def _settle(end, place):
    """Give the interface its addresses."""
    # ARP is off, so there is no detection of duplicates either; mode none: no link-local address
    words = ("-n", end.namespace, "link", "set", "dev", end.interface)
    run("ip", *words, "address", place.mac, "multicast", "off", "addrgenmode", "none")
    conf = f"ipv6/conf/{end.interface}"
    end.inside(_configure, {f"{conf}/accept_ra": "0", f"{conf}/disable_ipv6": "0"})
    run("ip", "-n", end.namespace, "address", "add", f"{place.ipv4}/24", "dev", end.interface)
    if _has_ipv6():
        run("ip", "-n", end.namespace, "-6", "address", "add", f"{place.ipv6}/64", "dev", end.interface, "nodad")


def _introduce(end, neighbour):
    """Write down who is at the other end of the interface."""
    for address in (neighbour.ipv4, *([neighbour.ipv6] if _has_ipv6() else [])):
        who = (address, "lladdr", neighbour.mac, "dev", end.interface, "nud", "permanent")
        run("ip", "-n", end.namespace, "neighbour", "replace", *who)


def _route(end, gateway, ipv4="default", ipv6="default"):
    """Send everything, or what goes to these prefixes, through the gateway."""
    run("ip", "-n", end.namespace, "route", "add", ipv4, "via", gateway.ipv4)
    if _has_ipv6():
        run("ip", "-n", end.namespace, "-6", "route", "add", ipv6, "via", gateway.ipv6)


def narrow(end, rate_bps, burst_bytes, latency_ms):
    """Let the interface send at most `rate_bps` bits a second, and keep packets for at most `latency_ms`; instead of an
    earlier bottleneck. The rate counts Ethernet headers too, and no checksum. Exit: tc says no.
    """
    limits = ("rate", f"{round(rate_bps)}bit", "burst", f"{burst_bytes}b", "latency", f"{latency_ms}ms")
    run("tc", "-n", end.namespace, "qdisc", "replace", "dev", end.interface, "root", "tbf", *limits)


def passed(end):
    """What the bottleneck of the interface has counted: `bytes` and `packets` that went through, `drops`."""
    words = ("-n", end.namespace, "-s", "-j", "qdisc", "show", "dev", end.interface, "root")
    (found,) = json.loads(run("tc", *words))
    return {name: found[name] for name in ("bytes", "packets", "drops")}


class Routed(Lab):
    """A Lab whose links are joined by a router. Without offloads, unless asked for: each packet is one on every link.

    Exit: not root, or the kernel does not do it.
    """

    def __init__(self, mtu=1500, offloads=False):
        super().__init__(mtu, offloads)

    def lay(self, places, router):
        """Make the links: places is {End: Place}, the two ends of each link after each other."""
        ends = list(places)
        for one, other in zip(ends[::2], ends[1::2], strict=True):
            self.join(one, other)
        for end, place in places.items():
            _settle(end, place)
        # Now that no interface of the router does multicast: else it would tell that it joins the routers' group
        router.inside(_configure, {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
        for one, other in self.pairs:
            _introduce(one, places[other])
            _introduce(other, places[one])


class Street(Routed):
    """`sender` (interface a0), `router` (with its sides `near`, r0, and `far`, r1), `receiver` (b0); all up, with the
    addresses SENDER, NEAR, FAR, RECEIVER.
    """

    letters = "arb"

    def build(self):
        a, r, b = self.namespaces
        self.sender, self.near, self.far, self.receiver = End(a, "a0"), End(r, "r0"), End(r, "r1"), End(b, "b0")
        self.router = self.near  # for what is asked of the namespace and not of an interface
        self.lay({self.sender: SENDER, self.near: NEAR, self.far: FAR, self.receiver: RECEIVER}, self.router)
        _route(self.sender, NEAR)
        _route(self.receiver, FAR)

    def bottleneck(self, rate_bps, burst_bytes, latency_ms):
        """One from the router to the receiver, see `narrow`."""
        narrow(self.far, rate_bps, burst_bytes, latency_ms)

    def no_bottleneck(self):
        """Take the bottleneck away. Exit: there is none."""
        run("tc", "-n", self.far.namespace, "qdisc", "del", "dev", self.far.interface, "root")


class Side(NamedTuple):
    """One of the streets of a Fork: Ends and their Places."""

    sender: End
    far: End
    receiver: End
    sender_place: Place
    receiver_place: Place


class Fork(Routed):
    """Two senders (interfaces a0 and s0), a router and a receiver that has an interface for each (b0 and b1): `sides`.
    What one sender sends to the receiver's address on its side meets nothing of the other but in the processors.
    """

    letters = "asrb"

    def build(self):
        a, s, r, b = self.namespaces
        near, far, other_near, other_far = (End(r, f"r{n}") for n in range(4))
        one = Side(End(a, "a0"), far, End(b, "b0"), SENDER, RECEIVER)
        other = Side(End(s, "s0"), other_far, End(b, "b1"), OTHER_SENDER, OTHER_RECEIVER)
        self.sides, self.router = (one, other), near
        links = {one.sender: SENDER, near: NEAR, far: FAR, one.receiver: RECEIVER}
        links |= {other.sender: OTHER_SENDER, other_near: OTHER_NEAR}
        self.lay({**links, other_far: OTHER_FAR, other.receiver: OTHER_RECEIVER}, near)
        _route(one.sender, NEAR)
        _route(other.sender, OTHER_NEAR)
        _route(one.receiver, FAR, "10.0.1.0/24", "fd00:0:0:1::/64")
        _route(other.receiver, OTHER_FAR, "10.0.3.0/24", "fd00:0:0:3::/64")

"""A street: sender - router - receiver, each a namespace, for what sits on a path. Needs root.

As on a Link nothing but what is sent on purpose passes: neighbours are written down instead of asked for, and no
interface asks for routes. Packets that the router forwards go through its FORWARD chains and then, in the qdisc of its
interface to the receiver, through the bottleneck, if there is one (ip-route(8), tc-tbf(8)).
"""

from pathlib import Path
from typing import NamedTuple

from qoetap.lab import End, Lab, run

CONF = Path("/proc/sys/net")  # of the reader's namespace


class Place(NamedTuple):
    """Where an interface is: addresses, and the link-layer address (locally administered, IEEE 802, 8.4.4.2)."""

    ipv4: str
    ipv6: str
    mac: str


# The two links, 10.0.1.0/24 and 10.0.2.0/24, fd00:0:0:1::/64 and fd00:0:0:2::/64
SENDER = Place("10.0.1.2", "fd00:0:0:1::2", "02:00:00:00:01:02")
NEAR = Place("10.0.1.1", "fd00:0:0:1::1", "02:00:00:00:01:01")
FAR = Place("10.0.2.1", "fd00:0:0:2::1", "02:00:00:00:02:01")
RECEIVER = Place("10.0.2.2", "fd00:0:0:2::2", "02:00:00:00:02:02")


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


def _route(end, gateway):
    """Send everything to the router."""
    run("ip", "-n", end.namespace, "route", "add", "default", "via", gateway.ipv4)
    if _has_ipv6():
        run("ip", "-n", end.namespace, "-6", "route", "add", "default", "via", gateway.ipv6)


class Street(Lab):
    """`sender` (interface a0), `router` (with its sides `near`, r0, and `far`, r1), `receiver` (b0); all up, with the
    addresses SENDER, NEAR, FAR, RECEIVER. Without offloads, unless asked for: each packet is one on every link.

    Exit: not root, or the kernel does not do it.
    """

    letters = "arb"

    def __init__(self, mtu=1500, offloads=False):
        super().__init__(mtu, offloads)

    def build(self):
        a, r, b = self.namespaces
        self.sender, self.near, self.far, self.receiver = End(a, "a0"), End(r, "r0"), End(r, "r1"), End(b, "b0")
        self.router = self.near  # for what is asked of the namespace and not of an interface
        self.join(self.sender, self.near)
        self.join(self.far, self.receiver)
        places = {self.sender: SENDER, self.near: NEAR, self.far: FAR, self.receiver: RECEIVER}
        for end, place in places.items():
            _settle(end, place)
        # Now that no interface of the router does multicast: else it would tell that it joins the routers' group
        self.router.inside(_configure, {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
        for one, other in self.pairs:
            _introduce(one, places[other])
            _introduce(other, places[one])
        _route(self.sender, NEAR)
        _route(self.receiver, FAR)

    def bottleneck(self, rate_bps, burst_bytes, latency_ms):
        """Let the router send to the receiver at most `rate_bps` bits a second, and keep packets for at most
        `latency_ms`; instead of an earlier bottleneck. The rate counts Ethernet headers too. Exit: tc says no.
        """
        limits = ("rate", f"{round(rate_bps)}bit", "burst", f"{burst_bytes}b", "latency", f"{latency_ms}ms")
        run("tc", "-n", self.far.namespace, "qdisc", "replace", "dev", self.far.interface, "root", "tbf", *limits)

    def no_bottleneck(self):
        """Take the bottleneck away. Exit: there is none."""
        run("tc", "-n", self.far.namespace, "qdisc", "del", "dev", self.far.interface, "root")

"""Link layers, IPv6 and tunnels. Each has two packets of one UDP flow, a question and an answer; the flow records show
that addresses and ports were found."""

from functools import partial
from random import Random

from pcaps.cases.flows import expect_flow
from pcaps.files import ETHERNET, LOOP, NULL, RAW, SLL, SLL2, Interface, pcap, pcapng
from pcaps.packets import (
    QINQ,
    bridged,
    destination_options,
    eth,
    geneve,
    gre,
    gtpu,
    hop_by_hop,
    igmp,
    ipip,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    llc_snap,
    mpls,
    null,
    pppoe,
    routing,
    sctp,
    sll,
    sll2,
    tcp,
    udp,
    vlan,
    vxlan,
)
from pcaps.story import Story, ms

CLIENT4, SERVER4, CLIENT6, SERVER6 = "192.0.2.80", "198.51.100.80", "2001:db8::80", "2001:db8:51::80"
OUTER_A, OUTER_B, OUTER6_A, OUTER6_B = "203.0.113.1", "203.0.113.2", "2001:db8:113::1", "2001:db8:113::2"
GROUP = "224.0.0.251"
OPTION = bytes([1, 2, 128, 1]) + b"abcd"  # of Geneve, unknown to all
SERVICE_PORT = 5000


class Talk:
    """UDP talks of two packets 10 ms apart, one a second; the client port tells which."""

    def __init__(self, story):
        self.story, self.count = story, 0

    def run(self, wrap, interface=0, six=False, vlan=None):
        """`wrap` makes a frame of an IP packet. Expects the flow record of the innermost UDP flow."""
        port, begin = 40000 + self.count, self.story.at(self.count)
        self.count += 1
        client, server, ip = (CLIENT6, SERVER6, ipv6) if six else (CLIENT4, SERVER4, ipv4)
        question = wrap(ip(client, server, udp(port, SERVICE_PORT, b"question")))
        answer = wrap(ip(server, client, udp(SERVICE_PORT, port, b"the answer")))
        first = self.story.add(begin, question, interface=interface)
        last = self.story.add(begin + ms(10), answer, interface=interface)
        ends = (client, port, server, SERVICE_PORT, "UDP")
        expect_flow(self.story, ends, [first], [last], vlan=None if vlan is None else [vlan])


def vlan_stacks():
    """Labels between Ethernet and IP: 802.1Q, 802.1ad, PPPoE, MPLS, LLC/SNAP, and some of them at once."""
    story = Story("vlan_stacks", 30, ["flow"])
    talk = Talk(story)
    for six in (False, True):
        talk.run(eth, six=six)
        talk.run(lambda ip: eth(vlan(100, ip, priority=5)), six=six, vlan=100)
        talk.run(lambda ip: eth(vlan(200, vlan(300, ip), QINQ)), six=six, vlan=200)
        talk.run(lambda ip: eth(vlan(1, vlan(2, vlan(3, ip)))), six=six, vlan=1)
        talk.run(lambda ip: eth(pppoe(0x11, ip)), six=six)
        talk.run(lambda ip: eth(vlan(7, pppoe(0x12, ip))), six=six, vlan=7)
        talk.run(lambda ip: eth(mpls([16001], ip)), six=six)
        talk.run(lambda ip: eth(mpls([16001, 16002, 24000], ip)), six=six)
    talk.run(lambda ip: eth(llc_snap(ip)))
    return story


LINKS = (
    (ETHERNET, eth),
    (RAW, bytes),
    (SLL, sll),
    (SLL2, sll2),
    (NULL, null),
    (LOOP, partial(null, order=">", family6=28)),
)


def link_types():
    """One pcapng with an interface of each link type, each with its own time resolution, one with an offset."""
    offset = Interface(resolution=9, offset_s=3600)
    resolutions = (Interface(resolution=9), Interface(), Interface(resolution=6), offset)
    interfaces = [resolutions[i % 4]._replace(linktype=linktype) for i, (linktype, _) in enumerate(LINKS)]
    write = partial(pcapng, interfaces=interfaces)
    story = Story("link_types", 31, ["flow"], write, "link_types.pcapng")
    talk = Talk(story)
    for six in (False, True):
        for i, (_, wrap) in enumerate(LINKS):
            talk.run(wrap, interface=i, six=six)
    return story


def big_endian():
    """Cooked frames in a big-endian pcap with microseconds."""
    story = Story("big_endian", 32, ["flow"], partial(pcap, linktype=SLL, order=">"))
    talk = Talk(story)
    talk.run(sll)
    talk.run(sll, six=True)
    return story


def ip_extras():
    """IPv4 options, IPv6 extension headers, fragments of both, an atomic fragment, SCTP and IGMP.

    Later fragments have no ports: they are a flow without ports of their own.
    """
    story, rng = Story("ip_extras", 33, ["flow"]), Random("ip_extras")
    record_route, router_alert = bytes([7, 7, 4, 0, 0, 0, 0]), bytes([148, 4, 0, 0])
    chains = [(hop_by_hop(),), (destination_options(),), (routing(SERVER6),)]
    chains.append((hop_by_hop(), routing(SERVER6), destination_options()))
    shapes = [partial(ipv4, options=record_route), *(partial(ipv6, extensions=chain) for chain in chains)]
    for i, ip in enumerate(shapes):
        client, server = (CLIENT6, SERVER6) if i else (CLIENT4, SERVER4)
        first = story.add(story.at(i), eth(ip(client, server, udp(41000 + i, SERVICE_PORT, b"question"))))
        expect_flow(story, (client, 41000 + i, server, SERVICE_PORT, "UDP"), [first])
        first = story.add(story.at(i + 0.1), eth(ip(client, server, tcp(41000 + i, 80, "S"))))
        expect_flow(story, (client, 41000 + i, server, 80, "TCP"), [first], tcp_flags_toserver=2)
    for client, server, cut in ((CLIENT4, SERVER4, ipv4_fragments), (CLIENT6, SERVER6, ipv6_fragments)):
        parts = cut(client, server, udp(42000, SERVICE_PORT, rng.randbytes(4000)), 1400, 77)
        marks = [story.add(story.at(10 + len(client)) + ms(i), eth(part)) for i, part in enumerate(parts)]
        expect_flow(story, (client, 42000, server, SERVICE_PORT, "UDP"), marks[:1])
        expect_flow(story, (client, None, server, None, "UDP"), marks[1:])
    (atomic,) = ipv6_fragments(CLIENT6, SERVER6, udp(42001, SERVICE_PORT, b"atomic"), 1400, 78)
    expect_flow(story, (CLIENT6, 42001, SERVER6, SERVICE_PORT, "UDP"), [story.add(story.at(30), eth(atomic))])
    chunk = story.add(story.at(31), eth(ipv4(CLIENT4, SERVER4, sctp(40900, 40901, b"data"))))
    expect_flow(story, (CLIENT4, 40900, SERVER4, 40901, "SCTP"), [chunk])
    report = story.add(story.at(32), eth(ipv4(CLIENT4, GROUP, igmp(GROUP), ttl=1, options=router_alert)))
    expect_flow(story, (CLIENT4, None, GROUP, None, "IGMP"), [report])
    return story


def outer(segment):
    return eth(ipv4(OUTER_A, OUTER_B, segment))


def outer6(segment):
    return eth(ipv6(OUTER6_A, OUTER6_B, segment))


TUNNELS = (  # wrapping, ends of the outer flow
    (lambda ip: outer(gre(ip)), (OUTER_A, None, OUTER_B, None, "GRE")),
    (lambda ip: outer(gre(ip, key=7, seq=1)), (OUTER_A, None, OUTER_B, None, "GRE")),
    (lambda ip: outer(gre(bridged(eth(ip)))), (OUTER_A, None, OUTER_B, None, "GRE")),
    (lambda ip: outer(ipip(ip)), (OUTER_A, None, OUTER_B, None, None)),
    (lambda ip: outer6(ipip(ip)), (OUTER6_A, None, OUTER6_B, None, None)),
    (lambda ip: outer(udp(50123, 4789, vxlan(99, eth(ip)))), (OUTER_A, 50123, OUTER_B, 4789, "UDP")),
    (lambda ip: outer(udp(50124, 6081, geneve(5, bridged(eth(ip)), OPTION))), (OUTER_A, 50124, OUTER_B, 6081, "UDP")),
    (lambda ip: outer(udp(2152, 2152, gtpu(0x1234, ip))), (OUTER_A, 2152, OUTER_B, 2152, "UDP")),
    (lambda ip: outer(udp(2152, 2152, gtpu(0x1235, ip, seq=9))), (OUTER_A, 2152, OUTER_B, 2152, "UDP")),
)


def tunnels():
    """Each tunnel with IPv4 and IPv6 inside, decoded one level in: the flows of the packets inside."""
    story = Story("tunnels", 34, ["flow"], options={"tunnels": True})
    talk = Talk(story)
    for wrap, _ in TUNNELS:
        for six in (False, True):
            talk.run(wrap, six=six)
    return story


def tunnels_outer():
    """The same capture as it is by default: the flows of the tunnels themselves."""
    inside = tunnels()
    story = Story("tunnels_outer", 34, ["flow"], write=None, file=inside.file)
    story.marks = inside.marks
    flows = {}
    for i, mark in enumerate(story.marks):
        ends = TUNNELS[i // 4][1]
        protocol = "IP-in-IP" if i // 2 % 2 == 0 else "IPv6"
        flows.setdefault((*ends[:4], ends[4] or protocol), []).append(mark)
    for ends, marks in flows.items():
        expect_flow(story, ends, marks)
    return story


CASES = (vlan_stacks, link_types, big_endian, ip_extras, tunnels, tunnels_outer)

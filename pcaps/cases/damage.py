"""Captures that are broken in some way: what can be read is read and counted. Exit 4 where a file stops short."""

import struct
from functools import partial
from random import Random

from pcaps.cases.flows import expect_flow
from pcaps.cases.loops import HOST4, MONITOR4, Echo
from pcaps.files import Interface, pcap, pcapng
from pcaps.packets import IPV4, IPV6, VLAN, Layer, destination_options, eth, ipv4, ipv6, patch, udp, vlan
from pcaps.story import SECOND_NS, Story, ms

A, B, A6, B6 = "192.0.2.90", "198.51.100.90", "2001:db8::90", "2001:db8:51::90"
ETH_BYTES, IP4_BYTES, RECORD_HEADER_BYTES = 14, 20, 16
YEAR_NS = 365 * 86400 * SECOND_NS
CUT_BYTES = 10


def numbered(story, count):
    """Datagrams of one flow, 10 ms apart."""
    return [story.add(story.at(i / 100), eth(ipv4(A, B, udp(42000, 42001, bytes(100))))) for i in range(count)]


def cut_short(name, hour, write, file=None):
    """Ten datagrams, the last of which the end of the file cuts off."""
    story = Story(name, hour, ["flow"], lambda records: write(records)[:-CUT_BYTES], file, exit=4, packets=9)
    expect_flow(story, (A, 42000, B, 42001, "UDP"), numbered(story, 10)[:9])
    return story


def damage_cut():
    """A pcap that ends inside its tenth record."""
    return cut_short("damage_cut", 40, pcap)


def damage_cut_ng():
    """A pcapng that ends inside the block of its tenth packet."""
    write = partial(pcapng, interfaces=(Interface(),), order=">")
    return cut_short("damage_cut_ng", 41, write, "damage_cut_ng.pcapng")


def damage_huge():
    """A record in the middle that claims to hold 4 GiB."""

    def write(records):
        at = len(pcap(records[:5]))
        return patch(pcap(records), at + 8, struct.pack("<II", 2**32 - 1, 2**32 - 1))

    story = Story("damage_huge", 42, ["flow"], write, exit=4, packets=5)
    expect_flow(story, (A, 42000, B, 42001, "UDP"), numbered(story, 10)[:5])
    return story


def damage_lengths():
    """Headers whose lengths are wrong or that the frame ends within; flows only where an IP header can be believed."""
    story, rng = Story("damage_lengths", 43, ["flow"]), Random("damage_lengths")
    good, good6 = ipv4(A, B, udp(43000, 43001, bytes(60))), ipv6(A6, B6, udp(43000, 43001, bytes(60)))
    no_flow = [
        b"",
        b"\x02" * 13,
        eth(Layer(b"", IPV4)),
        eth(Layer(b"\x00\x07", VLAN)),
        eth(vlan(1, Layer(b"", IPV6))),
        eth(patch(good, 0, b"\x44")),  # a header of 16 bytes
        eth(patch(good, 0, b"\x65")),  # version 6 in an IPv4 frame
        eth(patch(good, 2, b"\x00\x13")),  # total length below the header's
        eth(good)[: ETH_BYTES + IP4_BYTES - 1],
        eth(good6)[: ETH_BYTES + 39],
        rng.randbytes(12) + b"\x12\x34" + rng.randbytes(80),
    ]
    with_ports = [
        eth(patch(good, 2, b"\xff\xff")),  # total length beyond the frame
        eth(patch(good, IP4_BYTES + 4, b"\x00\x04")),  # UDP length below its header's
        eth(patch(good, IP4_BYTES + 4, b"\xff\xff")),
        eth(good)[: ETH_BYTES + IP4_BYTES + 6],
        eth(good) + b"\xaa" * 18,  # trailer
    ]
    without_ports = [eth(good)[: ETH_BYTES + IP4_BYTES + 3]]
    frames = [*no_flow, *with_ports, *without_ports]
    marks = [story.add(story.at(i), frame) for i, frame in enumerate(frames)]
    ported = marks[len(no_flow) : len(no_flow) + len(with_ports)]
    expect_flow(story, (A, 43000, B, 43001, "UDP"), ported)
    expect_flow(story, (A, None, B, None, "UDP"), marks[-1:])
    chain = eth(ipv6(A6, B6, udp(43000, 43001, bytes(60)), extensions=[destination_options()]))
    last = [story.add(story.at(30), patch(chain, ETH_BYTES + 41, b"\xff"))]  # an extension header of 2 KiB
    expect_flow(story, (A6, None, B6, None, "UDP"), last)
    return story


def damage_time():
    """A frame a year ahead, one at 1970 and one a minute late among round trips, which are measured all the same."""
    story = Story("damage_time", 44, ["icmp_loop"], sort=False)
    times = {2: story.start_ns + YEAR_NS, 4: 0, 6: story.at(-60)}
    for i in range(8):
        if i in times:
            story.add(times[i], eth(ipv4(A, B, udp(44000, 44001, b"astray"))))
        Echo(story, MONITOR4, HOST4, 77, i).round_trip(story.at(i), ms(15))
    return story


def damage_empty():
    """No packet at all."""
    return Story("damage_empty", 45, ["flow"])


CASES = (damage_cut, damage_cut_ng, damage_huge, damage_lengths, damage_time, damage_empty)

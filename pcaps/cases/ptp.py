"""PTP seen by a tap beside the slave (end to end) or the requester (peer to peer), whose clock is known to be off.

Every time follows from the truth: the path's delay, what transparent clocks on it added (their corrections) and the
tap's offset. So mean path delay and offset are exact.
"""

from typing import NamedTuple

from pcaps.messages import (
    ANNOUNCE,
    DELAY_RESP,
    FOLLOW_UP,
    MANAGEMENT,
    PDELAY_REQ,
    PDELAY_RESP,
    PDELAY_RESP_FOLLOW_UP,
    PTP_EVENT_PORT,
    PTP_GENERAL_PORT,
    PTP_GROUP4,
    PTP_GROUP6,
    PTP_MAC,
    PTP_PEER_GROUP4,
    PTP_PEER_GROUP6,
    PTP_PEER_MAC,
    SIGNALING,
    TWO_STEP,
    UNICAST,
    Clock,
    announce,
    delay_req,
    delay_resp,
    follow_up,
    management,
    pdelay_req,
    pdelay_resp,
    pdelay_resp_follow_up,
    signaling,
    sync,
)
from pcaps.packets import eth, ipv4, ipv6, patch, udp, vlan
from pcaps.story import SECOND_NS, Story, ms, us

GENERAL = (FOLLOW_UP, DELAY_RESP, PDELAY_RESP_FOLLOW_UP, ANNOUNCE, SIGNALING, MANAGEMENT)
PEER = (PDELAY_REQ, PDELAY_RESP, PDELAY_RESP_FOLLOW_UP)
TIMEOUT_NS = 4 * SECOND_NS  # of a request without response
CORRECTION_AT, CORRECTION_TOO_LARGE = 8, b"\x7f" + b"\xff" * 7
UDP6_PADDING_BYTES = 2  # follow the message (IEEE 1588-2019, annex D)


class Host(NamedTuple):
    clock: Clock
    mac: bytes
    ip4: str
    ip6: str


def host(number, domain=0, minor=0):
    """The `number`-th PTP host, its identity made of its MAC as IEEE 1588-2008 has it."""
    mac = bytes([2, 0, 0, 0, 1, number])
    identity = int.from_bytes(mac[:3] + b"\xff\xfe" + mac[3:], "big")
    return Host(Clock(identity, 1, domain, minor), mac, f"192.0.2.{number}", f"2001:db8::{number:x}")


class Net:
    """How messages travel: "udp4", "udp6", "l2", "vlan" (l2 with a tag) or "unicast" (udp4)."""

    def __init__(self, story, transport):
        self.story, self.transport = story, transport

    def frame(self, message, source, target):
        kind = message[0] & 15
        port = PTP_GENERAL_PORT if kind in GENERAL else PTP_EVENT_PORT
        peer = kind in PEER
        if self.transport in ("l2", "vlan"):
            layer = vlan(42, message) if self.transport == "vlan" else message
            return eth(layer, source.mac, PTP_PEER_MAC if peer else PTP_MAC)
        if self.transport == "udp6":
            payload = message + bytes(UDP6_PADDING_BYTES)
            group = PTP_PEER_GROUP6 if peer else PTP_GROUP6
            return eth(ipv6(source.ip6, group, udp(port, port, payload), ttl=1 if peer else 64), source.mac)
        group = target.ip4 if self.transport == "unicast" else PTP_PEER_GROUP4 if peer else PTP_GROUP4
        return eth(ipv4(source.ip4, group, udp(port, port, bytes(message)), ttl=1 if peer else 64), source.mac)

    def ends(self, source, target, group4=PTP_GROUP4, general=True):
        """Ends of an event that a message of `source` finishes; none on Ethernet."""
        if self.transport in ("l2", "vlan"):
            return ()
        port = PTP_GENERAL_PORT if general else PTP_EVENT_PORT
        if self.transport == "udp6":
            return source.ip6, port, PTP_PEER_GROUP6 if group4 == PTP_PEER_GROUP4 else PTP_GROUP6, port, "UDP"
        return source.ip4, port, target.ip4 if self.transport == "unicast" else group4, port, "UDP"

    def send(self, ts_ns, message, source, target):
        return self.story.add(ts_ns, self.frame(message, source, target))


class Truth(NamedTuple):
    """What the network does; delays as the tap sees them."""

    down_ns: int = us(40)  # path delay master -> tap without what transparent clocks add
    up_ns: int = us(40)
    tap_ns: int = 200_000_000  # the tap's clock minus the master's
    sync_ns: float = 0  # added on the way: correction in the Sync
    follow_up_ns: float = 0  # the same, told in the Follow_Up
    request_ns: float = 0  # correction of the Delay_Req: the master copies it into the Delay_Resp

    def measured(self):
        """What the times and corrections must give; the tap sees whole nanoseconds."""
        fraction = any(ns % 1 for ns in (self.sync_ns, self.follow_up_ns, self.request_ns))
        mean, offset = (self.down_ns + self.up_ns) // 2, self.tap_ns + (self.down_ns - self.up_ns) // 2
        near = {"ptp.mean_path_delay_ns": 1, "ptp.offset_ns": 1} if fraction else None
        return {"mean_path_delay_ns": mean, "offset_ns": offset}, near


def scaled(ns):
    """As a correctionField holds it: 2**-16 ns."""
    return round(ns * 65536)


class EndToEnd:
    """One exchange of a slave with its master, the tap at the slave."""

    def __init__(self, net, master, slave, truth=Truth(), two_step=True):
        self.net, self.master, self.slave, self.truth, self.two_step = net, master, slave, truth, two_step
        self.unicast = UNICAST if net.transport == "unicast" else 0
        self.t1 = self.t2 = self.t3 = self.t4 = self.sync_id = None

    def sync(self, t1, seq, late_ns=us(90), with_follow_up=True):
        """Sync, and its Follow_Up `late_ns` after it, or before it where that is negative."""
        truth, me = self.truth, self.master
        self.t1, self.t2 = t1, t1 + truth.tap_ns + truth.down_ns + int(truth.sync_ns + truth.follow_up_ns)
        self.sync_id = seq % 65536
        flags = self.unicast | (TWO_STEP if self.two_step else 0)
        self.net.send(self.t2, sync(me.clock, seq, 0 if self.two_step else t1, truth.sync_ns, flags), me, self.slave)
        if self.two_step and with_follow_up:
            message = follow_up(me.clock, seq, t1, truth.follow_up_ns, self.unicast)
            self.net.send(self.t2 + late_ns, message, me, self.slave)

    def request(self, t3, seq):
        self.t3 = t3
        return self.net.send(t3, delay_req(self.slave.clock, seq, flags=self.unicast), self.slave, self.master)

    def respond(self, seq, after_ns=us(300)):
        truth = self.truth
        self.t4 = self.t3 - truth.tap_ns + truth.up_ns + int(truth.request_ns)
        message = delay_resp(self.master.clock, seq, self.t4, self.slave.clock, truth.request_ns, self.unicast)
        return self.net.send(self.t3 + after_ns, message, self.master, self.slave)

    def run(self, t1, sync_seq, request_seq):
        """The whole exchange, and the event that it gives."""
        self.sync(t1, sync_seq)
        self.request(self.t2 + ms(10), request_seq)
        self.expect(self.respond(request_seq), request_seq)

    def body(self, seq):
        truth, master, slave = self.truth, self.master.clock, self.slave.clock
        corrections = {"sync_correction": scaled(truth.sync_ns), "follow_up_correction": scaled(truth.follow_up_ns)}
        times = {"t1_ns": self.t1, "t2_ns": self.t2, "t3_ns": self.t3, "t4_ns": self.t4}
        return {
            **who("e2e", master, slave, seq),
            **{"sync_id": self.sync_id, "two_step": self.two_step},
            **times,
            **corrections,
            "response_correction": scaled(truth.request_ns),
        }

    def expect(self, mark, seq):
        measured, near = self.truth.measured()
        ends = self.net.ends(self.master, self.slave)
        self.net.story.expect("ptp.delay", mark, ends, near=near, ptp={**self.body(seq), **measured})


def who(mechanism, master, slave, seq):
    names = {"master_clock": f"{master.identity:016x}", "slave_clock": f"{slave.identity:016x}"}
    return {"mechanism": mechanism, "domain": slave.domain, **names, "request_id": seq % 65536}


class PeerToPeer:
    """Pdelay between two neighbours; the tap stands at the requester."""

    def __init__(self, net, requester, responder, truth=Truth(), two_step=True):
        self.net, self.me, self.peer, self.truth, self.two_step = net, requester, responder, truth, two_step

    def run(self, t1, seq, turn_ns=us(250)):
        """t1 is the tap's time of the request, `turn_ns` what the responder needs to answer."""
        me, peer, truth = self.me, self.peer, self.truth
        t2 = t1 - truth.tap_ns + truth.up_ns
        t3 = t2 + turn_ns
        t4 = t3 + truth.tap_ns + truth.down_ns
        self.net.send(t1, pdelay_req(me.clock, seq), me, peer)
        mark = self.answer(t2, t3, t4, seq)
        measured, _ = truth.measured()
        body = {**who("p2p", peer.clock, me.clock, seq), "two_step": self.two_step, "t1_ns": t1, "t4_ns": t4}
        body.update(measured, response_correction=0 if self.two_step else scaled(turn_ns))
        if self.two_step:
            body.update(t2_ns=t2, t3_ns=t3)
        else:
            del body["offset_ns"]  # the responder tells no time
        self.net.story.expect("ptp.delay", mark, self.net.ends(peer, me, PTP_PEER_GROUP4, self.two_step), ptp=body)

    def answer(self, t2, t3, t4, seq):
        """Pdelay_Resp and, in two steps, its Follow_Up; the last one's mark."""
        me, peer = self.me, self.peer
        if not self.two_step:
            return self.net.send(t4, pdelay_resp(peer.clock, seq, 0, me.clock, t3 - t2), peer, me)
        self.net.send(t4, pdelay_resp(peer.clock, seq, t2, me.clock, flags=TWO_STEP), peer, me)
        return self.net.send(t4 + us(80), pdelay_resp_follow_up(peer.clock, seq, t3, me.clock), peer, me)


def ptp_transports():
    """Two-step, both mechanisms, on each transport, domain by domain; Announce, Signaling and Management beside."""
    story = Story("ptp_transports", 11, ["ptp"])
    for domain, transport in enumerate(("udp4", "udp6", "l2", "vlan", "unicast")):
        net, base = Net(story, transport), story.at(domain * 20)
        master, slave = host(1, domain), host(2, domain)
        for i in range(4):
            begin = base + i * SECOND_NS
            net.send(begin - ms(3), announce(master.clock, i), master, slave)
            truth = Truth(us(40 + i), us(44 + i), ms(200))
            EndToEnd(net, master, slave, truth).run(begin, i, 100 + i)
            PeerToPeer(net, slave, master, truth).run(begin + ms(500), i)
        net.send(base + ms(700), signaling(slave.clock, 0, master.clock), slave, master)
        net.send(base + ms(710), management(slave.clock, 0, master.clock), slave, master)
    return story


def ptp_one_step():
    """One-step: t1 is in the Sync; in peer delay the turnaround time is in the correction of the Pdelay_Resp."""
    story = Story("ptp_one_step", 12, ["ptp"])
    net = Net(story, "udp4")
    master, slave = host(3), host(4)
    for i in range(4):
        begin = story.at(i)
        EndToEnd(net, master, slave, Truth(us(60), us(60), -ms(3)), two_step=False).run(begin, i, i)
        PeerToPeer(net, slave, master, Truth(us(7), us(7), -ms(3)), two_step=False).run(begin + ms(500), i)
    return story


def ptp_corrections():
    """Transparent clocks on the way: corrections in Sync, Follow_Up and Delay_Resp, fractions of a nanosecond too."""
    story = Story("ptp_corrections", 13, ["ptp"])
    net = Net(story, "l2")
    master, slave = host(5), host(6)
    ways = ((0, 0, 0), (1000, 0, 0), (0, 3000, 0), (0, 0, 2000), (123456, 7890, 654320), (2.5, 0.25, 1.125))
    for i, (in_sync, in_follow_up, in_response) in enumerate(ways):
        truth = Truth(us(30), us(30), ms(5), in_sync, in_follow_up, in_response)
        EndToEnd(net, master, slave, truth).run(story.at(i), i, i)
    return story


def ptp_order():
    """Follow_Up before its Sync or after the Delay_Resp; numbers that wrap; the latest of several Syncs counts."""
    story = Story("ptp_order", 14, ["ptp"])
    net = Net(story, "udp4")
    master, slave = host(7), host(8)
    for i in range(6):
        exchange = EndToEnd(net, master, slave, Truth(us(50), us(50), ms(1)))
        begin, seq = story.at(i), 65533 + i
        exchange.sync(begin - ms(250), 2 * seq)
        exchange.sync(begin, 2 * seq + 1, us(-90) if i % 2 else us(90))
        exchange.request(exchange.t2 + ms(20), seq)
        exchange.expect(exchange.respond(seq), seq)
    late = EndToEnd(net, master, host(9), Truth(us(50), us(50), ms(1)))
    late.sync(story.at(20), 500, with_follow_up=False)
    late.request(late.t2 + ms(20), 7)
    late.respond(7)
    message = follow_up(master.clock, 500, late.t1)
    late.expect(net.send(late.t2 + ms(60), message, master, slave), 7)
    return story


def ptp_crowd():
    """Two domains, two masters, five slaves whose exchanges overlap and use the same numbers; half speak PTPv2.1."""
    story = Story("ptp_crowd", 15, ["ptp"])
    for domain in (0, 1):
        net = Net(story, "udp4")
        master = host(20 + domain, domain, minor=domain)
        slaves = [host(30 + s, domain, minor=s % 2) for s in range(5)]
        for i in range(3):
            exchanges = [EndToEnd(net, master, s, Truth(us(40), us(40 + 2 * n), ms(1))) for n, s in enumerate(slaves)]
            exchanges[0].sync(story.at(i + domain / 100), i)
            for n, exchange in enumerate(exchanges):
                exchange.t1, exchange.t2, exchange.sync_id = exchanges[0].t1, exchanges[0].t2, i
                exchange.request(exchange.t2 + ms(20) + us(30 * n), i)
                exchange.expect(exchange.respond(i, us(400 - 20 * n)), i)
    return story


def given_up(net, slave, mark, seq, reason, timer=False, mechanism="e2e"):
    """Expect an exchange to be given up: at once, or when its timeout comes."""
    ts = mark.ts + TIMEOUT_NS if timer else mark.ts
    clock = slave.clock
    body = {"mechanism": mechanism, "domain": clock.domain, "slave_clock": f"{clock.identity:016x}"}
    body.update(request_id=seq, reason=reason, exchanges=1)
    net.story.expect("ptp.incomplete", mark, (), ts, ts_ns=ts, ptp=body)


def ptp_given_up():
    """No response, no Follow_Up, no Sync, no request, a delay below zero, a correction too large to represent."""
    story = Story("ptp_given_up", 16, ["ptp"])
    net = Net(story, "udp4")
    pairs = [EndToEnd(net, host(40, n), host(41, n)) for n in range(6)]
    silent, half, early, stranger, negative, huge = pairs
    silent.sync(story.at(0), 1)
    given_up(net, silent.slave, silent.request(silent.t2 + ms(10), 1), 1, "no_response", timer=True)
    half.sync(story.at(10), 1, with_follow_up=False)
    request = half.request(half.t2 + ms(10), 2)
    half.respond(2)
    given_up(net, half.slave, request, 2, "no_follow_up", timer=True)
    early.request(story.at(20), 3)
    given_up(net, early.slave, early.respond(3), 3, "no_sync")
    stranger.t3 = story.at(30)
    given_up(net, stranger.slave, stranger.respond(4), 4, "no_request")
    negative.truth = Truth(us(40), us(-100))
    negative.sync(story.at(40), 1)
    negative.request(negative.t2 + ms(10), 5)
    given_up(net, negative.slave, negative.respond(5), 5, "negative_delay")
    huge.sync(story.at(50), 1)
    huge.request(huge.t2 + ms(10), 6)
    message = delay_resp(huge.master.clock, 6, huge.t3, huge.slave.clock)
    message = patch(message, CORRECTION_AT, CORRECTION_TOO_LARGE)
    given_up(net, huge.slave, net.send(huge.t3 + us(300), message, huge.master, huge.slave), 6, "correction_too_large")
    me, peer = host(43), host(44)
    request = net.send(story.at(60), pdelay_req(me.clock, 7), me, peer)
    net.send(story.at(60) + us(400), pdelay_resp(peer.clock, 7, story.at(60), me.clock, flags=TWO_STEP), peer, me)
    given_up(net, me, request, 7, "no_follow_up", timer=True, mechanism="p2p")
    silent.run(story.at(70), 9, 9)
    return story


CASES = (ptp_transports, ptp_one_step, ptp_corrections, ptp_order, ptp_crowd, ptp_given_up)

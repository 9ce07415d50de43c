"""Echo requests and replies: round trips, loops that bring a request home, and what goes wrong with them."""

from pcaps.packets import eth, icmp_echo, icmpv6_echo, ipv4, ipv6
from pcaps.story import MILLISECOND_NS, SECOND_NS, Story, ms

PROTO4, PROTO6 = "ICMP", "IPv6-ICMP"
TIMEOUT_NS = 5 * SECOND_NS
LOOP_MAX_NS = 900 * MILLISECOND_NS  # until then a reply could still show that a request seen again is no loop
TIMER_NS = 20 * MILLISECOND_NS  # no deadline is met later than this
MONITOR4, HOST4, HELPER4 = "192.0.2.1", "198.51.100.1", "198.51.100.99"
MONITOR6, HOST6, HELPER6 = "2001:db8::1", "2001:db8:51::1", "2001:db8:51::99"
TTL_OUT, TTL_HOME = 64, 60
TOS_VALUES = (0x00, 0x04, 0x20, 0xB8)


class Echo:
    """One request's key; its frames and events."""

    def __init__(self, story, src, dst, ident, seq, tos=0):
        self.story, self.src, self.dst = story, src, dst
        self.ident, self.seq, self.tos = ident, seq, tos
        self.six = ":" in src
        self.ends = (src, None, dst, None, PROTO6 if self.six else PROTO4)

    def frame(self, request, src, dst, ttl):
        payload = bytes(range(56))
        if self.six:
            message = icmpv6_echo(128 if request else 129, self.ident, self.seq, payload)
            return eth(ipv6(src, dst, message, tos=self.tos, ttl=ttl))
        return eth(ipv4(src, dst, icmp_echo(8 if request else 0, self.ident, self.seq, payload), tos=self.tos, ttl=ttl))

    def request(self, ts_ns, ttl=TTL_OUT):
        return self.story.add(ts_ns, self.frame(True, self.src, self.dst, ttl))

    def reply(self, ts_ns):
        return self.story.add(ts_ns, self.frame(False, self.dst, self.src, TTL_HOME))

    def swapped(self, ts_ns):
        """The request after the last switch swapped its addresses, the type still a request's."""
        return self.story.add(ts_ns, self.frame(True, self.dst, self.src, TTL_HOME))

    def expect(self, event, mark, known_ns=None, ts_ns=None, **fields):
        body = {"icmp_id": self.ident, "icmp_seq": self.seq, "tos": self.tos, **fields}
        ts_ns = mark.ts if ts_ns is None else ts_ns
        self.story.expect(f"icmp.{event}", mark, self.ends, known_ns, ts_ns=ts_ns, icmp_loop=body)

    def unanswered(self, ts_ns):
        due = ts_ns + TIMEOUT_NS
        self.expect("unanswered", self.request(ts_ns), due, due, copies=0, reason="timeout", requests=1)

    def round_trip(self, ts_ns, rtt_ns):
        self.request(ts_ns)
        self.expect("rtt", self.reply(ts_ns + rtt_ns), rtt_ns=rtt_ns, copies=0, late=False, return_ttl=TTL_HOME)

    def loop(self, ts_ns, way, loop_ns):
        """The request leaves and comes home in one of three ways; known at once only where it comes as a reply."""
        first = self.request(ts_ns)
        comes = {"rewritten": self.reply, "swapped": self.swapped, "unmodified": self.request}[way]
        home = comes(ts_ns + loop_ns)
        last = {"rewritten": home.ts, "swapped": first.ts + LOOP_MAX_NS, "unmodified": home.ts + LOOP_MAX_NS}[way]
        copies = 0 if way == "rewritten" else 1
        self.expect("loop", home, last, way=way, loop_ns=loop_ns, copies=copies, return_tos=self.tos)


def echo_pairs():
    """Ten round trips of each family through one monitor, several in flight at once, answers out of order."""
    story = Story("echo_pairs", 6, ["icmp_loop"])
    for i in range(10):
        Echo(story, MONITOR4, HOST4, 0x1234, i).round_trip(story.at(i / 10), ms(250 - 20 * i))
        Echo(story, MONITOR6, HOST6, 0x1234, i).round_trip(story.at(0.05 + i / 10), ms(3 + 0.125 * i))
    return story


def echo_tos():
    """Four monitoring flows with equal endpoints and numbers, told apart by their ToS alone, all in flight at once."""
    story = Story("echo_tos", 7, ["icmp_loop"], options={"icmp_loop": {"tos_in_key": True}})
    for seq in range(5):
        for flow, tos in enumerate(TOS_VALUES):
            echo = Echo(story, MONITOR4, HELPER4, 0x2000, seq, tos)
            echo.round_trip(story.at(seq + flow / 1000), ms(9 - flow / 2))
    return story


def loops():
    """Monitoring flows, marked by a ToS, that travel a loop: the last switch swaps the addresses and rewrites the type,
    or swaps only, or does nothing at all, so that the request itself comes home. A plain ping is no loop."""
    story = Story("loops", 8, ["icmp_loop"], options={"icmp_loop": {"monitoring": "marked"}})
    for seq in range(4):
        for monitor, helper, ident in ((MONITOR4, HELPER4, 1), (MONITOR6, HELPER6, 2)):
            begin = seq * 2 + ident / 10
            Echo(story, monitor, helper, ident, seq).round_trip(story.at(begin), ms(7.5))
            for i, way in enumerate(("rewritten", "swapped", "unmodified"), 1):
                echo = Echo(story, monitor, helper, ident + 16 * i, seq, TOS_VALUES[i])
                echo.loop(story.at(begin + i / 50), way, ms(9.25 + i))
    return story


def loops_unmarked():
    """By default a ToS says nothing: what comes home as a reply is a round trip."""
    story = Story("loops_unmarked", 9, ["icmp_loop"])
    for seq in range(4):
        echo = Echo(story, MONITOR4, HELPER4, 33, seq, TOS_VALUES[1])
        echo.round_trip(story.at(seq), ms(9.25))
    return story


def echo_trouble():
    """Answered twice, captured twice, an answer to nothing, no answer, one after the timeout."""
    story = Story("echo_trouble", 10, ["icmp_loop"])
    good = Echo(story, MONITOR4, HOST4, 1, 1)
    good.round_trip(story.at(0), ms(20))
    good.expect("duplicate", good.reply(story.at(0.03)), what="reply", copies=1, gap_ns=ms(10))
    doubled = Echo(story, MONITOR4, HOST4, 1, 3)
    doubled.request(story.at(0.5))
    copy = doubled.request(story.at(0.5) + ms(0.2))
    reply = doubled.reply(copy.ts + ms(20))
    doubled.expect("rtt", reply, rtt_ns=ms(20), copies=1, late=False)
    doubled.expect("duplicate", copy, reply.ts + TIMER_NS, what="request", copies=1, gap_ns=ms(0.2))
    Echo(story, MONITOR4, HOST4, 1, 2).reply(story.at(1))
    Echo(story, MONITOR4, HOST4, 2, 0).unanswered(story.at(2))
    Echo(story, MONITOR6, HOST6, 2, 1).unanswered(story.at(3))
    late = Echo(story, MONITOR4, HOST4, 3, 0)
    late.unanswered(story.at(5))
    late.expect("rtt", late.reply(story.at(16)), rtt_ns=11 * SECOND_NS, copies=0, late=True)
    Echo(story, MONITOR4, HOST4, 4, 0).round_trip(story.at(30), ms(1))
    return story


CASES = (echo_pairs, echo_tos, loops, loops_unmarked, echo_trouble)

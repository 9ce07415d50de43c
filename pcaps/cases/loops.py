"""Echo requests and replies: round trips, loops that bring a request home, and what goes wrong with them."""

from pcaps.packets import eth, icmp_echo, icmpv6_echo, ipv4, ipv6
from pcaps.story import SECOND_NS, Story, ms

PROTO4, PROTO6 = "ICMP", "IPv6-ICMP"
TIMEOUT_S = 10
MONITOR4, HOST4, HELPER4 = "192.0.2.1", "198.51.100.1", "198.51.100.99"
MONITOR6, HOST6, HELPER6 = "2001:db8::1", "2001:db8:51::1", "2001:db8:51::99"


class Echo:
    """One request's key; its frames and events."""

    def __init__(self, story, src, dst, ident, seq, tos=0):
        self.story, self.src, self.dst = story, src, dst
        self.ident, self.seq, self.tos = ident, seq, tos
        self.six = ":" in src
        self.ends = (src, None, dst, None, PROTO6 if self.six else PROTO4)

    def frame(self, request, src, dst, ttl=64):
        payload = bytes(range(56))
        if self.six:
            message = icmpv6_echo(128 if request else 129, self.ident, self.seq, payload)
            return eth(ipv6(src, dst, message, tos=self.tos, ttl=ttl))
        return eth(ipv4(src, dst, icmp_echo(8 if request else 0, self.ident, self.seq, payload), tos=self.tos, ttl=ttl))

    def request(self, ts_ns, ttl=64):
        return self.story.add(ts_ns, self.frame(True, self.src, self.dst, ttl))

    def reply(self, ts_ns, ttl=60):
        return self.story.add(ts_ns, self.frame(False, self.dst, self.src, ttl))

    def swapped(self, ts_ns, ttl=60):
        """The request after the last switch swapped its addresses, the type still a request's."""
        return self.story.add(ts_ns, self.frame(True, self.dst, self.src, ttl))

    def expect(self, what, mark, known_ns=None, **fields):
        body = {"icmp_id": self.ident, "icmp_seq": self.seq, "tos": self.tos, **fields}
        self.story.expect(f"icmp.{what}", mark, self.ends, known_ns, icmp_loop=body)

    def unanswered(self, ts_ns):
        request = self.request(ts_ns)
        self.expect("unanswered", request, known_ns=ts_ns + round(TIMEOUT_S * SECOND_NS), request_ns=ts_ns)

    def round_trip(self, ts_ns, rtt_ns):
        request = self.request(ts_ns)
        self.expect("rtt", self.reply(ts_ns + rtt_ns), rtt_ns=rtt_ns, request_ns=request.ts)


def echo_pairs():
    """Ten round trips of each family through one monitor, several in flight at once, answers out of order."""
    story = Story("echo_pairs", 6, ["icmp_loop"])
    for i in range(10):
        Echo(story, MONITOR4, HOST4, 0x1234, i).round_trip(story.at(i / 10), ms(250 - 20 * i))
        Echo(story, MONITOR6, HOST6, 0x1234, i).round_trip(story.at(0.05 + i / 10), ms(3 + 0.125 * i))
    return story


def echo_tos():
    """Four monitoring flows with equal endpoints, told apart by their ToS; each carries its ToS in the answer."""
    story = Story("echo_tos", 7, ["icmp_loop"])
    for seq in range(5):
        for flow, tos in enumerate((0x00, 0x04, 0x20, 0xB8)):
            echo = Echo(story, MONITOR4, HELPER4, 0x2000 + flow, seq, tos)
            echo.round_trip(story.at(seq + flow / 1000), ms(4 + flow))
    return story


def loops():
    """Monitoring flows that travel a loop: the last switch swaps the addresses and rewrites the type, or swaps only, or does
    nothing at all, so that the request itself comes home."""
    story = Story("loops", 8, ["icmp_loop"])
    for seq in range(4):
        for monitor, helper, ident in ((MONITOR4, HELPER4, 1), (MONITOR6, HELPER6, 2)):
            rewritten = Echo(story, monitor, helper, ident, seq, 0x10)
            rewritten.round_trip(story.at(seq + ident / 10), ms(7.5))
            for what, tos in (("swapped", 0x14), ("request", 0x18)):
                echo = Echo(story, monitor, helper, ident + tos, seq, tos)
                begin = story.at(seq + ident / 10 + tos / 1000)
                first, home = echo.request(begin), getattr(echo, what)(begin + ms(9.25))
                echo.expect("loop", home, rtt_ns=ms(9.25), request_ns=first.ts)
    return story


def echo_trouble():
    """No answer, an answer twice, an answer to nothing, one after the timeout."""
    story = Story("echo_trouble", 9, ["icmp_loop"])
    good = Echo(story, MONITOR4, HOST4, 1, 1)
    good.round_trip(story.at(0), ms(20))
    good.expect("duplicate", good.reply(story.at(0.03)), request_ns=story.at(0))
    Echo(story, MONITOR4, HOST4, 1, 2).reply(story.at(1))
    for seq, silent in enumerate((Echo(story, MONITOR4, HOST4, 2, 0), Echo(story, MONITOR6, HOST6, 2, 1))):
        silent.unanswered(story.at(2 + seq))
    late = Echo(story, MONITOR4, HOST4, 3, 0)
    late.unanswered(story.at(5))
    late.reply(story.at(5 + TIMEOUT_S + 1))
    Echo(story, MONITOR4, HOST4, 4, 0).round_trip(story.at(30), ms(1))
    return story


CASES = (echo_pairs, echo_tos, loops, echo_trouble)

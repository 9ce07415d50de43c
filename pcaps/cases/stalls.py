"""IQN: stalls that a user's browser signals in the flow of the API host, beside the flow that carries the video.

A signal is a burst of four short-header datagrams whose frame on Ethernet and IPv4 has 1180 to 1288 bytes, every 200 ms
while the player stands still. Truth is the time during which it stands still.
"""

from functools import partial
from random import Random

from pcaps.files import pcap
from pcaps.messages import quic_long, quic_short
from pcaps.packets import eth, ipv4, ipv6, tcp, udp, vlan
from pcaps.story import MILLISECOND_NS, Story, ms

P_NS = 200 * MILLISECOND_NS  # time between two screenshots
OVERHEAD_BYTES = 42  # Ethernet, IPv4 and UDP headers: from frame length to datagram
CANDIDATE_BYTES = (1180, 1288)  # frame length
BULK_BYTES = 1292  # frame length of full-size video datagrams
V6_EXTRA_BYTES = 20  # sizes that are in range whether or not IPv6's longer header counts
TOLERANCE_NS = 120 * MILLISECOND_NS  # p/2 before a screenshot, p/2 after it, and the bursts' own spread


class Path:
    """Server, client and client port of one QUIC flow, and how its datagrams are wrapped."""

    def __init__(self, story, rng, server, client, port, wrap=eth):
        self.story, self.rng, self.wrap = story, rng, wrap
        self.server, self.client, self.port = server, client, port
        self.ip = ipv6 if ":" in server else ipv4
        self.ends = (server, 443, client, port, "UDP")
        self.largest_bytes = CANDIDATE_BYTES[1] - (V6_EXTRA_BYTES if ":" in server else 0)

    def down(self, ts_ns, payload):
        packet = self.ip(self.server, self.client, udp(443, self.port, payload))
        return self.story.add(ts_ns, self.wrap(packet))

    def up(self, ts_ns, payload):
        packet = self.ip(self.client, self.server, udp(self.port, 443, payload))
        return self.story.add(ts_ns, self.wrap(packet))

    def short(self, ts_ns, frame_bytes):
        """A 1-RTT datagram to the client, sized as if it went over Ethernet and IPv4."""
        return self.down(ts_ns, quic_short(self.rng, frame_bytes - OVERHEAD_BYTES))

    def handshake(self, ts_ns, size=1200):
        """Padded long-header flights, four datagrams of candidate size within 1 ms from the server."""
        self.up(ts_ns, quic_long(self.rng, size))
        for i in range(4):
            self.down(ts_ns + ms(20 + 0.2 * i), quic_long(self.rng, size, 0 if i == 0 else 2))
        self.up(ts_ns + ms(21), quic_long(self.rng, size, 2))

    def bulk(self, ts_ns, count, frame_bytes=BULK_BYTES):
        """A chunk: `count` full-size datagrams 1 ms apart, a last one that is not full, an acknowledgement for ten."""
        for i in range(count):
            self.short(ts_ns + ms(i), frame_bytes)
            if i % 10 == 9:
                self.up(ts_ns + ms(i + 0.3), quic_short(self.rng, 33))
        self.short(ts_ns + ms(count), self.rng.randrange(300, 1000))

    def burst(self, ts_ns, sizes, lost=None):
        """Requests and the answers of one screenshot, under 5 ms from first to last."""
        marks = []
        for i, frame_bytes in enumerate(sizes):
            self.up(ts_ns - ms(15) + ms(i), quic_short(self.rng, 180))
            ts = ts_ns + ms(i * 1.1) + self.rng.randrange(200_000)
            if i != lost:
                marks.append(self.short(ts, frame_bytes))
        return marks

    def stall(self, begin_ns, end_ns):
        """Bursts from begin to end; the events follow."""
        marks = []
        ts = begin_ns + self.rng.randrange(ms(20), P_NS - ms(20))
        while ts <= end_ns or not marks:
            sizes = [self.rng.randint(CANDIDATE_BYTES[0], self.largest_bytes) for _ in range(4)]
            lost = self.rng.choice([None] * 5 + [0, 1, 2, 3]) if marks else None
            marks += self.burst(ts, sizes, lost)
            ts += P_NS + self.rng.randrange(-ms(15), ms(15))
        self.expect(marks, begin_ns, end_ns)

    def expect(self, marks, begin_ns, end_ns):
        """The truth is when the player stood still; screenshots blur it by up to p."""
        near = {"iqn.start_ns": TOLERANCE_NS}
        self.told("iqn.stall_start", marks[3], marks[3].ts, near, start_ns=begin_ns)
        near.update({"iqn.end_ns": TOLERANCE_NS, "iqn.duration_ns": 2 * TOLERANCE_NS, "iqn.candidates": 4})
        times = {"start_ns": begin_ns, "end_ns": end_ns, "duration_ns": end_ns - begin_ns}
        self.told("iqn.stall_end", marks[-1], marks[-1].ts + 4 * P_NS, near, **times, candidates=len(marks))

    def told(self, event_type, mark, known_ns, near, **fields):
        self.story.expect(event_type, mark, self.ends, known_ns, dict(near), ts_ns=None, pcap_cnt=None, iqn=fields)


def session(story, rng, server, video, client, wrap=eth, begin_s=0.0):
    """A page and a player: the API flow with 40 full-size datagrams, the video flow with a chunk every 2 s for 30 s."""
    api = Path(story, rng, server, client, 50001, wrap)
    media = Path(story, rng, video, client, 50002, wrap)
    api.handshake(story.at(begin_s))
    api.bulk(story.at(begin_s + 0.1), 40)
    media.handshake(story.at(begin_s + 0.5))
    for chunk in range(15):
        media.bulk(story.at(begin_s + 1 + 2 * chunk), 24)
    return api


def stalls_ipv4():
    """Stalls of 0.15 to 3.4 s: a single burst, two stalls 1.5 s apart, lost answers, one that nothing follows."""
    return stalled_client(Story("stalls_ipv4", 0, ["iqn"]))


def stalled_client(story):
    rng = Random("stalls_ipv4")
    api = session(story, rng, "203.0.113.10", "203.0.113.20", "192.0.2.10")
    for begin, end in [(4, 5.2), (9, 9.15), (12, 15.4), (17, 17.7), (19.2, 20.1), (26, 28.6)]:
        api.stall(story.at(begin), story.at(end))
    return story


def stalls_ipv6():
    """The same sizes over IPv6, where the frames are 20 bytes longer; two clients stall at the same time."""
    story, rng = Story("stalls_ipv6", 1, ["iqn"]), Random("stalls_ipv6")
    for client, begin in (("2001:db8:1::10", 6.0), ("2001:db8:1::11", 6.4)):
        api = session(story, rng, "2001:db8:443::10", "2001:db8:443::20", client)
        api.stall(story.at(begin), story.at(begin + 2.5))
    return story


def stalls_snap96():
    """The first capture again, cut to 96 bytes a frame: the lengths on the wire tell the same."""
    return stalled_client(Story("stalls_snap96", 5, ["iqn"], partial(pcap, unit="ns", snaplen=96)))


def stalls_vlan():
    """The same behind an 802.1Q tag, where the frames are 4 bytes longer."""
    story, rng = Story("stalls_vlan", 2, ["iqn"]), Random("stalls_vlan")
    tagged = lambda packet: eth(vlan(100, packet))  # noqa: E731
    api = session(story, rng, "203.0.113.10", "203.0.113.20", "192.0.2.10", tagged)
    api.stall(story.at(5), story.at(7))
    api.stall(story.at(11), story.at(11.9))
    return story


def stalls_edges():
    """Bursts at the size range's two ends count; one byte beyond, to the server, in TCP, or three a second do not."""
    story, rng = Story("stalls_edges", 3, ["iqn"]), Random("stalls_edges")
    low, high = CANDIDATE_BYTES
    clients = ("192.0.2.20", "192.0.2.21", "192.0.2.22", "192.0.2.23", "192.0.2.24")
    flows = [session(story, rng, "203.0.113.10", "203.0.113.20", client) for client in clients]
    inside, outside, upward, segments, sparse = flows
    marks = []
    for at in (5, 5.2, 5.4):
        marks += inside.burst(story.at(at), (low, high, low, high))
        outside.burst(story.at(at), (low - 1, high + 1, low - 1, high + 1))
        for i in range(4):
            upward.up(story.at(at + i / 1000), quic_short(rng, 1200 - OVERHEAD_BYTES))
            segment = tcp(443, 50003, "A", rng.randbytes(1146), seq=round(at * 5) * 4584 + i * 1146)
            story.add(story.at(at + i / 1000), eth(ipv4(segments.server, segments.client, segment)))
    inside.expect(marks, story.at(4.9), story.at(5.5))
    for i in range(9):
        sparse.short(story.at(5 + i / 3), 1230)
    return story


def quic_clean():
    """A download of full-size datagrams and another of 1200-byte ones, which are of candidate size: no stall."""
    story, rng = Story("quic_clean", 4, ["iqn"]), Random("quic_clean")
    for port, frame_bytes in ((50001, BULK_BYTES), (50002, 1200 + OVERHEAD_BYTES)):
        path = Path(story, rng, "203.0.113.30", "192.0.2.30", port)
        path.handshake(story.at(0))
        for chunk in range(6):
            path.bulk(story.at(0.1 + chunk), 50, frame_bytes)
    return story


CASES = (stalls_ipv4, stalls_ipv6, stalls_vlan, stalls_edges, quic_clean, stalls_snap96)

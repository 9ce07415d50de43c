"""Flow records: what opened, what closed and what fell silent."""

from pcaps.packets import eth, icmp_echo, ipv4, tcp, udp
from pcaps.story import SECOND_NS, Story, ms

IDLE_NS, ACTIVE_NS, TCP_CLOSE_NS = 120 * SECOND_NS, 1800 * SECOND_NS, 5 * SECOND_NS
CLIENT, SERVER = "192.0.2.70", "198.51.100.70"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
WAITS_NS = {"idle": IDLE_NS, "tcp_end": TCP_CLOSE_NS}


def expect_flow(story, ends, toserver, toclient=(), reason="end_of_input", vlan=None, **fields):
    """A record of these frames; one that the end of the input ends comes last, in order of the first frame."""
    marks = sorted([*toserver, *toclient], key=lambda mark: mark.ts)
    first, last = marks[0], marks[-1]
    body = {"start_ns": first.ts, "end_ns": last.ts, "duration_ns": last.ts - first.ts}
    for way, some in (("toserver", toserver), ("toclient", toclient)):
        body[f"pkts_{way}"] = len(some)
        body[f"bytes_{way}"] = sum(len(mark.record.data) for mark in some)
    body.update(fields, reason=reason)
    known = first.ts + ACTIVE_NS if reason == "active" else last.ts + WAITS_NS.get(reason, 0)
    if reason == "end_of_input":
        known = story.at(3000) + first.ts - story.start_ns
    story.expect("flow.end", first, ends, known, ts_ns=None, vlan=vlan, flow=body)


class Connection:
    """TCP between client and server, one segment after the other, `step` apart."""

    def __init__(self, story, begin_ns, port, step_ns=ms(10)):
        self.story, self.now, self.step_ns, self.port = story, begin_ns, step_ns, port
        self.seq, self.sent = [1000, 5000], ([], [])
        self.ends = (CLIENT, port, SERVER, 80, "TCP")

    def segment(self, way, flags, payload=b""):
        """way 0 from the client, 1 from the server."""
        a, b = ((CLIENT, self.port), (SERVER, 80))[:: -1 if way else 1]
        ack = self.seq[1 - way] if "A" in flags else 0
        body = tcp(a[1], b[1], flags, payload, self.seq[way], ack)
        self.sent[way].append(self.story.add(self.now, eth(ipv4(a[0], b[0], body))))
        self.seq[way] += len(payload) + ("S" in flags) + ("F" in flags)
        self.now += self.step_ns

    def play(self, *segments):
        for segment in segments:
            self.segment(*segment)

    def expect(self, reason, toserver, toclient):
        flags = {"tcp_flags_toserver": toserver, "tcp_flags_toclient": toclient}
        expect_flow(self.story, self.ends, *self.sent, reason, **flags)


OPEN = ((0, "S"), (1, "SA"), (0, "A"))
CLOSE = ((0, "FA"), (1, "FA"), (0, "A"))


def flows_tcp():
    """A download closed by FINs, one reset, a scan without answer, one still open when the capture ends."""
    story = Story("flows_tcp", 23, ["flow"])
    closed = Connection(story, story.at(0), 40001)
    closed.play(*OPEN, (0, "PA", b"GET / HTTP/1.0\r\n\r\n"), *[(1, "A", bytes(1448))] * 5, (0, "A"), *CLOSE)
    closed.expect("tcp_end", FIN | SYN | PSH | ACK, FIN | SYN | ACK)
    reset = Connection(story, story.at(1), 40002)
    reset.play(*OPEN, (0, "PA", b"hello"), (1, "RA"))
    reset.expect("tcp_end", SYN | PSH | ACK, SYN | RST | ACK)
    scan = Connection(story, story.at(2), 40003, SECOND_NS)
    scan.play((0, "S"))
    scan.expect("idle", SYN, 0)
    still = Connection(story, story.at(100), 40004, 30 * SECOND_NS)
    still.play(*OPEN, (0, "PA", b"ping"), (1, "PA", b"pong"))
    still.expect("end_of_input", SYN | PSH | ACK, SYN | PSH | ACK)
    return story


def datagrams(story, times_s, port, ident=None):
    """Marks of UDP datagrams, or of echo requests and replies, at these seconds."""
    request = udp(port, 40999, b"?" * 30) if ident is None else icmp_echo(8, ident, 0, bytes(56))
    return [story.add(story.at(s), eth(ipv4(CLIENT, SERVER, request))) for s in times_s]


def flows_idle():
    """UDP and ICMP that fall silent longer than the idle timeout, and a flow older than the active timeout."""
    story = Story("flows_idle", 24, ["flow"])
    first, second = datagrams(story, (0, 50, 169), 41000), datagrams(story, (300, 301), 41000)
    for marks in (first, second):
        expect_flow(story, (CLIENT, 41000, SERVER, 40999, "UDP"), marks, reason="idle")
    pings = datagrams(story, (3, 4, 5), 0, ident=9)
    echo = eth(ipv4(SERVER, CLIENT, icmp_echo(0, 9, 0, bytes(56))))
    pongs = [story.add(mark.ts + ms(8), echo) for mark in pings]
    expect_flow(story, (CLIENT, None, SERVER, None, "ICMP"), pings, pongs, "idle")
    long = datagrams(story, [10 + 61 * i for i in range(35)], 41001)
    expect_flow(story, (CLIENT, 41001, SERVER, 40999, "UDP"), long[:30], reason="active")
    expect_flow(story, (CLIENT, 41001, SERVER, 40999, "UDP"), long[30:])
    return story


CASES = (flows_tcp, flows_idle)

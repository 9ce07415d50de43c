"""RTP and probe streams with known loss, delay, jitter, duplicates and reordering, told in reports of 10 s."""

from random import Random
from typing import NamedTuple

from pcaps.messages import PROBE_PORT, STREAM, Probe, probe, rtp
from pcaps.packets import eth, ipv4, ipv6, udp
from pcaps.story import SECOND_NS, Story, ms, us

INTERVAL_NS, GRACE_NS = 10 * SECOND_NS, SECOND_NS  # a report comes so late after its interval
JITTER_TOLERANCE_NS = 2
FRAME_NS, FRAME_TICKS, FRAME_BYTES = ms(20), 160, 160  # G.711: 20 ms of 8000 samples a second
PROBE_STEP_NS, PROBE_BYTES = ms(50), 200 - 28  # 200-byte IPv4 packets


class Arrival(NamedTuple):
    ts_ns: int
    number: int
    sent_ns: int


def jitters(arrivals):
    """RFC 3550 jitter in ns after each arrival (6.4.1)."""
    values, jitter = [], 0.0
    for i, now in enumerate(arrivals):
        if i:
            before = arrivals[i - 1]
            jitter += (abs((now.ts_ns - before.ts_ns) - (now.sent_ns - before.sent_ns)) - jitter) / 16
        values.append(jitter)
    return values


def counts(arrivals, before=None):
    """What a report counts; `before` is the highest number of earlier intervals."""
    numbers = [a.number for a in arrivals]
    received = len(set(numbers))
    expected = max(numbers) - (min(numbers) - 1 if before is None else before)
    highest, late, seen = -1, 0, set()
    for number in numbers:
        late += number < highest and number not in seen
        highest = max(highest, number)
        seen.add(number)
    made = dict(packets=len(numbers), received=received, expected=expected, lost=expected - received)
    return {**made, "duplicates": len(numbers) - received, "reordered": late}


def reports(story, arrivals, ends, body, clocked=True, one_way=False):
    """Expect a report for each interval and, in the last one, the total."""
    arrivals = sorted(arrivals)
    first = arrivals[0].ts_ns
    jitter = jitters(arrivals)
    last = (arrivals[-1].ts_ns - first) // INTERVAL_NS
    before = None
    for interval in range(last + 1):
        inside = [i for i, a in enumerate(arrivals) if (a.ts_ns - first) // INTERVAL_NS == interval]
        part = arrivals[inside[0] : inside[-1] + 1]
        final = interval == last
        fields = {**body, "interval": interval, "final": final, "first_ns": part[0].ts_ns, "last_ns": part[-1].ts_ns}
        fields.update(counts(part, before), jitter_ns=round(jitter[inside[-1]]) if clocked else None)
        if one_way:
            fields.update(delays(part))
        if final:
            fields.update({f"total_{name}": value for name, value in counts(arrivals).items()})
        known = story.at(3000) if final else first + (interval + 1) * INTERVAL_NS + GRACE_NS
        near = {"probe_stream.jitter_ns": JITTER_TOLERANCE_NS, "probe_stream.owd_mean_ns": 2}
        near = {path: value for path, value in near.items() if fields.get(path.split(".")[1]) is not None}
        story.expect("probe.report", Moment(first), ends, known, near, ts_ns=None, pcap_cnt=None, probe_stream=fields)
        before = max(a.number for a in part)


class Moment(NamedTuple):
    """Stands for a frame where only a time is needed."""

    ts: int


def delays(part):
    """One-way delays; of a packet that came twice the first counts."""
    values = [a.ts_ns - a.sent_ns for i, a in enumerate(part) if a.number not in {b.number for b in part[:i]}]
    return dict(owd_min_ns=min(values), owd_mean_ns=round(sum(values) / len(values)), owd_max_ns=max(values))


class Network:
    """What befalls the packets of a stream: transit times, and numbers lost, doubled or overtaken by the next one."""

    def __init__(self, transits_ns, lost=(), doubled=(), overtaken=()):
        self.transits_ns, self.lost, self.doubled, self.overtaken = transits_ns, lost, doubled, overtaken

    def arrivals(self, begin_ns, step_ns, count):
        for i in range(count):
            if i in self.lost:
                continue
            sent = begin_ns + i * step_ns
            at = sent + self.transits_ns[i % len(self.transits_ns)] + (step_ns + ms(3) if i in self.overtaken else 0)
            yield Arrival(at, i, sent)
            if i in self.doubled:
                yield Arrival(at + us(150), i, sent)


class Call:
    """One direction of a call: RTP from `src` to `dst`."""

    def __init__(self, story, src, dst, ports=(16384, 16386)):
        self.story, self.src, self.dst, self.ports = story, src, dst, ports
        self.ends = (src, ports[0], dst, ports[1], "UDP")

    def run(self, begin_ns, count, network, ssrc, first_seq=0, payload_type=0):
        arrivals = list(network.arrivals(begin_ns, FRAME_NS, count))
        for a in arrivals:
            time = 0xFFFF0000 + a.number * FRAME_TICKS
            payload = rtp(ssrc, first_seq + a.number, time, b"\xd5" * FRAME_BYTES, payload_type, a.number == 0)
            packet = (ipv6 if ":" in self.src else ipv4)(self.src, self.dst, udp(*self.ports, payload), tos=0xB8)
            self.story.add(a.ts_ns, eth(packet))
        body = {"stream": "rtp", "ssrc": ssrc, "payload_type": payload_type}
        reports(self.story, arrivals, self.ends, body, clocked=payload_type < 96)


def rtp_clean():
    """A G.711 call in both directions, one over IPv6 beside it: no loss; a transit of 50, 60, 45 ms again and again."""
    story = Story("rtp_clean", 19, ["probe_stream"])
    network = Network((ms(50), ms(60), ms(45)))
    Call(story, "192.0.2.60", "198.51.100.60").run(story.at(0), 1200, network, 0x1001)
    Call(story, "198.51.100.60", "192.0.2.60", (16386, 16384)).run(story.at(0.1), 1195, network, 0x1002, payload_type=8)
    Call(story, "2001:db8::60", "2001:db8:51::60").run(story.at(0.2), 1190, Network((ms(20),)), 0x1003)
    return story


def rtp_trouble():
    """Loss of 2 % and in bursts, duplicates, packets overtaken, jitter, numbers and times that wrap, unknown codec."""
    story, rng = Story("rtp_trouble", 20, ["probe_stream"]), Random("rtp_trouble")
    transits = [ms(30) + rng.randrange(ms(8)) for _ in range(97)]
    random_loss = {i for i in range(5, 1190) if rng.random() < 0.02 and abs(i % 500 - 250) < 240}
    a, b = ("192.0.2.61", "198.51.100.61"), ("192.0.2.62", "198.51.100.62")
    Call(story, *a).run(story.at(0), 1200, Network(transits, random_loss), 0x2001, first_seq=65000)
    bursts = {*range(100, 130), *range(700, 708)}
    Call(story, *b).run(story.at(0.1), 1195, Network(transits, bursts, {200, 201, 650}, {300, 800}), 0x2002)
    Call(story, *b).run(story.at(0.2), 1190, Network((ms(40),), {50}), 0x2003, payload_type=96)
    return story


def two_sources():
    """Two sources (SSRC) with the same numbers on one pair of ports are two streams."""
    story = Story("two_sources", 21, ["probe_stream"])
    call = Call(story, "192.0.2.63", "198.51.100.63")
    call.run(story.at(0), 600, Network((ms(10),), {100, 101}), 0x3001)
    call.run(story.at(0.005), 600, Network((ms(10), ms(12)), {200}), 0x3002)
    return story


def probe_stream():
    """200-byte probes every 50 ms in both directions for 25 s: 20 to 26 ms up with 1.5 % loss, 35 ms down with none."""
    story, rng = Story("probe_stream", 22, ["probe_stream"]), Random("probe_stream")
    client, server = "192.0.2.64", "198.51.100.64"
    lost = {40, 41, 90, 250, 251, 252, 333, 450}
    up = Network([ms(20) + rng.randrange(ms(6)) for _ in range(89)], lost, {120}, {160})
    down = Network((ms(35),))
    for src, dst, network, count, begin in ((client, server, up, 500, 0.0), (server, client, down, 499, 0.03)):
        session, arrivals = 0x5151, list(network.arrivals(story.at(begin), PROBE_STEP_NS, count))
        for a in arrivals:
            payload = probe(Probe(STREAM, session, 0, a.number, a.sent_ns), PROBE_BYTES)
            story.add(a.ts_ns, eth(ipv4(src, dst, udp(PROBE_PORT, PROBE_PORT, payload))))
        body = {"stream": "probe", "session": f"{session:016x}"}
        reports(story, arrivals, (src, PROBE_PORT, dst, PROBE_PORT, "UDP"), body, one_way=True)
    return story


CASES = (rtp_clean, rtp_trouble, two_sources, probe_stream)

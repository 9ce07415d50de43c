"""Sandwich probes with known gaps, at their receiver."""

from random import Random

from pcaps.messages import P1, P2, P3, PROBE_PORT, Probe, probe
from pcaps.packets import eth, ipv4, ipv6, udp
from pcaps.story import Story, ms, us

SENDER, RECEIVER = "192.0.2.50", "198.51.100.50"
SENDER6, RECEIVER6 = "2001:db8::50", "2001:db8:51::50"
SMALL_BYTES, LARGE_BYTES = 40, 1372  # UDP payloads: a bare probe; 1400 bytes of IPv4
D_NS = ms(30)
TIMEOUT_NS = ms(2000)  # after a sandwich's first member it is judged
PATH_NS = ms(12)


class Sandwich:
    """One sandwich at its receiver: P1, then d later P2 and P3 back to back, P3 held up by its gap."""

    def __init__(self, story, session, round_, ttl, six=False):
        self.story, self.key, self.six = story, (session, round_, ttl), six
        self.src, self.dst = (SENDER6, RECEIVER6) if six else (SENDER, RECEIVER)
        self.marks = []

    def member(self, role, sent_ns, late_ns=0):
        session, round_, ttl = self.key
        fields = Probe(role, session, round_, 12 * round_ + 3 * ttl + role - 1, sent_ns, D_NS, ttl)
        payload = probe(fields, LARGE_BYTES if role == P2 else SMALL_BYTES)
        packet = (ipv6 if self.six else ipv4)(self.src, self.dst, udp(PROBE_PORT, PROBE_PORT, payload))
        self.marks.append(self.story.add(sent_ns + PATH_NS + late_ns, eth(packet)))
        return self.marks[-1]

    def run(self, sent_ns, gap_ns, p2=False):
        """All is well; P2 itself is seen only where it is addressed to this receiver and its TTL lasts."""
        p1 = self.member(P1, sent_ns)
        if p2:
            self.member(P2, sent_ns + D_NS, gap_ns - us(5))
        p3 = self.member(P3, sent_ns + D_NS, gap_ns)
        self.expect("gap", p3, gap_ns=gap_ns, p1_ns=p1.ts, p3_ns=p3.ts, p2_seen=p2, duplicates=0)

    def expect(self, what, mark, ts_ns=None, **fields):
        session, round_, ttl = self.key
        body = {"session": f"{session:016x}", "round": round_, "ttl_index": ttl, "d_ns": D_NS, **fields}
        ends = (self.src, PROBE_PORT, self.dst, PROBE_PORT, "UDP")
        first_ns = min(mark.ts for mark in self.marks)
        ts_ns = mark.ts if what == "gap" else None
        self.story.expect(f"sandwich.{what}", mark, ends, first_ns + TIMEOUT_NS, ts_ns=ts_ns, sandwich=body)


def sandwich():
    """Five rounds over three routers: P2 dies at router j = 1..3, then goes to the other receiver (j = 0)."""
    story, rng = Story("sandwich", 17, ["sandwich"]), Random("sandwich")
    for six in (False, True):
        for round_ in range(5):
            for ttl in (1, 2, 3, 0):
                sent = story.at(round_ + ttl / 10 + 0.05 * six)
                gap = us(120 * (ttl or 2)) + rng.randrange(us(20))
                Sandwich(story, 0xABCD + six, round_, ttl, six).run(sent, gap, p2=ttl == 3)
    return story


def sandwich_trouble():
    """P1 lost, P3 lost, P3 before P1, P3 twice, a gap below zero; a sandwich of another session in between."""
    story = Story("sandwich_trouble", 18, ["sandwich"])
    no_p1, no_p3, swapped, twice, closer = [Sandwich(story, 7, round_, 1) for round_ in range(5)]
    no_p1.expect("incomplete", no_p1.member(P3, story.at(0) + D_NS), reason="lost_p1")
    no_p3.expect("incomplete", no_p3.member(P1, story.at(0.1)), reason="lost_p3")
    Sandwich(story, 8, 0, 1).run(story.at(0.11), us(40))
    p3 = swapped.member(P3, story.at(0.2) + D_NS)
    swapped.member(P1, story.at(0.2), D_NS + ms(2))
    swapped.expect("incomplete", p3, reason="reordered")
    p1, p3 = twice.member(P1, story.at(0.4)), twice.member(P3, story.at(0.4) + D_NS, us(70))
    twice.member(P3, story.at(0.4) + D_NS, us(75))
    twice.expect("gap", p3, gap_ns=us(70), p1_ns=p1.ts, p3_ns=p3.ts, p2_seen=False, duplicates=1)
    closer.run(story.at(5), -us(90))
    return story


CASES = (sandwich, sandwich_trouble)

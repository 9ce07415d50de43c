"""Slow twin of dataplane.pacing, from its definition, with exact fractions and no wheel: all classes are looked at.

A packet is (id, length, tos). Times are ns; what is told is a list of (id, verdict, CE or not).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

BIT_NS = 10**9
WORK_MAX = 2**63 - 1  # what may be earned under any rate, bits * 10**9


@dataclass
class Class:
    rate: int  # bit/s, 0: unpaced
    credit: int
    limit_bytes: int
    limit_ns: int
    mark_ns: int
    next: Fraction = Fraction(0)
    queue: list = field(default_factory=list)

    def depart(self, now, length):
        if self.rate:
            self.next = max(self.next, Fraction(now - self.credit)) + Fraction(length * 8 * BIT_NS, self.rate)

    def forgive(self, now, length):
        earliest = now - self.credit
        if self.rate and self.next < earliest:
            span = max(1, min(self.credit, length * 8 * BIT_NS // self.rate))
            self.next = Fraction(earliest + (floor(self.next) - earliest) % span)

    def due(self, now):
        return ceil(self.next) if self.rate else now

    def wait(self, now):
        if not self.rate:
            return 0
        return max(0, self.due(now) - now) + Fraction(sum(p[1] for p in self.queue) * 8 * BIT_NS, self.rate)

    def set_rate(self, rate, now):
        if self.rate == 0:
            self.next = Fraction(now)
        elif rate:
            owed = max(self.next - now, Fraction(-self.credit), Fraction(-(WORK_MAX // self.rate)))
            self.next = now + max(owed * self.rate / rate, Fraction(-self.credit))
        self.rate = rate


class Pacer:
    def __init__(self, classes, capacity):
        self.classes, self.capacity = classes, capacity

    def held(self):
        return sum(len(c.queue) for c in self.classes)

    def offer(self, index, packet, now):
        """What becomes of it: "passed", "held", "marked" (and held), "over_bytes", "over_time" or "no_room"."""
        c, (_, length, tos) = self.classes[index], packet[:3]
        if not c.queue and c.due(now) <= now:
            c.depart(now, length)
            return "passed"
        if sum(p[1] for p in c.queue) + length > c.limit_bytes:
            return "over_bytes"
        if c.wait(now) > c.limit_ns:
            return "over_time"
        if self.held() == self.capacity:
            return "no_room"
        marked = c.wait(now) > c.mark_ns and tos & 3 in (1, 2)
        c.queue.append((*packet[:3], marked))
        return "marked" if marked else "held"

    def release(self, now):
        """[(due, class, id, CE)] in order of departure."""
        told = []
        while True:
            due = [(c.due(now), i) for i, c in enumerate(self.classes) if c.queue and c.due(now) <= now]
            if not due:
                return told
            at, index = min(due)
            c = self.classes[index]
            number, length, _, marked = c.queue.pop(0)
            told.append((at, index, number, marked))
            c.forgive(now, length)
            c.depart(now, length)

    def next_due(self, now):
        return min((c.due(now) for c in self.classes if c.queue), default=2**63 - 1)

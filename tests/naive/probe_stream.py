"""Stream reports from their definition: sort packets into streams, lives and intervals, then count. Plain Python."""

from collections import defaultdict
from types import SimpleNamespace

from dataplane.records import REVERSE, RTP
from tests.naive.runner import wheel_ns

SECOND_NS = 1_000_000_000
GRACE_NS, PROBATION_NS, LEAP_NS = SECOND_NS, 2 * SECOND_NS, 10 * SECOND_NS
DROPOUT, WINDOW = 3000, 64
CLOCK_HZ = {
    **dict.fromkeys((0, 3, 4, 5, 7, 8, 9, 12, 13, 15, 18), 8000),
    **dict.fromkeys((14, 25, 26, 28, 31, 32, 33, 34), 90000),
    **{6: 16000, 10: 44100, 11: 44100, 16: 11025, 17: 22050},
}
FIELDS = ("ts", "clock", "hash", "flags", "rtp_ssrc", "rtp_time", "rtp_seq", "rtp_type", "rtp_marker")
FIELDS += ("probe_session", "probe_sent", "probe_seq")
COUNTS = ("packets", "received", "expected", "duplicates", "reordered", "discarded", "restarts")


def streams(packets, interval_ns, idle_ns, dynamic_clock_hz=0):
    """{(hash, direction, source): [report, ...]}; a report is a dict named as the event's fields."""
    found = defaultdict(list)
    for row in packets:
        pkt = SimpleNamespace(**{name: int(row[name]) for name in FIELDS})
        source = pkt.rtp_ssrc if pkt.flags & RTP else pkt.probe_session
        found[pkt.hash, pkt.flags & REVERSE, source].append(pkt)
    end = int(packets[-1].clock) if len(packets) else 0
    options = interval_ns, idle_ns, dynamic_clock_hz
    return {key: reports(pkts, end, *options) for key, pkts in found.items()}


def reports(pkts, end, interval_ns, idle_ns, dynamic_clock_hz):
    made, life = [], None
    for pkt in pkts:
        if life is None or pkt.clock >= life.forgotten():
            made += life.reports() if life else []
            life = Life(pkt, interval_ns, idle_ns, dynamic_clock_hz)
        elif not life.accepted and life.is_jump(pkt):
            life = Life(pkt, interval_ns, idle_ns, dynamic_clock_hz)
        life.add(pkt)
    return made + life.reports(end)


def number_of(pkt):
    return pkt.rtp_seq if pkt.flags & RTP else pkt.probe_seq


class Life:
    """A stream from its first packet until it is silent for too long."""

    def __init__(self, pkt, interval_ns, idle_ns, dynamic_clock_hz):
        self.interval_ns, self.idle_ns, self.dynamic_clock_hz = interval_ns, idle_ns, dynamic_clock_hz
        self.is_rtp = bool(pkt.flags & RTP)
        self.accepted = not self.is_rtp
        self.opened = pkt.clock
        self.newest = self.lowest = None
        self.seen = set()
        self.bad = None
        self.intervals = {}  # number -> dict of counts and lists
        self.talk, self.leapt, self.reference, self.jitter, self.last_type = [], False, None, None, 0
        self.stream_packets = 0

    def forgotten(self):
        return wheel_ns(self.heard + (self.idle_ns if self.accepted else PROBATION_NS))

    def end_of(self, k):
        return self.opened + (k + 1) * self.interval_ns

    def ahead(self, pkt):
        size = 2**16 if self.is_rtp else 2**32
        step = (number_of(pkt) - self.newest) % size
        return step if step < size // 2 else step - size

    def is_jump(self, pkt):
        return abs(self.ahead(pkt)) >= DROPOUT

    def add(self, pkt):
        self.heard = pkt.clock
        k = (self.heard - self.opened) // self.interval_ns
        here = self.intervals.setdefault(k, {**dict.fromkeys(COUNTS, 0), "ts": [], "delays": [], "talk": []})
        here["at_start"] = here.get("at_start", self.newest)
        place, home = self.place(pkt, k)
        w = self.intervals[home]
        w["packets"] += 1
        w["ts"].append(pkt.ts)
        w[{"new": "received", "filled": "received", "duplicate": "duplicates"}.get(place, "discarded")] += 1
        w["reordered"] += place == "filled"
        if place in ("new", "filled") and not self.is_rtp:
            w["delays"].append(pkt.ts - pkt.probe_sent)
        if place != "stray":
            self.stream_packets += 1
            self.time(pkt, here)
        here["jitter"], here["newest"] = self.jitter, self.newest
        here["talked"] = len(self.talk)

    def place(self, pkt, k):
        """What the packet is, and the interval that it belongs to."""
        here = self.intervals[k]
        if self.newest is None:
            return self.start(number_of(pkt), here)
        step = self.ahead(pkt)
        if self.is_jump(pkt):
            return self.restart(pkt, here, k)
        number = self.newest + step
        if step > 0:
            self.accepted |= step == 1
            here["expected"] += step
            self.newest = number
            self.seen.add(number)
            return "new", k
        if step > -WINDOW and number in self.seen:
            return "duplicate", k
        home = self.home(number, k)
        if step <= -WINDOW or home is None:
            return "late", k
        self.seen.add(number)
        if number < self.lowest:
            self.intervals[home]["expected"] += self.lowest - number
            self.lowest = number
        return "filled", home

    def start(self, number, here):
        self.newest = self.lowest = number
        self.seen = {number}
        here["expected"] += 1
        here["at_start"] = None
        return "new", (self.heard - self.opened) // self.interval_ns

    def restart(self, pkt, here, k):
        size = 2**16 if self.is_rtp else 2**32
        if number_of(pkt) != self.bad:
            self.bad = (number_of(pkt) + 1) % size
            return "stray", k
        self.bad = self.reference = None
        here["restarts"] += 1
        return self.start(self.newest + self.ahead(pkt), here)

    def home(self, number, k):
        """The interval in which `number` was due; None if that is reported."""
        start = self.intervals[k]["at_start"]
        if start is None or number > start:
            return k
        before = [i for i in self.intervals if i < k]
        if not before or self.heard >= self.end_of(max(before)) + GRACE_NS:
            return None
        return max(before)

    def time(self, pkt, here):
        """RFC 3550, 6.4.1."""
        payload_type, ts = pkt.rtp_type if self.is_rtp else 0, pkt.ts
        if self.is_rtp:
            hz = CLOCK_HZ.get(payload_type, 0) if payload_type < 96 else self.dynamic_clock_hz
            sent = pkt.rtp_time if hz else None
        else:
            hz, sent = 10**9, pkt.probe_sent
        moved = False
        if hz and self.reference is not None:
            last_ts, last_sent = self.reference
            units = sent - last_sent
            if self.is_rtp:
                units = (units + 2**31) % 2**32 - 2**31
            moved = self.drift(ts - last_ts, units * 1e9 / hz)
        pause = self.is_rtp and (pkt.rtp_marker or payload_type in (13, 19) or self.last_type in (13, 19))
        if moved and not pause:
            here["talk"].append(self.jitter)
            if not self.leapt:
                self.talk.append((self.jitter, self.stream_packets - 1))
        if sent is not None:
            self.reference = ts, sent
        elif self.reference is not None:
            self.reference = ts, self.reference[1]
        self.last_type = payload_type

    def drift(self, received, sent):
        if sent < -LEAP_NS or sent > received + LEAP_NS:
            self.leapt = True
            return False
        before = self.jitter or 0.0
        self.jitter = before + (abs(received - sent) - before) / 16
        return True

    def reports(self, end=None):
        """Reports of this life; `end` is the last clock of the input if that ended it."""
        if not self.accepted:
            return []
        last = max(self.intervals)
        until = self.heard + self.idle_ns
        told = [k for k in self.intervals if self.is_told(k, last, until, end)]
        rest = [k for k in self.intervals if k not in told]
        over = self.end_of(last) <= until and (end is None or wheel_ns(self.end_of(last)) <= end)
        made = [self.report(k, [k], [i for i in told if i <= k], False) for k in told]
        return [*made, self.report((rest or [last + over])[0], rest, list(self.intervals), True)]

    def is_told(self, k, last, until, end):
        """Whether interval `k` had a report of its own before the end."""
        if k < last and k != sorted(self.intervals)[-2]:
            return True
        at = self.end_of(k) + GRACE_NS
        return at <= until and (wheel_ns(at) <= end if end is not None else True)

    def report(self, name, parts, so_far, final):
        inside, total = self.summary(parts), self.summary(so_far)
        jitter = self.intervals[parts[-1]]["jitter"] if parts else None
        talk = [j for k in parts for j in self.intervals[k]["talk"]]
        newest = self.intervals[so_far[-1]]
        known, life = newest["jitter"] is not None, self.talk[: newest["talked"]]
        return {
            **inside,
            **{f"total_{field}": value for field, value in total.items() if field != "last_ns"},
            "interval": name,
            "final": final,
            "jitter_ns": jitter,
            "jitter_max_ns": None if jitter is None else max(talk, default=0),
            "total_jitter_mean_ns": mean(life) if known else None,
            "total_jitter_max_ns": max((jitter for jitter, _ in life), default=0) if known else None,
        }

    def summary(self, parts):
        windows = [self.intervals[k] for k in parts]
        made = {name: sum(w[name] for w in windows) for name in COUNTS}
        made["lost"] = made["expected"] - made["received"]
        made["loss"] = made["lost"] / made["expected"] if made["expected"] else 0.0
        ts = [t for w in windows for t in w["ts"]]
        made["first_ns"], made["last_ns"] = (ts[0], ts[-1]) if ts else (None, None)
        delays = [x for w in windows for x in w["delays"]]
        made["owd_min_ns"], made["owd_max_ns"] = min(delays, default=None), max(delays, default=None)
        made["owd_mean_ns"] = sum(delays) / len(delays) if delays else None
        return made


def mean(talk):
    """Mean of the jitters; a packet between them, which has none, stands for the mean so far (as in tshark)."""
    value = 0.0
    for jitter, packets in talk:
        value = (value * (packets - 1) + jitter) / packets
    return value

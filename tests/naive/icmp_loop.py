"""The slow twin of detectors/icmp_loop.py: echo messages in lists, no tables. Also the oracle's definition of a pair.

    found = events(messages, timeout=5 * S, late=300 * S, loop_max=900 * MS, loop_min=10 * US)

A message is a dict: n (packet number), ts, clock, src, dst, family (4, 6), request (bool), id, number, tos, ttl, size.
"""

WHEEL_NS = 1 << 24  # a deadline takes effect at the next multiple of this


def key_pairs(messages, with_tos=False):
    """[(request n, reply n, RTT in ns)]: a reply matches the latest earlier, still unanswered request with mirrored
    addresses and equal identifier and sequence; a newer request with the same key replaces the older one."""
    pairs, unanswered = [], {}
    for m in messages:
        ends = (m["src"], m["dst"]) if m["request"] else (m["dst"], m["src"])
        key = m["family"], *ends, m["id"], m["number"], m["tos"] if with_tos else None
        if m["request"]:
            unanswered[key] = m
        elif key in unanswered:
            request = unanswered.pop(key)
            pairs.append((request["n"], m["n"], m["ts"] - request["ts"]))
    return pairs


def events(messages, tos_in_key=False, **options):
    """Events of all conversations, in no particular order."""
    talks = {}
    for m in messages:
        tos = m["tos"] if tos_in_key else None
        key = m["family"], frozenset((m["src"], m["dst"])), m["id"], m["number"], tos
        talks.setdefault(key, []).append(m)
    return [event for talk in talks.values() for event in Talk(**options).run(talk, messages[-1]["clock"])]


class Request:
    """What is known of the latest request of one direction."""

    def __init__(self, m, repeats=None):
        self.sights = [m]
        self.repeats = repeats  # the answered request of which it is a copy
        self.untold = 1 if repeats else 0  # copies not yet reported
        self.gap = m["ts"] - repeats.sights[-1]["ts"] if repeats else 0
        self.replies = []
        self.back = None  # the request that may be this one's return
        self.back_gap = 0  # from the sight before it
        self.is_back = self.told = False

    def last(self):
        return self.sights[-1]

    def again(self, m):
        self.sights.append(m)
        self.untold += 1
        if self.untold == 1:
            self.gap = m["ts"] - self.sights[-2]["ts"]


class Talk:
    def __init__(self, timeout, late, loop_max, loop_min, monitoring="none"):
        self.timeout, self.late, self.loop_max, self.loop_min = timeout, late, loop_max, loop_min
        self.monitoring = monitoring
        self.open = {}  # source address -> its latest Request
        self.floor = 0  # no deadline counts before this
        self.events = []

    def run(self, messages, last_clock):
        for m in messages:
            self.timers(m["clock"])
            if m["request"]:
                self.request(m)
            else:
                self.reply(m)
            self.floor = m["clock"] + 1
        self.timers(last_clock)
        self.end()
        return self.events

    def same(self, m, r):
        """m can be r's packet, seen again."""
        old = r.last()
        equal = (m["tos"], m["size"]) == (old["tos"], old["size"]) and m["ttl"] <= old["ttl"]
        return equal and 0 <= m["ts"] - old["ts"] <= self.loop_max

    def other(self, r):
        """The other direction's request that still waits for its reply."""
        if r.last()["src"] == r.last()["dst"]:
            return None
        found = self.open.get(r.last()["dst"])
        return found if found and not found.replies else None

    def request(self, m):
        old = self.open.get(m["src"])
        again = old is not None and self.same(m, old)
        if old and not old.replies and again:
            return old.again(m)
        if old and not old.replies:
            self.give_up(old, "replaced", m["ts"])
        elif old and old.untold:
            self.duplicate(old)
        new = self.open[m["src"]] = Request(m, repeats=old if again else None)
        first = self.other(new)
        if first and not first.told and first.back is None and self.same(m, first):
            first.back, new.is_back = new, True
            first.back_gap = m["ts"] - first.last()["ts"]
        return None

    def reply(self, m):
        r = self.open.get(m["dst"])
        if r is None:
            return
        q = r.last()
        if r.replies:
            self.add("duplicate", q, m, what="reply", copies=1, gap_ns=m["ts"] - r.replies[-1]["ts"], at=m)
        else:
            time_ns, copies = m["ts"] - q["ts"], r.untold
            if self.monitoring == "all" or (self.monitoring == "marked" and q["tos"]):
                self.add("loop", q, m, way="rewritten", loop_ns=time_ns, request=q["n"], copies=copies, at=m)
            else:
                late = bool(r.told and not r.repeats)
                self.add("rtt", q, m, rtt_ns=time_ns, request=q["n"], copies=copies, late=late, at=m)
            r.untold = 0 if r.told else r.untold
        r.replies.append(m)

    # time

    def due(self, r):
        if r.replies:
            return r.replies[-1]["clock"] + (0 if r.untold else self.timeout)
        if r.told:
            return r.last()["clock"] + self.late
        return r.last()["clock"] + (self.loop_max if r.untold or r.back else self.timeout)

    def timers(self, clock):
        while True:
            due, src = min(((self.due(r), src) for src, r in self.open.items()), default=(0, None))
            fires = -(-max(due, self.floor) // WHEEL_NS) * WHEEL_NS
            if src is None or fires > clock:
                return
            self.decide(src, due)
            self.floor = fires + 1

    def decide(self, src, due):
        r = self.open[src]
        if r.replies and r.untold:
            self.duplicate(r)
        elif r.replies or r.told:
            del self.open[src]
        elif self.loop(r):
            pass
        elif r.untold:
            self.duplicate(r)
        elif r.back:
            r.back = None
        else:
            self.unanswered(r, "timeout", due)

    def give_up(self, r, reason, ts):
        if r.told or self.loop(r):
            return
        if r.repeats and r.untold:
            self.duplicate(r)
        else:
            self.unanswered(r, reason, ts)

    def end(self):
        """One event only."""
        left = sorted(self.open.values(), key=lambda r: r.last()["n"])
        waiting = [r for r in left if not r.replies and not r.told]
        if waiting:
            self.give_up(waiting[0], "end_of_input", None)
            if self.events[-1]["name"] == "icmp.unanswered":
                self.events[-1]["requests"] = len(waiting)
            return
        for r in left:
            if r.replies and r.untold:
                return self.duplicate(r)

    # events

    def loop(self, r):
        if r.untold and not r.repeats and r.gap >= self.loop_min:
            r.told = True
            home = r.last()
            self.add("loop", home, home, way="unmodified", loop_ns=r.gap, request=home["n"], copies=r.untold, at=home)
            return True
        back = self.other(r)
        if r.back and back and back.is_back and r.back_gap >= self.loop_min:
            r.told = back.told = True
            q, home = r.last(), back.last()
            self.add("loop", q, home, way="swapped", loop_ns=r.back_gap, request=q["n"], copies=1, at=home)
            return True
        return False

    def duplicate(self, r):
        q = r.last()
        self.add("duplicate", q, q, what="request", copies=r.untold, gap_ns=r.gap, at=q)
        r.untold = 0
        r.told = r.repeats is not None

    def unanswered(self, r, reason, ts):
        q = r.last()
        self.add("unanswered", q, None, reason=reason, copies=r.untold, requests=1, at=dict(q, ts=ts))
        r.told = True

    def add(self, name, q, back, at, **fields):
        head = {"name": f"icmp.{name}", "ts": at["ts"], "n": at["n"]}
        head.update(icmp_id=q["id"], icmp_seq=q["number"], tos=q["tos"], ttl=q["ttl"])
        if back:
            head.update(return_tos=back["tos"], return_ttl=back["ttl"])
        self.events.append({**head, **fields})

"""The slow twin of detectors/ptp.py: PTP exchanges by the definition, in dicts and fractions. Shares no code with it.

    events = exchanges(messages("x.pcap"), timeout_ns=4 * 10**9, sync_age_ns=10**10)

A message is a dict: n (packet number), ts, clock, type, two_step, domain, sdo, source and requesting (clock, port),
pair (the two addresses, None to a group), id, time (ns, None if not usable), correction (2**-16 ns).
"""

import struct
from fractions import Fraction
from math import floor

UNKNOWN = -(2**63)
SYNC, DELAY_REQ, PDELAY_REQ, PDELAY_RESP, FOLLOW_UP, DELAY_RESP, PDELAY_RESP_FOLLOW_UP = 0, 1, 2, 3, 8, 9, 10


def messages(path):
    """The PTPv2 messages of a classic pcap file with Ethernet frames."""
    found = []
    clock = UNKNOWN
    for n, (ts, frame) in enumerate(_records(path)):
        clock = max(clock, ts)
        where = _ptp(frame)
        if where is not None:
            found.append({"n": n, "ts": ts, "clock": clock, **parse(*where)})
    return found


def _records(path):
    data = open(path, "rb").read()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    unit_ns = 1 if data[:4] in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d") else 1000
    at = 24
    while at + 16 <= len(data):
        seconds, part, caplen, _ = struct.unpack_from(order + "IIII", data, at)
        yield seconds * 10**9 + part * unit_ns, data[at + 16 : at + 16 + caplen]
        at += 16 + caplen


def _ptp(frame):
    """(PTP message, pair of addresses or None) of an Ethernet frame, None if it has no PTP."""
    ethertype, at = struct.unpack_from(">H", frame, 12)[0], 14
    while ethertype in (0x8100, 0x88A8):
        ethertype, at = struct.unpack_from(">H", frame, at + 2)[0], at + 4
    if ethertype == 0x88F7:
        return frame[at:], None if frame[0] & 1 else frozenset((frame[:6], frame[6:12]))
    if ethertype == 0x0800 and frame[at + 9] == 17:
        src, dst, end = frame[at + 12 : at + 16], frame[at + 16 : at + 20], at + 4 * (frame[at] & 15)
        group = dst[0] >> 4 == 14
    elif ethertype == 0x86DD and frame[at + 6] == 17:
        src, dst, end = frame[at + 8 : at + 24], frame[at + 24 : at + 40], at + 40
        group = dst[0] == 255
    else:
        return None
    if not {319, 320} & set(struct.unpack_from(">HH", frame, end)):
        return None
    return frame[end + 8 :], None if group else frozenset((src, dst))


def parse(body, pair):
    """IEEE 1588-2019, 13.3 and following."""
    kind, second, domain, minor = body[0] & 15, body[1], body[4], body[5]
    seconds, nanoseconds = int.from_bytes(body[34:40], "big"), int.from_bytes(body[40:44], "big")
    whole = seconds * 10**9 + nanoseconds
    return {
        "type": kind,
        "version": second & 15,
        "domain": domain,
        "sdo": (body[0] >> 4) << 8 | minor,
        "two_step": bool(body[6] & 2),
        "correction": int.from_bytes(body[8:16], "big", signed=True),
        "source": (int.from_bytes(body[20:28], "big"), int.from_bytes(body[28:30], "big")),
        "id": int.from_bytes(body[30:32], "big"),
        "time": whole if nanoseconds < 10**9 and whole < 2**63 else None,
        "requesting": (int.from_bytes(body[44:52], "big"), int.from_bytes(body[52:54], "big"))
        if kind in (3, 9, 10)
        else (0, 0),
        "pair": pair,
    }


def exchanges(found, timeout_ns, sync_age_ns):
    """Events (dicts) of all domains, in no particular order."""
    domains = {}
    for m in found:
        if m["type"] in (0, 1, 2, 3, 8, 9, 10) and m.get("version", 2) == 2:
            domains.setdefault((m["sdo"], m["domain"]), Domain(m, timeout_ns, sync_age_ns)).message(m)
    return [event for domain in domains.values() for event in domain.end(found[-1]["clock"])]


def fit(a, b):
    return a == b or a is None or b is None


class Domain:
    def __init__(self, m, timeout_ns, sync_age_ns):
        self.head = {"domain": m["domain"], "sdo": m["sdo"]}
        self.timeout_ns, self.sync_age_ns = timeout_ns, sync_age_ns
        self.syncs, self.requests, self.events = [], [], []

    def message(self, m):
        self.expire(m["clock"])
        if m["type"] in (SYNC, FOLLOW_UP):
            self.half_sync(m)
        elif m["type"] in (DELAY_REQ, PDELAY_REQ):
            self.request(m)
        else:
            self.response(m)

    def end(self, clock):
        self.expire(clock)
        left = [r for r in self.requests if r["open"]]
        if left:
            self.give_up(left[0], "end_of_input", n=left[0]["n"], ts=None, exchanges=len(left))
        return self.events

    # Sync with its Follow_Up

    def half_sync(self, m):
        part = "sync" if m["type"] == SYNC else "follow_up"
        other = "follow_up" if part == "sync" else "sync"
        key = m["source"], m["pair"], m["id"]
        fits = [
            s
            for s in self.syncs
            if s["key"] == key
            and part not in s
            and other in s
            and m["clock"] - s["clock"] < self.timeout_ns
            and (m if part == "sync" else s["sync"])["two_step"]
        ]
        if not fits:
            fits = [{"key": key, "clock": m["clock"]}]
            self.syncs += fits
        fits[-1][part] = m
        fits[-1]["completed"] = m["clock"]
        if part == "follow_up":
            for r in self.requests:
                alive = m["clock"] - r["clock"] < self.timeout_ns
                if (
                    alive
                    and r["open"]
                    and not r["peer"]
                    and r["responder"] == m["source"]
                    and self.try_delay(r, m["n"], m["ts"])
                ):
                    return

    def latest_sync(self, r, complete, not_before, before=2**63):
        found = [
            s
            for s in self.syncs
            if "sync" in s
            and s["key"][0] == r["responder"]
            and fit(s["key"][1], r["responder_pair"])
            and s["sync"]["n"] < r["n"]
            and s["clock"] >= not_before
            and s["completed"] < before
            and ("follow_up" in s or not s["sync"]["two_step"]) == complete
        ]
        return max(found, key=lambda s: s["sync"]["n"], default=None)

    # requests

    def request(self, m):
        peer = m["type"] == PDELAY_REQ
        old = self.find(m, m["source"], peer)
        if old and old["open"] and old["pair"] == m["pair"]:
            self.give_up(old, "superseded", n=old["n"], ts=m["ts"])
        same = {k: m[k] for k in ("n", "ts", "clock", "pair", "id")}
        blank = {"responder": None, "response": None, "follow_up": None, "responder_pair": None}
        self.requests.append({**same, **blank, "requester": m["source"], "peer": peer, "open": True})

    def find(self, m, requester, peer):
        for r in reversed(self.requests):
            alive = m["clock"] - r["clock"] < self.timeout_ns
            if (
                alive
                and (r["requester"], r["id"], r["peer"]) == (requester, m["id"], peer)
                and fit(r["pair"], m["pair"])
            ):
                return r
        return None

    def expire(self, clock):
        for r in self.requests:
            deadline = r["clock"] + self.timeout_ns
            if r["open"] and deadline <= clock and not self.try_delay(r, r["n"], deadline):
                self.give_up(r, "no_follow_up" if r["response"] else "no_response", n=r["n"], ts=deadline)

    # responses

    def response(self, m):
        kind = m["type"]
        peer, is_response = kind != DELAY_RESP, kind != PDELAY_RESP_FOLLOW_UP
        r = self.find(m, m["requesting"], peer)
        if r is None:
            return self.stray(m, "no_request") if is_response else None
        first = r["open"] and r["responder"] is None
        same = r["responder"] == m["source"]
        another = not r["open"] and not same and is_response
        if first or another:
            r.update(responder=m["source"], responder_pair=m["pair"], response=None, follow_up=None, open=True)
        elif not same and r["open"]:
            return self.stray(m, "several_responders") if is_response else None
        elif not r["open"] or r["response" if is_response else "follow_up"] is not None:
            return None
        r["response" if is_response else "follow_up"] = m
        return self.peer(r, m) if peer else self.delay(r, m)

    def delay(self, r, m):
        if self.try_delay(r, m["n"], m["ts"]) or self.latest_sync(r, False, r["clock"] - self.timeout_ns + 1):
            return
        self.give_up(r, "no_sync", n=m["n"], ts=m["ts"])

    def try_delay(self, r, n, ts):
        if r["peer"] or r["response"] is None:
            return False
        s = self.latest_sync(r, True, r["clock"] - self.sync_age_ns, r["clock"] + self.timeout_ns)
        if s is None:
            return False
        two_step = s["sync"]["two_step"]
        event = self.describe(r, n, ts)
        event.update(sync_id=s["sync"]["id"], two_step=two_step, sync_correction=s["sync"]["correction"])
        event.update(t1_ns=time_of(s["follow_up"] if two_step else s["sync"]), t2_ns=capture(s["sync"]))
        event.update(follow_up_correction=s["follow_up"]["correction"] if two_step else 0)
        self.finish(r, event)
        return True

    def peer(self, r, m):
        if r["response"] is None or (r["response"]["two_step"] and r["follow_up"] is None):
            return
        event = self.describe(r, m["n"], m["ts"])
        event["two_step"] = r["response"]["two_step"]
        if not event["two_step"]:
            event.update(t3_ns=UNKNOWN, follow_up_correction=0)
        self.finish(r, event)

    # events

    def describe(self, r, n, ts):
        response, follow_up = r["response"], r["follow_up"]
        event = {
            **self.head, "n": n, "ts": ts, "mechanism": "p2p" if r["peer"] else "e2e",
            "master": r["responder"] or (0, 0),
            "slave": r["requester"], "request_id": r["id"], "sync_id": 0, "two_step": False, "sync_correction": 0,
            "follow_up_correction": follow_up["correction"] if follow_up else 0,
            "response_correction": response["correction"] if response else 0,
            "mean_path_delay_ns": UNKNOWN, "offset_ns": UNKNOWN,
        }  # fmt: skip
        if r["peer"]:
            times = capture(r), time_of(response), time_of(follow_up), capture(response)
        else:
            times = UNKNOWN, UNKNOWN, capture(r), time_of(response)
        return {**event, **dict(zip(("t1_ns", "t2_ns", "t3_ns", "t4_ns"), times, strict=True))}

    def give_up(self, r, reason, n, ts, exchanges=1):
        r["open"] = False
        event = self.describe(r, n, ts)
        self.events.append({**event, "name": "ptp.incomplete", "reason": reason, "exchanges": exchanges})

    def stray(self, m, reason):
        r = {"responder": m["source"], "requester": m["requesting"], "id": m["id"], "peer": m["type"] != DELAY_RESP}
        self.give_up({**r, "response": m, "follow_up": None, "ts": None}, reason, m["n"], m["ts"])

    def finish(self, r, event):
        r["open"] = False
        reason = measure(event)
        if reason:
            event = {**event, "name": "ptp.incomplete", "reason": reason, "exchanges": 1}
        self.events.append({"name": "ptp.delay", **event})


def capture(m):
    return UNKNOWN if m is None or m["ts"] is None else m["ts"]


def time_of(m):
    return UNKNOWN if m is None or m["time"] is None else m["time"]


def measure(event):
    """Fill in delay and offset; the reason why not, or None. IEEE 1588-2019, 11.3.2 and 11.4.2, halves rounded down."""
    corrections = [event[k] for k in ("sync_correction", "follow_up_correction", "response_correction")]
    if any(c == 2**63 - 1 or c == -(2**63) for c in corrections):
        return "correction_too_large"
    e2e = event["mechanism"] == "e2e"
    t1, t2, t3, t4 = (event[k] for k in ("t1_ns", "t2_ns", "t3_ns", "t4_ns"))
    used = (t1, t2, t3, t4) if e2e or event["two_step"] else (t1, t4)
    if any(not 0 <= t < 2**62 - 2**52 for t in used):
        return "bad_timestamp"
    c_sync, c_follow_up, c_response = (Fraction(c, 65536) for c in corrections)
    if e2e:
        delay = ((t2 - t3) + (t4 - t1) - c_sync - c_follow_up - c_response) / 2
        offset = t2 - t1 - delay - c_sync - c_follow_up
    else:
        between = t3 - t2 if event["two_step"] else 0
        delay = ((t4 - t1) - between - c_response - c_follow_up) / 2
        offset = Fraction((t1 - t2) + (t4 - t3), 2) if event["two_step"] and t2 > 0 else UNKNOWN
    event.update(mean_path_delay_ns=floor(delay), offset_ns=floor(offset))
    return "negative_delay" if delay < 0 else None

"""detectors/ptp.py against its twin, the linuxptp captures and exchanges made by hand."""

import random
import re
from statistics import median

import pytest

from dataplane.records import JIT, NO_TIME, TIMELESS
from detectors.ptp import DETECTOR, REQUESTS
from tests.naive import ptp as naive
from tests.naive.runner import drive, packets, params

S, MS, US = 10**9, 10**6, 10**3
MASTER, MASTER2, SLAVE, SLAVE2 = (0xA0, 1), (0xB0, 1), (0x51, 1), (0x52, 7)
SYNC, DELAY_REQ, PDELAY_REQ, PDELAY_RESP, FOLLOW_UP, DELAY_RESP, PDELAY_RESP_FOLLOW_UP = 0, 1, 2, 3, 8, 9, 10
ANNOUNCE = 11
TIMEOUT_NS, SYNC_AGE_NS = 4 * S, 10 * S


def message(ts, kind, source, number, time=0, **more):
    """A message as the twin takes it; `to` is the requesting port of a response."""
    blank = {
        "domain": 0,
        "sdo": 0,
        "two_step": False,
        "correction": 0,
        "requesting": more.pop("to", (0, 0)),
        "pair": None,
    }
    return {"ts": ts, "type": kind, "source": source, "id": number, "time": time, **blank, **more}


def numbered(messages):
    """Copies with packet number and, where a test gives none, capture clock."""
    clock, made = messages[0]["clock"] if "clock" in messages[0] else messages[0]["ts"], []
    for n, m in enumerate(messages):
        clock = max(clock, m.get("clock", m["ts"]))
        made.append({**m, "n": n, "clock": clock})
    return made


def row(m):
    """PACKET fields of a message."""
    return dict(
        ts=m["clock"] if m["ts"] is None else m["ts"],
        clock=m["clock"],
        seq=m["n"],
        flags=TIMELESS if m["ts"] is None else 0,
        ip_version=0,
        ptp_version=2,
        ptp_type=m["type"],
        ptp_domain=m["domain"],
        ptp_sdo=m["sdo"],
        ptp_flags=0x0200 if m["two_step"] else 0,
        ptp_correction=m["correction"],
        ptp_clock=m["source"][0],
        ptp_port=m["source"][1],
        ptp_requesting_clock=m["requesting"][0],
        ptp_requesting_port=m["requesting"][1],
        ptp_seq=m["id"],
        ptp_time=NO_TIME if m["time"] is None else m["time"],
        ptp_pair=0 if m["pair"] is None else hash(m["pair"]) % 2**64 or 1,
    )


def run(messages, **options):
    """Events of the detector as dicts, in the order of delivery."""
    rows = packets(*map(row, messages))
    return [plain(event) for event in drive(DETECTOR, params(DETECTOR, **options), rows)]


def plain(event):
    """An event row as the twin writes it."""
    kind = DETECTOR.events[int(event.code) - 1]
    fields = {f.name: f.form[event[f.name]] if isinstance(f.form, tuple) else int(event[f.name]) for f in kind.fields}
    for end in ("master", "slave"):
        fields[end] = fields.pop(f"{end}_clock"), fields.pop(f"{end}_port")
    return {"name": kind.name, "n": int(event.seq), "ts": int(event.ts), **fields}


def in_order(events):
    """Comparable: sorted, without the time of what the end of the input cut off."""
    events = [dict(e, ts=None) if e.get("reason") == "end_of_input" else e for e in events]
    return sorted((sorted(e.items(), key=str) for e in events), key=str)


def check(messages):
    """Run both, compare, return the detector's events."""
    messages = numbered(messages)
    found = run(messages)
    assert in_order(found) == in_order(naive.exchanges(messages, TIMEOUT_NS, SYNC_AGE_NS))
    return found


def e2e(t0=1000 * S, number=5, delay=400 * US, master=MASTER, slave=SLAVE, two_step=True, **more):
    """Sync (and Follow_Up) at t0, Delay_Req 10 ms later, Delay_Resp; the tap's clock is right."""
    c3 = t0 + 10 * MS
    sync = message(t0 + delay, SYNC, master, number, 0 if two_step else t0, two_step=two_step, **more)
    follow_up = [message(t0 + delay + 1, FOLLOW_UP, master, number, t0, **more)] if two_step else []
    request = message(c3, DELAY_REQ, slave, number + 100, **more)
    response = message(c3 + 2 * delay, DELAY_RESP, master, number + 100, c3 + delay, to=slave, **more)
    return [sync, *follow_up, request, response]


def p2p(t1=1000 * S, number=5, delay=3 * US, two_step=True, **more):
    """Pdelay exchange of SLAVE with MASTER, which is 7 s ahead of the tap and turns around in 1 ms."""
    t2, t3 = t1 + delay + 7 * S, t1 + delay + 7 * S + MS
    request = message(t1, PDELAY_REQ, SLAVE, number, **more)
    correction = 0 if two_step else MS << 16
    answer = dict(to=SLAVE, **more)
    response = message(t1 + MS + 2 * delay, PDELAY_RESP, MASTER, number, t2 if two_step else 0,
                       two_step=two_step, correction=correction, **answer)  # fmt: skip
    follow_up = (
        [message(t1 + MS + 2 * delay + 1, PDELAY_RESP_FOLLOW_UP, MASTER, number, t3, **answer)] if two_step else []
    )
    return [request, response, *follow_up]


def test_example_of_the_facts():
    """A tap 0.2 s ahead: 400.05 us, and the offset is the 0.2 s."""
    ahead = S // 5
    [event] = check([
        message(1000 * S + 500_100 + ahead, SYNC, MASTER, 1, 0, two_step=True),
        message(1000 * S + 500_200 + ahead, FOLLOW_UP, MASTER, 1, 1000 * S),
        message(1000 * S + 10 * MS + ahead, DELAY_REQ, SLAVE, 9),
        message(1000 * S + 11 * MS + ahead, DELAY_RESP, MASTER, 9, 1000 * S + 10_300_000, to=SLAVE),
    ])  # fmt: skip
    assert event["name"] == "ptp.delay"
    assert event["mean_path_delay_ns"] == 400_050
    assert event["offset_ns"] == ahead + 500_100 - 400_050
    assert (event["master"], event["slave"], event["sync_id"], event["request_id"]) == (MASTER, SLAVE, 1, 9)


@pytest.mark.parametrize("two_step", [True, False])
def test_one_and_two_step(two_step):
    [event] = check(e2e(two_step=two_step))
    assert (event["mean_path_delay_ns"], event["offset_ns"], event["two_step"]) == (400 * US, 0, two_step)
    [event] = check(p2p(two_step=two_step))
    assert (event["mean_path_delay_ns"], event["two_step"], event["mechanism"]) == (3 * US, two_step, "p2p")
    assert event["offset_ns"] == (-7 * S if two_step else NO_TIME)


def test_corrections_are_subtracted_once_and_halves_round_down():
    sync, follow_up, request, response = e2e()
    sync["correction"], follow_up["correction"], response["correction"] = 3 << 16, 1 << 15, -(1 << 17)
    request["correction"] = 1 << 40  # the master has copied it into its response
    [event] = check([sync, follow_up, request, response])
    assert event["mean_path_delay_ns"] == 400 * US - 1  # (3 + 0.5 - 2) / 2 = 0.75 ns less
    assert event["offset_ns"] == -3  # -(3 + 0.5 + 2) / 2 = -2.75 ns
    assert (event["sync_correction"], event["follow_up_correction"]) == (3 << 16, 1 << 15)


def test_follow_up_first():
    sync, follow_up, request, response = e2e()
    [event] = check([follow_up, sync, request, response])
    assert event["mean_path_delay_ns"] == 400 * US
    request, response, follow_up = p2p()
    [event] = check([request, follow_up, response])
    assert event["mean_path_delay_ns"] == 3 * US


def test_follow_up_after_the_response_finishes_the_exchange():
    sync, follow_up, request, response = e2e()
    follow_up["ts"] = response["ts"] + 5
    [event] = check([sync, request, response, follow_up])
    assert (event["name"], event["n"]) == ("ptp.delay", 3)


def test_the_latest_complete_sync_before_the_request_is_used():
    first, late = e2e(number=5), e2e(number=6, t0=1000 * S + 5 * MS)
    after = message(first[2]["ts"] + 1, SYNC, MASTER, 7, 1)  # one-step, after the request
    found = check([*first[:2], late[0], first[2], after, first[3]])  # Follow_Up 6 is lost
    assert [e["sync_id"] for e in found] == [5]


def test_sequence_wrap():
    made = [dict(m, id=i % 65536) for i in (65534, 65535, 65536) for m in e2e(t0=(i - 64536) * S)]
    found = check(made)
    assert [(e["sync_id"], e["mean_path_delay_ns"]) for e in found] == [(i, 400 * US) for i in (65534, 65535, 0)]


def test_domains_masters_and_slaves_at_once():
    parts = [
        e2e(delay=100 * US),
        e2e(delay=200 * US, domain=1),
        e2e(delay=300 * US, sdo=0x100),
        e2e(delay=400 * US, master=MASTER2, slave=SLAVE2),
        e2e(delay=500 * US, pair=("unicast", 1), master=(0xC0, 1)),
        p2p(delay=7 * US),
    ]
    found = check(sorted((m for part in parts for m in part), key=lambda m: m["ts"]))
    assert sorted(e["mean_path_delay_ns"] // US for e in found if e["name"] == "ptp.delay") == [
        7,
        100,
        200,
        300,
        400,
        500,
    ]


def test_two_masters_answer_one_request():
    one, two = e2e(), e2e(master=MASTER2, delay=100 * US)
    found = check(sorted([*one, *two[:2], two[3]], key=lambda m: m["ts"]))
    assert {e["master"]: e["name"] for e in found} == {MASTER: "ptp.delay", MASTER2: "ptp.delay"}


def test_unicast_streams_of_one_master_are_kept_apart():
    """Telecom: each slave has its own sequence of Syncs, with equal sequenceIds."""
    one, two = e2e(pair="A"), e2e(slave=SLAVE2, pair="B", t0=1000 * S + 50 * US)
    found = check(sorted(one + two, key=lambda m: m["ts"]))
    assert [e["mean_path_delay_ns"] for e in found] == [400 * US] * 2


def test_hybrid_mode():
    """Multicast Sync, unicast Delay_Req and Delay_Resp."""
    sync, follow_up, request, response = e2e()
    request["pair"] = response["pair"] = "A"
    [event] = check([sync, follow_up, request, response])
    assert event["mean_path_delay_ns"] == 400 * US


def reasons(messages):
    return [(e["reason"], e["n"]) for e in check(messages) if e["name"] == "ptp.incomplete"]


LATER = message(1020 * S, SYNC, MASTER, 99, 1)  # lets the timeouts come


def test_what_is_missing_is_told():
    sync, follow_up, request, response = e2e()
    assert reasons([sync, follow_up, request, LATER]) == [("no_response", 2)]
    assert reasons([sync, follow_up, response]) == [("no_request", 2)]
    assert reasons([request, response]) == [("no_sync", 1)]
    assert reasons([sync, request, response, LATER]) == [("no_follow_up", 1)]
    assert reasons([follow_up, request, response]) == [("no_sync", 2)]
    assert reasons([sync, follow_up, request]) == [("end_of_input", 2)]
    request, response, follow_up = p2p()
    assert reasons([request, response, LATER]) == [("no_follow_up", 0)]
    assert reasons([request, follow_up, LATER]) == [("no_response", 0)]
    assert reasons([response, follow_up]) == [("no_request", 0)]


def test_end_of_input_tells_how_many():
    [event] = check([message(1000 * S + i, DELAY_REQ, SLAVE, i) for i in range(3)])
    assert (event["reason"], event["exchanges"], event["request_id"]) == ("end_of_input", 3, 0)


def test_several_timeouts_at_one_time():
    requests = [message(1000 * S, DELAY_REQ, SLAVE, i) for i in range(3)]
    found = check([*requests, LATER])
    assert [(e["reason"], e["request_id"], e["ts"]) for e in found] == [("no_response", i, 1004 * S) for i in range(3)]


def test_measurements_that_cannot_be():
    assert reasons(e2e(delay=-5))[0][0] == "negative_delay"
    for at, field, value, reason in (
        (0, "correction", 2**63 - 1, "correction_too_large"),
        (3, "correction", -(2**63), "correction_too_large"),
        (1, "time", None, "bad_timestamp"),
        (3, "time", 2**63 - 1, "bad_timestamp"),
        (2, "clock", 1011 * S, "no_sync"),
    ):
        made = numbered(e2e())
        made[at][field] = value
        assert reasons(made) == [(reason, 3)]
    made = numbered(e2e())
    made[0]["ts"] = None
    assert reasons(made) == [("bad_timestamp", 3)]


def test_a_negative_delay_is_recorded():
    [event] = check(e2e(delay=-5))
    assert event["mean_path_delay_ns"] == -5


def test_requests_that_are_said_again():
    sync, follow_up, request, response = e2e()
    again = dict(request, ts=request["ts"] + 1)
    found = check([sync, follow_up, request, again, response, dict(response)])
    assert [(e["name"], e.get("reason"), e["n"]) for e in found] == [
        ("ptp.incomplete", "superseded", 2), ("ptp.delay", None, 4),
    ]  # fmt: skip


def test_a_second_responder_while_the_first_is_awaited():
    request, response, follow_up = p2p()
    other = dict(response, source=MASTER2)
    assert reasons([request, response, other, dict(follow_up, source=MASTER2), follow_up]) == [
        ("several_responders", 2)
    ]


def test_overflow_gives_up_the_oldest():
    found = run(numbered([message(1000 * S + i, DELAY_REQ, (i + 1, 1), 0) for i in range(REQUESTS + 2)]))
    assert [(e["reason"], e["slave"][0], e["exchanges"]) for e in found] == [
        ("overflow", 1, 1), ("overflow", 2, 1), ("end_of_input", 3, REQUESTS),
    ]  # fmt: skip


def test_other_messages_have_no_key():
    assert run(numbered([message(S, kind, MASTER, 1) for kind in (4, 7, 11, 12, 13)])) == []


def mixed(seed, count):
    """Messages of every kind from few ports, with equal times, wraps, damage and pauses."""
    rng = random.Random(seed)
    now, made = 1000 * S, []
    for _ in range(count):
        now += rng.choice((0, 0, 1, 50 * US, 10 * MS, S, 5 * S) if rng.random() < 0.2 else (0, 1, 100, 20 * US))
        parts = rng.choice((e2e, p2p))(
            now, number=rng.choice((1, 2, 65435)), two_step=rng.random() < 0.7, domain=rng.choice((0, 0, 0, 1)),
            delay=rng.choice((-1, 0, 1, 70 * US)), pair=rng.choice((None, None, "A", "B")),
        )  # fmt: skip
        for m in parts:
            m["id"] %= 65536
            if rng.random() < 0.3:
                m["source"] = rng.choice((MASTER, MASTER2, SLAVE, SLAVE2))
            if rng.random() < 0.05:
                m["correction"] = rng.choice((2**63 - 1, -(2**63), 1, -1, 0x28000))
            if rng.random() < 0.05:
                m["time"] = rng.choice((None, 2**62, 0))
        made += [m for m in parts for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2)))]
    made = sorted(made, key=lambda m: m["ts"] + rng.choice((0, 0, 0, 30 * US, 300 * MS)))
    # so that each late deadline gets its turn
    quiet = [message(now + 20 * S + i * 17 * MS, ANNOUNCE, MASTER, i) for i in range(300)]
    return [dict(m) for m in made + quiet]


@pytest.mark.parametrize("seed", range(20))
def test_twin_on_mixed_messages(seed):
    found = check(mixed(seed, 120))
    assert found


CAPTURES = (
    *("idle-udp4-e2e", "idle-udp6-e2e", "idle-l2-e2e", "idle-udp4-p2p", "idle-l2-p2p"),
    *("load50-udp4-e2e", "load50-l2-p2p", "load90-udp4-e2e", "load90-l2-p2p", "shim1000us-500us-udp4-e2e"),
)


@pytest.mark.parametrize("name", CAPTURES if JIT else CAPTURES[1::4])
def test_linuxptp(name, corpus):
    """Event for event as the twin; the median next to the slave is within 5 us of ptp4l's own."""
    folder = corpus / "pcaps" / "ptp-real"
    found = check(naive.messages(folder / f"{name}.slave.pcap"))
    raw = re.findall(r"delay +filtered +\S+ +raw +(\S+)", (folder / f"{name}.slave.log").read_text())
    delays = [e["mean_path_delay_ns"] for e in found if e["name"] == "ptp.delay"]
    assert len(delays) > 400
    assert abs(median(delays) - median(map(int, raw))) < 5 * US


@pytest.mark.parametrize("name", ["tcpdump-ptp", "tcpdump-ptp_ethernet", "tcpdump-ptp_v2_1", "ndpi-ptpv2"])
def test_corpus(name, corpus):
    check(naive.messages(corpus / "pcaps" / f"{name}.pcap"))

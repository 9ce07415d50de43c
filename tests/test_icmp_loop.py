"""detectors/icmp_loop.py against its twin, the corpus' echo pairs and cases made by hand."""

import csv
import json
import random
import shutil
import subprocess

import pytest

from dataplane.records import REVERSE, SELF, TIMELESS
from detectors.icmp_loop import DETECTOR
from tests.naive import icmp_loop as naive
from tests.naive.runner import drive, packets, params

S, MS, US = 10**9, 10**6, 10**3
LIMITS = dict(timeout=5 * S, late=300 * S, loop_max=900 * MS, loop_min=10 * US)
A, B = "10.0.0.1", "10.0.0.2"


def message(ts, src=A, dst=B, request=True, **more):
    plain = dict(family=4, id=7, number=1, tos=0, ttl=64, size=64)
    return {"ts": ts, "src": src, "dst": dst, "request": request, **plain, **more}


def request(ts, **more):
    return message(ts, **more)


def reply(ts, **more):
    return message(ts, **{"src": B, "dst": A, **more}, request=False)


def numbered(messages):
    clock, made = messages[0]["ts"], []
    for n, m in enumerate(messages):
        clock = max(clock, m["ts"])
        made.append({"n": n, "clock": clock, **m})
    return made


def row(m):
    """PACKET fields of a message."""
    kind = (8 if m["request"] else 0) if m["family"] == 4 else (128 if m["request"] else 129)
    direction = SELF if m["src"] == m["dst"] else REVERSE if m["src"] > m["dst"] else 0
    return dict(
        ts=m["ts"],
        clock=m["clock"],
        seq=m["n"],
        hash=hash((m["family"], frozenset((m["src"], m["dst"])))) % 2**64 or 1,
        flags=direction,
        proto=1 if m["family"] == 4 else 58,
        ip_version=m["family"],
        sport=kind,
        icmp_id=m["id"],
        icmp_seq=m["number"],
        tos=m["tos"],
        ttl=m["ttl"],
        payload_len=m["size"],
    )


def run(messages, **options):
    if not messages:
        return []
    rows = packets(*map(row, messages))
    return [plain(event) for event in drive(DETECTOR, params(DETECTOR, **options), rows)]


def plain(event):
    """An event row as the twin writes it."""
    kind = DETECTOR.events[int(event.code) - 1]
    fields = {f.name: f.form[event[f.name]] if isinstance(f.form, tuple) else int(event[f.name]) for f in kind.fields}
    return {"name": kind.name, "n": int(event.seq), "ts": int(event.ts), **fields}


def in_order(events):
    """Comparable: sorted, without the time of what the end of the input cut off."""
    events = [dict(e, ts=None) if e.get("reason") == "end_of_input" else e for e in events]
    return sorted((sorted(e.items(), key=str) for e in events), key=str)


def check(messages, **options):
    """Run both, compare, return the detector's events."""
    messages = numbered(messages) if messages else []
    found = run(messages, **options)
    assert in_order(found) == in_order(naive.events(messages, **{**LIMITS, **options}))
    return found


def names(events):
    return [e["name"].removeprefix("icmp.") for e in events]


LATER = request(1000 * S, number=99)  # lets the deadlines come
END = "unanswered"  # what LATER itself gives


@pytest.mark.parametrize("family", [4, 6])
def test_round_trip(family):
    [event] = check([request(0, tos=8, family=family), reply(3 * MS, tos=4, ttl=60, family=family)])
    assert (event["rtt_ns"], event["request"], event["n"], event["late"]) == (3 * MS, 0, 1, 0)
    assert (event["tos"], event["return_tos"], event["ttl"], event["return_ttl"]) == (8, 4, 64, 60)


def test_what_does_not_belong_together():
    for other in (dict(number=2), dict(id=8), dict(family=6), dict(src="10.0.0.3")):
        assert "rtt" not in names(check([request(0), reply(1, **other)]))
    assert check([reply(0)]) == []
    assert names(check([request(0), message(1, request=False)])) == [END]  # not mirrored


def test_addressed_to_itself():
    [event] = check([request(0, dst=A), message(29 * US, dst=A, request=False)])
    assert event["rtt_ns"] == 29 * US


def test_both_directions_with_the_same_numbers():
    back = dict(src=B, dst=A)
    found = check([request(0), request(1, **back), reply(5), message(7, request=False)])
    assert sorted(e["rtt_ns"] for e in found) == [5, 6]


def test_tos_in_key():
    both = [request(0, tos=8), request(1, tos=16), reply(5, tos=8), reply(9, tos=16)]
    assert [e["rtt_ns"] for e in check(both, tos_in_key=True)] == [5, 8]
    assert [e["rtt_ns"] for e in check(both) if e["name"] == "icmp.rtt"] == [4]


def test_unanswered_then_late():
    found = check([request(0), reply(145 * S)])
    assert [(e["name"], e["ts"]) for e in found] == [("icmp.unanswered", 5 * S), ("icmp.rtt", 145 * S)]
    assert found[1]["late"] and found[1]["rtt_ns"] == 145 * S
    assert names(check([request(0), reply(306 * S)])) == ["unanswered"]


def test_loops():
    """The request comes home as it was, or with the addresses swapped; nobody answers."""
    [event, _] = check([request(0), request(3 * MS, ttl=60), LATER])
    assert (event["name"], event["way"], event["loop_ns"], event["n"]) == ("icmp.loop", "unmodified", 3 * MS, 1)
    [event, _] = check([request(0, tos=4), request(3 * MS, tos=4, src=B, dst=A), LATER])
    assert (event["name"], event["way"], event["loop_ns"], event["tos"]) == ("icmp.loop", "swapped", 3 * MS, 4)
    [event, _] = check([request(0, dst=A), request(MS, dst=A), LATER])
    assert (event["way"], event["loop_ns"]) == ("unmodified", MS)


def test_a_packet_that_goes_round_is_one_loop():
    [event, _] = check([*(request(i * MS, ttl=64 - 2 * i) for i in range(20)), LATER])
    assert (event["name"], event["loop_ns"], event["copies"]) == ("icmp.loop", MS, 19)


def test_rewritten_loops_are_told_by_option():
    pair = [request(0, tos=8), reply(3 * MS, tos=8)]
    assert names(check(pair)) == ["rtt"]
    [event] = check(pair, monitoring="marked")
    assert (event["name"], event["way"], event["loop_ns"]) == ("icmp.loop", "rewritten", 3 * MS)
    assert names(check([request(0), reply(1)], monitoring="marked")) == ["rtt"]
    assert names(check([request(0), reply(1)], monitoring="all")) == ["loop"]


def test_no_loop():
    for other in (dict(ttl=65), dict(size=65), dict(tos=1)):
        assert names(check([request(0), request(3 * MS, **other), LATER])) == ["unanswered", "unanswered", END]
    assert names(check([request(0), request(S), LATER])) == ["unanswered", "unanswered", END]  # sent again
    assert names(check([request(0), request(5 * US), LATER])) == ["duplicate", "unanswered", END]  # captured twice
    swapped = request(3 * MS, src=B, dst=A)
    assert sorted(names(check([request(0), swapped, message(4 * MS, request=False), LATER]))) == [
        "rtt",
        "unanswered",
        END,
    ]


def test_duplicates():
    found = check([request(0), request(2 * MS), reply(3 * MS), LATER])
    assert names(found) == ["rtt", "duplicate", END]
    assert (found[0]["rtt_ns"], found[0]["copies"]) == (MS, 1)
    assert (found[1]["what"], found[1]["gap_ns"], found[1]["n"]) == ("request", 2 * MS, 1)
    found = check([request(0), reply(3 * MS), reply(4 * MS)])
    assert names(found) == ["rtt", "duplicate"]
    assert (found[1]["what"], found[1]["gap_ns"]) == ("reply", MS)
    found = check([request(0), reply(3 * MS), request(4 * MS), LATER])  # a copy of an answered request
    assert names(found) == ["rtt", "duplicate", END]
    found = check([request(0), reply(3 * MS), request(4 * MS), reply(5 * MS), LATER])
    assert names(found) == ["rtt", "rtt", "duplicate", END]


def test_end_of_input():
    [event] = check([request(0), request(2 * S, src=B, dst=A)])
    assert (event["reason"], event["requests"], event["n"]) == ("end_of_input", 2, 0)
    assert names(check([request(0), request(MS)])) == ["loop"]
    assert names(check([request(0), request(MS), reply(2 * MS)])) == ["rtt", "duplicate"]


def test_packets_without_time_are_left_out():
    rows = packets(dict(row(numbered([request(0)])[0]), flags=TIMELESS))
    assert len(drive(DETECTOR, params(DETECTOR), rows)) == 0


def test_options_are_checked():
    with pytest.raises(ValueError, match="decrease"):
        params(DETECTOR, loop_max="6s")


def mixed(seed, count):
    rng = random.Random(seed)
    now, made = 0, []
    steps = (0, 1, 5 * US, 20 * US, MS, 20 * MS, 500 * MS, 900 * MS, S, 6 * S, 301 * S)
    for _ in range(count):
        now += rng.choice(steps[: rng.choice((5, 7, 11))])
        src, dst = rng.choice(((A, B), (B, A), (A, B), (A, A)))
        more = dict(number=rng.choice((1, 1, 2)), tos=rng.choice((0, 0, 8)), ttl=rng.choice((64, 64, 63)))
        early = rng.choice((0, 0, 0, 0, 2 * MS))  # time that runs backwards
        made.append(message(max(now - early, 0), src, dst, rng.random() < 0.6, **more))
    return made


@pytest.mark.parametrize("options", [{}, {"tos_in_key": True}, {"monitoring": "marked"}])
@pytest.mark.parametrize("seed", range(20))
def test_twin_on_mixed_messages(seed, options):
    made = mixed(seed, 300)
    found = check(made, **options)
    pairs = [(e["request"], e["n"], e.get("rtt_ns", e.get("loop_ns"))) for e in found if came_back(e)]
    now = naive.key_pairs(numbered(made), options.get("tos_in_key", False))
    assert set(pairs) <= set(now)
    assert len(now) - len(pairs) <= sum(rtt > LIMITS["late"] for _, _, rtt in now)


def came_back(event):
    return event["name"] == "icmp.rtt" or event.get("way") == "rewritten"


FIELDS = (
    *(
        "frame.number",
        "frame.time_epoch",
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ip.proto",
        "ip.dsfield",
        "ip.ttl",
        "ip.len",
    ),
    *("icmp.type", "icmp.ident", "icmp.seq", "ipv6.src", "ipv6.dst", "ipv6.tclass", "ipv6.hlim", "ipv6.plen"),
    *("icmpv6.type", "icmpv6.echo.identifier", "icmpv6.echo.sequence_number"),
)


def echoes(path):
    """Echo messages of the outermost IP header, as tshark has them."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=f"]
    command += ["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-Y", "icmp || icmpv6"]
    text = subprocess.run(
        [*command, *(arg for f in FIELDS for arg in ("-e", f))], capture_output=True, text=True
    ).stdout
    for values in csv.reader(text.splitlines(), delimiter="\t"):
        m = echo(dict(zip(FIELDS, values, strict=True)))
        if m:
            yield m


def echo(f):
    layers = f["frame.protocols"].split(":")
    if {"nsh", "cmd"} & set(layers):
        return None  # IP behind layers that are not entered
    outermost = next(layer for layer in layers if layer in ("ip", "ipv6"))
    seconds, _, part = f["frame.time_epoch"].partition(".")
    m = {"n": int(f["frame.number"]) - 1, "ts": int(seconds) * 10**9 + int(part.ljust(9, "0"))}
    if outermost == "ip" and f["ip.proto"] == "1" and f["icmp.type"] in ("0", "8"):
        four = dict(family=4, src=f["ip.src"], dst=f["ip.dst"], request=f["icmp.type"] == "8", size=int(f["ip.len"]))
        return {**m, **four, **numbers(f["icmp.ident"], f["icmp.seq"], f["ip.dsfield"], f["ip.ttl"])}
    if outermost == "ipv6" and f["icmpv6.type"] in ("128", "129"):
        six = dict(family=6, src=f["ipv6.src"], dst=f["ipv6.dst"], request=f["icmpv6.type"] == "128")
        tail = f["icmpv6.echo.identifier"], f["icmpv6.echo.sequence_number"], f["ipv6.tclass"], f["ipv6.hlim"]
        return {**m, **six, "size": int(f["ipv6.plen"]), **numbers(*tail)}
    return None


def numbers(identifier, sequence, tos, ttl):
    return dict(id=int(identifier, 0), number=int(sequence, 0), tos=int(tos, 0), ttl=int(ttl))


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark reads the captures here")
def test_corpus_pairs(corpus):
    """Pairs and round trips are the oracle's, in every well-formed capture."""
    folder = corpus / "pcaps"
    files = json.loads((folder / "oracle.json").read_text())["files"]
    seen = 0
    for name, oracle in files.items():
        told = {4: oracle.get("icmp_echo", {}), 6: oracle.get("icmpv6_echo", {})}
        if name.startswith("malformed/") or not any(o.get("requests", 0) + o.get("replies", 0) for o in told.values()):
            continue
        messages = numbered(list(echoes(folder / name)))
        for family, o in told.items():
            mine = [m for m in messages if m["family"] == family]
            assert sum(m["request"] for m in mine) == o["requests"], name
            for with_tos, kind in ((False, "key_pairs"), (True, "key_tos_pairs")):
                found = check(mine, tos_in_key=with_tos)
                pairs = sorted([e["request"] + 1, e["n"] + 1, e["rtt_ns"]] for e in found if e["name"] == "icmp.rtt")
                assert len(pairs) == o[kind], name
                assert pairs == sorted(o.get(f"{kind}_list", o["tshark_pair_list"])), name
                seen += len(pairs)
    assert seen > 1000

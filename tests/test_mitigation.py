"""Mitigation: when a flow is favoured, and that no client wins more than its cap, whatever it signals."""

import json
import random

import numpy as np
import pytest

from dataplane.events import Renderer, json_lines, json_schema
from dataplane.pacing import new_classes
from dataplane.records import NEVER
from dataplane.wire import decode_options
from qoetap import inline_events
from qoetap.classes import names_of
from qoetap.matching import Mark
from qoetap.mitigation import END, START, Ends, Mitigation, Override, Rule, ends_of, rules_of
from qoetap.overrides import flow_hash
from qoetap.rates import Bound, Change
from tests.test_classes import KNOWN, site

MS, S = 10**6, 10**9
ON, OFF = "iqn.stall_start", "iqn.stall_end"
RULE = Rule(1, ON, "", "priority", ("video",), None, None, None, 2 * S, 3 * S, 4, 2, "dst", 20 * S, 60 * S)
STALL = RULE._replace(until=OFF)


def flow(client=1, port=1000):
    """Ends of an event about a flow from a server to a client."""
    return Ends(b"\x0a\0\0\x01", bytes([192, 0, 2, client]), 443, port, 17)


def what(actions):
    return [(a.what, a.ends.dst[3], a.reason) if a.what == END else (a.what, a.ends.dst[3]) for a in actions]


def test_a_favour_lasts_for_hold():
    m = Mitigation([RULE])
    assert m.due() == NEVER
    (start,) = m.event(ON, flow(), 0)
    assert start == (START, RULE, flow(), 0, 2 * S, "")
    assert m.due() == 2 * S and m.time(2 * S - 1) == []
    assert m.time(2 * S + 5) == [(END, RULE, flow(), 0, 2 * S, "hold")]
    assert m.due() == NEVER and m.time(10 * S) == []


def test_further_events_prolong_it():
    m = Mitigation([RULE])
    m.event(ON, flow(), 0)
    assert m.event(ON, flow(), 1 * S) == [] == m.event(ON, flow(), 2 * S)
    assert m.time(4 * S - 1) == [] and what(m.time(4 * S)) == [(END, 1, "hold")]


def test_other_events_do_nothing():
    m = Mitigation([RULE])
    assert m.wanted == {ON} and m.event("ptp.delay", flow(), 0) == [] == m.event(OFF, flow(), 0)
    assert Mitigation([STALL]).event(OFF, flow(), 0) == []


def test_the_event_that_ends_it_does_so_after_hold():
    m = Mitigation([STALL])
    m.event(ON, flow(), 0)
    assert m.time(9 * S) == []
    m.event(OFF, flow(), 9 * S)
    assert m.time(11 * S) == [(END, STALL, flow(), 0, 11 * S, "event")]


def test_a_stall_that_begins_again_within_hold_goes_on():
    m = Mitigation([STALL])
    m.event(ON, flow(), 0)
    m.event(OFF, flow(), 5 * S)
    assert m.event(ON, flow(), 6 * S) == [] == m.time(19 * S)
    assert m.time(20 * S) == [(END, STALL, flow(), 0, 20 * S, "budget")]


def test_both_directions_are_one_flow():
    m, there = Mitigation([STALL]), flow()
    m.event(ON, there, 0)
    m.event(OFF, Ends(there.dst, there.src, there.dport, there.sport, there.proto), S)
    assert what(m.time(3 * S)) == [(END, 1, "event")]


def test_after_an_end_it_is_quiet():
    m = Mitigation([RULE])
    m.event(ON, flow(), 0)
    assert what(m.event(ON, flow(), 2 * S)) == [(END, 1, "hold")], "an end at the very moment comes first"
    assert m.event(ON, flow(), 5 * S - 1) == []
    assert what(m.event(ON, flow(), 5 * S)) == [(START, 1)]
    assert m.counts()[0] == {
        "rule": 1, "on": ON, "do": "priority", "favoured": 1, "begun": 2,
        "refused": {"quiet": 2, "max_flows": 0, "max_per_client": 0, "budget": 0},
    }  # fmt: skip


def test_so_many_flows_at_once():
    m = Mitigation([RULE])
    started = [c for c in range(1, 7) for _ in m.event(ON, flow(c), c)]
    assert started == [1, 2, 3, 4] and m.counts()[0]["refused"]["max_flows"] == 2
    other = Mitigation([RULE])
    assert [p for p in range(5) for _ in other.event(ON, flow(1, p), p)] == [0, 1]
    assert other.counts()[0]["refused"]["max_per_client"] == 3


def test_hosts_of_one_ipv6_network_are_one_client():
    m = Mitigation([RULE._replace(max_per_client=1)])
    near = [Ends(bytes(16), b"\x20\x01" + bytes(5) + bytes([net]) + bytes([0] * 7 + [host]), 443, 5, 17)
            for net, host in ((0, 1), (0, 2), (1, 1))]  # fmt: skip
    assert [len(m.event(ON, ends, 0)) for ends in near] == [1, 0, 1]


def test_what_was_charged_comes_back_after_the_window():
    m = Mitigation([STALL._replace(quiet=0)])
    m.event(ON, flow(), 0)
    assert what(m.event(ON, flow(), 20 * S)) == [(END, 1, "budget")]
    assert m.event(ON, flow(), 80 * S - 1) == [] and m.counts()[0]["refused"]["budget"] == 2
    assert what(m.event(ON, flow(), 80 * S)) == [(START, 1)]


def test_the_rest_of_a_budget_must_be_worth_it():
    m = Mitigation([STALL._replace(quiet=0, budget=5 * S)])
    m.event(ON, flow(), 0)
    m.event(OFF, flow(), 2 * S)
    assert what(m.time(4 * S)) == [(END, 1, "event")]
    assert m.event(ON, flow(), 5 * S) == [], "1 s is left, hold is 2 s"


def test_stop_ends_all():
    m = Mitigation([RULE, STALL._replace(number=2, do="mark", mark=Mark(1))])
    m.event(ON, flow(), 0)
    assert [(a.rule.number, a.until, a.reason) for a in m.stop(S)] == [(1, S, "stop"), (2, S, "stop")]
    assert m.due() == NEVER and m.override(flow().flow()) is None


def test_what_flows_and_classes_get():
    rules = [
        RULE,
        RULE._replace(number=2, do="mark", classes=(), mark=Mark(7)),
        RULE._replace(number=3, on=OFF, do="mark", classes=(), mark=Mark(8)),
        RULE._replace(number=4, on=OFF, do="dscp", classes=(), dscp=46),
        RULE._replace(number=5, do="pace-others", classes=("bulk", "rest"), rate=100),
        RULE._replace(number=6, on=OFF, do="rate", classes=("video",), rate=900),
    ]
    m = Mitigation(rules)
    assert m.bounds() == {} and m.override(flow().flow()) is None
    m.event(ON, flow(), 0)
    assert m.override(flow().flow()) == Override("video", Mark(7)) and m.override(flow(2).flow()) is None
    assert m.bounds() == {"bulk": Bound(100, True), "rest": Bound(100, True)}
    m.event(OFF, flow(), 1)
    assert m.override(flow().flow()) == Override("video", Mark(7), 46) and m.bounds()["video"] == Bound(900, False)
    dry = Mitigation(rules, dry_run=True)
    assert len(dry.event(ON, flow(), 0)) == 3 and dry.override(flow().flow()) is None and dry.bounds() == {}
    m.time(2 * S)
    assert m.bounds() == {"video": Bound(900, False)}, "until the last favoured flow"


def served(actions, end):
    """[(flow, since, until)] of all favours; those that go on are cut at `end`."""
    open_, found = {}, []
    for a in actions:
        if a.what == START:
            open_[a.ends.flow()] = a.since
        else:
            found.append((a.ends.flow(), open_.pop(a.ends.flow()), a.until))
    return found + [(f, since, end) for f, since in open_.items()]


def overlap(favours, low, high):
    return sum(max(0, min(until, high) - max(since, low)) for _, since, until in favours)


@pytest.mark.parametrize("rule", [RULE, STALL, STALL._replace(quiet=0), RULE._replace(quiet=0, max_per_client=4)])
@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_client_wins_no_more_than_its_cap(rule, seed):
    """It signals without end, over many flows and true or false ends, and takes part in every race for a place."""
    rng, m, actions, now = random.Random(seed), Mitigation([rule]), [], 0
    while now < 900 * S:
        now += rng.choice((1, 10 * MS, 300 * MS, 2 * S)) if rng.random() < 0.99 else 30 * S
        name = OFF if rng.random() < 0.2 else ON
        actions += m.event(name, flow(1, rng.randrange(30)), now)
        if rng.random() < 0.3:
            actions += m.time(now + rng.randrange(5 * MS))
        assert len(m.ruled[0].favours) <= rule.max_per_client
    favours = served(actions, now)
    edges = sorted({edge for _, since, until in favours for edge in (since, until)})
    worst = max(overlap(favours, low, low + rule.window) for edge in edges for low in (edge, edge - rule.window))
    assert 0.5 * rule.budget < worst <= rule.budget
    assert overlap(favours, 0, now) <= rule.budget * (now // rule.window + 1)
    assert len(m.ruled[0].quiet) <= 30 * 2 and len(m.ruled[0].charges) <= 1


def test_it_keeps_no_place_from_others_for_ever():
    m, started = Mitigation([STALL._replace(max_flows=2)]), []
    for tick in range(2000):
        now = tick * 100 * MS
        m.event(ON, flow(1, tick % 50), now)
        started += [a.ends.dst[3] for a in m.event(ON, flow(2), now) if a.what == START]
    assert started.count(2) > 1


def test_what_is_remembered_is_bounded():
    m = Mitigation([RULE._replace(hold=100 * MS, quiet=S)])
    for tick in range(20_000):
        m.event(ON, Ends(b"\0\0\0\1", tick.to_bytes(4, "big"), 443, 1, 17), tick * 10 * MS)
    favours = 4 * 60 * 10 + 4
    assert len(m.ruled[0].charges) <= 2 * favours and len(m.ruled[0].quiet) <= 2 * favours


@pytest.mark.parametrize("proto", [1, 58])
def test_all_icmp_between_two_hosts_is_one_flow(proto):
    """As in PACKET.hash: type and code, which events have in place of ports, tell no flows apart."""
    request, reply = (Ends(b"\x0a\0\0\x01", b"\x0a\0\0\x02", kind, 0, proto) for kind in (8, 0))
    back = Ends(reply.dst, reply.src, 0, 0, proto)
    m = Mitigation([RULE])
    assert len(m.event(ON, request, 0)) == 1 and m.event(ON, reply, 1) == m.event(ON, back, 2) == []
    options = decode_options(b"icmp")
    assert flow_hash(options, request) == flow_hash(options, reply) == flow_hash(options, back) != 0
    assert flow_hash(options, request) != flow_hash(options, request._replace(proto=17))


def test_rules_of_the_configuration():
    names = [kind.name for d in KNOWN.values() for kind in d.events]
    first, second, third = rules_of(site(), names)
    assert (first.number, first.on, first.until, first.classes, first.hold) == (1, ON, OFF, ("stalled",), 3 * S)
    assert (second.do, second.rate, second.until) == ("pace-others", 100_000, OFF)
    assert (third.dscp, third.client) == (40, "src") and third.until.startswith("icmp")
    assert rules_of(site(), [ON])[0].until == ""


def test_events_can_be_written():
    """Every event goes through the renderer and fits the schema."""
    inline = site()
    names, rules = names_of(inline), rules_of(inline, [ON, OFF])
    pace, mitigation = inline_events.declared(names, [ON])
    counts = new_classes(len(names))
    counts["rate"][2], counts["over_time"][2] = 5000, 7
    m = Mitigation(rules)
    actions = m.event(ON, flow(), 0) + m.time(40 * S)
    changes = [Change("video", None, 100), Change("rest", 100, None)]
    batches = [
        (pace, inline_events.stats_rows(pace, names, counts, 10**18)),
        (pace, inline_events.changed_rows(pace, changes, "lease_ended", 10**18)),
        (mitigation, inline_events.action_rows(mitigation, actions, False, 10**18)),
    ]
    renderer, found = Renderer([pace, mitigation], json_lines), []
    for detector, made in batches:
        for text, _ in renderer.chunks(inline_events.as_events(detector, made, "tap")):
            found += [json.loads(line) for line in bytes(text).splitlines()]
    assert [e["event_type"] for e in found] == ["pace.stats"] * 6 + ["pace.rate_changed"] * 2 + [
        "mitigation.start", "mitigation.start", "mitigation.end", "mitigation.end"]  # fmt: skip
    video, changed, start, end = found[2]["pace"], found[6]["pace"], found[8], found[10]
    assert (video["class"], video["rate_bps"], video["dropped_time"]) == ("video", 5000, 7)
    assert found[1]["pace"]["rate_bps"] is None
    assert changed == {"class": "video", "old_bps": None, "new_bps": 100, "changed_by": "lease_ended"}
    assert (start["src_ip"], start["dest_ip"], start["dest_port"]) == ("10.0.0.1", "192.0.2.1", 1000)
    assert start["mitigation"] == {"rule": 1, "on": ON, "do": "priority", "dry_run": False, "longest_ns": 30 * S}
    assert end["mitigation"]["duration_ns"] == 30 * S and end["mitigation"]["reason"] == "budget"
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema([inline_events.PACE, inline_events.MITIGATION])
    for event in found:
        jsonschema.validate(event, schema)


def test_ends_of_event_rows():
    pace, mitigation = inline_events.declared(["default"], [ON])
    ends6 = Ends(bytes(range(16)), bytes(range(16, 32)), 1, 2, 6)
    m = Mitigation([RULE])
    actions = m.event(ON, flow(), 0) + m.event(ON, ends6, 0)
    made = inline_events.action_rows(mitigation, actions, True, 5)
    assert [ends_of(row) for row in made] == [flow(), ends6]
    assert ends_of(inline_events.stats_rows(pace, ["default"], new_classes(1), 5)[0]) is None
    assert np.all(made["dry_run"] == 1)

"""Lines to samples: what is taken, what is ignored, and why the rest is rejected."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import ingest
from controlplane.ingest import REASONS, Sample, parse
from tests.load_events import MASTER, NOW, SECOND, SLAVE, event, lines


def test_a_delay_is_a_sample():
    found = parse(lines(event(NOW, 5, 7, domain=3)), NOW)
    assert found == ([Sample("tap", MASTER, 3, NOW, 7, SLAVE, 5)], 0, {})


def test_real_events_are_taken(corpus):
    """What `qoetap replay` makes of a capture of linuxptp."""
    from tests.helpers import replay_bytes

    text = replay_bytes(corpus / "pcaps/ptp-real/idle-udp4-e2e.slave.pcap", detectors=["ptp"])
    found = parse(text, 2**62)
    events = [json.loads(line) for line in text.splitlines()]
    delays = [e["ptp"]["mean_path_delay_ns"] for e in events if e["event_type"] == "ptp.delay"]
    assert [s.delay_ns for s in found.samples] == delays and len(delays) > 400
    assert found.ignored == len(events) - len(delays) and not found.rejected


def test_other_events_are_ignored():
    other = [{"event_type": "icmp.rtt"}, {**event(), "event_type": "ptp.incomplete"}]
    assert parse(lines(*other) + b"\n \r\n", NOW) == ([], 2, {})


def without(name):
    return {key: value for key, value in event().items() if key != name}


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b"[" * 30_000, "bad_json"),
        (b'{"ts_ns": 1' + b"0" * 5000 + b"}", "bad_json"),
        (b'{"a": "' + b"x" * ingest.LINE_MAX_bytes + b'"}', "too_long"),
        (b"[]", "wrong_type"),
        (b"7", "wrong_type"),
        (without("event_type"), "missing_field"),
        (without("agent_id"), "missing_field"),
        (without("ts_ns"), "missing_field"),
        (without("ptp"), "missing_field"),
        ({**event(), "ptp": []}, "wrong_type"),
        ({**event(), "agent_id": 5}, "wrong_type"),
        ({**event(), "agent_id": "a" * 129}, "wrong_type"),
        ({**event(), "agent_id": "\ud800"}, "wrong_type"),
        ({**event(), "ts_ns": None}, "missing_field"),
        ({**event(), "ts_ns": 1.5}, "wrong_type"),
        ({**event(), "ts_ns": True}, "wrong_type"),
        ({**event(), "ts_ns": 2**63}, "wrong_type"),
        (event(master_clock=None), "missing_field"),
        (event(master_clock="020000FFFE000105"), "wrong_type"),
        (event(slave_clock="0200"), "wrong_type"),
        (event(domain=256), "wrong_type"),
        (event(request_id=65_536), "wrong_type"),
        (event(delay_ns=None), "no_delay"),
        (event(delay_ns="5"), "wrong_type"),
        (event(delay_ns=-1), "negative_delay"),
        (event(delay_ns=ingest.DELAY_MAX_ns + 1), "absurd_delay"),
        (event(NOW + ingest.FUTURE_MAX_ns + 1), "absurd_time"),
        (event(0), "absurd_time"),
        (event(-5), "absurd_time"),
    ],
)
def test_what_is_wrong_is_rejected_with_its_reason(line, reason):
    """And takes nothing else with it."""
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    found = parse(lines(event(delay_ns=1)) + bad + b"\n" + lines(event(delay_ns=2)), NOW)
    assert found.rejected == {reason: 1} and reason in REASONS
    assert [sample.delay_ns for sample in found.samples] == [1, 2] and not found.ignored


def test_the_bounds_themselves_are_taken():
    found = parse(lines(event(NOW + ingest.FUTURE_MAX_ns, ingest.DELAY_MAX_ns), event(1, 0)), NOW)
    assert len(found.samples) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["ptp", "ts_ns", "domain"]) | st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60) | JSON.map(lambda value: json.dumps({**event(), "ptp": value}).encode())))
def test_any_bytes_are_counted(parts):
    """Each line is a sample, ignored or rejected."""
    data = b"\n".join(parts)
    found = parse(data, NOW)
    count = sum(1 for line in data.split(b"\n") if line and not line.isspace())
    assert len(found.samples) + found.ignored + sum(found.rejected.values()) == count
    assert set(found.rejected) <= set(REASONS)


def test_delays_that_were_given():
    whose = {"agent_id": "probe", "master_clock": MASTER, "domain": 1}
    good = {**whose, "ts_ns": NOW, "delay_ns": 5, "id": "a"}
    named = {"path": "p", "ts_ns": NOW, "delay_ns": 5}
    bad = [{"ts_ns": NOW, "delay_ns": 5}, {**good, "delay_ns": -5}, {**good, "ts_ns": NOW + 3600 * SECOND}]
    found = ingest.given([good, named, *bad], NOW)
    assert found.samples == [
        Sample("probe", MASTER, 1, NOW, ingest.GIVEN, "a", 5),
        Sample("", "", 0, NOW, ingest.GIVEN, "", 5, "p"),
    ]
    assert found.rejected == {"missing_field": 1, "negative_delay": 1, "absurd_time": 1}


def test_many_short_lines_take_no_memory_each():
    data = b"ab\n" * 20_000
    tracemalloc.start()
    try:
        found = parse(data, NOW)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.rejected == {"bad_json": 20_000} and most_bytes < 2 * len(data)

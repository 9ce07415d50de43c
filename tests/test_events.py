"""Event rows as text: compared with a slow twin, with published vectors and with their own schema."""

import csv
import io
import json

import jsonschema
import numpy as np
import pytest

from dataplane.events import (
    COMMON,
    Events,
    Renderer,
    csv_header,
    csv_lines,
    json_lines,
    json_schema,
    own_columns,
)
from dataplane.records import JIT, NO_TIME, rows
from detectors import load_all
from detectors.base import Detector, EventType, Field, event_row
from tests.naive import events as naive

ROWS = 3000 if JIT else 60
FILES = [(0, "/captures/a.pcap"), (100, 'b "1,2"\\ü.pcap'), (1000, "c.pcapng.gz")]
AGENT = 'lab "7"\n'
NUMBERS = (
    Field("u8", np.uint8, "a number"),
    Field("i8", np.int8, "a number"),
    Field("u16", np.uint16, "a number"),
    Field("i32", np.int32, "a number"),
    Field("at_ns", np.int64, "a time"),
    Field("u64", np.uint64, "a number"),
)
OTHERS = (
    Field("rtt_ms", np.float64, "a float", "float"),
    Field("share", np.float32, "a small float", "float"),
    Field("lost", np.uint8, "a flag", "bool"),
    Field("clock", np.uint64, "an identity", "hex"),
    Field("reason", np.uint8, "why it ended", ("timeout", "end_of_input")),
    Field("direction", np.int32, "which way", ("up", 'do"wn', "sideways, mostly")),
)


def detector(name, *types):
    return Detector(name, 0, np.dtype([]), event_row(*types), types, (), None, None, None)


DETECTORS = (
    detector(
        "alpha",
        EventType("alpha.numbers", NUMBERS, "numbers"),
        EventType("alpha.mixed", NUMBERS[4:] + OTHERS[:2], "some"),
    ),
    detector("beta", EventType("beta.others", OTHERS, "the other forms")),
    detector("gamma", EventType("gamma.bare", (), "nothing of its own")),
)


def random_rows(det, count, seed):
    """Rows of random bytes with a plausible head, and the values that need care among their fields."""
    rng = np.random.default_rng(seed)
    made = rows(det.event, count)
    made.view(np.uint8).reshape(count, -1)[:] = rng.integers(0, 256, (count, det.event.itemsize), np.uint8)
    made.code = rng.integers(1, len(det.events) + 1, count)
    made.ip_version = rng.choice([0, 4, 6], count, p=[0.1, 0.45, 0.45])
    made.proto = rng.choice([1, 2, 6, 17, 47, 50, 58, 132, 253], count)
    icmp = np.isin(made.proto, (1, 58))
    made.sport[icmp] = rng.integers(0, 150, icmp.sum())
    made.sport[rng.random(count) < 0.3] = made.dport[rng.random(count) < 0.3] = 0
    made.vlan = np.where(rng.random(count) < 0.5, 0, made.vlan & 0xFFF)
    made.seq = rng.integers(0, 3000, count)
    made.ts[rng.random(count) < 0.05] = NO_TIME
    some_addresses(made, rng)
    for name in {f.name: 0 for t in det.events for f in t.fields}:
        awkward(made, name, rng)
    return made


def some_addresses(made, rng):
    """IPv4 in four bytes, zero runs and mapped addresses in IPv6, equal ends."""
    for field in (made.src, made.dst):
        field[made.ip_version != 6, 4:] = 0
        field[rng.random(field.shape) < 0.2] = 0
        zero = np.repeat(rng.random((len(made), 8)) < 0.5, 2, axis=1)
        field[zero & (made.ip_version == 6)[:, None]] = 0
        field[(made.ip_version == 6) & (rng.random(len(made)) < 0.1), :12] = [0] * 10 + [255] * 2
    same = rng.random(len(made)) < 0.1
    made.dst[same] = made.src[same]


def awkward(made, name, rng):
    kind = made.dtype[name]
    edge = {
        "f": [0.0, -0.0, 1.5, -2.0, np.nan, np.inf, -1e-9, 0.9999999, 1e15, 123456.789, 1e30, -3e18],
        "i": [0, -1, 9, 10, 99, 100],
    }
    values = np.array(edge.get(kind.kind, [0, 1, 2, 9, 10, 99]), kind)
    if kind.kind != "f":
        info = np.iinfo(kind)
        values = np.append(values, np.array([info.min, info.max], kind))
    where = rng.random(len(made)) < (1.0 if kind.kind == "f" else 0.4)
    made[name][where] = rng.choice(values, where.sum())


def events_of(parts, seed=1, files=FILES):
    """Events of (detector, rows), in a random order over all of them."""
    order = np.array([(p, i) for p, (_, made) in enumerate(parts) for i in range(len(made))], np.int64)
    np.random.default_rng(seed).shuffle(order)
    return Events(parts, order, files, AGENT)


@pytest.fixture(scope="module")
def events():
    return events_of([(d, random_rows(d, ROWS, seed)) for seed, d in enumerate(DETECTORS)])


def rendered(events, layout, detectors=DETECTORS):
    """Bytes of all the events; the ends of the lines are checked on the way."""
    out = b""
    for text, ends in Renderer(detectors, layout).chunks(events):
        text = bytes(text)
        assert ends[-1] == len(text)
        assert all(text[e - 1] == 10 for e in ends)
        out += text
    return out


def expected(events):
    for part, row in events.order:
        det, made = events.parts[part]
        yield naive.event(det, made[row], events.files, events.agent_id)


def assert_close(got, want):
    """Equal, and floats equal to six decimals, or 15 digits where they are large."""
    for name, value in want.items():
        if isinstance(value, dict):
            assert got[name].keys() == value.keys()
            assert_close(got[name], value)
        elif isinstance(value, float):
            assert isinstance(got[name], float)
            assert got[name] == pytest.approx(value, rel=1e-6 if abs(value) > 9e18 else 1e-15, abs=5.1e-7)
        else:
            assert got[name] == value, name
    assert got.keys() == want.keys()


def test_json_lines_read_as_the_naive_twin_says(events):
    lines = rendered(events, json_lines).splitlines()
    assert len(lines) == len(events.order)
    for line, want in zip(lines, expected(events), strict=True):
        assert_close(json.loads(line), want)


def test_csv_holds_the_same_values(events):
    text = (csv_header(DETECTORS) + rendered(events, csv_lines)).decode()
    columns = [c.name for c in COMMON] + [f"{d.name}.{c.name}" for d in DETECTORS for c in own_columns(d)]
    records = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(records[0]) == columns
    for record, want in zip(records, expected(events), strict=True):
        own = {f"{name}.{k}": v for name, fields in want.items() if isinstance(fields, dict) for k, v in fields.items()}
        flat = {k: v for k, v in want.items() if not isinstance(v, dict)} | own
        flat["vlan"] = flat.get("vlan", [None])[0]
        assert {k for k, v in record.items() if v} == {k for k, v in flat.items() if v not in (None, "")}
        for name, value in flat.items():
            if value is not None and not isinstance(value, float):
                assert record[name] == (str(value).lower() if isinstance(value, bool) else str(value))


def test_lines_fit_the_schema(events):
    schema = json_schema(DETECTORS)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for line in rendered(events, json_lines).splitlines()[: 300 if JIT else 60]:
        event = json.loads(line)
        validator.validate(event)
        known = schema["$defs"][event["event_type"]]["properties"]
        assert event.keys() <= schema["properties"].keys() | known.keys()
        name = event["event_type"].partition(".")[0]
        assert event[name].keys() == known[name]["properties"].keys()


def test_schema_rejects_what_is_not_an_event():
    validator = jsonschema.Draft202012Validator(json_schema(DETECTORS))
    line = rendered(one(17, "10.0.0.1", "10.0.0.2", 1, 2), json_lines)
    event = json.loads(line)
    validator.validate(event)
    for change in ({"event_type": "alpha.unknown"}, {"flow_id": "xyz"}, {"ts_ns": "1"}, {"gamma": None}):
        assert not validator.is_valid(event | change)


def one(proto, src, dst, sport, dport):
    """Events with one row of `gamma` that speaks of this flow."""
    made = rows(DETECTORS[2].event, 1)
    made.code, made.proto, made.sport, made.dport, made.ts = 1, proto, sport, dport, 1_709_251_199_123_456_789
    ends = [naive.ipaddress.ip_address(a).packed for a in (src, dst)]
    made.ip_version = 4 if len(ends[0]) == 4 else 6
    made.src[0, : len(ends[0])], made.dst[0, : len(ends[1])] = list(ends[0]), list(ends[1])
    return Events([(DETECTORS[2], made)], np.zeros((1, 2), np.int64), [], "a")


# baseline/baseline_deflt.json of github.com/corelight/community-id-spec; ICMP with type and code
VECTORS = [
    (58, "fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea", 135, 0, "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="),
    (58, "fe80::260:97ff:fe07:69ea", "fe80::200:86ff:fe05:80da", 136, 0, "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="),
    (58, "fe80::260:97ff:fe07:69ea", "fe80::200:86ff:fe05:80da", 135, 0, "1:zavyT/cezQr1fmImYCwYnMXbgck="),
    (58, "3ffe:501:1800:2345::2", "3ffe:507:0:1:200:86ff:fe05:80da", 3, 0, "1:2ObVBgIn28oZvibYZhZMBgh7WdQ="),
    (58, "3ffe:501:410:0:2c0:dfff:fe47:33e", "3ffe:507:0:1:200:86ff:fe05:80da", 1, 4, "1:hLZd0XGWojozrvxqE0dWB1iM6R0="),
    (58, "3ffe:507:0:1:200:86ff:fe05:80da", "3ffe:501:0:1001::2", 128, 0, "1:+TW+HtLHvV1xnGhV1lv7XoJrqQg="),
    (58, "fe80::200:86ff:fe05:80da", "ff02::2", 133, 0, "1:hO+sN4H+MG5MY/8hIrXPqc4ZQz0="),
    (58, "fe80::260:97ff:fe07:69ea", "ff02::1", 134, 0, "1:pkvHqCL88/tg1k4cPigmZXUtL00="),
    (1, "192.168.0.89", "192.168.0.1", 8, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (1, "192.168.0.1", "192.168.0.89", 0, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (1, "192.168.0.89", "192.168.0.1", 20, 1, "1:tz/fHIDUHs19NkixVVoOZywde+I="),
    (1, "10.0.0.1", "10.0.0.2", 11, 0, "1:YHxtAirCG//0OzkcVAukqKQN9xM="),
    (6, "128.232.110.120", "66.35.250.204", 34855, 80, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (6, "66.35.250.204", "128.232.110.120", 80, 34855, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (
        6,
        "2001:470:e5bf:dead:4957:2174:e82c:4887",
        "2607:f8b0:400c:c03::1a",
        63943,
        25,
        "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
    ),
    (17, "8.8.8.8", "192.168.1.52", 53, 54585, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    (132, "192.168.170.8", "192.168.170.56", 7, 7, "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
    (46, "10.1.12.2", "10.1.12.1", 5, 9, "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw="),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v[0]}-{v[3]}-{v[4]}")
def test_community_id_matches_the_published_values(vector):
    *flow, want = vector
    event = json.loads(rendered(one(*flow), json_lines))
    assert event["community_id"] == want
    assert event["flow_id"] == naive.base64.b64decode(want[2:])[:8].hex()


def test_a_line_byte_for_byte():
    made = one(17, "10.0.0.1", "2.3.4.250", 443, 65535)._replace(files=[(0, "a.pcap")])
    assert rendered(made, json_lines) == (
        b'{"timestamp":"2024-02-29T23:59:59.123456789Z","ts_ns":1709251199123456789,"event_type":"gamma.bare",'
        b'"schema_version":"1.0","agent_id":"a","flow_id":"9b707a0aeb0354cd",'
        b'"community_id":"1:m3B6CusDVM2kPzu+YVkT0PtzOw4=",'
        b'"src_ip":"10.0.0.1","src_port":443,"dest_ip":"2.3.4.250","dest_port":65535,"proto":"UDP",'
        b'"pcap_file":"a.pcap","pcap_cnt":1,"gamma":{}}\n'
    )


def test_a_later_fragment_has_no_ports():
    event = json.loads(rendered(one(17, "8.8.8.8", "192.168.1.52", 0, 0), json_lines))
    assert "src_port" not in event
    tuple_bytes = bytes([0, 0, 8, 8, 8, 8, 192, 168, 1, 52, 17, 0])
    assert event["flow_id"] == naive.hashlib.sha1(tuple_bytes).hexdigest()[:16]


def test_live_events_name_no_file():
    event = json.loads(rendered(one(6, "1.2.3.4", "5.6.7.8", 1, 2), json_lines))
    assert "pcap_file" not in event
    assert "pcap_cnt" not in event


def test_files_that_open_later_are_known():
    renderer = Renderer(DETECTORS, json_lines)
    made = one(6, "1.2.3.4", "5.6.7.8", 1, 2)
    made.parts[0][1].seq = 7
    for files, want in (([(0, "a")], ("a", 8)), ([(0, "a"), (7, "b" * 5000)], ("b" * 5000, 1))):
        event = json.loads(bytes(next(renderer.chunks(made._replace(files=files)))[0]))
        assert (event["pcap_file"], event["pcap_cnt"]) == want


def test_no_events_give_no_text():
    assert rendered(one(6, "1.2.3.4", "5.6.7.8", 1, 2)._replace(order=np.zeros((0, 2), np.int64)), json_lines) == b""


def test_every_detector_has_templates_and_a_schema():
    detectors = tuple(load_all().values())
    jsonschema.Draft202012Validator.check_schema(json_schema(detectors))
    for layout in (json_lines, csv_lines):
        assert Renderer(detectors, layout).starts.keys() == {d.name for d in detectors}
    assert len(csv_header(detectors).split(b",")) == len(COMMON) + sum(len(own_columns(d)) for d in detectors)


def test_a_form_that_does_not_fit_its_type_is_named():
    wrong = detector("wrong", EventType("wrong.one", (Field("x", np.float64, "a float", "hex"),), ""))
    with pytest.raises(ValueError, match=r"wrong\.x: a float64 cannot be written as 'hex'"):
        Renderer((wrong,), json_lines)

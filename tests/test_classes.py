"""The section `inline`: every wrong class or rule is one sentence, every right one becomes the rows that it says."""

import ipaddress
import random
import re
import time
from itertools import product
from pathlib import Path

import pytest
import yaml

import detectors as registry
from dataplane.classify import ANY
from dataplane.records import NEVER
from qoetap import classes, config
from qoetap.coverage import first_covered, lies_in, merged
from qoetap.exits import Exit
from qoetap.inline_keys import CLASS, INLINE, RULE, inline_values, match_model
from qoetap.matching import MATCH

KNOWN = registry.load_all()
MANUAL = (Path(__file__).parent.parent / "docs" / "inline.md").read_text()
STALL = "iqn.stall_start"
FIRST = {"on": STALL, "do": "priority", "class": "video"}


def inline_of(text):
    """The validated section of a YAML text."""
    values = yaml.safe_load(text) if isinstance(text, str) else text
    layer = config.Layer("site.yaml", config._with_text_keys({"inline": values}))
    return config.load([layer], KNOWN).inline


def complaint(text):
    with pytest.raises(config.ConfigError) as error:
        inline_of(text)
    assert error.value.status == 2 and "\n" not in str(error.value)
    return str(error.value)


def with_classes(*items, **more):
    """A section with classes of these matches or of (match, other keys)."""
    pairs = [item if isinstance(item, tuple) else (item, {}) for item in items]
    return {"classes": [{"name": f"c{i}", "match": m, **keys} for i, (m, keys) in enumerate(pairs)], **more}


SITE = """
queues: [0, 1]
lease: 10s
control: unix:/run/qoetap/control
classes:
  - {name: voice, match: {proto: udp, dscp: [ef, va], dport: 16384-32767}}
  - name: video
    match: {src: [192.0.2.0/24, "2001:db8::/32"], proto: [tcp, udp], sport: [443, 80]}
    rate: 6Mbit
    set_dscp: af41
    set_mark: 0x10/0xff
    limit_time: 300ms
    ecn: true
  - {name: marked, match: {mark: 0x20/0xf0, in: eth0, out: [eth1, eth2]}, rate: 1.5Mbit}
  - {name: stalled, match: {verdict: iqn.stall_start}, rate: 4Mbit, set_mark: 7}
  - {name: rest, match: {}, rate: 500kbit}
mitigation:
  - {on: iqn.stall_start, do: priority, class: stalled, hold: 3s}
  - {on: iqn.stall_start, do: pace-others, class: [rest, video], rate: 100kbit}
  - {on: icmp_loop.lost, do: dscp, dscp: cs5, client: src, until: icmp_loop.rtt}
"""


def site():
    events = [kind.name for d in KNOWN.values() for kind in d.events]
    icmp = [name for name in events if name.startswith("icmp")]
    return inline_of(SITE.replace("icmp_loop.lost", icmp[0]).replace("icmp_loop.rtt", icmp[1]))


def test_a_section_is_read_as_it_is_written():
    inline = site()
    assert inline_values(inline_of(inline_values(inline))) == inline_values(inline)
    told = {c["name"]: c for c in inline_values(inline)["classes"]}
    assert told["voice"]["match"] == {"dport": "16384-32767", "proto": "udp", "dscp": ["va", "ef"]}
    assert told["video"]["match"]["src"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert (told["marked"]["match"]["mark"], told["video"]["set_mark"]) == ("0x20/0xf0", "0x10/0xff")
    assert (told["marked"]["rate"], told["rest"]["rate"]) == ("1500kbit", "500kbit")
    rule = inline_values(inline)["mitigation"][0]
    assert (rule["on"], rule["class"], rule["hold"]) == (STALL, ["stalled"], "3s")


def test_rows_of_classes():
    inline = site()
    rows = classes.class_rows(inline)
    assert classes.names_of(inline) == ["default", "voice", "video", "marked", "stalled", "rest"]
    assert rows["rate"].tolist() == [0, 0, 6 * 10**6, 15 * 10**5, 4 * 10**6, 500_000]
    assert rows["limit_ns"].tolist()[1:4] == [200 * 10**6, 300 * 10**6, 200 * 10**6]
    assert rows["mark_ns"].tolist()[1:3] == [NEVER, 20 * 10**6]
    assert rows["dscp"].tolist() == [-1, -1, 34, -1, -1, -1]
    assert rows["mark"].tolist() == [0, 0, 0x10, 0, 7, 0]
    assert rows["mark_mask"].tolist() == [0, 0, 0xFF, 0, 0xFFFFFFFF, 0]
    assert classes.rates_of(inline)["voice"] is None and "default" not in classes.rates_of(inline)


def test_the_time_limit_lets_some_packets_wait_at_any_rate():
    c = inline_of(with_classes(({}, {"rate": "100kbit"}))).classes[0]
    assert classes.limit_ns(c, c.rate) == 960 * 10**6 and classes.limit_ns(c, None) == 200 * 10**6


def test_rows_of_rules():
    indices = {"eth0": 2, "eth1": 3, "eth2": 4}
    rules = classes.rule_rows(site(), indices.__getitem__)
    assert rules["class_index"].tolist() == [1] * 2 + [2] * 8 + [3] * 2 + [5]
    voice, marked, rest = rules[0], rules[11], rules[12]
    assert (voice["proto"], voice["dscp"], voice["dport_low"], voice["dport_high"]) == (17, 44, 16384, 32767)
    assert voice["sport_low"] == ANY and voice["family"] == 0
    assert (marked["mark"], marked["mark_mask"], marked["indev"], marked["outdev"]) == (0x20, 0xF0, 2, 4)
    assert rest["proto"] == ANY and rest["indev"] == 0
    assert sorted({int(f) for f in rules["family"][2:10]}) == [4, 6]
    assert int(rules["src1"][2]) == int(ipaddress.ip_address("192.0.2.0"))


def test_no_row_mixes_ip_versions():
    pair = ["10.0.0.0/8", "2001:db8::/32"]
    assert len(classes.rule_rows(inline_of(with_classes({"src": pair, "dst": pair})))) == 2


def test_an_interface_that_is_not_there():
    with pytest.raises(Exit, match="there is no interface 'none0'") as told:
        classes.rule_rows(inline_of(with_classes({"in": "none0"})))
    assert told.value.status == 2


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"queus": [1]}, "unknown key inline.queus, did you mean inline.queues?"),
        ({"queues": [1, 1]}, "inline.queues: [1, 1] names a queue twice"),
        ({"queues": [65536]}, "inline.queues: number 1: should be less than"),
        ({"chain": "forward"}, "inline.chain: should be 'PREROUTING'"),
        ({"classes": [{"match": {}}]}, "inline.classes: number 1: name is missing"),
        ({"classes": [{"name": "a"}]}, "inline.classes: a: match is missing"),
        ({"classes": [3]}, "inline.classes: number 1: must hold keys and values, not 3"),
        ({"classes": [{"name": "A", "match": {}}]}, "inline.classes: A: name: must be 1 to 64 of"),
        (with_classes(({}, {"rat": 1})), "inline.classes: c0: unknown key inline.classes.rat, did you mean "
         "inline.classes.rate?"),
        (with_classes(({}, {"rate": 0})), "inline.classes: c0: rate: a rate is at least 1bit"),
        (with_classes(({}, {"rate": "2Mbps"})), "inline.classes: c0: rate: write a rate"),
        (with_classes(({}, {"limit_time": "0s"})), "inline.classes: c0: limit_time: must be longer"),
        (with_classes(({}, {"ecn": True, "ecn_time": "1s"})), "inline.classes: c0: ecn_time must be below limit_time, "
         "which is 200ms"),
        (with_classes({"dports": 1}), "inline.classes: c0: unknown key inline.classes.match.dports, did you mean"),
        (with_classes({"src": "10.0.0.1/8"}), "inline.classes: c0: match.src: has bits behind the "
         "prefix, write 10.0.0.0/8, not '10.0.0.1/8'"),
        (with_classes({"src": 10}), "inline.classes: c0: match.src: write an address or a prefix"),
        (with_classes({"src": []}), "inline.classes: c0: match.src: write a value or a list"),
        (with_classes({"dport": "2000-1000"}), "inline.classes: c0: match.dport: write a port"),
        (with_classes({"dport": 65536}), "inline.classes: c0: match.dport: write a port"),
        (with_classes({"proto": "tpc"}), "inline.classes: c0: match.proto: write a protocol"),
        (with_classes({"dscp": 64}), "inline.classes: c0: match.dscp: write a DSCP as a number"),
        (with_classes({"mark": "0x100/0xff"}), "inline.classes: c0: match.mark: 0x100 has bits"),
        (with_classes({"mark": 1 << 32}), "inline.classes: c0: match.mark: write a mark"),
        (with_classes({"in": "an-interface-too-long"}), "inline.classes: c0: match.in: write the name"),
        (with_classes({"proto": "icmp", "dport": 8}), "inline.classes: c0: match: sport and dport are"),
        (with_classes({"src": "10.0.0.0/8", "dst": "::1"}), "inline.classes: c0: match: matches nothing"),
        (with_classes({"verdict": STALL, "proto": "udp"}), "inline.classes: c0: match: verdict stands "
         "alone: leave out proto"),
        (with_classes({"verdict": "iqn.stal_start"}), "inline.classes: c0: match.verdict: there is no event "
         "'iqn.stal_start', did you mean iqn.stall_start?"),
        (with_classes({"verdict": STALL}), "inline.classes: no flow gets into c0: write a rule"),
        ({"classes": [{"name": "a", "match": {"dport": 1}}, {"name": "a", "match": {}}]}, "inline.classes: there are "
         "two named a"),
        ({"classes": [{"name": "default", "match": {}}]}, "inline.classes: there are two named default"),
        (with_classes({"sport": list(range(0, 80, 2)), "dport": list(range(0, 80, 2))}), "inline.classes: c0: its "
         "lists make more than 1024 combinations"),
        (with_classes({"dport": 1}, {"dport": "1-1"}), "inline.classes: c0 and c1 match the same packets: delete one"),
        (with_classes({}, {"dport": 1}), "inline.classes: c1 is never reached, because c0 stands before it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_classes_is_one_sentence(section, sentence):
    assert complaint(section).startswith(f"site.yaml: {sentence}")


def rules(*items):
    listed = [{"name": "video", "match": {"dport": 443}, "rate": "2Mbit"}, {"name": "rest", "match": {}}]
    return {"classes": listed, "mitigation": list(items)}


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (rules({"do": "priority"}), "inline.mitigation: number 1: on is missing"),
        (rules({"on": STALL, "do": "drop"}), "inline.mitigation: number 1: do: should be 'priority'"),
        (rules(FIRST, {**FIRST, "hold": "1ms"}), "inline.mitigation: number 2: hold: the least is "
         "100ms"),
        (rules({**FIRST, "on": "iqn.stall"}), "inline.mitigation: rule 1: on: there is no event 'iqn.stall', did you"),
        (rules({**FIRST, "until": "x"}), "inline.mitigation: rule 1: until: there is no event 'x'; there are "),
        (rules({"on": STALL, "do": "priority"}), "inline.mitigation: rule 1: do: priority needs class"),
        (rules({**FIRST, "mark": 1}), "inline.mitigation: rule 1: do: priority does nothing with mark: leave it out"),
        (rules({**FIRST, "class": ["video", "rest"]}), "inline.mitigation: rule 1: do: priority takes one class"),
        (rules({**FIRST, "class": "vidoe"}), "inline.mitigation: rule 1: there is no class 'vidoe', did you mean"),
        (rules({**FIRST, "max_per_client": 9}), "inline.mitigation: rule 1: max_per_client is above max_flows"),
        (rules({**FIRST, "budget": "2m"}), "inline.mitigation: rule 1: choose hold <= budget <= window"),
        (rules({**FIRST, "budget": "1s"}), "inline.mitigation: rule 1: choose hold <= budget <= window"),
        (rules({**FIRST, "do": "pace-others"}), "inline.mitigation: rule 1: do: pace-others needs rate"),
        (rules({**FIRST, "do": "pace-others", "rate": "3Mbit"}), "inline.mitigation: rule 1: class video is not "),
        (rules({**FIRST, "do": "rate", "rate": "2Mbit"}), "inline.mitigation: rule 1: class video has that rate"),
        (rules(FIRST, FIRST), "inline.mitigation: rules 1 and 2 are both on iqn.stall_start and do priority: keep one"),
        (rules({**FIRST, "do": "rate", "rate": 5}, {**FIRST, "do": "pace-others", "rate": 5}),
         "inline.mitigation: rules 1 and 2 both pace class video: keep one"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_rules_is_one_sentence(section, sentence):
    assert complaint(section).startswith(f"site.yaml: {sentence}")


def test_a_class_for_another_event_than_the_rules():
    section = with_classes({"verdict": "iqn.stall_end"}, mitigation=[{**FIRST, "class": "c0"}])
    assert "class c0 is for iqn.stall_end, and the rule is on iqn.stall_start" in complaint(section)


def test_events_of_detectors_that_do_not_run_are_none():
    values = {"inline": rules(FIRST), "detectors": {"iqn": {"enabled": False}}}
    with pytest.raises(config.ConfigError, match="no event 'iqn.stall_start'"):
        config.load([config.Layer("site.yaml", values)], KNOWN)


def test_the_manual_says_what_there_is():
    example = yaml.safe_load(re.search("```yaml\n(.*?)```", MANUAL, re.DOTALL)[1])
    assert len(inline_of(example["inline"]).classes) == 4
    for keys in (INLINE, CLASS, RULE, MATCH):
        assert [key for key in keys if f"`{key}`" not in MANUAL] == []


# --- coverage, against a slow twin

ADDRESSES = ("10.0.0.1", "10.1.0.1", "192.0.2.1", "2001:db8::1", "::1")
PORTS = (0, 1, 2, 3, 9)
PAIRS = [(s, d) for s, d in product(ADDRESSES, repeat=2) if (":" in s) == (":" in d)]
KINDS = [(p, x, y) for p in (6, 17, 132) for x, y in [*product(PORTS, repeat=2), (None, None)]]
KINDS += [(1, None, None), (47, None, None)]
ENDS = [(*pair, *kind) for pair, kind in product(PAIRS, KINDS)] + [(None,) * 5]  # the last: no IP
PACKETS = [(*ends, mark, came) for ends, mark, came in product(ENDS, range(4), "abc")]  # all that is told apart


def within(value, allowed, test):
    return allowed is None or (value is not None and any(test(value, a) for a in allowed))


def matches(m, packet):
    """Whether a validated match covers a packet, from the definition."""
    src, dst, proto, sport, dport, mark, came = packet
    in_network, in_range = (
        lambda a, n: ipaddress.ip_address(a) in n,
        lambda p, r: r[0] <= p <= r[1],
    )
    return (
        within(src, m.src, in_network)
        and within(dst, m.dst, in_network)
        and within(proto, m.proto, lambda a, b: a == b)
        and within(sport, m.sport, in_range)
        and within(dport, m.dport, in_range)
        and within(came, getattr(m, "in"), lambda a, b: a == b)
        and (m.mark is None or mark & m.mark.mask == m.mark.value)
    )


def some_match(rng):
    """A random match of values that PACKETS can tell apart."""
    networks = ("10.0.0.0/16", "10.1.0.0/16", "10.0.0.0/15", "0.0.0.0/0", "2001:db8::/64", "::/0")
    ports = ("0-65535", "1-2", "2-3", 1, 3, "0-2")
    choices = {
        "src": networks, "dst": networks, "sport": ports, "dport": ports, "proto": ("tcp", "udp", "icmp"),
        "mark": ("0/1", "1/1", "1/3", "2/2", "0/0"), "in": ("a", "b"),
    }  # fmt: skip
    found = {}
    for key, values in choices.items():
        if rng.random() < 0.35:
            found[key] = rng.choice(values) if key == "mark" else rng.sample(values, rng.randint(1, 2))
    return found


def valid(values):
    try:
        return match_model.model_validate(values)
    except ValueError:
        return None


def test_coverage_is_that_of_the_definition():
    rng = random.Random(4)
    found = [m for m in (valid(some_match(rng)) for _ in range(50)) if m]
    hit = [frozenset(i for i, p in enumerate(PACKETS) if matches(m, p)) for m in found]
    covered = 0
    for a, b in product(range(len(found)), repeat=2):
        told = first_covered([found[a], found[b]]) is not None
        wanted = hit[b] <= hit[a]
        assert told == wanted, (found[a], found[b])
        covered += told
    assert covered > 2 * len(found)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ({"dport": "1-10"}, {"dport": [3, "5-7"]}, True),
        ({"dport": ["1-4", "5-10"]}, {"dport": "3-7"}, True),
        ({"dport": ["1-4", "6-10"]}, {"dport": "3-7"}, False),
        ({"src": ["10.0.0.0/9", "10.128.0.0/9"]}, {"src": "10.0.0.0/8"}, True),
        ({"src": "10.0.0.0/8"}, {"src": "10.0.0.0/7"}, False),
        ({"src": "0.0.0.0/0"}, {"dst": "10.0.0.0/8"}, True),
        ({"src": ["0.0.0.0/0", "::/0"]}, {}, False),
        ({"src": ["0.0.0.0/0", "::/0"]}, {"dst": "::1"}, True),
        ({"dport": "0-65535"}, {"proto": "udp"}, False),
        ({"dport": "0-65535"}, {"proto": "udp", "dport": 1}, True),
        ({"proto": ["tcp", "udp", "sctp"]}, {"dport": 5}, True),
        ({"proto": ["tcp", "udp"]}, {"dport": 5}, False),
        ({"mark": "0x10/0x10"}, {"mark": "0x30"}, True),
        ({"mark": "0x10/0xff"}, {"mark": "0x10/0xf0"}, False),
        ({"mark": "0/0"}, {}, True),
        ({"in": ["a", "b"]}, {"in": "a"}, True),
        ({"in": ["a", "b"]}, {}, False),
        ({"dscp": list(range(64))}, {}, False),
    ],
)
def test_coverage(wide, narrow, covered):
    assert (first_covered([match_model.model_validate(m) for m in (wide, narrow)]) == (1, 0)) == covered


def test_ranges():
    assert merged([(5, 7), (1, 2), (3, 4), (6, 9)]) == ((1, 9),)
    assert lies_in((), ()) and not lies_in(((1, 1),), ()) and lies_in(((2, 3),), ((0, 1), (2, 5)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{tick: 5ms}", "tick is above credit"), ("{tick: 50ms, credit: 1s}", "tick is not below delay_bound")],
)
def test_a_tick_that_would_count_as_late(text, sentence):
    assert sentence in complaint(text)
    assert inline_of("{tick: 4ms}").tick == 4_000_000


def many(count):
    return [
        {"name": f"app-{i}", "rate": f"{i + 1}kbit", "match": {"proto": "udp", "dport": [i, "5000-6000"],
         "dst": [f"10.{i >> 8}.{i & 255}.0/24", f"10.{i >> 8}.{i & 255}.7"]}} for i in range(count)
    ]  # fmt: skip


def test_a_thousand_classes_are_checked_quickly():
    inline = inline_of({"classes": many(1000)})
    started = time.thread_time()
    classes.check(inline, [])
    assert time.thread_time() - started < 2  # of CPU, whoever else uses it
    assert len(classes.rule_rows(inline)) == 4000 and len(classes.class_rows(inline)) == 1001

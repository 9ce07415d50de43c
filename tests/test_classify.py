"""Rules over decoded packets against the twin tests/naive/classify.py, and the cache."""

import ipaddress
import random

import numpy as np
import pytest
from numba import njit

from dataplane.classify import (
    CLASSES_MAX,
    DEFAULT,
    classifier_bytes,
    classify,
    match,
    new_classifier,
    new_rules,
    rule_places,
    set_prefix,
)
from dataplane.memory import memory
from dataplane.records import JIT, META, rows
from tests import packets as make
from tests.naive import classify as naive
from tests.naive import wire
from tests.rows import block_of, fill

RAW = 101  # LINKTYPE_RAW


@njit
def classes_of(classifier, buf, packets, metas, found):
    """Classify each packet, and look through the rules for it; both classes go to `found` (packets, 2)."""
    at, mem = rule_places(classifier), memory(buf)
    for i in range(len(found)):
        found[i, 0] = classify(at, mem, packets[i], metas[i])
        found[i, 1] = match(at, mem, packets[i], metas[i])


class Bench:
    """Packets, decoded, each with a META row."""

    def __init__(self, layers, metas=None):
        self.layers, self.metas = layers, rows(META, len(layers))
        self.block = block_of([(bytes(layer), len(layer), RAW) for layer in layers], gap=b"\xee" * 8)
        self.batch = fill(self.block)
        self.told = metas or [dict(mark=0, indev=0, outdev=0) for _ in layers]
        for row, meta in zip(self.metas, self.told):
            for name, value in meta.items():
                row[name] = value

    def classify(self, classifier):
        """The class of each; the cache changes nothing."""
        found = np.zeros((len(self.layers), 2), np.int64)
        classes_of(classifier, self.block.buf, self.batch.packets, self.metas, found)
        assert (found[:, 0] == found[:, 1]).all()
        return found[:, 0].tolist()

    def expected(self, rules):
        decoded = [wire.decode(bytes(layer), len(layer), RAW) for layer in self.layers]
        return [naive.first(rules, packet, meta) for packet, meta in zip(decoded, self.told)]


def compiled(rules):
    """RULE rows of the twin's rules; the nth leads to class n, from 1 on."""
    made = new_rules(len(rules))
    for n, (row, rule) in enumerate(zip(made, rules), 1):
        row["class_index"] = n
        for name, value in rule.items():
            if name in ("src", "dst"):
                set_prefix(row, name, value)
            elif name in ("sport", "dport"):
                row[f"{name}_low"], row[f"{name}_high"] = value
            elif name == "mark":
                row["mark"], row["mark_mask"] = value
            else:
                row[name] = value
    return made


def classes(rules, *layers, **meta):
    """Classes of packets that have the same META fields."""
    told = [dict(dict(mark=0, indev=0, outdev=0), **meta) for _ in layers]
    return Bench(layers, told).classify(new_classifier(compiled(rules)))


def network(text):
    return ipaddress.ip_network(text)


HOSTS4 = ("10.0.0.1", "10.0.0.2", "10.128.0.1", "192.0.2.255", "0.0.0.10")
HOSTS6 = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::", "fe80::1", "::10.0.0.1", "::a")
PORTS = (0, 1, 53, 443, 65535)
TRAIN4 = make.ipv4_fragments("10.0.0.1", "10.0.0.2", make.udp(53, 443, bytes(40)), 16, 7)
TRAIN6 = make.ipv6_fragments("2001:db8::1", "2001:db8::2", make.udp(53, 443, bytes(40)), 16, 7)


def any_packet(rng):
    if rng.random() < 0.15:
        return rng.choice((*TRAIN4, *TRAIN6, b"", b"\x45\0\0", b"\x4f" + bytes(19), bytes([0x60]) + bytes(39)))
    six = rng.random() < 0.5
    segment = rng.choice(
        (
            make.udp(rng.choice(PORTS), rng.choice(PORTS), b"abcd"),
            make.tcp(rng.choice(PORTS), rng.choice(PORTS), "S"),
            make.icmpv6_echo(128, 1, 1) if six else make.icmp_echo(8, 1, 1),
            make.igmp("224.0.0.22"),
            make.Layer(b"", proto=make.UDP),
        )
    )
    hosts = HOSTS6 if six else HOSTS4
    pack = make.ipv6 if six else make.ipv4
    return pack(rng.choice(hosts), rng.choice(hosts), segment, tos=rng.choice((0, 1, 0xB8, 0xBB, 0xFC)))


def any_rule(rng):
    prefix = rng.choice((HOSTS4, HOSTS6))
    bits = 32 if prefix is HOSTS4 else 128
    rule = {}
    for end in ("src", "dst"):
        if rng.random() < 0.3:
            length = rng.choice((0, 1, 8, 31, 32, 64, 65, 127, 128))
            rule[end] = ipaddress.ip_network(f"{rng.choice(prefix)}/{min(length, bits)}", strict=False)
    for end in ("sport", "dport"):
        if rng.random() < 0.3:
            rule[end] = tuple(sorted((rng.choice(PORTS), rng.choice(PORTS))))
    choices = dict(
        proto=(0, 1, 6, 17, 58), dscp=(0, 46, 63), mark=((1, 0xFF), (0x80000001, 0xFFFFFFFF), (0, 2)), indev=(1, 2),
        outdev=(1, 3),
    )  # fmt: skip
    rule |= {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.2}
    if not rule.keys() & {"src", "dst"} and rng.random() < 0.2:
        rule["family"] = rng.choice((4, 6))
    return rule


def any_meta(rng):
    return dict(mark=rng.choice((0, 1, 3, 0x80000001)), indev=rng.choice((0, 1, 2)), outdev=rng.choice((0, 1, 3)))


@pytest.mark.parametrize("seed", range(30 if JIT else 8))
def test_random_rules(seed):
    """Many packets of few flows, which differ in what the flow hash does not tell."""
    rng = random.Random(seed)
    rules = [any_rule(rng) for _ in range(rng.choice((0, 1, 5, 40)))]
    bench = Bench([any_packet(rng) for _ in range(400)], [any_meta(rng) for _ in range(400)])
    classifier = new_classifier(compiled(rules))
    expected = bench.expected(rules)
    for _ in range(2):
        assert bench.classify(classifier) == expected
    control = classifier.control[0]
    assert control.found + control.missed == 800
    assert control.found >= (bench.batch.packets["hash"][:400] != 0).sum()  # in the second round


UDP4, UDP6 = (
    make.ipv4("10.0.0.1", "10.0.0.2", make.udp(53, 443)),
    make.ipv6("2001:db8::1", "2001:db8::2", make.udp(53, 443)),
)
BACK4 = make.ipv4("10.0.0.2", "10.0.0.1", make.udp(443, 53))


def test_the_first_rule_wins_and_none_is_the_default():
    assert classes([dict(proto=6), dict(proto=17), dict(sport=(53, 53))], UDP4) == [2]
    assert classes([dict(proto=6)], UDP4) == classes([], UDP4) == [DEFAULT]


def test_both_ways_of_a_flow_are_told_apart():
    """They have the same flow hash."""
    assert classes([dict(src=network("10.0.0.1/32")), dict(sport=(443, 443))], UDP4, BACK4, UDP4) == [1, 2, 1]


def test_a_prefix_is_of_one_family():
    low = make.ipv6("::10.0.0.1", "::1", make.udp(1, 1))
    assert classes([dict(src=network("10.0.0.0/8"))], low, UDP4) == [0, 1]
    assert classes([dict(src=network("::/0"))], UDP6, UDP4) == [1, 0]


@pytest.mark.parametrize("train", [TRAIN4, TRAIN6], ids=["IPv4", "IPv6"])
def test_later_fragments_have_no_ports(train):
    """Not even a rule for all ports covers them; the first fragment has them."""
    rules = [dict(sport=(53, 53)), dict(dport=(0, 65535)), dict(proto=17)]
    assert classes(rules, *train) == [1] + [3] * (len(train) - 1)


def test_ports_0_are_ports():
    """A later fragment has the same hash as a packet whose ports are 0."""
    zero = make.ipv4("10.0.0.1", "10.0.0.2", make.udp(0, 0))
    assert classes([dict(sport=(0, 0))], TRAIN4[1], zero, TRAIN4[1]) == [0, 1, 0]


def test_type_and_code_are_no_ports():
    assert classes([dict(sport=(8, 8))], make.ipv4("10.0.0.1", "10.0.0.2", make.icmp_echo(8, 1, 1))) == [0]


def test_what_is_no_packet():
    """Without an address it has no protocol either; mark and interfaces are known."""
    rules = [dict(proto=0), dict(dscp=0), dict(family=4), dict(src=network("0.0.0.0/0")), dict(indev=3), {}]
    assert classes(rules, b"", b"\x45\0\0", indev=3) == [5, 5]
    assert classes(rules, b"") == [6]


def test_protocol_0_is_a_protocol():
    zero = make.ipv4("10.0.0.1", "10.0.0.2", make.Layer(b"", proto=0))
    assert classes([dict(proto=0)], zero, UDP4) == [1, 0]


def test_a_class_is_looked_up_once_a_flow():
    rules = compiled([dict(proto=17)])
    rules[0]["class_index"] = CLASSES_MAX - 1
    classifier, bench = new_classifier(rules), Bench([UDP4, UDP6])
    assert bench.classify(classifier) == bench.classify(classifier) == [CLASSES_MAX - 1] * 2
    assert (classifier.control[0].found, classifier.control[0].missed) == (2, 2)


def test_more_flows_than_a_line_holds():
    """Flows that meet in a line drive each other out and are classified all the same."""
    bench = Bench([make.ipv4("10.0.0.1", "10.0.0.2", make.udp(1 + n % 2, n)) for n in range(3000)])
    classifier = new_classifier(compiled([dict(sport=(1, 1)), dict(sport=(2, 2))]))
    classifier.keys[:] = 1 << 63 | 1  # every line is full of what no packet has
    assert bench.classify(classifier) == bench.classify(classifier) == [1, 2] * 1500
    assert 0 < classifier.control[0].missed - 3000 < 300 < classifier.control[0].found


def test_memory_is_as_announced():
    assert classifier_bytes(50) == sum(array.nbytes for array in new_classifier(new_rules(50)))

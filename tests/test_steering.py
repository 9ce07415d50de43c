"""Rules of the firewall send a class's packets to its queue: in the kernel, against what the classifier says."""

import random
import shutil
import socket
import subprocess

import numpy as np
import pytest
from conftest import require
from test_classes import inline_of, with_classes
from test_classify import classes_of
from test_street import udp

from dataplane.batch import Batch
from dataplane.capture.nfqueue import Queues
from dataplane.classify import new_classifier
from dataplane.records import FRAME, META, Block, rows
from dataplane.wire import decode_options
from qoetap import classes, firewall, steering
from qoetap.exits import USAGE, Exit
from qoetap.firewall import Rule
from qoetap.street import RECEIVER, SENDER

QUEUES = [5, 6, 7]
ICMP, TOS = 1, (socket.IPPROTO_IP, socket.IP_TOS)
LISTED = [100 + 3 * n for n in range(20)]  # more than one match of ports takes


def steered(*items, queues=QUEUES, chain="FORWARD"):
    return steering.rules_of(inline_of(with_classes(*items, queues=queues, chain=chain)))


def words(*items):
    return [(rule.queue, rule.family, " ".join(rule.match)) for rule in steered(*items)]


def test_one_queue_takes_one_rule():
    assert steered({"proto": "udp"}, {"proto": "tcp"}, queues=[9], chain="OUTPUT") == [Rule(9, chain="OUTPUT")]


def test_each_class_has_its_queue_and_what_none_matches_the_first():
    section = [{"proto": "udp"}, {"verdict": "iqn.stall_start"}, {"proto": "tcp"}, {"proto": "icmp"}, {"dscp": "ef"}]
    inline = inline_of(
        with_classes(*section, queues=QUEUES, mitigation=[{"on": "iqn.stall_start", "do": "priority", "class": "c1"}])
    )
    found = [(rule.queue, " ".join(rule.match)) for rule in steering.rules_of(inline)]
    assert found == [(6, "-p 17"), (7, "-p 6"), (5, "-p 1"), (6, "-m dscp --dscp 46"), (5, "")]


def test_a_match_in_the_words_of_iptables():
    match = {
        "src": ["10.0.0.0/8", "2001:db8::/32"],
        "sport": "443-8443",
        "dport": [80, 81],
        "mark": "0x10/0xf0",
        "in": "r0",
    }
    ends = [
        f"-p {p} -m multiport --sports 443:8443 -m multiport --dports 80:81 -m mark --mark 0x10/0xf0 -i r0"
        for p in (6, 17, 132)
    ]
    four, six = (
        [(6, version, f"-s {net} {end}") for end in ends] for version, net in ((4, "10.0.0.0/8"), (6, "2001:db8::/32"))
    )
    assert words(match) == [*four, *six, (5, 0, "")]


def test_addresses_of_two_families_make_no_rule():
    pair = ["10.0.0.0/8", "2001:db8::/32"]
    assert [family for _, family, _ in words({"src": pair, "dst": pair})] == [4, 6, 0]


def test_a_long_list_of_ports_takes_several_rules():
    found = [text for _, _, text in words({"proto": "udp", "dport": [*LISTED, "1000-2000"]})]
    assert len(found) == 3 and found[1].count(",") == 5 and found[1].endswith(",1000:2000")
    assert sum(text.count(",") for text in found) == 14 + 5


@pytest.mark.parametrize(
    ("match", "chain", "sentence"),
    [
        (
            {"in": "r0"},
            "POSTROUTING",
            "inline.classes: c0: rules of the chain POSTROUTING know no `in`: give one queue",
        ),
        ({"out": "r0"}, "INPUT", "inline.classes: c0: rules of the chain INPUT know no `out`"),
        ({"in": "ppp+"}, "FORWARD", "inline.classes: c0: a name that ends in [+] means many"),
        ({"proto": [0, "udp"]}, "FORWARD", "inline.classes: c0: protocol 0 means any"),
        ({"dscp": list(range(60)), "in": list("abcde")}, "FORWARD", "inline.classes: more than 256 rules"),
    ],
)
def test_what_no_rule_can_tell_is_one_sentence(match, chain, sentence):
    with pytest.raises(Exit, match=sentence) as caught:
        steered(match, chain=chain)
    assert caught.value.status == USAGE and "\n" not in str(caught.value)
    assert steered(match, queues=[5], chain=chain) == [Rule(5, chain=chain)]


# --- on a real router

SITE = [
    {"proto": "udp", "dport": [5000, "5002-5004"], "src": "10.0.1.2/32"},
    {"proto": "udp", "sport": ["6000-6003"], "dscp": ["ef", "af41"]},
    {"dport": LISTED, "proto": ["udp", "tcp"]},
    {"mark": "0x10/0xf0", "proto": "udp"},
    {"proto": "icmp"},
    {"dst": ["10.0.2.2/32", "fd00:0:0:2::2/128"], "dport": "5000-5003", "in": "r0", "out": "r1"},
    {"dscp": [0, "cs1"], "proto": ["udp", "sctp"], "src": ["10.0.1.0/24", "fd00::/16"]},
    {"sport": "6000-6001"},
]


@pytest.fixture
def rules(street):
    """Puts rules into the router's firewall; some packets get a mark before."""
    require(shutil.which("iptables-restore"), "iptables is not installed (apt install iptables)")
    mark = ("-t", "mangle", "-A", "PREROUTING", "-p", "udp", "--sport", "6002:6004", "-j", "MARK", "--set-mark", "0x1f")
    tools = ("iptables", "ip6tables")
    for tool in tools:
        subprocess.run(street.router.command(tool, *mark), check=True)
    yield lambda wanted: street.router.inside(firewall.install, wanted)
    street.router.inside(firewall.uninstall)
    for tool in tools:
        subprocess.run(street.router.command(tool, "-t", "mangle", "-F", "PREROUTING"), check=True)


def send_some(street, count):
    """Datagrams of both families from various ports to various ports, with various DSCPs, and some echo requests."""
    rng = random.Random(7)
    for _ in range(count):
        family = rng.choice(("ipv4", "ipv6"))
        with udp(street.sender, SENDER, family, rng.randrange(6000, 6006)) as mouth:
            option = TOS if family == "ipv4" else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
            mouth.setsockopt(*option, rng.choice((0, 8, 34, 46, 1)) << 2)
            mouth.sendto(b"x", (getattr(RECEIVER, family), rng.choice((*range(4999, 5006), *LISTED[:3], *LISTED[-2:]))))
    with street.sender.inside(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as mouth:
        mouth.sendto(b"\x08\0\xf7\xfe\0\1\0\0", (RECEIVER.ipv4, 0))
    return count + 1


def classes_of_received(queues, classifier, frames, metas):
    """The class of each packet that has just been received."""
    batch, found = Batch(len(frames)), np.zeros((len(frames), 2), np.int64)
    batch.fill(Block(queues.buf, frames), decode_options(b"steering"), 0, 0)
    classes_of(classifier, queues.buf, batch.packets, metas, found)
    return found[:, 0].tolist()


def test_queue_and_class_agree_on_every_packet(street, rules):
    inline = inline_of(with_classes(*SITE, queues=QUEUES))
    wanted = steering.rules_of(inline)
    assert len(rules(wanted).added) > 2 * len(SITE)
    indices = {name: index for index, name in street.router.inside(socket.if_nameindex)}
    classifier = new_classifier(classes.rule_rows(inline, indices.__getitem__))
    frames, metas, found = rows(FRAME, 256), rows(META, 256), []
    with street.router.inside(Queues, QUEUES) as queues:
        sent = send_some(street, 400)
        while len(found) < sent:
            assert queues.wait(5 * 10**9)
            count = queues.receive(frames, metas)
            got = classes_of_received(queues, classifier, frames[:count], metas)
            found += zip(got, metas["queue"][:count].tolist(), strict=True)
            queues.accept_all()
    assert {number for number, _ in found} == set(range(len(SITE) + 1))  # no class was left out
    assert [queue for _, queue in found] == [number % len(QUEUES) for number, _ in found]
    assert {queue for _, queue in found} == set(range(len(QUEUES)))

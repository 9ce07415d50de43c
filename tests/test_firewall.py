"""Rules come whole or not at all, and all of ours are found again."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import require

from qoetap import firewall
from qoetap.exits import PRIVILEGE, RUN_ERROR, USAGE, Exit
from qoetap.firewall import Found, Rule, install, leftovers, uninstall

ROOT = Path(__file__).resolve().parent.parent
OTHERS = """*mangle
-A FORWARD -p tcp -m comment --comment "see --comment qoetap:5" -j ACCEPT
-A FORWARD -p tcp -m comment --comment "qoetap:5 not" -j ACCEPT
-A POSTROUTING -m mark --mark 0x9 -j ACCEPT
COMMIT
"""
LEAVE_IT = """
import os, signal
from qoetap.firewall import Rule, install
install([Rule(5), Rule(6, ("-p", "tcp"))])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def inside(link):
    """Runs a call in a namespace of its own, whose firewall is empty at first."""
    require(shutil.which("iptables-restore"), "iptables is not installed (apt install iptables)")
    yield link.receiver.inside
    for name in ("iptables", "ip6tables"):
        for table in ("mangle", "filter"):
            subprocess.run(link.receiver.command(name, "-t", table, "-F"), check=True)


def rules(inside, name="iptables"):
    """Lines of the firewall that are rules."""
    saved = inside(lambda: subprocess.run([f"{name}-save"], capture_output=True, text=True, check=True))
    return [line for line in saved.stdout.splitlines() if line.startswith("-A")]


def restore(inside, text, name="iptables"):
    inside(lambda: subprocess.run([f"{name}-restore", "--noflush"], input=text, text=True, check=True))


def queued(match, queue, chain="FORWARD"):
    comment = f'-m comment --comment "qoetap:{queue}"'
    return " ".join(["-A", chain, *match, comment, f"-j NFQUEUE --queue-num {queue} --queue-bypass"])


def test_both_families_get_the_rule(inside):
    done = inside(install, [Rule(5)])
    assert rules(inside) == rules(inside, "ip6tables") == [queued([], 5)]
    assert done.added == [f"{name} -t mangle {queued([], 5)}" for name in ("iptables", "ip6tables")]
    assert done.removed == done.notes == []


def test_one_rule_a_class_in_their_order_in_other_chains_and_of_one_family(inside):
    classes = [
        Rule(5, ("-p", "udp", "--dport", "443")),
        Rule(6, ("-s", "10.0.0.0/8"), "PREROUTING", 4),
        Rule(7, ("-s", "fd00::/8"), family=6),
        Rule(5, ("-p", "tcp", "-m", "mark", "--mark", "0x7/0xff")),
    ]
    inside(install, classes)
    udp, tcp = queued(["-p udp -m udp --dport 443"], 5), queued(["-p tcp -m mark --mark 0x7/0xff"], 5)
    same = [re.sub(r" (-m comment --comment \S+)", "", line) for line in rules(inside)]
    assert len(same) == 3 and same[0].startswith("-A PREROUTING -s 10.0.0.0/8")
    assert [sorted(line.split()) for line in rules(inside)[1:]] == [sorted(line.split()) for line in (udp, tcp)]
    assert ["fd00::/8" in line for line in rules(inside, "ip6tables")] == [False, True, False]


def test_once_more_changes_nothing_and_others_stay(inside):
    restore(inside, OTHERS)
    others = rules(inside)
    for _ in range(3):
        done = inside(install, [Rule(5)])
    assert rules(inside) == [*others[:2], queued([], 5), others[2]]
    assert done.removed == done.added
    inside(uninstall)
    assert rules(inside) == others


def test_a_queue_gets_new_rules_and_other_queues_keep_theirs(inside):
    inside(install, [Rule(5), Rule(6)])
    done = inside(install, [Rule(5, ("-i", "r0"))])
    assert rules(inside) == [queued([], 6), queued(["-i r0"], 5)]
    assert len(done.removed) == len(done.added) == 2
    assert [found.queue for found in inside(leftovers)] == [6, 5] * 2
    assert inside(uninstall, [5]).removed == done.added
    assert rules(inside) == [queued([], 6)]


def test_words_are_quoted(inside):
    note = 'a "b" \\ c'
    inside(install, [Rule(5, ("-m", "comment", "--comment", note))])
    assert len(rules(inside)) == 1 and len(inside(uninstall).removed) == 2
    assert rules(inside) == rules(inside, "ip6tables") == []


@pytest.mark.parametrize("match", [("--foo",), ("-m", "nothing-like-this"), ("-j", "ACCEPT"), ("-p", "udp\nCOMMIT")])
def test_what_the_tool_refuses_leaves_all_as_it_was(inside, match):
    inside(install, [Rule(5, ("-p", "tcp"))])
    before = rules(inside), rules(inside, "ip6tables")
    with pytest.raises(Exit, match="failed: |line break") as caught:
        inside(install, [Rule(5), Rule(6), Rule(5, match)])
    assert caught.value.status in (RUN_ERROR, USAGE) and "\n" not in str(caught.value)
    assert (rules(inside), rules(inside, "ip6tables")) == before


def test_what_only_the_second_family_refuses_is_undone_in_the_first(inside):
    inside(install, [Rule(5, ("-p", "tcp")), Rule(6)])
    before = rules(inside), rules(inside, "ip6tables")
    with pytest.raises(Exit, match="ip6tables-restore failed: "):
        inside(install, [Rule(5), Rule(7), Rule(5, ("-s", "10.0.0.0/8"))])
    assert sorted(rules(inside)) == sorted(before[0]) and rules(inside, "ip6tables") == before[1]


def test_rules_of_a_killed_process_and_in_other_tables_are_found(inside):
    done = inside(lambda: subprocess.run([sys.executable, "-c", LEAVE_IT], check=False, cwd=ROOT))
    assert done.returncode == -signal.SIGKILL
    restore(inside, f"*filter\n{queued([], 9)}\nCOMMIT\n")
    found = inside(leftovers)
    assert sorted({(f.family, f.table, f.queue) for f in found}) == [
        (4, "filter", 9),
        (4, "mangle", 5),
        (4, "mangle", 6),
        (6, "mangle", 5),
        (6, "mangle", 6),
    ]
    assert inside(uninstall).removed == [f.command for f in found]
    assert rules(inside) == rules(inside, "ip6tables") == inside(uninstall).removed == []


def test_without_ip6tables_it_says_so(inside, monkeypatch):
    monkeypatch.setattr(firewall, "_path", lambda name: None if name.startswith("ip6") else shutil.which(name))
    assert inside(install, [Rule(5)]).notes == [
        "ip6tables is not installed, so IPv6 is not queued: apt install iptables"
    ]
    assert rules(inside) == [queued([], 5)] and rules(inside, "ip6tables") == []
    with pytest.raises(Exit, match="ip6tables is not installed: apt install iptables"):
        inside(install, [Rule(5, family=6)])


def test_without_ipv6_it_says_so(inside, monkeypatch):
    monkeypatch.setattr(firewall, "IPV6", Path("/nowhere"))
    assert inside(install, [Rule(5)]).notes == ["this kernel has no IPv6, so none is queued"]


@pytest.mark.parametrize("call", [lambda: install([Rule(5)]), uninstall, leftovers])
def test_without_iptables_it_says_so(monkeypatch, call):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Exit, match="iptables is not installed: apt install iptables") as caught:
        call()
    assert caught.value.status == RUN_ERROR


def test_without_privilege_it_says_so(inside):
    """As nobody, in the namespace of the test."""
    require(shutil.which("setpriv"), "setpriv is not installed (apt install util-linux)")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    done = inside(lambda: subprocess.run([*nobody, "iptables-save"], capture_output=True, text=True))
    answer = SimpleNamespace(returncode=done.returncode or 1, stdout="", stderr=done.stderr)
    with (
        pytest.raises(Exit, match=r"needs CAP_NET_ADMIN \(.+\): run with sudo") as caught,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(subprocess, "run", lambda *_, **__: answer)
        install([Rule(5)])
    assert caught.value.status == PRIVILEGE


@pytest.mark.parametrize("rule", [Rule(-1), Rule(65536), Rule(5, chain="FORWARDS"), Rule(5, ("a\0",))])
def test_rules_that_cannot_be(rule):
    with pytest.raises(Exit, match="there is no queue|there is no chain 'FORWARDS'|line break") as caught:
        install([rule])
    assert caught.value.status == USAGE


def test_what_is_ours():
    assert firewall._queue_of('-A FORWARD -m comment --comment "qoetap:5" -j NFQUEUE') == 5
    assert firewall._queue_of("-A FORWARD -m comment --comment qoetap:65535 -j NFQUEUE") == 65535
    for comment in ('"qoetap:5 "', "qoetap:", "qoetap:x", '"x qoetap:5"', '"unfinished', '"a\\"b --comment qoetap:5"'):
        assert firewall._queue_of(f"-A FORWARD -m comment --comment {comment}") is None
    assert Found(6, "raw", "-A OUTPUT", 1).command == "ip6tables -t raw -A OUTPUT"

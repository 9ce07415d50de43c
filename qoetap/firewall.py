"""Rules of the firewall that hand packets to our queues: put in, taken out, found again after a crash.

Each carries the comment `qoetap:<queue>`, by which `uninstall` knows ours. They go to the end of a chain of the table
mangle, because a packet that we accept skips the rest of its table's chain: what others do in mangle was done before,
and the table filter still judges it. One transaction for each family takes out the rules that a queue had and puts the
new ones in, so no packet finds the chain without them (iptables-restore(8), iptables-extensions(8)).
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from qoetap.exits import PRIVILEGE, RUN_ERROR, USAGE, Exit

TOOLS = {4: "iptables", 6: "ip6tables"}
TABLE = "mangle"
CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")  # of that table
OURS = re.compile(r"qoetap:(\d+)")  # the whole comment
QUEUE_MAX, WAIT_seconds = 65535, 5  # for another program that is changing rules
BARE = re.compile(r"[\w./:,=!@%+-]+")  # words that iptables-restore reads as they are
IPV6 = Path("/proc/thread-self/net/if_inet6")


class Rule(NamedTuple):
    """Packets that match go to `queue`. match: words of iptables; family: 4 or 6, 0: both."""

    queue: int
    match: tuple = ()
    chain: str = "FORWARD"
    family: int = 0


class Found(NamedTuple):
    """A rule of ours that is in the firewall; line: as iptables-save writes it, beginning with -A."""

    family: int
    table: str
    line: str
    queue: int

    @property
    def command(self):
        """What a user would write to put it in."""
        return f"{TOOLS[self.family]} -t {self.table} {self.line}"


class Done(NamedTuple):
    """What was taken out and put in, as iptables commands; notes: sentences about what was left out."""

    removed: list
    added: list
    notes: list


def install(rules, queues=()):
    """Put the rules in, in their order, instead of those that their queues had, and `queues`; Done.

    Exit: it cannot be done; then all is as it was.
    """
    for rule in rules:
        _check(rule)
    families, notes = _families({rule.family for rule in rules})
    queues = {*queues, *(rule.queue for rule in rules)}
    before = {family: _of(_ours(family), queues) for family in families}
    changed = []
    try:
        for family in families:
            changed.append(family)
            wanted = [(TABLE, _line(rule)) for rule in rules if rule.family in (0, family)]
            _apply(family, [(f.table, _deletion(f.line)) for f in before[family]] + wanted)
    except Exit:
        _put_back(changed, before, queues)
        raise
    added = [f.command for family in families for f in _of(_ours(family), queues)]
    return Done([f.command for family in families for f in before[family]], added, notes)


def uninstall(queues=None):
    """Take our rules out of all tables and families, of these queues only or of all, whoever put them in; Done.

    Exit: it cannot be done.
    """
    found = leftovers(queues)
    for family in sorted({f.family for f in found}):
        _apply(family, [(f.table, _deletion(f.line)) for f in found if f.family == family])
    return Done([f.command for f in found], [], [])


def leftovers(queues=None):
    """Our rules that are in the firewall, as Found, of these queues or of all. Exit: it cannot be asked."""
    families, _ = _families({0})
    return [f for family in families for f in _of(_ours(family), queues)]


def _check(rule):
    """Exit: no rule can be made of this."""
    if not 0 <= rule.queue <= QUEUE_MAX:
        raise Exit(USAGE, f"there is no queue {rule.queue}: queues have numbers from 0 to {QUEUE_MAX}")
    if rule.chain not in CHAINS:
        raise Exit(USAGE, f"there is no chain {rule.chain!r} in the table {TABLE}: there are {', '.join(CHAINS)}")
    if any("\n" in word or "\0" in word for word in rule.match):
        raise Exit(USAGE, f"a match of queue {rule.queue} has a line break in it: write it in one line")


def _families(wanted):
    """(families that can be had, notes on the others). Exit: one that was named cannot be had."""
    have, notes = [], []
    for family, name in TOOLS.items():
        if not wanted & {0, family}:
            continue
        missing = not (_path(f"{name}-save") and _path(f"{name}-restore"))
        if missing and (family == 4 or family in wanted):
            raise Exit(RUN_ERROR, f"{name} is not installed: apt install iptables")
        if missing:
            notes.append(f"{name} is not installed, so IPv6 is not queued: apt install iptables")
        elif family == 6 and family not in wanted and not IPV6.exists():
            notes.append("this kernel has no IPv6, so none is queued")
        else:
            have.append(family)
    return have, notes


def _path(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(family, what, text=None, *words):
    """Output of iptables-save or -restore. Exit: it says no."""
    name = f"{TOOLS[family]}-{what}"
    done = subprocess.run([_path(name), *words], input=text, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    why = _reason(done.stderr)
    if re.search("permission denied|not permitted|must be root", done.stderr, re.IGNORECASE):
        raise Exit(PRIVILEGE, f"changing the firewall needs CAP_NET_ADMIN ({why}): run with sudo")
    raise Exit(RUN_ERROR, f"{name} failed: {why}")


def _reason(stderr):
    """The first line of what the tool says, without its name and version."""
    lines = [line for line in stderr.splitlines() if not line.startswith("#")] or ["it does not say why"]
    return re.sub(r"^ip6?tables\S*( v[\d.]+ \(\w+\))?: ", "", lines[0]).strip()


def _ours(family):
    """Our rules of a family, as Found, in their order."""
    found, table = [], ""
    for line in _run(family, "save").splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith("-A ") and (queue := _queue_of(line)) is not None:
            found.append(Found(family, table, line, queue))
    return found


def _queue_of(line):
    """The queue in a rule's comment, None: it is not ours."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    comments = [OURS.fullmatch(after) for word, after in zip(words, words[1:], strict=False) if word == "--comment"]
    return next((int(comment[1]) for comment in comments if comment), None)


def _of(found, queues):
    return [f for f in found if queues is None or f.queue in queues]


def _line(rule):
    """The rule for iptables-restore."""
    target = ("-j", "NFQUEUE", "--queue-num", str(rule.queue), "--queue-bypass")
    words = ("-A", rule.chain, *rule.match, "-m", "comment", "--comment", f"qoetap:{rule.queue}", *target)
    return " ".join(map(_quote, map(str, words)))


def _quote(word):
    if BARE.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _deletion(line):
    return f"-D{line[2:]}"


def _apply(family, changes):
    """Make changes, (table, line) each, at once. Exit: the tool says no."""
    tables = dict.fromkeys(table for table, _ in changes)
    text = [part for t in tables for part in (f"*{t}", *(line for table, line in changes if table == t), "COMMIT")]
    _run(family, "restore", "\n".join([*text, ""]), "--noflush", "--wait", str(WAIT_seconds))


def _put_back(families, before, queues):
    """Make it as it was: what a family refused was not applied to it, but several tables are several transactions."""
    for family in families:
        there = _of(_ours(family), queues)
        if there != before[family]:
            back = [(f.table, _deletion(f.line)) for f in there] + [(f.table, f.line) for f in before[family]]
            _apply(family, back)

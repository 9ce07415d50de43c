"""Which queue the firewall hands a class's packets to: matches of classes in the words of iptables.

A queue's length counts the packets that wait in it, those that are held too: with a queue for each class, a flood of
one class fills that one's queue only. The order of the rules is that of the classes, and NFQUEUE ends the way through
the chain, so here too the first match counts. All the same the shim asks no rule: it finds the class of each packet
itself, from whichever queue it comes.
"""

from itertools import product

from qoetap.coverage import merged
from qoetap.exits import USAGE, Exit
from qoetap.firewall import Rule
from qoetap.matching import mark_text, protocols_of

RULES_MAX = 256  # a packet goes through them one by one
MULTIPORT_MAX = 15  # ports of one match `multiport`; a range counts as two (iptables-extensions(8))
NO_IN, NO_OUT = ("OUTPUT", "POSTROUTING"), ("PREROUTING", "INPUT")  # chains whose rules may not name the interface
WITHOUT = "give one queue, or put in rules yourself"


def rules_of(inline):
    """firewall.Rule rows of the section `inline`: one for all, with several queues those of each class and the rest.

    Exit: a class cannot be told by rules.
    """
    first, chain = inline.queues[0], inline.chain
    if len(inline.queues) == 1:
        return [Rule(first, chain=chain)]
    rules = []
    for c, queue in zip(_steered(inline), _round_robin(inline.queues), strict=False):
        rules += [Rule(queue, words, chain, family) for family, words in _alternatives(c, chain)]
        if len(rules) >= RULES_MAX:
            raise Exit(USAGE, f"inline.classes: more than {RULES_MAX} rules for their queues are too many: {WITHOUT}")
    return [*rules, Rule(first, chain=chain)]


def _steered(inline):
    """Classes that a rule can tell, not those by a verdict of ours."""
    return [c for c in inline.classes if c.match.verdict is None]


def _round_robin(queues):
    """The queue of each of those, without end. The first one begins with what no class matches."""
    number = 0
    while True:
        number += 1
        yield queues[number % len(queues)]


def _alternatives(c, chain):
    """(family, words) of each rule that the class takes; family 0: both."""
    m, protocols = c.match, protocols_of(c.match)
    _require(c, chain, protocols)
    ends = [(src, dst) for src, dst in product(m.src or [None], m.dst or [None]) if _agree(src, dst)]
    common = [
        [("-p", p) for p in protocols] if protocols else [()],
        _ports("--sports", m.sport),
        _ports("--dports", m.dport),
        [("-m", "dscp", "--dscp", d) for d in m.dscp] if m.dscp else [()],
        [("-m", "mark", "--mark", mark_text(m.mark))] if m.mark else [()],
        [("-i", name) for name in getattr(m, "in") or ()] or [()],
        [("-o", name) for name in m.out or ()] or [()],
    ]
    for (src, dst), *parts in product(ends, *common):
        named = [words for word, end in (("-s", src), ("-d", dst)) if end is not None for words in (word, end)]
        family = next((end.version for end in (src, dst) if end is not None), 0)
        yield family, tuple(map(str, (*named, *(word for part in parts for word in part))))


def _agree(src, dst):
    return src is None or dst is None or src.version == dst.version


def _require(c, chain, protocols):
    """Exit: a word that the class needs is not to be had."""
    for key, chains in (("in", NO_IN), ("out", NO_OUT)):
        names = getattr(c.match, key) or ()
        if names and chain in chains:
            raise Exit(USAGE, f"inline.classes: {c.name}: rules of the chain {chain} know no `{key}`: {WITHOUT}")
        if any(name.endswith("+") for name in names):
            raise Exit(USAGE, f"inline.classes: {c.name}: a name that ends in + means many to iptables: {WITHOUT}")
    if protocols and 0 in protocols:
        raise Exit(USAGE, f"inline.classes: {c.name}: protocol 0 means any to iptables: {WITHOUT}")


def _ports(option, ranges):
    """Words of a match of ports, as many as it takes."""
    if not ranges:
        return [()]
    parts, room = [], 0
    for low, high in merged(ranges):
        size = 1 + (low < high)
        if size > room:
            parts.append([])
            room = MULTIPORT_MAX
        parts[-1].append(f"{low}:{high}" if low < high else str(low))
        room -= size
    return [("-m", "multiport", option, ",".join(part)) for part in parts]

"""Classes of the section `inline`: what must hold between them and the rules of mitigation, and the rows made of them.

`check` raises ValueError with a sentence that begins with the key below `inline`. Class 0, `default`, is what no class
matches: it is let through at once and has no rate.
"""

import socket
from itertools import product

import numpy as np

from dataplane.classify import new_classifier, new_rules, set_prefix
from dataplane.pacing import new_classes, new_pacer
from dataplane.records import NEVER
from dataplane.shim import APART_MAX, Shim
from qoetap.coverage import first_covered, merged
from qoetap.durations import duration_text
from qoetap.exits import USAGE, Exit
from qoetap.inline_keys import DSCP, MARK, PACE_OTHERS, PRIORITY, RATE
from qoetap.keys import nearest_name

DEFAULT = "default"
LIMIT_ns, LIMIT_PACKETS, FULL_bytes = 200_000_000, 8, 1500  # of limit_time, where it is not told
ROWS_MAX = 1024  # of RULE for one class
NEEDS = {PRIORITY: {"class"}, MARK: {"mark"}, DSCP: {"dscp"}, RATE: {"class", "rate"}, PACE_OTHERS: {"class", "rate"}}


def names_of(inline):
    """Names of the classes by their numbers."""
    return [DEFAULT, *(c.name for c in inline.classes)]


def rates_of(inline):
    """{class: bit/s}, None where the file tells no rate; without `default`."""
    return {c.name: c.rate for c in inline.classes}


def rewrites(inline):
    """Whether bytes of packets may be changed."""
    marking = any(c.ecn or c.set_dscp is not None for c in inline.classes)
    return marking or any(rule.dscp is not None for rule in inline.mitigation)


# --- what must hold


def check(inline, events):
    """ValueError if something does not fit together. events: names of all types of event."""
    if len(set(inline.queues)) < len(inline.queues):
        raise ValueError(f"queues: {inline.queues} names a queue twice")
    if 0 < inline.delay_bound <= inline.tick:
        raise ValueError("tick is not below delay_bound: packets that leave together would count as late")
    if inline.tick > inline.credit:
        raise ValueError("tick is above credit: what leaves together would count as late, and classes be too slow")
    if sum(rule.max_flows for rule in inline.mitigation) > APART_MAX:
        raise ValueError(f"mitigation: max_flows of all rules are more than {APART_MAX}: lower them")
    check_classes(inline.classes, events)
    known = {c.name: c for c in inline.classes}
    for number, rule in enumerate(inline.mitigation, 1):
        check_rule(rule, f"mitigation: rule {number}", known, events)
    check_contradictions(inline.mitigation)
    check_verdicts(inline)


def check_classes(classes, events):
    seen = {DEFAULT}
    for c in classes:
        if c.name in seen:
            raise ValueError(f"classes: there are two named {c.name}: choose another name")
        seen.add(c.name)
        if c.match.verdict is not None:
            known_event(c.match.verdict, f"classes: {c.name}: match.verdict", events)
        if c.ecn and c.ecn_time >= limit_ns(c, c.rate):
            longest = duration_text(limit_ns(c, c.rate))
            raise ValueError(f"classes: {c.name}: ecn_time must be below limit_time, which is {longest}")
        if alternatives(c.match) > ROWS_MAX:
            raise ValueError(f"classes: {c.name}: its lists make more than {ROWS_MAX} combinations: make two classes")
    check_coverage([c for c in classes if c.match.verdict is None])


def check_coverage(classes):
    found = first_covered([c.match for c in classes])
    if found is not None:
        late, early = (classes[i] for i in found)
        if late.match == early.match:
            raise ValueError(f"classes: {early.name} and {late.name} match the same packets: delete one")
        raise ValueError(
            f"classes: {late.name} is never reached, because {early.name} stands before it and matches all that it "
            f"matches: put {late.name} first or delete it"
        )


def known_event(name, place, events):
    if name not in events:
        raise ValueError(f"{place}: there is no event {name!r}{nearest_name(name, events)}")


def check_rule(rule, place, known, events):
    """One rule of mitigation."""
    for key in ("on", "until"):
        if getattr(rule, key) is not None:
            known_event(getattr(rule, key), f"{place}: {key}", events)
    check_keys(rule, place)
    for name in getattr(rule, "class"):
        if name not in known:
            raise ValueError(f"{place}: there is no class {name!r}{nearest_name(name, known)}")
        check_target(rule, place, known[name])
    if rule.max_per_client > rule.max_flows:
        raise ValueError(f"{place}: max_per_client is above max_flows")
    if not rule.hold <= rule.budget <= rule.window:
        raise ValueError(f"{place}: choose hold <= budget <= window")


def check_keys(rule, place):
    """A rule has the keys that its `do` needs, and no others."""
    told = {key for key in ("class", "rate", "mark", "dscp") if getattr(rule, key) not in (None, ())}
    for key in sorted(NEEDS[rule.do] - told):
        raise ValueError(f"{place}: do: {rule.do} needs {key}")
    for key in sorted(told - NEEDS[rule.do]):
        raise ValueError(f"{place}: do: {rule.do} does nothing with {key}: leave it out")
    if len(getattr(rule, "class")) > 1 and rule.do != PACE_OTHERS:
        raise ValueError(f"{place}: do: {rule.do} takes one class")


def check_target(rule, place, target):
    """A class that a rule acts on: the rule must change something."""
    verdict = target.match.verdict
    if rule.do == PRIORITY and verdict not in (None, rule.on):
        raise ValueError(f"{place}: class {target.name} is for {verdict}, and the rule is on {rule.on}")
    if rule.do == PACE_OTHERS and target.rate is not None and target.rate <= rule.rate:
        raise ValueError(f"{place}: class {target.name} is not faster than that anyway: choose a lower rate")
    if rule.do == RATE and target.rate == rule.rate:
        raise ValueError(f"{place}: class {target.name} has that rate anyway")


def check_contradictions(rules):
    """Two rules must not set the same thing, so that what holds never depends on their order."""
    before = {}
    for number, rule in enumerate(rules, 1):
        paced = rule.do in (RATE, PACE_OTHERS)
        for what in [("pace class", name) for name in getattr(rule, "class")] if paced else [(rule.do, rule.on)]:
            if what in before:
                told = f"both {what[0]} {what[1]}" if paced else f"are both on {what[1]} and do {what[0]}"
                raise ValueError(f"mitigation: rules {before[what]} and {number} {told}: keep one")
            before[what] = number


def check_verdicts(inline):
    led = {(name, rule.on) for rule in inline.mitigation if rule.do == PRIORITY for name in getattr(rule, "class")}
    for c in inline.classes:
        if c.match.verdict is not None and (c.name, c.match.verdict) not in led:
            raise ValueError(
                f"classes: no flow gets into {c.name}: "
                f"write a rule of mitigation, on: {c.match.verdict}, do: priority, class: {c.name}"
            )


# --- rows


def limit_ns(c, rate):
    """How long a packet of class `c` may be held at a rate, bit/s or None."""
    if c.limit_time is not None:
        return c.limit_time
    return max(LIMIT_ns, LIMIT_PACKETS * FULL_bytes * 8 * 10**9 // rate) if rate else LIMIT_ns


def class_rows(inline):
    """CLASS rows by number."""
    rows = new_classes(1 + len(inline.classes))
    rows["credit_ns"] = inline.credit
    for row, c in zip(rows[1:], inline.classes, strict=True):
        row["rate"] = c.rate or 0
        row["limit_bytes"], row["limit_ns"] = c.limit_bytes, limit_ns(c, c.rate)
        row["mark_ns"] = c.ecn_time if c.ecn else NEVER
        if c.set_mark:
            row["mark"], row["mark_mask"] = c.set_mark
        if c.set_dscp is not None:
            row["dscp"] = c.set_dscp
    return rows


def shim_of(inline, rewrite):
    """A new Shim. Exit if there is no such interface as a class names."""
    return Shim(new_pacer(class_rows(inline), inline.held), new_classifier(rule_rows(inline)), rewrite, inline.tick)


def _values(match):
    """What each key of a match may be, [None] for any; ranges of ports joined."""
    ports = [list(merged(values)) if values else [None] for values in (match.sport, match.dport)]
    others = (match.proto, match.dscp, getattr(match, "in"), match.out)
    return [match.src or [None], match.dst or [None], *ports, *(list(v) if v is not None else [None] for v in others)]


def alternatives(match):
    """How many RULE rows a match takes at most."""
    return 0 if match.verdict is not None else int(np.prod([len(v) for v in _values(match)], dtype=np.int64))


def _combinations(match):
    """Each combination of single values, as in _values; those of an IPv4 and an IPv6 address are left out."""
    if match.verdict is None:
        for values in product(*_values(match)):
            if None in values[:2] or values[0].version == values[1].version:
                yield values


def rule_rows(inline, index_of=socket.if_nametoindex):
    """RULE rows in order. index_of: interface index of a name. Exit if there is no such interface."""
    found = [(i, c.match, v) for i, c in enumerate(inline.classes, 1) for v in _combinations(c.match)]
    rows = new_rules(len(found))
    for row, (number, match, values) in zip(rows, found, strict=True):
        row["class_index"] = number
        if match.mark:
            row["mark"], row["mark_mask"] = match.mark
        _fill(row, values, index_of)
    return rows


def told_apart(inline):
    """What makes classes the same ones: names, matches, and which interfaces these mean now."""
    return [(c.name, c.match, _interfaces(c.match)) for c in inline.classes]


def _interfaces(match):
    """{name: index} of the interfaces in a match that are there."""
    there = {name: index for index, name in socket.if_nameindex()}
    return {name: there.get(name) for key in ("in", "out") for name in getattr(match, key) or ()}


def _fill(row, values, index_of):
    src, dst, sport, dport, proto, dscp, came, leaves = values
    for end, network in (("src", src), ("dst", dst)):
        if network is not None:
            set_prefix(row, end, network)
    for end, ports in (("sport", sport), ("dport", dport)):
        if ports is not None:
            row[f"{end}_low"], row[f"{end}_high"] = ports
    for key, value in (("proto", proto), ("dscp", dscp)):
        if value is not None:
            row[key] = value
    for key, name in (("indev", came), ("outdev", leaves)):
        if name is not None:
            row[key] = _index(name, index_of)


def _index(name, index_of):
    try:
        return index_of(name)
    except OSError as error:
        raise Exit(USAGE, f"inline.classes: there is no interface {name!r}: set it up first") from error

"""The section `inline` of the configuration: its keys, those of a class and of a mitigation rule, with their helps.

What must hold between them is in classes.py, what they mean in docs/inline.md.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from qoetap.bitrates import rate_text
from qoetap.durations import duration_text, parse_duration
from qoetap.keys import Duration, Rate, Section, Size, fields_of
from qoetap.matching import MATCH_FIELDS, MATCH_TEXT, Dscp, MarkBits, MatchRules, mark_text
from qoetap.sizes import parse_size, size_text

QUEUE_MAX = 65535  # of NFQUEUE
HELD_MAX = 1 << 20  # of a queue's length in the kernel's and in our memory
CLASSES_MAX, RULES_MAX, FLOWS_MAX = 4096, 64, 4096
HOLD_MIN_ns = 100_000_000  # bounds how many favours there can be in a time, so what is remembered of them
NAME = "[a-z0-9_.-]{1,64}"
CHAINS = ("PREROUTING", "FORWARD", "INPUT", "OUTPUT", "POSTROUTING")
PRIORITY, MARK, DSCP, RATE, PACE_OTHERS = DOES = ("priority", "mark", "dscp", "rate", "pace-others")


def positive(ns):
    if ns == 0:
        raise ValueError("must be longer than 0s")
    return ns


def class_names(value):
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def held_ns(ns):
    if ns < HOLD_MIN_ns:
        raise ValueError(f"the least is {duration_text(HOLD_MIN_ns)}")
    return ns


Positive = Annotated[Duration, AfterValidator(positive)]
Hold = Annotated[Duration, AfterValidator(held_ns)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Classes = Annotated[tuple[str, ...], BeforeValidator(class_names)]
Queue = Annotated[int, Field(ge=0, le=QUEUE_MAX)]
Flows = Annotated[int, Field(ge=1, le=FLOWS_MAX)]

match_model = create_model("match", __base__=MatchRules, **MATCH_FIELDS)

CLASS = {  # key: (type, default, help)
    "name": (Name, ..., "by which rates, rules and counters name it: a-z, 0-9, _ . -"),
    "match": (match_model, ..., "which packets; {}: all. The first class that matches counts"),
    "rate": (Rate | None, None, "what all its packets together leave at: 500kbit, 2Mbit, 1Gbit; none: at once"),
    "set_mark": (MarkBits | None, None, "firewall mark to set: 0x10, or only the bits of a mask: 0x10/0xff"),
    "set_dscp": (Dscp | None, None, "DSCP to set, a number or a name"),
    "limit_bytes": (Size, parse_size("1MiB"), "bytes held at most, later packets are dropped"),
    "limit_time": (Positive | None, None, "time that a packet is held at most, one that would be longer is dropped; "
                   "none: 200ms, but at least the time of 8 packets of 1500 bytes at the rate"),
    "ecn": (bool, False, "packets that can bear it are marked (RFC 3168) once they would be held for ecn_time"),
    "ecn_time": (Positive, parse_duration("20ms"), "see ecn"),
}  # fmt: skip

RULE = {
    "on": (str, ..., "event that starts it, such as iqn.stall_start; further ones prolong it"),
    "until": (str | None, None, "event after which it ends when `hold` has passed; none: iqn.stall_end for "
              "iqn.stall_start, and so for all pairs of _start and _end"),
    "do": (Literal[DOES], ..., "priority: the flow goes into `class`; mark, dscp: its packets get them; rate: `class` "
           "is paced at `rate`; pace-others: each of `class` is paced at `rate` or less"),
    "class": (Classes, (), "name of a class; of pace-others also a list"),
    "rate": (Rate | None, None, "of rate and pace-others"),
    "mark": (MarkBits | None, None, "of mark, as set_mark of a class"),
    "dscp": (Dscp | None, None, "of dscp, as set_dscp of a class"),
    "hold": (Hold, parse_duration("5s"), "a flow is favoured for so long after the last event"),
    "quiet": (Duration, parse_duration("5s"), "afterwards it is not favoured again for so long"),
    "max_flows": (Flows, 8, "flows favoured at once"),
    "max_per_client": (Flows, 1, "of them, flows of one client: an IPv4 address or an IPv6 /64"),
    "client": (Literal["src", "dst"], "dst", "which end of the event is the client"),
    "budget": (Positive, parse_duration("30s"), "a client's flows are favoured for so long in all"),
    "window": (Positive, parse_duration("1m"), "in any time of this length"),
}  # fmt: skip

class_model = create_model("class", __base__=Section, **fields_of(CLASS))
rule_model = create_model("rule", __base__=Section, **fields_of(RULE))

INLINE = {
    "queues": (Annotated[list[Queue], Field(max_length=64)], [], "numbers of the queues of NFQUEUE, as with -q"),
    "chain": (Literal[CHAINS], "FORWARD", "chain of the firewall in which --install puts its rules"),
    "held": (Annotated[int, Field(ge=1, le=HELD_MAX)], 65536, "packets held at most, of all classes; more are let go"),
    "credit": (Duration, parse_duration("4ms"), "a class that was late makes up for so much of it at once"),
    "tick": (Duration, 0, "packets that are due so close together leave together: some CPU for precision"),
    "delay_bound": (Duration, parse_duration("50ms"), "everything is let through while we are later than this; 0: "
                    "never"),
    "lease": (Duration, parse_duration("30s"), "of a table of rates that names none: when it has passed without "
              "another, the rates of this file count again; 0: none"),
    "control": (str, "", "address of the API: 127.0.0.1:9465, or unix:/run/qoetap/control; empty: none"),
    "stats_every": (Duration, parse_duration("10s"), "a pace.stats event of each class so often; 0: none"),
    "dry_run": (bool, False, "mitigation reports what it would do, and does nothing"),
    "classes": (Annotated[list[class_model], Field(max_length=CLASSES_MAX)], [], "what is told apart and paced; keys "
                "of a class: below"),
    "mitigation": (Annotated[list[rule_model], Field(max_length=RULES_MAX)], [], "what events lead to; keys of a rule: "
                   "below"),
}  # fmt: skip

_WRITTEN = {
    "rate": rate_text, "set_mark": mark_text, "mark": mark_text, "limit_bytes": size_text, "class": list,
    **dict.fromkeys(("limit_time", "ecn_time", "hold", "quiet", "budget", "window"), duration_text),
    **dict.fromkeys(("credit", "tick", "delay_bound", "lease", "stats_every"), duration_text),
}  # fmt: skip


def _told(section, written):
    """{key: value as text} of what the section says, in the order of its keys; keys without a value are left out."""
    values = ((key, getattr(section, key)) for key in type(section).model_fields)
    return {key: written.get(key, _same)(value) for key, value in values if value is not None and value != ()}


def _same(value):
    return value


def class_values(c):
    return {**_told(c, _WRITTEN), "match": _told(c.match, MATCH_TEXT)}


def inline_values(inline):
    """The section as it would stand in a file."""
    lists = {
        "classes": [class_values(c) for c in inline.classes],
        "mitigation": [_told(rule, _WRITTEN) for rule in inline.mitigation],
    }
    return {**_told(inline, _WRITTEN), **lists}


def lists_help():
    """Comment lines about the keys of an item of each list, and of a match."""
    lines = []
    for title, fields in (
        ("class", class_model), ("match of a class", match_model), ("rule of mitigation", rule_model)
    ):  # fmt: skip
        lines += ["#", f"# keys of a {title}:"]
        for key, field in fields.model_fields.items():
            default = "" if field.is_required() else _default(key, field.default)
            lines.append(f"#   {key}: {field.description}{default}")
    return lines


def _default(key, value):
    if value in (None, ()):
        return ""
    return f" [{str(value).lower() if isinstance(value, bool) else _WRITTEN.get(key, str)(value)}]"

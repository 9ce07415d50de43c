"""Events of `qoetap inline`: pace.stats, pace.rate_changed, mitigation.start, mitigation.end.

No detectors, but declared as such, so that their events go the way of all others. `declared` gives them the names of
classes and events, which rows then hold as numbers; PACE and MITIGATION, without names, are for the schema. A new
configuration adds names and takes none away: rows that wait to be written keep their meaning.
"""

from typing import NamedTuple

import numpy as np

from dataplane.events import Events
from dataplane.records import IP, NO_TIME, rows
from detectors.base import Detector, EventType, Field, event_row
from qoetap.classes import DEFAULT
from qoetap.inline_keys import DOES
from qoetap.mitigation import REASONS, START
from qoetap.rates import CAUSES

STATS_CODE, CHANGED_CODE = 1, 2
START_CODE, END_CODE = 1, 2
COUNTED = {  # field of pace.stats: (field of CLASS, help)
    "held_packets": ("held", "packets held now"),
    "held_bytes": ("held_bytes", "their bytes"),
    "packets": ("packets", "packets offered since the start"),
    "bytes": ("bytes", "their bytes, from the IP header on"),
    "sent_bytes": ("sent_bytes", "of them, let through"),
    "passed": ("passed", "packets let through at once"),
    "released": ("released", "packets that were held until they were due"),
    "flushed": ("flushed", "packets that were held and let through before they were due"),
    "dropped_bytes": ("over_bytes", "packets dropped because of limit_bytes"),
    "dropped_time": ("over_time", "packets dropped because of limit_time"),
    "no_room": ("no_room", "packets let through at once because inline.held was reached"),
    "marked": ("marked", "packets marked with CE"),
    "wait_max_ns": ("wait_max", "longest time that a packet was held"),
}


def _int(name, text):
    return Field(name, np.int64, text)


class Declared(NamedTuple):
    """The two Detectors of a configuration."""

    pace: Detector
    mitigation: Detector


def declared(class_names=(), ons=()):
    """Declared for these names of classes, and names of events that rules of mitigation are on: rows number them so."""
    name = Field("class", np.int32, "name of the class", tuple(class_names))
    pace = (
        EventType(
            "pace.stats",
            (
                name,
                _int("rate_bps", "rate in force, bit/s; null: unpaced"),
                *(_int(field, text) for field, (_, text) in COUNTED.items()),
            ),
            "what a class did since the start",
        ),
        EventType(
            "pace.rate_changed",
            (
                name,
                _int("old_bps", "rate before, bit/s; null: unpaced"),
                _int("new_bps", "rate from now on, the same"),
                Field("changed_by", np.uint8, "what did it", CAUSES),
            ),
            "a class has another rate",
        ),
    )
    about = (
        _int("rule", "number of the rule in the configuration, from 1"),
        Field("on", np.int32, "event that the rule is on", tuple(ons)),
        Field("do", np.uint8, "what the rule does", DOES),
        Field("dry_run", np.uint8, "nothing was done, only reported", "bool"),
    )
    mitigation = (
        EventType(
            "mitigation.start",
            (*about, _int("longest_ns", "how long it may last at present, from now on")),
            "a flow is favoured",
        ),
        EventType(
            "mitigation.end",
            (*about, _int("duration_ns", "for how long it was"), Field("reason", np.uint8, "why it ended", REASONS)),
            "a flow is favoured no more",
        ),
    )
    return Declared(_detector("pace", pace), _detector("mitigation", mitigation))


def _detector(name, types):
    return Detector(name, IP, None, event_row(*types), types, (), None, None, None)


PACE, MITIGATION = declared()


def _bps(rate):
    """0 and None: unpaced, written as null."""
    return rate or NO_TIME


def _numbers(detector, name):
    """{name: number} of what a field of a Declared names."""
    names = next(field.form for kind in detector.events for field in kind.fields if field.name == name)
    return {text: number for number, text in enumerate(names)}


def stats_rows(pace, names, classes, ts):
    """Event rows of CLASS rows, one each. names: of these classes; ts: ns since 1970."""
    made, numbers = rows(pace.event, len(classes)), _numbers(pace, "class")
    made["ts"], made["code"] = ts, STATS_CODE
    made["class"] = [numbers[name] for name in names]
    made["rate_bps"] = np.where(classes["rate"] == 0, NO_TIME, classes["rate"])
    for field, (source, _) in COUNTED.items():
        made[field] = classes[source]
    return made


def changed_rows(pace, changes, cause, ts):
    """Event rows of rates.Change. cause: one of rates.CAUSES."""
    made, numbers = rows(pace.event, len(changes)), _numbers(pace, "class")
    made["ts"], made["code"], made["changed_by"] = ts, CHANGED_CODE, CAUSES.index(cause)
    for row, change in zip(made, changes, strict=True):
        row["class"] = numbers[change.name]
        row["old_bps"], row["new_bps"] = _bps(change.old), _bps(change.new)
    return made


def action_rows(mitigation, actions, dry_run, ts):
    """Event rows of mitigation.Action."""
    made, numbers = rows(mitigation.event, len(actions)), _numbers(mitigation, "on")
    made["ts"], made["dry_run"] = ts, dry_run
    for row, action in zip(made, actions, strict=True):
        _put_ends(row, action.ends)
        row["rule"], row["on"] = action.rule.number, numbers[action.rule.on]
        row["do"] = DOES.index(action.rule.do)
        if action.what == START:
            row["code"], row["longest_ns"] = START_CODE, action.until - action.since
        else:
            row["code"], row["duration_ns"] = END_CODE, action.until - action.since
            row["reason"] = REASONS.index(action.reason)
    return made


def _put_ends(row, ends):
    for name in ("src", "dst"):
        address = getattr(ends, name)
        row[name][: len(address)] = np.frombuffer(address, np.uint8)
    row["sport"], row["dport"], row["proto"] = ends.sport, ends.dport, ends.proto
    row["ip_version"] = 4 if len(ends.src) == 4 else 6


def numbers_of(class_names):
    """{name: number} of the classes in force, without `default`."""
    return {name: number for number, name in enumerate(class_names) if name != DEFAULT}


def as_events(detector, made, agent_id):
    """Events of rows of one of the Declared, for outputs."""
    order = np.zeros((len(made), 2), np.int64)
    order[:, 1] = np.arange(len(made))
    return Events([(detector, made)], order, [], agent_id)

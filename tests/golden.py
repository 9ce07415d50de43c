"""Compares replayed events with a case's expected file. Knows the file's format, not the product.

The first line describes the case: `file`, `packets` delivered, `detectors`, and where needed `options` of the replay
and `exit` status. Each further line is one event, in order: what must be found in the event at that place, numbers
within the tolerance that "~" gives for their path ("iqn.duration_ns"). Every event of those detectors must be expected.
"""

import difflib
import json


def load(path):
    """(header, expected events)."""
    header, *events = (json.loads(line) for line in path.read_text().splitlines())
    return header, events


def matches(expected, actual):
    """True if `actual` holds all that `expected` says."""
    return shown(expected, actual, expected.get("~", {})) == {k: v for k, v in expected.items() if k != "~"}


def shown(expected, actual, near, path=""):
    """The part of `actual` that `expected` speaks of; a number near enough is shown as the expected one."""
    part = {}
    for name, wanted in expected.items():
        if name == "~" or name not in actual:
            continue
        found, where = actual[name], path + name
        if isinstance(wanted, dict) and isinstance(found, dict):
            part[name] = shown(wanted, found, near, where + ".")
        else:
            part[name] = wanted if is_near(wanted, found, near.get(where)) else found
    return part


def is_near(wanted, found, tolerance):
    numbers = isinstance(wanted, (int, float)) and isinstance(found, (int, float))
    return tolerance is not None and numbers and abs(found - wanted) <= tolerance


def difference(expected, actual):
    """Unified diff, empty if all is as expected."""
    if len(expected) == len(actual) and all(map(matches, expected, actual)):
        return ""
    wanted = [line(event, event) for event in expected]
    found = [line(shape(expected, i, event), event) for i, event in enumerate(actual)]
    return "\n".join(difflib.unified_diff(wanted, found, "expected", "actual", lineterm="", n=1))


def shape(expected, i, event):
    """The expected event whose fields are worth showing of the i-th one: its own, one of its type, else everything."""
    if i < len(expected) and expected[i]["event_type"] == event["event_type"]:
        return expected[i]
    return next((other for other in expected if other["event_type"] == event["event_type"]), event)


def line(wanted, event):
    return json.dumps(shown(wanted, event, wanted.get("~", {})))


def concerns(header, event):
    """True if the event comes from a detector of the case."""
    return any(name in event for name in header["detectors"])

"""One snapshot of an agent's numbers, and what is made of it: a line for a person and the `stats` event."""

import time

import numpy as np

from dataplane.events import Events
from dataplane.records import IP, rows
from detectors.base import Detector, EventType, Field, event_row


def _number(name, text, kind=np.int64, form="int"):
    return Field(name, kind, text, form)


TYPE = EventType(
    "stats",
    (
        _number("uptime_ns", "time since the start, ns"),
        _number("interval_ns", "time since the last of these events, ns"),
        _number("packets", "packets that the kernel counted since the start, dropped ones included"),
        _number("processed", "of them, packets that detectors saw"),
        _number("undecoded", "packets that no detector saw, because they are not IP or damaged"),
        _number("kernel_dropped", "packets that found the ring full"),
        _number("ring_freezes", "how often the ring was full"),
        _number("interface_missed", "frames that the interfaces missed before the kernel saw them"),
        _number("packets_per_second", "in this interval", np.float64, "float"),
        _number("events_made", "events made since the start"),
        _number("events_queued", "of them, waiting at the output that is behind most"),
        _number("events_dropped", "of them, lost at the output that lost most"),
        _number("states", "states of all detectors at the moment, such as flows"),
        _number("states_given_up", "states that had to go because a table was full"),
    ),
    "what the agent did since it was started",
)

# No detector, but declared as one: so its events go the way of all others
STATS = Detector("stats", IP, None, event_row(TYPE), (TYPE,), (), None, None, None)


def values_of(snapshot, before, seconds):
    """Values of a stats event: of this snapshot, and the one of `seconds` ago."""
    packets, events = snapshot["packets"], snapshot["events"]
    ports, states = snapshot["interfaces"].values(), snapshot["states"].values()
    passed = packets["seen"] - before["packets"]["seen"]
    return {
        "uptime_ns": int(snapshot["uptime_seconds"] * 1e9),
        "interval_ns": int(seconds * 1e9),
        "packets": packets["seen"],
        "processed": packets["processed"],
        "undecoded": sum(packets["undecoded"].values()),
        "kernel_dropped": packets["dropped"]["kernel"],
        "ring_freezes": sum(port["freezes"] for port in ports),
        "interface_missed": sum(port["missed"] for port in ports),
        "packets_per_second": passed / seconds if seconds else 0.0,
        "events_made": sum(events["made"].values()),
        "events_queued": events["queued"],
        "events_dropped": events["dropped"],
        "states": sum(state["live"] for state in states),
        "states_given_up": sum(state["emergency"] for state in states),
    }


def as_events(values, agent_id):
    """Events of one stats event, now."""
    row = rows(STATS.event, 1)
    row["ts"], row["code"] = time.time_ns(), 1
    for name, value in values.items():
        row[name] = value
    return Events([(STATS, row)], np.zeros((1, 2), np.int64), [], agent_id)


def line(values, snapshot):
    """The same for a person, in one line; what is zero and should be is left out."""
    dropped = values["kernel_dropped"]
    parts = [
        f"{values['packets']:,} packets ({values['packets_per_second']:,.0f}/s)",
        f"{dropped:,} dropped ({dropped / max(1, values['packets']):.4%})",
        f"{values['events_made']:,} events",
        f"{values['states']:,} states",
    ]
    more = {
        "not IP or damaged": values["undecoded"],
        "missed by the interface": values["interface_missed"],
        "events waiting": values["events_queued"],
        "events lost": values["events_dropped"],
        "states given up, tables full": values["states_given_up"],
    }
    parts += [f"{count:,} {name}" for name, count in more.items() if count]
    return "; ".join([*parts, *filter(None, [snapshot["why"]])])

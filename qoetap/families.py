"""The metrics that Prometheus is told of an agent: each a name and what of a snapshot of its numbers it shows.

Labels are bounded: reasons, detectors and event types come from the program, interfaces and outputs from the
configuration, none from the traffic: the number of series does not grow with it. Each is there from the start, with 0,
so that a rate over the first event is right. Names follow Prometheus's rules (prometheus.io/docs/practices/naming).

Not here: what a filter keeps out, as the kernel does not count it; and whether the ledger balances: it does at the end,
but while packets come not between reading one counter and the next.
"""

import functools
import platform
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

import detectors as registry
from dataplane.sinks.names import output_label
from dataplane.wire import FILTERED, OK, REASONS
from qoetap import __version__

COUNTER, GAUGE, INFO = CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
TIME_ODDITIES = ("backwards", "jumps", "timeless")
REMOVALS = ("expired", "emergency", "ended")
UNDECODED = tuple(reason for number, reason in enumerate(REASONS) if number not in (OK, FILTERED))
CUT = UNDECODED[1:]  # a packet without IP has nothing to be cut


class Family(NamedTuple):
    """A metric: `values(snapshot)` is a number, or with labels {value of the label, or tuple of values: number}."""

    kind: type
    name: str  # without the prefix, and without the ending: _total of a counter, _info
    labels: tuple
    values: Callable
    help: str

    def of(self, snapshot):
        """The family as prometheus_client writes it."""
        family, values = self.kind(f"qoetap_{self.name}", self.help, labels=self.labels), self.values(snapshot)
        for where, value in values.items() if self.labels else [((), values)]:
            family.add_metric([where] if isinstance(where, str) else where, value)
        return family


def build(snapshot):
    return {"version": __version__, "python": platform.python_version(), "agent_id": snapshot["agent_id"]}


def packets(name):
    return lambda snapshot: snapshot["packets"][name]


def reasons(name, known):
    """Counts by reason; those that did not occur yet are 0."""
    return lambda snapshot: {**dict.fromkeys(known, 0), **snapshot["packets"][name]}


def time_oddities(snapshot):
    return {name: snapshot["packets"][name] for name in TIME_ODDITIES}


def interfaces(name):
    return lambda snapshot: {port: numbers[name] for port, numbers in snapshot["interfaces"].items()}


def events_made(snapshot):
    """Counts by type; of the running detectors, those that were not made yet are 0."""
    possible = [kind for name in snapshot["states"] for kind in event_types().get(name, ())]
    return {**dict.fromkeys(possible, 0), **snapshot["events"]["made"]}


@functools.cache
def event_types():
    """{detector: names of the events it makes}."""
    return {name: [kind.name for kind in detector.events] for name, detector in registry.load_all().items()}


def outputs(name):
    def values(snapshot):
        labels = output_labels(snapshot["outputs"])
        return {labels[spec]: numbers[name] for spec, numbers in snapshot["outputs"].items()}

    return values


def outputs_up(snapshot):
    labels = output_labels(snapshot["outputs"])
    return {labels[name]: up for name, up in snapshot["outputs_up"].items()}


def states(name):
    return lambda snapshot: {detector: numbers[name] for detector, numbers in snapshot["states"].items()}


def states_removed(snapshot):
    return {(name, why): numbers[why] for name, numbers in snapshot["states"].items() for why in REMOVALS}


def output_labels(specs):
    """A label for each output; those that are the same but for what a label must not tell are numbered."""
    found, times = {}, Counter()
    for spec in specs:
        label = output_label(spec)
        times[label] += 1
        found[spec] = label if times[label] == 1 else f"{label}#{times[label]}"
    return found


FAMILIES = (
    Family(INFO, "build", (), build, "The program that runs."),
    Family(GAUGE, "healthy", (), lambda s: int(s["healthy"]), "1: all is well; 0: /healthz says what is not."),
    Family(COUNTER, "packets_seen", (), packets("seen"), "Packets that the kernel counted, dropped ones included."),
    Family(COUNTER, "packets_processed", (), packets("processed"), "Packets that detectors saw."),
    Family(COUNTER, "packets_dropped", ("reason",), packets("dropped"), "Packets lost before they could be read."),
    Family(
        COUNTER, "packets_undecoded", ("reason",), reasons("undecoded", UNDECODED),
        "Packets that no detector saw, because no IP header could be read.",
    ),
    Family(
        COUNTER, "packets_cut", ("reason",), reasons("cut", CUT),
        "Packets that detectors saw, but of which a header was missing or wrong.",
    ),
    Family(COUNTER, "packet_time_oddities", ("reason",), time_oddities, "Timestamps amiss: backwards, a jump, none."),
    Family(GAUGE, "interface_up", ("interface",), interfaces("up"), "1: the interface is there and up."),
    Family(
        COUNTER, "interface_packets_received", ("interface",), interfaces("received"),
        "Packets that the kernel counted, dropped ones included.",
    ),
    Family(
        COUNTER, "interface_packets_dropped", ("interface",), interfaces("dropped"), "Packets that found the ring full."
    ),
    Family(COUNTER, "interface_ring_freezes", ("interface",), interfaces("freezes"), "How often the ring was full."),
    Family(
        COUNTER, "interface_packets_missed", ("interface",), interfaces("missed"),
        "Frames that the interface missed before the kernel saw them.",
    ),
    Family(COUNTER, "events_made", ("event_type",), events_made, "Events that were made, for all outputs."),
    Family(COUNTER, "output_events_delivered", ("output",), outputs("delivered"), "Events that are out."),
    Family(GAUGE, "output_events_queued", ("output",), outputs("queued"), "Events that wait to be delivered."),
    Family(COUNTER, "output_events_dropped", ("output",), outputs("dropped"), "Events that this output lost."),
    Family(GAUGE, "output_up", ("output",), outputs_up, "0: for a minute it could not deliver; /healthz says why."),
    Family(COUNTER, "states_created", ("detector",), states("created"), "States begun, such as flows."),
    Family(
        COUNTER, "states_removed", ("detector", "reason"), states_removed,
        "States gone: expired in time, emergency because the table was full, or ended with the capture.",
    ),
    Family(GAUGE, "states_live", ("detector",), states("live"), "States that a detector's table holds."),
)  # fmt: skip

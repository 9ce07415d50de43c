"""Tables for a person: how many events of each type, the largest flows, the latest of the others. Printed at the end.

Keeps a few event rows of each type, so memory is bounded.
"""

import json

import numpy as np

from dataplane.events import Events, Renderer, json_lines
from dataplane.sinks.base import Sink, sink_error

LARGEST, LATEST = 10, 5  # rows shown of a type that counts bytes, and of another
ZEROS = ("0", "0.0", "0/0", "False", "0" * 16, "0.000ms")  # left out, so that the rest is seen
EPOCH_NS = 10**17  # a field in ns beyond this is a time, not a duration
WIDTH_COLUMNS = 160  # where the output is no terminal
PLAIN = {"markup": False, "emoji": False}  # rich would take [fe80::1] and :100: for its own


class Kept:
    """What is remembered of one event type: its count, first and last time, and the rows to show."""

    def __init__(self, detector, event_type):
        self.detector, self.event_type, self.count = detector, event_type, 0
        self.first, self.last, self.rows = 0, 0, None
        self.sizes = [f.name for f in event_type.fields if "bytes" in f.name]

    def add(self, rows):
        self.first = rows[0]["ts"] if self.count == 0 else self.first
        self.last, self.count = rows[-1]["ts"], self.count + len(rows)
        rows = rows if self.rows is None else np.concatenate([self.rows, rows])
        if self.sizes:
            size = sum(rows[name].astype(np.float64) for name in self.sizes)
            rows = rows[np.argsort(-size, kind="stable")]
        self.rows = (rows[:LARGEST] if self.sizes else rows[-LATEST:]).copy()

    def title(self):
        which = f"{len(self.rows)} largest" if self.sizes else f"latest {len(self.rows)}"
        return (
            f"{self.event_type.name}: {which} of {self.count}" if len(self.rows) < self.count else self.event_type.name
        )


def readable(name, value):
    """A detector's field for the eye, with its name: times of day, durations in ms, bytes in groups of three digits."""
    if name.endswith("_ns") and isinstance(value, int):
        if abs(value) < EPOCH_NS:
            return name[:-3], f"{value / 1e6:.3f}ms"
        return name[:-3], np.datetime64(value, "ns").astype("M8[ms]").item().time().isoformat("milliseconds")
    return name, f"{value:,}" if "bytes" in name else str(value)


def details(fields):
    """Fields as `name=value`, without zeros; the two directions of one thing as `name=toserver/toclient`."""
    shown = dict(readable(name, value) for name, value in fields.items() if value is not None)
    for name in [n for n in shown if n.endswith("_toserver")]:
        base = name.removesuffix("_toserver")
        if f"{base}_toclient" in shown:
            both = f"{shown[name]}/{shown.pop(f'{base}_toclient')}"
            shown = {(base if n == name else n): (both if n == name else v) for n, v in shown.items()}
    return "  ".join(f"{name}={value}" for name, value in shown.items() if value not in ZEROS)


def end_of(event, side):
    address, port = event.get(f"{side}_ip", ""), event.get(f"{side}_port")
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Table(Sink):
    def __init__(self, _path, detectors):
        super().__init__()
        self.path = "standard output"
        self.renderer = Renderer(detectors, json_lines)
        self.kept = {(d.name, c): Kept(d, t) for d in detectors for c, t in enumerate(d.events, 1)}
        self.latest = None

    def put(self, events):
        for index, (detector, rows) in enumerate(events.parts):
            chosen = rows[events.order[events.order[:, 0] == index, 1]].view(np.recarray)
            for code in np.unique(chosen["code"]):
                kept = self.kept[detector.name, int(code)]
                kept.add(chosen[chosen["code"] == code])
                kept.detector = detector  # with the names that it has now
        self.latest = events._replace(parts=[], order=None)
        self.delivered += len(events.order)

    def close(self):
        """Print the tables, once."""
        from rich.console import Console  # late: it is slow to import

        kept, self.kept = [k for k in self.kept.values() if k.count], {}
        console = Console(**PLAIN)
        if not console.is_terminal:
            console = Console(width=WIDTH_COLUMNS, **PLAIN)
        try:
            for table in self._tables(kept):
                console.print(table)
        except OSError as error:
            raise sink_error(self.path, error) from error

    def _tables(self, kept):
        if not kept:
            return
        yield counts_table(kept)
        for k in sorted(kept, key=lambda k: not k.sizes):
            yield events_table(k.title(), self._objects(k), k.detector.name)

    def _objects(self, kept):
        order = np.stack([np.zeros(len(kept.rows), np.int64), np.arange(len(kept.rows))], axis=1)
        events = Events([(kept.detector, kept.rows)], order, self.latest.files, self.latest.agent_id)
        return [json.loads(line) for text, _ in self.renderer.chunks(events) for line in bytes(text).splitlines()]


def counts_table(kept):
    from rich.table import Table as Rich

    table = Rich(title="events", title_justify="left")
    table.add_column("event")
    table.add_column("count", justify="right")
    table.add_column("first")
    table.add_column("last")
    table.add_column("meaning")
    for k in kept:
        first, last = (str(np.datetime64(int(ts), "ns").astype("M8[ms]")).replace("T", " ") for ts in (k.first, k.last))
        table.add_row(k.event_type.name, str(k.count), first, last, k.event_type.help)
    return table


def events_table(title, objects, detector):
    from rich.table import Table as Rich

    table = Rich(title=title, title_justify="left")
    for name in ("time", "source", "destination", "proto"):
        table.add_column(name, no_wrap=True)
    table.add_column("details")
    for event in objects:
        ends = end_of(event, "src"), end_of(event, "dest"), event.get("proto", "")
        table.add_row((event["timestamp"] or "")[11:23], *ends, details(event[detector]))
    return table


SINK = Table

"""Sinks: where events go. One file each; adding one is a file with a `SINK` and a line here.

Others register theirs as entry points of the group `qoetap.sinks`: the name, and a callable (path, detectors) -> Sink.
A sink's modules are imported when it is opened.
"""

import difflib
import importlib
import os
from importlib.metadata import entry_points

from dataplane.sinks.base import ReaderGone, Sink, SinkError
from dataplane.sinks.queued import Queued

__all__ = ["Queued", "ReaderGone", "Sink", "SinkError", "open_sink", "sink_name"]

SINKS = ("jsonl", "csv", "parquet", "table", "null")  # names of the modules here
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
GROUP = "qoetap.sinks"


def _others():
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def sink_name(spec):
    """(name, path) of an output: `-`, `null`, `table`, FILE by its suffix, or NAME:PATH. SinkError if there is none."""
    if spec == "-":
        return "jsonl", "-"
    name, colon, path = spec.partition(":")
    if spec in ("null", "table"):
        return spec, "-"
    if colon and (name in SINKS or name in _others()):
        return name, path
    suffix = os.path.splitext(spec)[1]
    if suffix in SUFFIXES:
        return SUFFIXES[suffix], spec
    near = difflib.get_close_matches(suffix or spec, [*SUFFIXES, "null", "table"], 1, 0.5)
    hint = f"did you mean {near[0]}" if near else f"end its name in one of {', '.join(SUFFIXES)}"
    raise SinkError(f"no output is called {spec!r}: {hint}, or name the sink: jsonl:{spec}")


def open_sink(spec, detectors):
    """Open the output `spec` (see sink_name) for the events of `detectors`. SinkError says what is wrong with it."""
    name, path = sink_name(spec)
    if name in SINKS:
        return importlib.import_module(f"dataplane.sinks.{name}").SINK(path, tuple(detectors))
    return _others()[name].load()(path, tuple(detectors))

"""Sinks: where events go. One file each; adding one is a file with a `SINK` and a line here.

Others register theirs as entry points of the group `qoetap.sinks`: the name, and a callable (path, detectors) -> Sink.
A sink's modules are imported when it is opened.
"""

import difflib
import importlib
import os
from importlib.metadata import entry_points

from dataplane.sinks.base import ReaderGone, Sink, SinkError
from dataplane.sinks.names import FILES, SUFFIXES, URLS, redacted
from dataplane.sinks.queued import Queued
from dataplane.sinks.rotating import Rotating, Rotation, rotates

__all__ = ["Queued", "ReaderGone", "Rotation", "Sink", "SinkError", "open_sink", "redacted", "sink_name"]

SINKS = ("jsonl", "csv", "parquet", "table", "null", "kafka", "http")  # names of the modules here
GROUP = "qoetap.sinks"


def _others():
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def sink_name(spec):
    """(name, path) of an output: `-`, `null`, `table`, FILE by its suffix, an address (kafka://, http://, https://),
    or NAME:PATH. SinkError if there is none.
    """
    if spec == "-":
        return "jsonl", "-"
    name, colon, path = spec.partition(":")
    if path.startswith("//") and name in URLS:
        return URLS[name], spec
    if spec in ("null", "table"):
        return spec, "-"
    if colon and (name in SINKS or name in _others()):
        return name, path
    suffix = os.path.splitext(spec)[1]
    if suffix in SUFFIXES:
        return SUFFIXES[suffix], spec
    told = redacted(spec)
    if path.startswith("//"):
        raise SinkError(f"no output is called {told!r}: addresses begin with {', '.join(f'{n}://' for n in URLS)}")
    near = difflib.get_close_matches(suffix or spec, [*SUFFIXES, "null", "table"], 1, 0.5)
    hint = f"did you mean {near[0]}" if near else f"end its name in one of {', '.join(SUFFIXES)}"
    raise SinkError(f"no output is called {told!r}: {hint}, or name the sink: jsonl:{told}")


def open_sink(spec, detectors, live=False, rotation=None):
    """Open the output `spec` (see sink_name) for the events of `detectors`. SinkError says what is wrong with it.

    A file is overwritten, but with `live` gone on with; one with the time in its name begins anew by `rotation`.
    """
    try:
        return _open(spec, detectors, live, rotation)
    except SinkError:
        raise
    except Exception as error:  # a sink of others may fail in any way: that ends no agent that reads its file anew
        raise SinkError(f"{redacted(spec)}: cannot be opened ({type(error).__name__}: {error})") from error


def _open(spec, detectors, live, rotation):
    (name, path), detectors = sink_name(spec), tuple(detectors)
    if name not in SINKS:
        return _others()[name].load()(path, detectors)
    kind = importlib.import_module(f"dataplane.sinks.{name}").SINK
    if name in FILES and rotates(path):
        return Rotating(kind, path, detectors, rotation or Rotation())
    return kind(path, detectors, append=True) if live and name in FILES else kind(path, detectors)

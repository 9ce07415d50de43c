"""Helpers that make a test a sentence: replay a file in this process, run the command line."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import detectors as registry
from dataplane.capture import expand, open_capture
from dataplane.capture.sieve import blocks_of
from dataplane.engine import Engine
from dataplane.events import Renderer, json_lines
from qoetap import cli, config
from qoetap.inputs import sieve_of
from qoetap.replay import engine_parts

SEED = 1


class Memory:
    """A sink that keeps the JSON lines."""

    def __init__(self, detectors):
        self.renderer, self.text, self.delivered = Renderer(detectors, json_lines), bytearray(), 0

    def write(self, events):
        for text, ends in self.renderer.chunks(events):
            self.text += text
            self.delivered += len(ends)


def settings_for(known, options):
    """Configuration for the options of replay_bytes."""
    options = dict(options)
    names = options.pop("detectors", None)
    values = {"seed": SEED, "detectors": options.pop("settings", {})}
    for key in ("workers", "batch_rows", "seed", "agent_id", "filter"):
        if key in options:
            values[key] = options.pop(key)
    tunnels = options.pop("tunnels", [])
    values["tunnels"] = "all" if tunnels is True else tunnels or []
    values["detectors"] = {**values["detectors"], **options}  # what is left are detectors' sections
    layers = [config.Layer("the test", values), *([config.only(names, known)] if names is not None else [])]
    return config.load(layers, known)


def run_engine(paths, **options):
    """(engine, JSON lines) of a replay; its ledger is settled and balanced."""
    known = registry.load_all()
    settings = settings_for(known, options)
    parts, decode = engine_parts(settings, known)
    sink = Memory([detector for detector, _, _ in parts])
    engine = Engine(parts, sink, decode, settings.workers, settings.batch_rows, settings.agent_id)
    sieve = sieve_of(settings)
    for path in expand([paths] if isinstance(paths, (str, os.PathLike)) else paths):
        source = open_capture(path, engine.block_frames, engine.hold)
        engine.run(SimpleNamespace(name=source.name, blocks=partial(blocks_of, source, sieve)) if sieve else source)
    engine.end()
    engine.ledger.delivered = sink.delivered
    assert not engine.ledger.imbalance()
    return engine, bytes(sink.text)


def replay_bytes(paths, **options):
    """The JSON lines of a replay of a file, a directory or a list of them.

    options: detectors (names; default all), workers, batch_rows, tunnels (names, or True for all), seed (default 1),
    agent_id, filter, settings ({detector: {option: value}}), or a detector's name with its options: iqn={"n": 3}.
    """
    return run_engine(paths, **options)[1]


def replay_events(paths, **options):
    """The events of a replay as dicts, in the order of delivery; options as for replay_bytes."""
    return [json.loads(line) for line in replay_bytes(paths, **options).splitlines()]


class Ended(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def run(*argv):
    """Run a command line in this process; what it wrote to sys.stdout and sys.stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = cli.main([str(word) for word in argv])
        except SystemExit as leave:
            status = leave.code
    return Ended(status, out.getvalue(), err.getvalue())


def launch(*argv, **kwargs):
    """Run `qoetap` in a process of its own; its stdout and stderr as text. Keywords are subprocess.run's."""
    command = [sys.executable, "-m", "qoetap", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, timeout=120, **kwargs)
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

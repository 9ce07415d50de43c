"""Sinks: what arrives, what is counted, and what is said when they fail."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataplane import sinks
from dataplane.events import Events, Renderer, csv_header, csv_lines, json_lines
from dataplane.records import NO_TIME, rows
from dataplane.sinks import Queued, ReaderGone, SinkError, open_sink, sink_name
from dataplane.sinks.base import Sink
from detectors.base import Detector, EventType, Field, event_row
from tests.naive import events as naive

FLOW = (
    Field("start_ns", np.int64, "a time"),
    Field("duration_ns", np.int64, "a duration"),
    Field("bytes_toserver", np.int64, "bytes"),
    Field("bytes_toclient", np.int64, "bytes"),
    Field("lost", np.uint8, "a flag", "bool"),
)
LINK = (
    Field("rtt_ms", np.float64, "ms", "float"),
    Field("clock", np.uint64, "id", "hex"),
    Field("why", np.uint8, "", ("a", "b")),
)


def detector(name, *types):
    return Detector(name, 0, np.dtype([]), event_row(*types), types, (), None, None, None)


DETECTORS = (
    detector("flow", EventType("flow.record", FLOW, "a flow ended"), EventType("flow.short", FLOW[:1], "a short one")),
    detector("link", EventType("link.rtt", LINK, "a round trip")),
)
START_NS = 1_700_000_000_000_000_000


def batch(count, seed=0):
    """Events of both detectors, taking turns."""
    rng = np.random.default_rng(seed)
    parts = [(d, rows(d.event, count - count // 2 if i == 0 else count // 2)) for i, d in enumerate(DETECTORS)]
    for d, made in parts:
        made.code = rng.integers(1, len(d.events) + 1, len(made))
        made.ts = START_NS + rng.integers(0, 10**12, len(made))
        made.src, made.dst = rng.integers(0, 256, (2, len(made), 16))
        made.ip_version, made.proto = rng.choice([0, 4, 6], len(made)), rng.choice([1, 6, 17, 47, 58], len(made))
        made.sport, made.dport, made.vlan = rng.integers(0, 3, (3, len(made)))
        made.seq = rng.integers(0, 300, len(made))
    flow, link = (made for _, made in parts)
    flow.start_ns, flow.duration_ns = flow.ts - 5, np.where(rng.random(len(flow)) < 0.2, NO_TIME, 1_500_000)
    flow.bytes_toserver, flow.bytes_toclient = rng.integers(0, 10**6, (2, len(flow)))
    flow.lost = rng.integers(0, 2, len(flow))
    link.rtt_ms, link.clock = rng.choice([1.5, np.nan, 3.25], len(link)), rng.integers(0, 2**63, len(link))
    link.why = rng.integers(0, 3, len(link))
    order = np.array([(k % 2, k // 2) for k in range(count)], np.int64).reshape(-1, 2)
    return Events(parts, order, [(0, "a.pcap"), (200, "b,c.pcap")], "agent")


def text_of(events, layout=json_lines):
    return b"".join(bytes(text) for text, _ in Renderer(DETECTORS, layout).chunks(events))


def deliver(spec, *batches):
    sink = open_sink(str(spec), DETECTORS)
    for events in batches:
        sink.write(events)
    sink.close()
    return sink


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_lines_file(tmp_path, suffix):
    sink = deliver(tmp_path / f"out{suffix}", batch(11), batch(4, seed=1))
    assert (tmp_path / f"out{suffix}").read_bytes() == text_of(batch(11)) + text_of(batch(4, seed=1))
    assert (sink.delivered, sink.queued, sink.dropped) == (15, 0, 0)


def test_csv_file_has_one_header(tmp_path):
    deliver(tmp_path / "out.csv", batch(11), batch(4))
    want = csv_header(DETECTORS) + text_of(batch(11), csv_lines) + text_of(batch(4), csv_lines)
    assert (tmp_path / "out.csv").read_bytes() == want


def test_standard_output(capfdbinary):
    deliver("-", batch(3))
    assert capfdbinary.readouterr().out == text_of(batch(3))


def test_null_counts():
    assert deliver("null", batch(7), batch(0)).delivered == 7


def flattened(event):
    """A naive event as a row of the Parquet file."""
    own = {f"{name}.{k}": v for name, fields in event.items() if isinstance(fields, dict) for k, v in fields.items()}
    out = {k: v for k, v in event.items() if not isinstance(v, dict)} | own
    return out | ({"vlan": out["vlan"][0]} if "vlan" in out else {})


def test_parquet_holds_the_same_values(tmp_path, monkeypatch):
    monkeypatch.setattr("dataplane.sinks.parquet.GROUP_ROWS", 30)
    batches = [batch(20, seed) for seed in range(4)]
    sink = deliver(tmp_path / "out.parquet", *batches)
    assert (sink.delivered, sink.queued, sink.dropped) == (80, 0, 0)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [40, 40]
    table = file.read()
    assert str(table.schema.field("timestamp").type) == "timestamp[ns, tz=UTC]"
    assert table.schema.metadata[b"schema_version"] == b"1.0"
    got = table.drop_columns(["timestamp"]).to_pylist()
    for record, want in zip(got, (w for b in batches for w in naive_events(b)), strict=True):
        want.pop("timestamp")
        assert {k: v for k, v in record.items() if v is not None} == {k: v for k, v in want.items() if v is not None}


def naive_events(events):
    for part, row in events.order:
        det, made = events.parts[part]
        yield flattened(naive.event(det, made[row], events.files, events.agent_id))


def test_parquet_without_events_is_readable(tmp_path):
    deliver(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_parquet_waits_for_a_row_group(tmp_path):
    sink = open_sink(str(tmp_path / "out.parquet"), DETECTORS)
    sink.write(batch(5))
    assert (sink.delivered, sink.queued) == (0, 5)
    sink.close()
    sink.close()
    assert (sink.delivered, sink.queued) == (5, 0)


def test_table_counts_and_shows_the_largest(capsys):
    batches = [batch(100, seed) for seed in range(3)]
    deliver("table", *batches)
    out = capsys.readouterr().out
    flows = np.concatenate([b.parts[0][1][b.parts[0][1].code == 1] for b in batches])
    assert f"flow.record: 10 largest of {len(flows)}" in out
    largest = flows[np.argmax(flows["bytes_toserver"] + flows["bytes_toclient"])]
    assert f"bytes={largest['bytes_toserver']:,}/{largest['bytes_toclient']:,}" in out
    assert "link.rtt: latest 5 of 150" in out
    assert "a round trip" in out
    assert "duration=1.500ms" in out
    assert "lost=True" in out
    assert "lost=False" not in out


def test_table_without_events_is_empty(capsys):
    deliver("table")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("-", ("jsonl", "-")),
        ("null", ("null", "-")),
        ("table", ("table", "-")),
        ("a/b.csv", ("csv", "a/b.csv")),
        ("x.y.parquet", ("parquet", "x.y.parquet")),
        ("jsonl:/tmp/events", ("jsonl", "/tmp/events")),
    ],
)
def test_an_output_is_told_by_its_suffix_or_name(spec, want):
    assert sink_name(spec) == want


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("out.jsnl", "did you mean .jsonl,"), ("nul", "did you mean null,"), ("out.txt", "jsonl:out.txt")],
)
def test_an_unknown_output_names_the_nearest(spec, hint):
    with pytest.raises(SinkError, match="no output is called") as error:
        open_sink(spec, DETECTORS)
    assert hint in str(error.value)


def test_sinks_of_others_are_found_by_entry_point(monkeypatch):
    class Entry:
        name = "kafka"

        def load(self):
            return lambda path, detectors: (path, detectors)

    monkeypatch.setattr(sinks, "entry_points", lambda group: [Entry()] if group == "qoetap.sinks" else [])
    assert open_sink("kafka:broker:9092/qoe", DETECTORS) == ("broker:9092/qoe", DETECTORS)


def test_missing_pyarrow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "dataplane.sinks.parquet", raising=False)
    with pytest.raises(SinkError, match=r"pip install qoetap\[parquet\]"):
        open_sink(str(tmp_path / "out.parquet"), DETECTORS)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_a_missing_directory_is_said_at_the_start(tmp_path, name):
    with pytest.raises(SinkError, match=r"cannot write .*: No such file or directory; make the directory first"):
        open_sink(str(tmp_path / "missing" / name), DETECTORS)


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(SinkError, match="Is a directory; give -o the name of a file"):
        open_sink(str(tmp_path / "out.jsonl"), DETECTORS)


def test_a_full_disk_is_an_error_and_counted():
    sink = open_sink("jsonl:/dev/full", DETECTORS)
    for _ in range(2):
        with pytest.raises(SinkError, match="cannot write /dev/full: No space left on device; free some space"):
            sink.write(batch(5))
    sink.close()
    assert (sink.delivered, sink.dropped) == (0, 10)


def test_a_file_that_fills_up_keeps_whole_lines(tmp_path):
    """A file size limit stands in for the disk: the write that crosses it is cut short."""
    path, limit = tmp_path / "out.jsonl", 3000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = open_sink(str(path), DETECTORS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SinkError, match="File too large"):
            sink.write(batch(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = path.read_bytes().splitlines(keepends=True)
    assert b"".join(lines) == text_of(batch(100))[: path.stat().st_size]
    assert all(json.loads(line) for line in lines)
    assert sink.delivered == len(lines) > 0
    assert sink.delivered + sink.dropped == 100


def test_a_lost_parquet_footer_loses_the_file(tmp_path):
    sink = open_sink(str(tmp_path / "out.parquet"), DETECTORS)
    sink.write(batch(5))

    class Full:
        def write_table(self, _table):
            raise OSError(28, "No space left on device")

    sink.writer = Full()
    with pytest.raises(SinkError, match="free some space"):
        sink.close()
    assert (sink.delivered, sink.queued, sink.dropped) == (0, 0, 5)


def test_a_closed_pipe_is_told_apart(tmp_path):
    read, write = os.pipe()
    sink = open_sink(f"jsonl:/dev/fd/{write}", DETECTORS)
    os.close(write)
    os.close(read)
    with pytest.raises(ReaderGone):
        sink.write(batch(3))
    sink.close()
    assert sink.dropped == 3


class Slow(Sink):
    """Waits for `go` before each batch; fails where told."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.go, self.got, self.fail_at, self.closed = threading.Semaphore(0), [], fail_at, False

    def put(self, events):
        self.go.acquire()
        if len(self.got) == self.fail_at:
            raise OSError(28, "No space left on device")
        self.got.append(text_of(events))
        self.delivered += len(events.order)

    def close(self):
        self.closed = True


def balanced(queued):
    counts = queued.counts()
    return counts.made == counts.delivered + counts.queued + counts.dropped


def test_the_queue_keeps_a_copy_and_the_order():
    slow = Slow()
    queued = Queued(slow)
    batches = [batch(5, seed) for seed in range(4)]
    want = [text_of(b) for b in batches]
    for events in batches:
        queued.write(events)
        for _, made in events.parts:
            made.view(np.uint8)[:] = 0  # the engine uses its rows again
        events.order[:] = 0
        assert balanced(queued)
    assert queued.counts().queued == 20
    slow.go.release(4)
    queued.flush()
    assert queued.counts() == (20, 20, 0, 0)
    queued.close()
    assert slow.got == want
    assert slow.closed


def test_a_full_queue_drops_or_waits():
    slow = Slow()
    queued = Queued(slow, drop=True, limit_events=10)
    for seed in range(4):
        queued.write(batch(5, seed))
    assert queued.counts() == (20, 0, 10, 10)
    slow.go.release(2)
    queued.close()
    assert queued.counts() == (20, 10, 0, 10)

    slow = Slow()
    queued = Queued(slow, limit_events=10)
    writer = threading.Thread(target=lambda: [queued.write(batch(5, seed)) for seed in range(4)], daemon=True)
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    assert balanced(queued)
    slow.go.release(4)
    writer.join(10)
    queued.close()
    assert queued.counts() == (20, 20, 0, 0)


def test_a_batch_beyond_the_limit_is_taken_alone():
    slow = Slow()
    slow.go.release(1)
    queued = Queued(slow, limit_events=3)
    queued.write(batch(5))
    queued.close()
    assert queued.counts() == (5, 5, 0, 0)


def test_a_sink_that_fails_behind_the_queue_is_heard_and_counted():
    slow = Slow(fail_at=1)
    queued = Queued(slow)
    for seed in range(4):
        queued.write(batch(5, seed))
    slow.go.release(2)
    with pytest.raises(SinkError, match="No space left"):
        queued.flush()
    with pytest.raises(SinkError):
        queued.write(batch(5))
    assert queued.counts() == (25, 5, 0, 20)
    with pytest.raises(SinkError):
        queued.close()
    assert slow.closed


def test_head_ends_a_pipe_quietly():
    """A reader that leaves early: the writer gets ReaderGone and nothing appears on stderr."""
    code = (
        "from tests.test_sinks import *\n"
        "sink = open_sink('-', DETECTORS)\n"
        "try:\n"
        "    for seed in range(100000): sink.write(batch(50, seed % 3))\n"
        "except ReaderGone: sys.exit(0)\n"
    )
    root = Path(__file__).resolve().parent.parent
    command = f'{sys.executable} -c "$CODE" | head -n 2'
    run = subprocess.run(
        command, shell=True, cwd=root, env=os.environ | {"CODE": code}, capture_output=True, timeout=120
    )
    assert run.stderr == b""
    assert run.stdout.splitlines() == text_of(batch(50)).splitlines()[:2]

"""Sinks: what arrives, what is counted, and what is said when they fail."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataplane import sinks
from dataplane.events import Renderer, csv_header, csv_lines, json_lines
from dataplane.sinks import ReaderGone, SinkError, open_sink, redacted, sink_name
from dataplane.sinks.jsonl import JsonLines
from tests.naive import events as naive
from tests.sinks import DETECTORS, LINK, batch, deliver, text_of


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


def renamed():
    """A batch of events of a detector that has declared one more name since the outputs were opened."""
    flow, link = DETECTORS
    fields = tuple(field._replace(form=("a", "b", "c")) if field.name == "why" else field for field in LINK)
    new = link._replace(events=(link.events[0]._replace(fields=fields),))
    made = batch(6)
    made.parts[1][1]["why"] = (0, 1, 2)
    return made._replace(parts=[(flow, made.parts[0][1]), (new, made.parts[1][1])]), (flow, new)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_names_that_were_declared_later_are_written(tmp_path, suffix):
    events, declared = renamed()
    layout = csv_lines if suffix == "csv" else json_lines
    deliver(tmp_path / f"out.{suffix}", batch(11), events, batch(3))
    later = b"".join(bytes(text) for text, _ in Renderer(declared, layout).chunks(events))
    lines = later.decode().splitlines()
    if suffix == "csv":
        why = [word for line in lines for word in line.split(",") if word in ("a", "b", "c")]
    else:
        why = [told["link"]["why"] for told in map(json.loads, lines) if "link" in told]
    assert why == ["a", "b", "c"]
    whole = b"".join([text_of(batch(11), layout), later, text_of(batch(3), layout)])
    assert whole in (tmp_path / f"out.{suffix}").read_bytes()


def test_names_that_were_declared_later_are_in_parquet(tmp_path):
    events, _ = renamed()
    deliver(tmp_path / "out.parquet", batch(4), events)
    assert pq.read_table(tmp_path / "out.parquet")["link.why"].to_pylist()[-5::2] == ["a", "b", "c"]


def test_names_that_were_declared_later_are_in_the_table(capsys):
    events, _ = renamed()
    deliver("table", batch(4), events)
    assert "why=c" in capsys.readouterr().out


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


def test_table_shows_any_address_whole(capsys):
    events = batch(2)
    rows = events.parts[0][1]
    rows["ip_version"], rows["proto"], rows["sport"], rows["dport"] = 6, 17, 443, 100
    rows["src"] = np.frombuffer(bytes.fromhex("fe800100abcd00000000000000000001"), np.uint8)
    deliver("table", events)
    assert "[fe80:100:abcd::1]:443" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("https://host:8443/in?token=hush", "https://host:8443/in?***"),
        ("https://host?hush=a@b", "https://host?***"),
        ("http://user:hush@[::1]:80/in", "http://***@[::1]:80/in"),
        ("http://:hush@host/a@b#hush", "http://***"),
        ("http://:hush@host/a#hush", "http://***@host/a#***"),
        ("https://dG9r/hush=@h/p", "https://***"),
        ("https://bob:42/hush@h/p", "https://***"),
        ("kafka://user:12/hush@h:9092/t", "kafka://***"),
        ("https//u:hush@h/x", "***"),
        ("//u:hush@h/x", "***"),
        ("//u:hu?sh@h/x", "***"),
        ("h/x#hush", "h/x#***"),
        ("u:hush@h/x?to=http://h/", "u:***"),
        ("http://user:hu/sh@host/in", "http://***"),
        ("http://user:hu?sh@host/in", "http://***"),
        ("kafka://a:1,[::1]:2,c/topic?sasl.password=hush", "kafka://a:1,[::1]:2,c/topic?***"),
        ("pg:dbname=x password=hush", "pg:***"),
        ("pg:postgres://user:hush@host/db", "pg:postgres://***@host/db"),
        ("s3:hush/x.parquet", "s3:***"),
        ("http:host/x?hush", "http:***"),
        ("host/x?hush", "host/x?***"),
    ],
)
def test_an_output_is_shown_without_secrets(spec, shown):
    assert redacted(spec) == shown == redacted(shown)
    assert "hu" not in shown


@pytest.mark.parametrize(
    "spec",
    [
        "-",
        "null",
        "table",
        "a/b.csv",
        "jsonl:/tmp/a:b",
        "/x/e-%H:%M.jsonl",
        "e-%Y%m%dT%H:%M.jsonl",
        "a@b#1.csv",
        "https://h/in",
    ],
)
def test_an_output_without_secrets_is_shown_whole(spec):
    assert redacted(spec) == spec


def test_sinks_of_others_are_found_by_entry_point(monkeypatch):
    class Entry:
        name = "amqp"

        def load(self):
            return lambda path, detectors: (path, detectors)

    monkeypatch.setattr(sinks, "entry_points", lambda group: [Entry()] if group == "qoetap.sinks" else [])
    assert open_sink("amqp:broker:5672/qoe", DETECTORS) == ("broker:5672/qoe", DETECTORS)


def test_a_sink_of_others_that_fails_is_one_sentence(monkeypatch):
    def broken(_path, _detectors):
        raise KeyError("region")

    entry = SimpleNamespace(name="s3", load=lambda: broken)
    monkeypatch.setattr(sinks, "entry_points", lambda group: [entry])
    with pytest.raises(SinkError, match=r"^s3:\*\*\*: cannot be opened \(KeyError: 'region'\)$"):
        open_sink("s3:hush", DETECTORS)


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


def live(path, *batches):
    """As deliver, in live."""
    sink = open_sink(str(path), DETECTORS, live=True)
    for events in batches:
        sink.write(events)
    sink.close()
    return sink


def test_in_live_a_file_is_gone_on_with(tmp_path):
    path = tmp_path / "out.jsonl"
    live(path, batch(3))
    live(path, batch(4))
    assert path.read_bytes() == text_of(batch(3)) + text_of(batch(4))
    deliver(path, batch(2))
    assert path.read_bytes() == text_of(batch(2))


@pytest.mark.parametrize("torn", [b"x", b'{"timestamp":"2026', b"y" * 100_000])
@pytest.mark.parametrize("whole", [b"", b"{}\n"])
def test_in_live_a_torn_last_line_is_cut_off(tmp_path, whole, torn):
    path = tmp_path / "out.jsonl"
    path.write_bytes(whole + torn)
    live(path, batch(3))
    assert path.read_bytes() == whole + text_of(batch(3))


def test_in_live_csv_has_one_header(tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(csv_header(DETECTORS)[:20])
    live(path, batch(3))
    live(path, batch(4))
    assert path.read_bytes() == csv_header(DETECTORS) + text_of(batch(3), csv_lines) + text_of(batch(4), csv_lines)


def test_in_live_csv_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(SinkError, match="out.csv has other columns, .*: move it away"):
        live(path)
    assert path.read_bytes() == b"a,b\n1,2\n"


def test_in_live_a_file_of_no_lines_is_refused(tmp_path):
    path = tmp_path / "out.json"
    path.write_bytes(b"{}\n" + bytes(2 << 20))
    with pytest.raises(SinkError, match="out.json is there already and holds no lines: give -o another name"):
        live(path)
    assert path.stat().st_size == 3 + (2 << 20)


def test_in_live_a_file_has_one_writer(tmp_path):
    path = tmp_path / "out.jsonl"
    first = open_sink(str(path), DETECTORS, live=True)
    with pytest.raises(SinkError, match="another process writes .*out.jsonl: give -o another name"):
        live(path)
    first.close()
    live(path)


def test_in_live_parquet_must_rotate(tmp_path):
    with pytest.raises(SinkError, match="-o '.*/out-%Y%m%dT%H%M%S.parquet'"):
        live(tmp_path / "out.parquet")
    assert not any(tmp_path.iterdir())
    live(tmp_path / "out-%s.parquet", batch(1))


def test_in_live_devices_and_standard_output_are_written_as_they_are(capfdbinary):
    for spec in ("jsonl:/dev/null", "csv:/dev/null", "null"):
        assert live(spec, batch(2)).delivered == 2
    live("-", batch(3))
    assert capfdbinary.readouterr().out == text_of(batch(3))


def test_in_live_a_pipe_needs_a_reader(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(SinkError, match="pipe: No such device or address; start its reader first"):
        live(f"jsonl:{path}")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    live(f"jsonl:{path}", batch(3))
    assert os.read(reader, 1 << 16) == text_of(batch(3))
    os.close(reader)


@pytest.mark.parametrize("command", ["reopen", "rotate"])
def test_a_renamed_file_is_left_for_a_new_one(tmp_path, command):
    """What logrotate does: rename, then HUP."""
    path = tmp_path / "out.csv"
    sink = open_sink(str(path), DETECTORS, live=True)
    sink.write(batch(3))
    path.rename(tmp_path / "out.csv.1")
    sink.write(batch(2))
    getattr(sink, command)()
    sink.write(batch(4))
    getattr(sink, command)()  # nobody renamed it
    sink.write(batch(5))
    sink.close()
    head = csv_header(DETECTORS)
    before = text_of(batch(3), csv_lines) + text_of(batch(2), csv_lines)
    after = text_of(batch(4), csv_lines) + text_of(batch(5), csv_lines)
    assert (tmp_path / "out.csv.1").read_bytes() == head + before
    assert path.read_bytes() == head + after


def test_a_file_that_cannot_be_opened_anew_is_tried_again(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    sink = open_sink(str(folder / "e.jsonl"), DETECTORS, live=True)
    folder.rename(tmp_path / "away")
    with pytest.raises(SinkError, match="No such file or directory"):
        sink.reopen()
    with pytest.raises(SinkError, match="No such file or directory"):
        sink.write(batch(3))
    folder.mkdir()
    sink.write(batch(4))
    sink.close()
    assert (sink.delivered, sink.dropped) == (4, 3)
    assert (folder / "e.jsonl").read_bytes() == text_of(batch(4))


def test_a_file_that_was_full_goes_on_with_whole_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = open_sink(str(path), DETECTORS, live=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        for _ in range(3):
            with pytest.raises(SinkError, match="File too large"):
                sink.write(batch(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = sink.delivered
    sink.write(batch(7))
    sink.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert [bool(json.loads(line)) for line in lines] == [True] * (before + 7)
    assert lines[before:] == text_of(batch(7)).splitlines(keepends=True)
    assert sink.settled == 307


def test_a_pipe_that_would_block_is_waited_for():
    """Standard output may be shared with a process that made it non-blocking."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    sink = JsonLines("-", DETECTORS)
    os.dup2(write, sink.output.fd)
    os.set_blocking(sink.output.fd, False)
    got = bytearray()

    def drain():
        while chunk := os.read(read, 1000):
            got.extend(chunk)

    reader = threading.Timer(0.1, drain)
    reader.start()
    sink.write(batch(400))
    sink.close()
    os.close(write)
    reader.join()
    os.close(read)
    assert bytes(got) == text_of(batch(400))


def test_a_closed_pipe_is_told_apart(tmp_path):
    read, write = os.pipe()
    sink = open_sink(f"jsonl:/dev/fd/{write}", DETECTORS)
    os.close(write)
    os.close(read)
    with pytest.raises(ReaderGone):
        sink.write(batch(3))
    sink.close()
    assert sink.dropped == 3


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

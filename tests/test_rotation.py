"""Files with the time in their name: when one ends, what it is called, and what a kill leaves behind."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataplane.events import csv_header, csv_lines, json_lines
from dataplane.sinks import Queued, Rotation, SinkError, open_sink, queued, rotating
from dataplane.sinks.csv import Csv
from dataplane.sinks.jsonl import JsonLines
from dataplane.sinks.output import Output
from dataplane.sinks.parquet import Parquet
from dataplane.sinks.rotating import Rotating, named
from tests import captures as write
from tests import packets as make
from tests.conftest import require
from tests.helpers import run
from tests.sinks import DETECTORS, balanced, batch, text_of, until

SECOND_ns = 10**9
NOON_ns = 1_767_268_800 * SECOND_ns  # 2026-01-01T12:00:00Z
HOURLY = Rotation(3600 * SECOND_ns, 0)
ROOT = Path(__file__).resolve().parent.parent


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now=NOON_ns):
        self.now = now

    def __call__(self):
        return self.now


def jsonl(folder, rotation=HOURLY, template="e-%Y%m%dT%H%M%S.jsonl", kind=JsonLines):
    clock = Clock()
    return Rotating(kind, str(folder / template), DETECTORS, rotation, clock), clock


def names(folder):
    """Names of all files in the folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def counts(sink):
    return sink.delivered, sink.queued, sink.dropped


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("e-%Y%m%dT%H%M%S.jsonl", "e-20260101T120000.jsonl"),
        ("day=%F/h%H.csv", "day=2026-01-01/h12.csv"),
        ("100%%-%s.csv", "100%-1767268800.csv"),
    ],
)
def test_names_are_utc(template, want, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "EST+5")
        time.tzset()
        assert named(template, NOON_ns + 999) == want
    time.tzset()


@pytest.mark.parametrize(("name", "what"), [("e-%q.jsonl", "%q"), ("e%.jsonl", "%."), ("%Q-100%.csv", "%Q")])
def test_what_is_no_time_is_refused(tmp_path, name, what):
    with pytest.raises(SinkError, match=f"{what} is no conversion of the time .*write a plain % as %%"):
        open_sink(str(tmp_path / name), DETECTORS)


def test_a_missing_folder_is_refused_at_the_start(tmp_path):
    for template in ("missing/e-%H.jsonl", "missing/%F/e.jsonl"):
        with pytest.raises(SinkError, match="No such file or directory; make the directory first"):
            open_sink(str(tmp_path / template), DETECTORS)


def test_a_name_is_given_when_the_file_is_whole(tmp_path):
    sink, _ = jsonl(tmp_path)
    assert names(tmp_path) == []
    sink.write(batch(3))
    assert names(tmp_path) == [".e-20260101T120000.jsonl.part"]
    assert counts(sink) == (3, 0, 0)
    sink.close()
    sink.close()
    assert names(tmp_path) == ["e-20260101T120000.jsonl"]
    assert (tmp_path / "e-20260101T120000.jsonl").read_bytes() == text_of(batch(3))


def test_without_events_there_is_no_file(tmp_path):
    sink, _ = jsonl(tmp_path)
    sink.write(batch(0))
    sink.rotate()
    sink.tick()
    sink.close()
    assert names(tmp_path) == []


def test_rotation_by_time_needs_no_event(tmp_path):
    sink, clock = jsonl(tmp_path)
    clock.now += 3599 * SECOND_ns
    sink.write(batch(3))
    sink.tick()
    assert names(tmp_path) == [".e-20260101T125959.jsonl.part"]
    clock.now += SECOND_ns
    sink.tick()
    assert names(tmp_path) == ["e-20260101T125959.jsonl"]
    clock.now += 7 * SECOND_ns
    sink.write(batch(4))
    clock.now += 3600 * SECOND_ns
    sink.write(batch(5))  # comes before the tick, and belongs to the next file
    sink.close()
    assert names(tmp_path) == ["e-20260101T125959.jsonl", "e-20260101T130007.jsonl", "e-20260101T140007.jsonl"]
    assert (tmp_path / "e-20260101T130007.jsonl").read_bytes() == text_of(batch(4))
    assert counts(sink) == (12, 0, 0)


def test_rotation_by_size_keeps_every_event(tmp_path, monkeypatch):
    monkeypatch.setattr(rotating, "SLICE_EVENTS", 16)
    limit = 9000
    sink, _ = jsonl(tmp_path, Rotation(0, limit))
    batches = [batch(count, seed) for seed, count in enumerate((100, 1, 7, 40))]
    for events in batches:
        sink.write(events)
    sink.close()
    found = sorted(tmp_path.iterdir(), key=lambda path: int(f"{path.stem}-0".split("-")[2]))
    assert len(found) > 3
    assert {path.name for path in found} >= {"e-20260101T120000.jsonl", "e-20260101T120000-2.jsonl"}
    assert b"".join(path.read_bytes() for path in found) == b"".join(map(text_of, batches))
    sizes = [path.stat().st_size for path in found]
    assert min(sizes[:-1]) >= limit
    assert max(sizes) < limit + 16 * 1000
    assert counts(sink) == (148, 0, 0)


def test_pieces_of_events_are_the_events(monkeypatch):
    monkeypatch.setattr(rotating, "SLICE_EVENTS", 7)
    events = batch(50)
    parts = list(rotating.slices(events))
    assert [len(part.order) for part in parts] == [7] * 7 + [1]
    assert b"".join(map(text_of, parts)) == text_of(events)
    assert sum(len(rows) for part in parts for _, rows in part.parts) == 50


def test_each_csv_file_has_its_header(tmp_path):
    sink, clock = jsonl(tmp_path, template="%H.csv", kind=Csv)
    for seed in range(2):
        sink.write(batch(3, seed))
        clock.now += 3600 * SECOND_ns
    sink.close()
    for seed, name in enumerate(("12.csv", "13.csv")):
        assert (tmp_path / name).read_bytes() == csv_header(DETECTORS) + text_of(batch(3, seed), csv_lines)


def test_parquet_counts_an_event_when_its_file_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("dataplane.sinks.parquet.GROUP_ROWS", 4)
    sink, clock = jsonl(tmp_path, template="%H.parquet", kind=Parquet)
    sink.write(batch(5))
    assert counts(sink) == (0, 5, 0)
    clock.now += 3600 * SECOND_ns
    sink.tick()
    assert counts(sink) == (5, 0, 0)
    sink.write(batch(3))
    assert counts(sink) == (5, 3, 0)
    sink.rotate()
    assert counts(sink) == (8, 0, 0)
    assert [pq.read_table(tmp_path / name).num_rows for name in names(tmp_path)] == [5, 3]
    assert names(tmp_path) == ["12.parquet", "13.parquet"]


def test_parquet_rotates_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr("dataplane.sinks.parquet.GROUP_ROWS", 4)
    sink, _ = jsonl(tmp_path, Rotation(0, 1000), "e-%H.parquet", Parquet)
    for seed in range(3):
        sink.write(batch(5, seed))
    sink.close()
    assert names(tmp_path) == ["e-12-1.parquet", "e-12-2.parquet", "e-12.parquet"]
    assert {pq.read_table(tmp_path / name).num_rows for name in names(tmp_path)} == {5}


def test_an_existing_name_is_never_overwritten(tmp_path):
    (tmp_path / "e-12.jsonl").write_text("mine\n")
    sink, _ = jsonl(tmp_path, template="e-%H.jsonl")
    sink.write(batch(1))
    (tmp_path / "e-12-1.jsonl").write_text("came meanwhile\n")
    sink.rotate()
    sink.write(batch(2))
    sink.close()
    assert names(tmp_path) == ["e-12-1-1.jsonl", "e-12-1.jsonl", "e-12-2.jsonl", "e-12.jsonl"]
    assert (tmp_path / "e-12-1-1.jsonl").read_bytes() == text_of(batch(1))
    assert (tmp_path / "e-12.jsonl").read_text() == "mine\n"


def test_two_agents_may_share_a_template(tmp_path):
    (one, _), (other, _) = jsonl(tmp_path), jsonl(tmp_path)
    one.write(batch(1))
    other.write(batch(2))
    third, _ = jsonl(tmp_path)  # takes nothing from those that are at work
    assert third.notes == ()
    other.close()
    one.close()
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == sorted([text_of(batch(1)), text_of(batch(2))])


def test_folders_with_the_time_are_made(tmp_path):
    sink, clock = jsonl(tmp_path, template="day=%F/%H.jsonl")
    for _ in range(2):
        sink.write(batch(1))
        clock.now += 24 * 3600 * SECOND_ns
    sink.close()
    assert names(tmp_path) == ["day=2026-01-01", "day=2026-01-02"]
    assert names(tmp_path / "day=2026-01-02") == ["12.jsonl"]


def test_the_rotation_may_be_changed(tmp_path):
    sink, _ = jsonl(tmp_path, Rotation(0, 0))
    sink.write(batch(3))
    sink.rotation = Rotation(0, 1)
    sink.write(batch(3))
    assert names(tmp_path) == ["e-20260101T120000.jsonl"]


def test_the_queue_finishes_files_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(queued, "TICK_S", 0.01)
    sink, clock = jsonl(tmp_path)
    queue = Queued(sink, drop=True)
    queue.write(batch(3))
    until(lambda: names(tmp_path) == [".e-20260101T120000.jsonl.part"])
    clock.now += 3600 * SECOND_ns
    until(lambda: names(tmp_path) == ["e-20260101T120000.jsonl"])
    queue.write(batch(3))
    queue.rotate()
    until(lambda: len(names(tmp_path)) == 2 and names(tmp_path)[0][0] != ".")
    queue.close()
    assert queue.counts() == (6, 6, 0, 0)


@pytest.mark.parametrize(("suffix", "layout"), [("jsonl", json_lines), ("csv", csv_lines)])
def test_what_a_kill_left_is_finished_at_the_next_start(tmp_path, suffix, layout):
    head = csv_header(DETECTORS) if suffix == "csv" else b""
    part = tmp_path / f".e-11-1.{suffix}.part"
    part.write_bytes(head + text_of(batch(3), layout) + b'{"timestamp":"2026-')
    (tmp_path / f".e-10.{suffix}.part").write_bytes(b"")
    (tmp_path / f".f-10.{suffix}.part").write_bytes(b"of another output")
    sink = open_sink(str(tmp_path / f"e-%H.{suffix}"), DETECTORS)
    sink.close()
    assert names(tmp_path) == [f".f-10.{suffix}.part", f"e-11-1.{suffix}"]
    assert (tmp_path / f"e-11-1.{suffix}").read_bytes() == head + text_of(batch(3), layout)
    assert sink.notes == (f"{tmp_path}/e-11-1.{suffix} holds what a process that was killed had written until then",)


def test_a_file_that_is_finished_just_now_is_no_left_over(tmp_path, monkeypatch):
    real = rotating.lock

    def lock(fd, **unknown):
        part.rename(tmp_path / "e-10.csv")
        return real(fd, **unknown)

    part = tmp_path / ".e-10.csv.part"
    part.write_bytes(b"whole\nnot whole")
    monkeypatch.setattr(rotating, "lock", lock)
    sink, _ = jsonl(tmp_path, template="e-%H.csv", kind=Csv)
    assert sink.notes == ()
    assert (tmp_path / "e-10.csv").read_bytes() == b"whole\nnot whole"


def test_what_is_left_over_and_cannot_be_finished_is_told(tmp_path):
    (tmp_path / ".e-10.jsonl.part").mkdir()
    sink, _ = jsonl(tmp_path, template="e-%H.jsonl")
    assert sink.notes == (f"{tmp_path}/.e-10.jsonl.part was left unfinished and cannot be finished (Is a directory)",)


def test_left_over_parquet_is_told_and_left(tmp_path):
    cut, whole = tmp_path / ".e-11.parquet.part", tmp_path / ".e-12.parquet.part"
    sink = Parquet(str(whole), DETECTORS)
    sink.write(batch(5))
    sink.close()
    cut.write_bytes(whole.read_bytes()[:-9])
    sink = open_sink(str(tmp_path / "e-%H.parquet"), DETECTORS)
    assert names(tmp_path) == [".e-11.parquet.part", "e-12.parquet"]
    assert sink.notes[0].startswith(f"{cut} cannot be read, for its writer was killed before it was finished")
    assert pq.read_table(tmp_path / "e-12.parquet").num_rows == 5


def refuse(_output, _data):
    """Output.write on a full disk."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error.written = 0
    raise error


@pytest.mark.parametrize("kind", [JsonLines, Csv])
def test_a_full_disk_costs_only_what_did_not_fit(tmp_path, monkeypatch, kind):
    sink, _ = jsonl(tmp_path, template="e-%H.csv", kind=kind)
    sink.write(batch(2))
    with monkeypatch.context() as full:
        full.setattr(Output, "write", refuse)
        for _ in range(2):
            with pytest.raises(SinkError, match="cannot write .*/e-%H.csv: No space left on device; free some space"):
                sink.write(batch(3))
    sink.write(batch(4))
    sink.close()
    assert counts(sink) == (6, 0, 6)
    assert names(tmp_path) == ["e-12-1.csv", "e-12.csv"]
    lines = sum(path.read_bytes().count(b"\n") for path in tmp_path.iterdir())
    assert lines == 6 + (2 if kind is Csv else 0)


def test_a_parquet_file_that_fails_goes_and_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("dataplane.sinks.parquet.GROUP_ROWS", 4)
    sink, _ = jsonl(tmp_path, template="e-%H.parquet", kind=Parquet)
    sink.write(batch(5))
    with monkeypatch.context() as full:
        full.setattr(pq.ParquetWriter, "write_table", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(SinkError, match="free some space"):
            sink.write(batch(6))
    assert (counts(sink), names(tmp_path)) == ((0, 0, 11), [])
    sink.write(batch(3))
    sink.close()
    assert counts(sink) == (3, 0, 11)
    assert pq.read_table(tmp_path / "e-12.parquet").num_rows == 3


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_small_disk_fills_up_and_is_freed(tmp_path, root, suffix):
    """A real file system of 256 KiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "qoetap-test", tmp_path], capture_output=True)
    require(mounted.returncode == 0, f"tmpfs cannot be mounted: {mounted.stderr.decode()}")
    try:
        fill_and_free(tmp_path, suffix)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def fill_and_free(folder, suffix):
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(200 << 10))
    sink = open_sink(str(folder / f"e-%s.{suffix}"), DETECTORS, live=True, rotation=Rotation(0, 0))
    queue = Queued(sink, drop=True)
    many = batch(100)

    def write_until_full():
        queue.write(many)
        queue.rotate()
        assert balanced(queue)
        return queue.trouble is not None

    until(write_until_full, pause=0.01)
    assert "No space left on device; free some space or give -o another place; events are dropped" in queue.trouble
    ballast.unlink()
    dropped = queue.counts().dropped
    assert dropped > 0
    queue.write(batch(5))
    queue.rotate()
    until(lambda: queue.trouble is None)
    queue.close()
    made, delivered, waiting, lost = queue.counts()
    assert (made, waiting) == (delivered + lost, 0)
    files = sorted(folder.iterdir())
    assert all(path.name.startswith("e-") for path in files)
    assert sum(events_in(path) for path in files) == delivered > 5


def events_in(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).num_rows
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    if path.suffix == ".csv":
        assert lines.pop(0) == csv_header(DETECTORS)
        assert {line.count(b",") >= csv_header(DETECTORS).count(b",") for line in lines} == {True}
    else:
        assert all(json.loads(line) for line in lines)
    return len(lines)


CHILD = """
import sys
from dataplane.sinks import Rotation, open_sink
from tests.sinks import DETECTORS, batch
sink = open_sink(sys.argv[1], DETECTORS, live=True, rotation=Rotation(0, 300_000))
events = batch(400)
while True:
    sink.write(events)
    print(sink.delivered, flush=True)
"""


@pytest.mark.parametrize("name", ["e.jsonl", "e-%s.csv"])
def test_kill_9_amid_writing_and_a_restart_leave_whole_lines(tmp_path, name):
    (tmp_path / "e.jsonl").touch()
    told = 0
    for _ in range(2):
        command = [sys.executable, "-c", CHILD, str(tmp_path / name)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            last = int(child.stdout.readline())
        finally:
            os.kill(child.pid, signal.SIGKILL)
            rest = child.communicate()[0].split()
        told += int(rest[-1]) if rest else last  # the last number may be cut off, which is less
    sink = open_sink(str(tmp_path / name), DETECTORS, live=True)
    sink.write(batch(3))
    sink.close()
    files = [path for path in tmp_path.iterdir() if path.stat().st_size]
    assert not [path.name for path in files if path.name.startswith(".")]
    assert sum(events_in(path) for path in files) >= told + 3


def test_a_file_is_locked_while_it_is_written(tmp_path):
    sink, _ = jsonl(tmp_path)
    sink.write(batch(1))
    with open(tmp_path / ".e-20260101T120000.jsonl.part") as part, pytest.raises(BlockingIOError):
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    sink.close()


def test_replay_rotates_too(tmp_path):
    sink = open_sink(f"jsonl:{tmp_path}/e-%Y", DETECTORS, rotation=Rotation(0, 1))
    sink.write(batch(1))
    sink.write(batch(1))
    sink.close()
    assert len(names(tmp_path)) == 2


def test_the_files_of_a_replay_are_its_output_cut_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(rotating, "SLICE_EVENTS", 16)
    capture, rotated = tmp_path / "traffic.pcap", tmp_path / "out"
    rotated.mkdir()
    frame = [make.eth(make.ipv4("10.0.0.1", f"10.0.1.{i}", make.udp(5000, 53, b"x"))) for i in range(40)]
    capture.write_bytes(write.pcap((1_700_000_000 + i, 0, frame[i], 100) for i in range(40)))
    command = ["replay", capture, "--detectors", "flow", "--seed", 1, "-o", tmp_path / "whole.csv"]
    ended = run(*command, "-o", rotated / "e-%Y.csv", "--set", "rotate_size=1", "--set", "rotate_every=0")
    assert ended.status == 0
    whole = (tmp_path / "whole.csv").read_bytes().splitlines(keepends=True)
    assert len(files := list(rotated.iterdir())) == 3
    files = sorted(files, key=lambda path: int(f"{path.stem}-0".split("-")[2]))
    parts = [path.read_bytes().splitlines(keepends=True) for path in files]
    assert {part[0] for part in parts} == {whole[0]}
    assert [line for part in parts for line in part[1:]] == whole[1:]
    assert len(whole) == 41


def test_a_folder_that_goes_away_is_told_and_comes_back(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    sink, _ = jsonl(folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(SinkError, match="cannot write .*: No such file or directory"):
        sink.write(batch(2))
    folder.mkdir()
    sink.write(batch(3))
    sink.rotate()
    assert counts(sink) == (3, 0, 2)
    assert names(folder) == ["e-20260101T120000.jsonl"]
    sink.write(batch(4))
    folder.rename(tmp_path / "moved again")
    with pytest.raises(SinkError, match="cannot write .*: No such file or directory"):
        sink.rotate()
    sink.close()
    assert names(tmp_path / "moved again") == [".e-20260101T120000-1.jsonl.part", "e-20260101T120000.jsonl"]


def test_where_files_cannot_be_locked_none_is_taken_from_another(tmp_path, monkeypatch):
    def no_locks(_fd, _how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".e-1.jsonl.part").write_bytes(b"{}\n")
    sink, _ = jsonl(tmp_path, template="e-%H.jsonl")
    sink.write(batch(3))
    sink.close()
    assert names(tmp_path) == [".e-1.jsonl.part", "e-12.jsonl"]
    open_sink(str(tmp_path / "plain.jsonl"), DETECTORS, live=True).close()


def test_a_new_file_that_was_taken_for_a_left_over_is_begun_anew(tmp_path, monkeypatch):
    real, calls = rotating.lock, []

    def lock(fd):
        calls.append(fd)
        if len(calls) == 1:
            os.unlink(tmp_path / ".e-12.jsonl.part")  # as another process may that looks for what is left over
        return real(fd)

    monkeypatch.setattr(rotating, "lock", lock)
    sink, _ = jsonl(tmp_path, template="e-%H.jsonl")
    sink.write(batch(3))
    sink.close()
    assert len(calls) == 2
    assert [events_in(path) for path in tmp_path.iterdir()] == [3]

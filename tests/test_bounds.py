"""Memory and buffers stay within their bounds, whatever comes: many flows, and many deadlines at one instant."""

import json
import subprocess
import sys

import numpy as np
import pytest

import detectors as registry
from bench import traffic
from dataplane.capture import open_capture
from dataplane.records import CHECKED, JIT
from dataplane.runner import BUFFER_EVENTS
from qoetap import config
from qoetap.replay import most_bytes
from tests.mutants import new_engine
from tests.test_determinism import with_jumps

MIB = 1 << 20
RSS_MOST_MIB = 400
FLOWS = 2_000_000
AT_ONCE = 250_000  # flows that end at one instant
CHILD = """
import re, sys
from qoetap.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], status)  # ru_maxrss: the parent's too
"""

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="millions of packets, and the memory of what is compiled")


class Largest:
    """A sink that keeps the size of the largest write."""

    def __init__(self, _detectors):
        self.delivered = self.largest = 0

    def write(self, events):
        self.delivered += len(events.order)
        self.largest = max(self.largest, len(events.order))


def flood(path, flows, steps=()):
    """A capture of `flows` packets, each of a flow of its own; steps as for with_jumps."""
    with path.open("wb") as out:
        traffic.write(out, traffic.Traffic(flows, 1, "flood"))
    if steps:
        path.write_bytes(with_jumps(path.read_bytes(), dict(steps)))
    return path


def replay_in_child(path, stats, *options):
    """(peak of resident memory in MiB, what --stats wrote) of a whole command in a process of its own."""
    command = [sys.executable, "-c", CHILD, "replay", path, "-o", "null", "--stats", stats, "--seed", "1", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=True)
    kib, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    return kib * 1024 / MIB, json.loads(stats.read_text())


def replay_compiled(path, stats, *options):
    """The same once more, if kernels had to be compiled: a compiler takes memory that no later run takes."""
    replay_in_child(flood(path.with_name("few.pcap"), 10), stats, *options)
    return replay_in_child(path, stats, *options)


@pytest.mark.parametrize("workers", [1, 2])
def test_flood_of_flows(tmp_path, workers):
    path = flood(tmp_path / "flood.pcap", FLOWS)
    rss_mib, stats = replay_compiled(path, tmp_path / "stats", "--workers", workers)
    ledger, flow = stats["ledger"], stats["ledger"]["states"]["flow"]
    assert rss_mib < RSS_MOST_MIB
    assert ledger["balanced"] and ledger["packets"]["seen"] == FLOWS
    assert flow["created"] == sum(flow[way] for way in ("expired", "emergency", "ended"))
    assert flow["emergency"] > FLOWS // 2 and ledger["events"]["made"]["flow.end"] == flow["created"] > FLOWS * 0.99


def test_all_flows_end_at_once(tmp_path):
    """The last packet comes an hour later: every record is made between two packets."""
    path = flood(tmp_path / "jump.pcap", AT_ONCE, [(AT_ONCE - 1, 3600)])
    rss_mib, stats = replay_compiled(path, tmp_path / "stats")
    assert rss_mib < RSS_MOST_MIB
    assert stats["ledger"]["balanced"] and stats["ledger"]["states"]["flow"]["expired"] > AT_ONCE * 0.9


def test_input_ends_with_many_states(tmp_path):
    """The last records are handed on a buffer at a time."""
    engine = new_engine(Largest, detectors=["flow"], settings={"flow": {"capacity": AT_ONCE}})
    engine.run(open_capture(flood(tmp_path / "many.pcap", 100_000), engine.block_frames, engine.hold))
    engine.end()
    assert engine.sink.delivered > 99_000 and engine.sink.largest <= BUFFER_EVENTS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_block_larger_than_a_batch_comes_in_tiles(tmp_path, workers):
    """Kernels do not check: rows behind the batch would be somebody else's."""
    engine = new_engine(Largest, detectors=["flow"], batch_rows=10, workers=workers)
    engine.run(open_capture(flood(tmp_path / "few.pcap", 300), 41, engine.hold))
    engine.end()
    assert engine.seen == engine.sink.delivered == 300


def test_announced_memory_is_what_the_tables_take():
    """The sentence at start speaks of every array of every table and event buffer."""
    known = registry.load_all()
    settings = config.load([config.Layer("the test", {"workers": 2})], known)
    engine = new_engine(Largest, workers=2, settings={})
    taken = 0
    for share in engine.runners:
        taken += sum(runner.events.nbytes for runner in share)
    tables = [runner.table for runner in engine.runners[0]]
    taken += sum(
        np.asarray(array).nbytes
        for table in tables
        for name, array in table._asdict().items()
        if name not in ("words", "ends")  # other views of states and links
    )
    assert taken == pytest.approx(most_bytes(settings, known), rel=0.02)
    assert most_bytes(settings, known) < RSS_MOST_MIB * MIB

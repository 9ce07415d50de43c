"""The loop: order of delivery, books, files, end of input."""

import json
import random
import threading

import numpy as np
import pytest

import detectors as registry
from dataplane import engine as module
from dataplane.capture import open_capture
from dataplane.engine import STAGES, Engine, age_ranges, delivery_order
from dataplane.ledger import Ledger
from dataplane.records import JIT, NEVER
from dataplane.wire import FILTERED, decode_options
from pcaps.files import Record, pcap
from pcaps.make import make
from qoetap import config
from qoetap.replay import engine_parts
from tests import packets as build
from tests.helpers import replay_bytes, replay_events
from tests.rows import Keep, run_rows

SECOND_NS = 10**9
ORDER = ("order", "by_packet", "cause")
NAMES = ("iqn", "icmp_loop", "ptp", "sandwich", "probe_stream", "flow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pcaps")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def captures(folder):
    return sorted(folder.glob("*.pcap"))


def place(event):
    return tuple(int(event[name]) for name in ORDER)


@pytest.mark.parametrize(("workers", "batch_rows"), [(1, 4096), (1, 64), (3, 64)])
def test_order_of_delivery(folder, captures, workers, batch_rows, monkeypatch):
    """By capture clock, deadlines before packets, then by packet, then by detector; also in small parts."""
    monkeypatch.setattr(module, "DELIVER_PACKETS", 10)
    files = captures if JIT else captures[::5]
    _, keep = run_rows(files, workers=workers, batch_rows=batch_rows)
    places = [(*place(event), NAMES.index(name)) for name, event in keep.events]
    assert len(places) > (400 if JIT else 50)
    assert len(keep.batches) > 5
    assert places == sorted(places)
    ended = [p for p in places if p[0] == NEVER]
    assert ended and all(by_packet == 0 for _, by_packet, _, _ in ended)


def test_what_caused_an_event_is_known(captures):
    """A packet's event becomes known at its clock, a deadline's at a multiple of 2**24 ns."""
    engine, keep = run_rows(captures[:8])
    assert keep.events
    for _, event in keep.events:
        order, by_packet, cause = place(event)
        assert 0 <= cause < engine.seen
        assert by_packet or order == NEVER or order % 2**24 == 0
        assert event["code"] > 0


@pytest.mark.parametrize(
    "options", [dict(workers=2), dict(workers=4, batch_rows=16), dict(batch_rows=1), dict(batch_rows=100)]
)
def test_the_same_bytes_whoever_works(folder, options):
    files = ["loops.pcap", "ptp_crowd.pcap", "stalls_ipv4.pcap", "sandwich.pcap", "damage_time.pcap"]
    paths = [folder / name for name in files[:: 1 if JIT else 2]]
    assert replay_bytes(paths, **options) == replay_bytes(paths, batch_rows=4096)


def test_files_and_packet_numbers(folder):
    """`pcap_cnt` counts from 1 in each file; state is kept from file to file."""
    paths = [folder / "echo_pairs.pcap", folder / "damage_empty.pcap", folder / "echo_pairs.pcap"]
    single = replay_events(paths[:1], detectors=["icmp_loop"])
    engine, _ = run_rows(paths)
    count = engine.seen // 2
    assert engine.files == [(0, str(paths[0])), (count, str(paths[1])), (count, str(paths[2]))]
    both = replay_events(paths, detectors=["icmp_loop"])
    assert {event["pcap_file"] for event in both} == {str(paths[0])}
    assert max(event["pcap_cnt"] for event in both) <= count
    assert {event["pcap_cnt"] for event in single} <= {event["pcap_cnt"] for event in both}


def test_a_packet_number_leads_to_the_packet(folder):
    names = ["loops.pcap", "stalls_ipv4.pcap"]
    for event in replay_events([folder / name for name in names], detectors=["icmp_loop", "iqn"]):
        source = open_capture(event["pcap_file"], 1)
        block = next(block for i, block in enumerate(source.blocks(), 1) if i == event["pcap_cnt"])
        at = int(block.frames[0]["offset"])
        frame = bytes(block.buf[at : at + int(block.frames[0]["caplen"])])
        assert build.address(event["src_ip"]) in frame and build.address(event["dest_ip"]) in frame


def many_flows(path, count):
    """A capture of one datagram from each of `count` clients, 1 us apart."""
    records = []
    for i in range(count):
        source = f"10.0.{i >> 8}.{i & 255}"
        records.append(
            Record(1_700_000_000 * SECOND_NS + i * 1000, build.eth(build.ipv4(source, "192.0.2.1", build.udp(7, 9))))
        )
    path.write_bytes(pcap(records))
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_more_states_at_the_end_than_a_buffer_holds(tmp_path, workers, monkeypatch):
    count = 40_000 if JIT else 600
    if not JIT:
        monkeypatch.setattr(module, "FINISH_STATES", 164)
    engine, keep = run_rows(many_flows(tmp_path / "x.pcap", count), workers=workers, detectors=["flow", "icmp_loop"])
    assert [int(event["seq"]) for _, event in keep.events] == list(range(count))
    assert len(keep.batches) > 2
    assert engine.ledger.states["flow"] == dict(created=count, expired=0, emergency=0, live=0, ended=count)
    assert engine.ledger.made == {"flow.end": count}


def test_no_input():
    engine, keep = run_rows([])
    assert keep.events == []
    assert engine.ledger.seen == 0
    assert all(s == dict(created=0, expired=0, emergency=0, live=0, ended=0) for s in engine.ledger.states.values())


def test_no_detectors(captures):
    keep, seen = Keep(), []
    engine = Engine([], keep, decode_options(b"x"), workers=2)
    for path in captures[:3]:
        engine.run(open_capture(path, engine.block_frames, engine.hold), lambda batch, block: seen.append(batch.size))
    engine.end()
    assert engine.ledger.seen == sum(seen) > 0
    assert not engine.ledger.imbalance()
    assert keep.events == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_watcher_sees_each_block_once_in_order(captures, workers):
    """More blocks than are in hand at a time, the last group not full."""
    numbers = []
    engine = Engine([], Keep(), decode_options(b"x"), workers=workers, batch_rows=4)
    path = max(captures, key=lambda path: path.stat().st_size)

    def watch(batch, block):
        assert batch.size == len(block.frames)
        numbers.extend(batch.packets["seq"][: batch.size].tolist())

    engine.run(open_capture(path, 4, engine.hold), watch)
    engine.end()
    assert numbers == list(range(engine.seen))
    assert len(numbers) > 4 * engine.hold


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_sink_that_raises_ends_the_run(captures, workers, monkeypatch):
    monkeypatch.setattr(module, "DELIVER_PACKETS", 10)
    before = threading.active_count()

    class Broken:
        def write(self, events):
            raise OSError("broken")

    known = registry.load_all()
    settings = config.load([], known)
    parts, options = engine_parts(settings, known)
    engine = Engine(parts, Broken(), options, workers, 4)
    with pytest.raises(OSError, match="broken"):
        for path in captures:
            engine.run(open_capture(path, engine.block_frames, engine.hold))
        engine.end()
    assert threading.active_count() == before


def test_seconds_of_each_stage(captures):
    engine, _ = run_rows(captures[0])
    assert set(engine.seconds) == set(STAGES)
    assert all(seconds >= 0 for seconds in engine.seconds.values())


def test_books_of_a_damaged_capture(folder):
    engine, _ = run_rows(folder / "damage_lengths.pcap")
    told = engine.ledger.as_dict()["packets"]
    assert told["seen"] == told["processed"] + told["filtered"] + sum(told["undecoded"].values())
    assert told["undecoded"] or told["cut"]
    assert "ok" not in told["undecoded"]


def test_books_of_damaged_times(folder):
    engine, _ = run_rows(folder / "damage_time.pcap")
    assert engine.ledger.clock == {name: int(engine.clock[0][name]) for name in engine.ledger.clock}
    assert engine.ledger.clock["backwards"] > 0


# --- the ledger


def balanced():
    ledger = Ledger()
    ledger.seen, ledger.made = 10, {"a.b": 5}
    ledger.lists[0, 1], ledger.lists[0, FILTERED], ledger.lists[1, 0], ledger.lists[1, 9] = 3, 2, 4, 1
    ledger.delivered, ledger.queued, ledger.dropped = 3, 1, 1
    ledger.states = {"a": dict(created=7, expired=1, emergency=2, ended=3, live=1)}
    return ledger


def test_a_ledger_in_balance():
    ledger = balanced()
    assert ledger.imbalance() == []
    told = ledger.as_dict()
    assert told["balanced"]
    assert (told["packets"]["filtered"], told["packets"]["undecoded"]) == (2, {"not_ip": 3})
    assert told["packets"]["cut"] == {"short_transport_header": 1}
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda ledger: setattr(ledger, "seen", 11), "packets: 11 seen, 10 accounted for"),
        (lambda ledger: setattr(ledger, "dropped", 0), "events: 5 made, 4 accounted for"),
        (lambda ledger: ledger.states["a"].update(live=2), "a states"),
    ],
)
def test_a_ledger_out_of_balance_says_so(change, sentence):
    ledger = balanced()
    change(ledger)
    assert len(ledger.imbalance()) == 1
    assert ledger.imbalance()[0].startswith(sentence)
    assert not ledger.as_dict()["balanced"]


# --- what the order is made of


def test_delivery_order_against_sorted():
    rng = random.Random(1)
    kind = np.dtype([("order", np.int64), ("by_packet", np.uint8), ("cause", np.int64)])
    parts = [
        (None, np.array([(rng.randrange(3), rng.randrange(2), rng.randrange(3)) for _ in range(50)], kind))
        for _ in range(3)
    ]
    every = [(*map(int, row), part, i) for part, (_, rows) in enumerate(parts) for i, row in enumerate(rows)]
    assert delivery_order(parts).tolist() == [list(entry[3:]) for entry in sorted(every)]


@pytest.mark.parametrize("seed", range(10))
def test_age_ranges_are_small_enough(seed, monkeypatch):
    """Each state is in one range; none holds more than a buffer takes, though a number occurs in each detector."""
    monkeypatch.setattr(module, "FINISH_STATES", 100)
    rng = np.random.default_rng(seed)
    borns = [np.unique(rng.integers(0, 2000, rng.integers(0, 900))) for _ in range(6)]
    ranges = age_ranges(borns)
    counts = [sum(int(((born >= low) & (born < high)).sum()) for born in borns) for low, high in ranges]
    assert sum(counts) == sum(map(len, borns))
    assert max(counts, default=0) <= 100
    assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False))


def test_no_ages_no_ranges():
    assert age_ranges([]) == age_ranges([np.zeros(0, np.int64)]) == []

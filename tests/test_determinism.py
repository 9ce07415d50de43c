"""The same bytes of events for any number of workers, any size of batch, packed or not, and for any secret key."""

import gzip
import itertools
import random
import struct

import numpy as np
import pytest

import detectors as registry
from bench import traffic
from dataplane import runner
from dataplane.capture import expand, open_capture
from dataplane.records import JIT
from pcaps.make import make
from tests.helpers import replay_bytes, run_engine
from tests.mutants import new_engine

# Packed or not, workers, batch size; interpreted each at least once
RUNS = list(itertools.product((0, 1), (1, 2, 4), (64, 4096))) if JIT else [(0, 2, 64), (1, 4, 64)]
STEPS_S = (-1, -59, -61, -3600, -(10**9), 30, 600, 3599, 3601, 86400, 10**8)  # in time, at a jump
CORPUS = (
    "ndpi-1kxun.pcap", "ndpi-ptpv2.pcap", "ndpi-rtp.pcapng", "ndpi-youtube_quic.pcap", "ndpi-icmp-tunnel.pcap",
    "ndpi-ipv6_in_gtp.pcap", "ndpi-skype-conference-call.pcap",
)  # fmt: skip
PACKETS, FLOWS = (100_000, 5_000) if JIT else (2_000, 600)
LARGE_BYTES = 60_000
SAME_INTERPRETED = pytest.mark.skipif(not JIT, reason="it shows the same interpreted, slowly")
TINY = 40  # states a table: one block


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """Folder of the scripted captures; without the large ones where code is interpreted."""
    folder = tmp_path_factory.mktemp("pcaps")
    make(folder)
    for path in folder.iterdir():
        if not JIT and path.stat().st_size > LARGE_BYTES:
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A mixed capture whose clock jumps now and then, and the same without jumps."""
    folder = tmp_path_factory.mktemp("traffic")
    smooth, jumping = folder / "smooth.pcap", folder / "jumping.pcap"
    with smooth.open("wb") as out:
        traffic.write(out, traffic.Traffic(PACKETS, FLOWS, rate=PACKETS // 4))
    rng = random.Random(8)
    jumps = {rng.randrange(PACKETS): rng.choice(STEPS_S) for _ in range(40 if JIT else 6)}
    jumping.write_bytes(with_jumps(smooth.read_bytes(), jumps))
    return smooth, jumping


def with_jumps(data, steps):
    """The pcap file `data`; from packet n on its time is shifted by steps[n] seconds more."""
    data, at, number, shift = bytearray(data), 24, 0, 0
    while at < len(data):
        seconds, _, caplen = struct.unpack_from("<III", data, at)
        shift += steps.get(number, 0)
        struct.pack_into("<I", data, at, (seconds + shift) & 0xFFFFFFFF)
        at, number = at + 16 + caplen, number + 1
    return bytes(data)


def packed(path, folder):
    """The same file, gzipped, under a name as long."""
    folder.mkdir(exist_ok=True)
    twin = folder / path.name
    twin.write_bytes(gzip.compress(path.read_bytes(), 1))
    return twin


def same_for_all(path, twin, **options):
    """The events of `path`, the same for every number of workers, batch size and for its gzipped `twin`."""
    expected = replay_bytes(path, workers=1, batch_rows=4096, **options)
    for packing, workers, rows in RUNS:
        source = (path, twin)[packing]
        found = replay_bytes(source, workers=workers, batch_rows=rows, **options)
        found = found.replace(bytes(source), bytes(path))  # pcap_file
        assert found == expected, f"{source}: {workers} workers, batches of {rows}: {first_difference(found, expected)}"
    return expected


def first_difference(found, expected):
    """The first two lines that differ: a diff of megabytes would take pytest minutes."""
    pairs = itertools.zip_longest(found.splitlines(), expected.splitlines())
    return next((f"line {i}: {a}, expected {b}" for i, (a, b) in enumerate(pairs, 1) if a != b), "line ends")


@pytest.mark.parametrize("tunnels", [False, True] if JIT else [True])
def test_scripted_captures(scripted, tmp_path, tunnels):
    """The whole folder as one input, in the order of time."""
    for path in scripted.iterdir():
        if path.suffix in (".pcap", ".pcapng"):
            packed(path, tmp_path)
    events = same_for_all(scripted, tmp_path, tunnels=tunnels)
    assert events.count(b"\n") > 200


@pytest.mark.parametrize("name", CORPUS if JIT else CORPUS[:1])
def test_corpus(corpus, tmp_path, name):
    path = corpus / "pcaps" / name
    assert same_for_all(path, packed(path, tmp_path), tunnels=True)


def test_emergency_and_clock_jumps(generated, tmp_path):
    """Tables that hold far too little, and time that jumps."""
    options = {"settings": {name: {"capacity": TINY} for name in registry.DETECTORS}}
    engine, events = run_engine(generated[1], **options)
    assert engine.ledger.clock["jumps"] > 2 and engine.ledger.clock["backwards"]
    assert engine.ledger.states["flow"]["emergency"] > PACKETS // 20
    if JIT:
        assert engine.ledger.states["probe_stream"]["emergency"] and engine.ledger.states["iqn"]["emergency"]
    assert same_for_all(generated[1], packed(generated[1], tmp_path), **options) == events


def test_more_states_than_one_event_buffer_end_at_once(tmp_path, monkeypatch):
    """The last packet's jump ends every flow; their records fill the event buffer several times."""
    path, count = tmp_path / "flood.pcap", 30_000 if JIT else 6_000  # and the table grows
    if not JIT:
        monkeypatch.setattr(runner, "BUFFER_EVENTS", 1024)
    with path.open("wb") as out:
        traffic.write(out, traffic.Traffic(count, 1, "flood"))
    data = with_jumps(path.read_bytes(), {count - 1: 3600})
    path.write_bytes(data)
    if JIT:
        same_for_all(path, packed(path, tmp_path / "gz"), detectors=["flow"])
    engine, events = run_engine(path, detectors=["flow"])
    assert engine.ledger.states["flow"]["expired"] == count - 1 == events.count(b"\n") - 1


@SAME_INTERPRETED
def test_every_field_of_an_event_is_written(generated, scripted):
    """Event rows are used again: what a detector leaves unwritten would be another event's."""
    for paths in ([scripted], [generated[1]]):
        assert events_over(paths, 0) == events_over(paths, 0xA5)


def events_over(paths, before):
    """The events of a replay whose event rows hold the byte `before` wherever nothing is written."""
    engine = new_engine(batch_rows=4096)
    for one in engine.runners[0]:
        one.events.view(np.ndarray).view(np.uint8)[:] = before
    for path in expand(paths):
        engine.run(open_capture(path))
    engine.end()
    return engine.sink.text


@SAME_INTERPRETED
def test_no_event_depends_on_the_secret(generated, scripted):
    for path in (generated[0], scripted):
        engine, expected = run_engine(path, seed=1)
        assert not any(s["emergency"] for s in engine.ledger.states.values())
        for seed in (2, 3):
            assert replay_bytes(path, seed=seed) == expected, f"seed {seed}"

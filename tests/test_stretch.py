"""Reading by compiled code gives the frames, sentences and byte counts that reading block by block gives."""

import ctypes
import gzip
import os
import random

import numpy as np
import pytest

import detectors as registry
from dataplane.batch import Batch
from dataplane.capture import open_capture
from dataplane.capture.stretch import PIECE_bytes, STRETCH_bytes, WINDOW_bytes
from dataplane.chain import Chain
from dataplane.engine import Engine
from dataplane.records import CHECKED, FRAME, Stretch, zeros
from dataplane.runner import BUFFER_EVENTS
from dataplane.wire import decode_options
from qoetap import config
from tests import captures
from tests import packets as make
from tests.helpers import run_engine

LARGEST_bytes = 262144
FIELDS = [name for name in FRAME.names if name not in ("offset", "clock")]


@pytest.fixture(autouse=True)
def compiled():
    if CHECKED:
        pytest.skip("this is compiled code")


def told(buf, frames):
    """Frames as tuples of their fields and their bytes."""
    return [
        (*(int(f[name]) for name in FIELDS), bytes(buf[f["offset"] : f["offset"] + f["caplen"]]))
        for f in frames.view(np.ndarray)
    ]


def by_blocks(path):
    """(frames, problem, bytes read) of a file."""
    source, found = open_capture(path, 64, 1), []
    for block in source.blocks():
        found += told(block.buf, block.frames)
    return found, source.problem, source.bytes_done


def by_stretches(path, begun=lambda: None, windows=False):
    """The same; the one stage gives a frame at a time, in windows by turns. `begun` is called after the first."""
    source, found, batch = open_capture(path, 64, 1), [], Batch(1)
    room = [zeros(FRAME.itemsize + len(source.feed.buf)) for _ in range(2 * windows)]
    for part in source.stretches():
        assert isinstance(part, Stretch)
        chain, context, size = Chain([part.stage]), part.stage.context[0], 1
        while size:
            batch.expect(1, 0)
            batch.row[0]["window"] = room[len(found) % 2].ctypes.data if windows else 0
            list(chain.over(batch, 1))
            size = batch.frames
            buf = np.frombuffer(memory_at(context.buf, context.buf_bytes), np.uint8)
            found += told(buf, np.frombuffer(memory_at(context.frames, FRAME.itemsize), FRAME)[:size])
            if len(found) == 1:
                begun()
    return found, source.problem, source.bytes_done


def memory_at(address, size):
    return (ctypes.c_char * int(size)).from_address(int(address))


def packets(rng, count, most):
    return [
        (rng.randrange(2**32), rng.randrange(10**6), rng.randbytes(size), size + rng.choice((0, 0, 1400)))
        for size in (rng.randrange(most + 1) for _ in range(count))
    ]


def written(folder, data):
    path = folder / "made.pcap"
    path.write_bytes(data)
    return path


def same(path):
    expected = by_blocks(path)
    for windows in (False, True):
        found = by_stretches(path, windows=windows)
        assert len(found[0]) == len(expected[0])
        assert found[:2] == expected[:2]
        assert found[1] or found[2] == expected[2] == os.path.getsize(path)
    return found


@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34])
@pytest.mark.parametrize("order", "<>")
def test_every_kind_of_file(tmp_path, magic, order):
    rng = random.Random(magic)
    assert len(same(written(tmp_path, captures.pcap(packets(rng, 300, 200), order, magic)))[0]) == 300


def test_a_file_of_many_windows(tmp_path):
    """Records lie over the edges of pieces and windows; some are the largest there may be."""
    rng = random.Random(5)
    made = [p for size in (0, 60, 1500, 9000) for p in packets(rng, 400, size)]
    made += [(1, 2, rng.randbytes(LARGEST_bytes - i), LARGEST_bytes) for i in range(12)]
    rng.shuffle(made)
    path = written(tmp_path, captures.pcap(made))
    assert path.stat().st_size > 6 * WINDOW_bytes
    assert len(same(path)[0]) == len(made)


@pytest.mark.parametrize("edge", [PIECE_bytes, WINDOW_bytes])
@pytest.mark.parametrize("off", [-24, -17, -16, -1, 0, 1, 15, 16])
def test_a_record_at_an_edge(tmp_path, edge, off):
    sizes = [edge // 4 - 16] * 3 + [edge // 4 - 40 + off, 3]
    data = captures.pcap([(1, 1, bytes(size), size) for size in sizes])
    assert len(same(written(tmp_path, data))[0]) == 5


@pytest.mark.parametrize("seed", range(8))
def test_a_file_that_is_cut_short_or_damaged(tmp_path, seed):
    rng = random.Random(seed)
    data = bytearray(captures.pcap(packets(rng, 1200, 1500)))
    if seed % 2:
        at = 24
        for _ in range(rng.randrange(1200)):
            at += 16 + int.from_bytes(data[at + 8 : at + 12], "little")
        data[at + 8 : at + 12] = (LARGEST_bytes + 1).to_bytes(4, "little")
    else:
        del data[rng.randrange(len(data)) :]
    frames, problem, _ = same(written(tmp_path, bytes(data)))
    assert "stopped at byte" in problem and len(frames) < 1200


def test_no_packet_at_all(tmp_path):
    assert same(written(tmp_path, captures.pcap([])))[:2] == ([], None)


def test_what_is_no_plain_file_comes_in_blocks(tmp_path):
    path = tmp_path / "made.pcap"
    path.write_bytes(gzip.compress(captures.pcap([(1, 2, b"x", 1)])))
    parts = list(open_capture(path, 64, 1).stretches())
    assert [len(part.frames) for part in parts] == [1]


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = written(tmp_path, captures.pcap([(1, 1, bytes(1000), 1000)] * 3000))
    frames, problem, done = by_stretches(path, lambda: os.truncate(path, 2_000_000))
    assert problem.endswith("made.pcap: stopped at byte 1999512: cut short, 488 of at least 1016 bytes are left")
    assert (len(frames), done) == (1968, 2_000_000)


class Sizes:
    """A sink that notes how many events come at once."""

    def __init__(self):
        self.most = self.all = 0

    def write(self, events):
        self.most, self.all = max(self.most, len(events.order)), self.all + len(events.order)


def engine_of(name, rows, sink):
    detector = registry.load_all()[name]
    section = config.detector_model(detector)()
    return Engine(
        [(detector, config.build_params(detector, section), section.capacity)], sink, decode_options(b"x"), 1, rows
    )


def test_a_source_with_less_room_than_a_tile(tmp_path):
    path = written(tmp_path, captures.pcap(packets(random.Random(2), 20_000, 60)))
    engine = engine_of("flow", 8192, Sizes())
    engine.run(open_capture(path, 1000, 1))
    assert engine.seen == 20_000


def test_a_stretch_ends_after_so_many_bytes(tmp_path):
    """Signals are heard between two of them."""
    path = written(tmp_path, captures.pcap([(1, 1, bytes(200_000), 200_000)] * 300))
    engine, source = engine_of("flow", 4096, Sizes()), open_capture(path, 4096, 1)
    seen = []
    for part in source.stretches():
        engine.go_on(part)
        seen.append(engine.seen)
    assert seen[-1] == 300 and max(np.diff(seen)) * 200_000 <= STRETCH_bytes + WINDOW_bytes


def test_a_stretch_ends_when_an_event_buffer_is_full(tmp_path):
    """Outputs get events as they did, not a hundred thousand at once."""
    count = 3 * BUFFER_EVENTS
    echoes = [
        (i // 1000, i % 1000, bytes(make.eth(make.ipv4(*ends, make.icmp_echo(kind, i, i >> 16)))), 60)
        for i in range(count)
        for ends, kind in ((("10.0.0.1", "10.0.0.2"), 8), (("10.0.0.2", "10.0.0.1"), 0))
    ]
    sink = Sizes()
    engine = engine_of("icmp_loop", 4096, sink)
    engine.run(open_capture(written(tmp_path, captures.pcap(echoes)), 4096, 1))
    engine.end()
    assert sink.all >= count and sink.most < 2 * BUFFER_EVENTS


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_over_many_stretches(tmp_path, workers):
    rng = random.Random(workers)
    frames = [
        make.eth(make.ipv4(f"10.0.0.{rng.randrange(256)}", "10.1.0.1", make.udp(rng.randrange(9), 53, bytes(size))))
        for size in (9, 1400, 9000)
        for _ in range(300)
    ]
    chosen = [rng.choice(frames) for _ in range(12_000)]
    made = [(i // 1000, i % 1000 * 1000, frame, len(frame)) for i, frame in enumerate(chosen)]
    path = written(tmp_path, captures.pcap(made)[:-1])
    assert path.stat().st_size > 2 * STRETCH_bytes
    (alone, expected), (together, found) = run_engine(path), run_engine(path, workers=workers)
    assert alone.seen == together.seen == len(made) - 1
    assert found == expected and found.count(b"flow.end") == len({frame[26:36] for frame in chosen[:-1]})


@pytest.mark.parametrize("workers", [1, 2])
def test_replay_uses_it(tmp_path, monkeypatch, workers):
    """Or the tests of events would not test it."""
    path = written(tmp_path, captures.pcap(packets(random.Random(1), 10, 100)))
    monkeypatch.setattr("dataplane.capture.source.Source.blocks", None)
    engine, _ = run_engine(path, workers=workers)
    assert engine.seen == 10

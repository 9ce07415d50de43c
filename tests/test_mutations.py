"""Mutated frames and files through the whole engine: no exception, no hang, nothing unaccounted for, no byte read that
is not the frame's. QOETAP_MUTANTS sets how many of each kind, of which interpreted code takes a part: the pass with
bounds checks takes all. An assertion names seed and number of what failed."""

import faulthandler
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from dataplane import wire
from dataplane.batch import Batch, fill, new_clock, set_clock
from dataplane.capture import CaptureError, open_capture, tshark
from dataplane.memory import memory
from dataplane.records import CHECKED, JIT, PACKET, QUIC, rows
from pcaps.make import make
from tests import mutants

MUTANTS = int(os.environ.get("QOETAP_MUTANTS", 200_000))
HALF = MUTANTS // 2 if JIT else MUTANTS // 40
SAMPLE = min(MUTANTS, 6_000)  # compared between compiled and interpreted
HANG_SECONDS = 900
SEED = 20
GAP_BYTES = 64
ALL_TUNNELS = (1 << len(wire.TUNNELS)) - 1
ROOT = Path(__file__).resolve().parent.parent
CORPUS = os.environ.get("QOETAP_CORPUS")


class Count:
    """A sink that counts."""

    def __init__(self, _detectors):
        self.delivered = 0

    def write(self, events):
        self.delivered += len(events.order)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pcaps")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return mutants.originals(folder, CORPUS)


@pytest.fixture(autouse=True)
def no_hang():
    """Ends the process with a traceback of all threads if a test takes far too long: kernels hear no signal."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
    with np.errstate(over="ignore"):  # hashes wrap, so do the times of damaged packets; only interpreted code warns
        yield
    faulthandler.cancel_dump_traceback_later()


def settled(engine):
    """The engine's ledger at the end of the input; it must balance."""
    engine.end()
    engine.ledger.delivered = engine.sink.delivered
    assert not engine.ledger.imbalance()
    for name, s in engine.ledger.states.items():
        assert s["live"] == 0 or s["ended"] == 0, name
    return engine.ledger


@pytest.mark.parametrize("tunnels", [False, True])
def test_headers(files, tunnels):
    engine = mutants.new_engine(Count, tunnels)
    source = mutants.InMemory(files, SEED + tunnels, HALF)
    try:
        engine.run(source)
    except Exception as error:
        raise AssertionError(source.where) from error
    ledger = settled(engine)
    assert ledger.seen == HALF
    if HALF >= 50_000:  # the mutants got as far as everything that is to be tested
        assert all(s["created"] for s in ledger.states.values()) and ledger.states["flow"]["emergency"]
        reasons = dict(zip(wire.REASONS, ledger.lists.sum(axis=0), strict=True))
        assert all(n for reason, n in reasons.items() if reason != "filtered"), reasons
        assert ledger.clock["backwards"] and ledger.clock["jumps"] and ledger.clock["timeless"]


@pytest.mark.parametrize("half", [0, 1])
def test_files(files, tmp_path, monkeypatch, half):
    monkeypatch.setattr(tshark, "open_tshark", no_tshark)
    seed, stopped, path = SEED + half, 0, tmp_path / "mutant"
    engine, frames = mutants.new_engine(Count), mutants.mutants(files, seed, 16 * HALF)
    for number in itertools.count():
        if engine.seen >= HALF:
            break
        some = list(itertools.islice(frames, mutants.FILE_FRAMES))
        path.write_bytes(mutants.mutant_file(some, seed, number))
        try:
            source = open_capture(path, engine.block_frames)
            engine.run(source)
            stopped += source.problem is not None
        except CaptureError:
            stopped += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, file {number}") from error
    settled(engine)
    assert number > stopped > number // 10


def no_tshark(path, *_):
    raise CaptureError(f"{path}: not a capture")


@pytest.mark.parametrize("tunnels", [0, ALL_TUNNELS])
def test_what_lies_behind_a_frame_does_not_matter(files, tunnels):
    """Rows and lists are the same, whatever bytes follow each frame in the buffer."""
    options = wire.decode_options(b"secret", tunnels)
    for first, frames in mutants.batches(files, SEED, MUTANTS if JIT else MUTANTS // 40):
        seen = [decoded(mutants.block_of(frames, gap), options) for gap in gaps(first)]
        for row in range(len(frames)):
            assert seen[0][0][row] == seen[1][0][row] == seen[2][0][row], f"seed {SEED}, mutant {first + row}"
        assert seen[0][1] == seen[1][1] == seen[2][1]


def gaps(seed):
    return bytes(GAP_BYTES), b"\xff" * GAP_BYTES, np.random.default_rng(seed).bytes(GAP_BYTES)


def decoded(block, options):
    """(bytes of each row, index lists) of a block."""
    batch = Batch(mutants.BLOCK_FRAMES)
    batch.fill(block, options, 0, set_clock(block.frames, new_clock()))
    lists = [batch.lists[kind, :n].tolist() for kind, n in enumerate(batch.numbers)]
    return [row.tobytes() for row in np.asarray(batch.packets)[: len(block.frames)]], lists


@njit
def decode_alone(buf, frames, options, packets, scratch, lists, counts, reasons):
    """Decode each frame in an array that ends where it ends, so that a check of bounds sees each byte beyond."""
    for i in range(frames.size):
        frame = frames[i]
        at, frame.offset = frame.offset, 0
        part = slice(i, i + 1)
        data = buf[at : at + frame.caplen]
        fill(data, frames[part], options, packets[part], scratch, lists, counts, reasons, i)


@pytest.mark.skipif(not CHECKED, reason="compiled without checks of bounds")
@pytest.mark.parametrize("tunnels", [0, ALL_TUNNELS])
def test_no_byte_is_read_behind_a_frame(files, tunnels):
    options, batch = wire.decode_options(b"secret", tunnels), Batch(mutants.BLOCK_FRAMES)
    work = batch.packets, batch.scratch, batch.lists, batch.counts, batch.reasons
    for first, frames in mutants.batches(files, SEED, MUTANTS if JIT else MUTANTS // 20):
        try:
            decode_alone(*mutants.block_of(frames), options, *work)
        except IndexError as error:
            raise AssertionError(f"seed {SEED}, mutants {first} to {first + len(frames)}") from error
    assert batch.reasons.sum() == first + len(frames)


@njit
def decode_layers(buf, frames, options, packets):
    for i in range(frames.size):
        packets[i].seq = i
        kinds = wire.decode(memory(buf), frames[i], options[0], packets[i])
        if kinds >> QUIC & 1:
            packets[i].quic_client = wire.client_of(memory(buf), options[0], packets[i])


def test_common_frames_decode_as_layer_by_layer(files):
    """What is decoded in one go, without tunnels, makes the same row as layer by layer."""
    options = wire.decode_options(b"secret")
    for first, frames in mutants.batches(files, SEED, MUTANTS if JIT else MUTANTS // 40):
        block, packets = mutants.block_of(frames), rows(PACKET, len(frames))
        at_once, _ = decoded(block, options)
        decode_layers(*block, options, packets)
        for row, packet in enumerate(np.asarray(packets)):
            assert at_once[row] == packet.tobytes(), f"seed {SEED}, mutant {first + row}"


@pytest.mark.skipif(not JIT or CHECKED, reason="the compiled pass compares with an interpreted one")
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_compiled_and_interpreted_agree(folder, seed):
    command = [sys.executable, "-W", "ignore", "-m", "tests.mutants", str(folder), str(seed), str(SAMPLE // 2)]
    without_jit = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, cwd=ROOT, env=without_jit, stdout=subprocess.PIPE, check=True)
    compiled = mutants.outcome(folder, seed, SAMPLE // 2, CORPUS)
    assert len(compiled.splitlines()) > SAMPLE // 20
    assert compiled.splitlines() == done.stdout.splitlines()

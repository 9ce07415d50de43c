"""Captures that are cut short, damaged or none: what was read is delivered, the offset in the sentence is exact."""

import gzip
import os
import random
import struct

import pytest
import zstandard

from dataplane.capture import CaptureError, open_capture, pcapng
from tests import captures as write
from tests.naive import pcapfile as naive
from tests.test_capture import PACKETS, PACKINGS, a_pcapng, compare, frames_of, stopped_at


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_cut_at_every_byte(tmp_path, kind, packing):
    data = write.pcap(PACKETS[:5], ">") if kind == "pcap" else a_pcapng()
    pack = PACKINGS.get(packing, bytes)
    for length in range(8, len(data)):
        part = data[:length]
        (tmp_path / "a").write_bytes(pack(part))
        try:
            expected, stop = naive.read(part)
        except ValueError:
            with pytest.raises(CaptureError, match="cut short"):
                open_capture(tmp_path / "a")
            continue
        source = open_capture(tmp_path / "a")
        assert frames_of(source) == expected and stopped_at(source) == stop


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_packed_stream_cut_or_damaged(tmp_path, packing):
    data = write.pcap([(i, i, random.Random(i).randbytes(90), 90) for i in range(4000)])
    whole = naive.read(data)[0]
    packed = PACKINGS[packing](data)
    for at in (len(packed) // 2, len(packed) - 1):
        for what in ("cut short", "damaged"):
            bad = packed[:at] if what == "cut short" else packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1 :]
            (tmp_path / "a").write_bytes(bad)
            source = open_capture(tmp_path / "a")
            found = frames_of(source)
            assert f"of the decompressed stream: {packing} data is" in source.problem
            assert stopped_at(source) == 24 + len(found) * 106
            if what == "cut short":
                assert found == whole[: len(found)]


def test_something_after_the_packed_stream(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(write.pcap(PACKETS)) + b"tail")
    source = open_capture(tmp_path / "a")
    assert len(frames_of(source)) == len(PACKETS) and "followed by something else" in source.problem


def test_expanded_far(tmp_path):
    """A bomb: 64 MiB of one block that is skipped, out of a few KiB."""
    data = write.section() + write.block(0x0B0B, bytes((16 << 20) - 12)) * 4 + write.interface()
    data += write.enhanced(1, b"x")
    for packing in ("gzip", "zstd"):
        (tmp_path / packing).write_bytes(PACKINGS[packing](data))
        assert len(frames_of(open_capture(tmp_path / packing))) == 1


DAMAGED = {
    "length 8 is out of range": struct.pack("<II", 9, 8) + bytes(8),
    "length 16777220 is out of range": struct.pack("<II", 9, (16 << 20) + 4) + bytes(8),
    "lengths of a block differ, the second is 0": struct.pack("<III", 9, 12, 0),
    "too small for 9 captured bytes": write.block(6, struct.pack("<IIIII", 0, 0, 0, 9, 9) + b"12345678"),
    "block length 28 is out of range": write.block(6, bytes(16)),
    "block length 16 is out of range": write.block(1, bytes(4)),
    "claims 262148 captured bytes": write.enhanced(1, bytes(262148)),
    "interface 3, which was not described": write.enhanced(1, b"", number=3),
    "option 9 of 99 bytes does not fit": write.block(1, struct.pack("<HHIHH", 1, 0, 0, 9, 99)),
    "resolution 10^-20 is too fine": write.interface(resolution=20),
    "resolution 2^-64 is too fine": write.interface(resolution=0xC0),
    "byte-order magic 0x00000000 is unknown": write.block(0x0A0D0D0A, bytes(16)),
    "version 2.0 is not supported": write.section(version=(2, 0)),
    "cut short, 4 of at least 12 bytes": b"\6\0\0\0",
}


@pytest.mark.parametrize("sentence", DAMAGED)
def test_damaged_pcapng_block(tmp_path, sentence):
    good = write.section() + write.interface() + write.enhanced(1, b"x")
    (tmp_path / "a").write_bytes(good + DAMAGED[sentence])
    source = open_capture(tmp_path / "a")
    assert len(frames_of(source)) == 1
    assert source.problem.startswith(f"{tmp_path / 'a'}: stopped at byte {len(good)}: ") and sentence in source.problem
    assert naive.read(good + DAMAGED[sentence])[1] == len(good)


def test_packet_before_any_interface(tmp_path):
    for packet in (write.simple(b"x", 1), write.obsolete(1, b"x"), write.enhanced(1, b"x")):
        assert compare(tmp_path / "a", write.section() + packet)[1].problem


def test_too_many_interfaces(tmp_path, monkeypatch):
    monkeypatch.setattr(pcapng, "INTERFACES_MAX", 20)
    (tmp_path / "a").write_bytes(write.section() + write.interface() * 21)
    source = open_capture(tmp_path / "a")
    assert frames_of(source) == [] and "more than 20 interfaces" in source.problem


def test_record_that_claims_too_much(tmp_path):
    data = write.pcap(PACKETS[:3]) + struct.pack("<IIII", 1, 1, 262145, 262145) + bytes(262145)
    assert "claims 262145 captured bytes" in compare(tmp_path / "a", data)[1].problem


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "is empty"),
        (b"\xd4\xc3\xb2\xa1" + bytes(8), "pcap file header cut short at byte 12 of 24"),
        (write.pcap([], version=(1, 4)), "pcap version 1.4 is not supported"),
        (write.pcap([], network=0x00200001), "reserved bits"),
        (write.section(version=(0, 1)), "pcapng version 0.1 is not supported"),
        (b"this is no capture, whoever looks at it" * 9, "not a capture"),
        (gzip.compress(b"this is no capture, whoever looks at it" * 9, mtime=0), "not a capture"),
        (b"\x1f\x8b\x08" + bytes(9), "gzip data is"),
    ],
)
def test_not_a_capture(tmp_path, data, sentence):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CaptureError, match=sentence):
        open_capture(tmp_path / "a")


def test_missing_and_forbidden(tmp_path):
    with pytest.raises(CaptureError, match="nowhere: there is no such file"):
        open_capture(tmp_path / "nowhere")
    with pytest.raises(CaptureError, match="is a directory"):
        open_capture(tmp_path)
    (tmp_path / "a").write_bytes(write.pcap(PACKETS))
    (tmp_path / "a").chmod(0)
    if not os.access(tmp_path / "a", os.R_OK):
        with pytest.raises(CaptureError, match="chmod"):
            open_capture(tmp_path / "a")


@pytest.mark.parametrize("seed", range(4))
def test_mutated(tmp_path, seed):
    """Bytes changed, removed and doubled: the same frames and the same offset as the twin, by any feed."""
    rng = random.Random(seed)
    originals = [write.pcap(PACKETS), write.pcap(PACKETS, ">", 0xA1B23C4D, (2, 3)), a_pcapng("<"), a_pcapng(">")]
    for _ in range(400):
        data = mutate(bytearray(rng.choice(originals)), rng)
        compare(tmp_path / "a", data, block_frames=rng.choice([1, 4, 4096]))
        try:
            expected, stop = naive.read(data)
        except ValueError:
            continue
        (tmp_path / "a").write_bytes(zstandard.compress(data))
        source = open_capture(tmp_path / "a", block_frames=2, hold=rng.randrange(3))
        assert frames_of(source) == expected and stopped_at(source) == stop


def mutate(data, rng):
    """Damage behind the magic, so that tshark is not asked."""
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(4, len(data))
        what = rng.randrange(4)
        if what < 2:
            data[at] = rng.choice([0, 1, 4, 255, rng.randrange(256)])
        elif what == 2:
            del data[at : at + rng.randrange(9)]
        else:
            data[at:at] = data[at : at + rng.randrange(9)]
        if len(data) < 12:
            break
    return bytes(data)

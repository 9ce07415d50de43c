"""Capture files: every format, packing and input against a slow twin, the corpus against its oracle."""

import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import zstandard

from dataplane.capture import CaptureError, expand, open_capture
from dataplane.records import JIT, TIME_NONE, TIME_RANGE
from tests import captures as write
from tests.naive import pcapfile as naive

SECOND_ns = 10**9
PACKETS = [(1_600_000_000 + i, 999_999 - i, bytes([i]) * (i * 7 % 61), 60 + i) for i in range(40)]


def frames_of(source):
    """All frames as the twin writes them: (data, time, len, linktype)."""
    found = []
    for block in source.blocks():
        for frame in block.frames:
            found.append((data_of(block, frame), time_of(frame), int(frame["len"]), int(frame["linktype"])))
    return found


def data_of(block, frame):
    return bytes(block.buf[frame["offset"] : frame["offset"] + frame["caplen"]])


def time_of(frame):
    if frame["flags"] & TIME_NONE:
        return None
    if frame["flags"] & TIME_RANGE:
        return int(frame["ts"]) * SECOND_ns + int(frame["nsec"])
    return int(frame["ts"])


def stopped_at(source):
    """Offset that the sentence names, None if reading came to the end."""
    return None if source.problem is None else int(re.search(r"stopped at byte (\d+)", source.problem)[1])


def compare(path, data, **kwargs):
    """Read `data` by way of a file and hold it against the twin."""
    path.write_bytes(data)
    try:
        expected, stop = naive.read(data)
    except ValueError:
        with pytest.raises(CaptureError):
            open_capture(path, **kwargs)
        return [], None
    source = open_capture(path, **kwargs)
    assert frames_of(source) == expected
    assert stopped_at(source) == stop
    return expected, source


def a_pcapng(order="<"):
    """Two sections of different byte order with every kind of block that is read."""
    other = {"<": ">", ">": "<"}[order]
    return b"".join(
        [
            write.section(order, options=write.option(4, b"qoetap", order) + write.option(0, b"", order)),
            write.interface(order, linktype=1, snaplen=64),
            write.interface(order, linktype=113, resolution=9),
            write.block(0x0B0B, b"what is this?", order),
            write.enhanced(1_600_000_000_000_001, b"microseconds", order=order),
            write.enhanced(1_600_000_000_000_000_001, b"ns", 1000, 1, order, write.option(2, b"\0\0\0\1", order)),
            write.simple(bytes(64), 2000, order),
            write.simple(b"short", 5, order),
            write.obsolete(1_600_000_001_000_001, b"obsolete", order=order),
            write.section(other, version=(1, 2)),
            write.interface(other, linktype=228, resolution=0x8A, offset=3600),
            write.block(5, bytes(20), other),
            write.enhanced((1_600_000_000 << 10) + 1, b"binary", order=other),
            write.enhanced(5, b"", order=other),
        ]
    )


# --- formats


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34])
def test_pcap(tmp_path, order, magic):
    frames, source = compare(tmp_path / "a", write.pcap(PACKETS, order, magic))
    unit = 1 if magic == 0xA1B23C4D else 1000
    assert frames == [(data, s * SECOND_ns + f * unit, length, 1) for s, f, data, length in PACKETS]
    assert source.problem is None and source.bytes_done == source.bytes_total == (tmp_path / "a").stat().st_size


@pytest.mark.parametrize("minor", [2, 3, 4])
def test_lengths_of_old_versions_are_the_other_way_round(tmp_path, minor):
    assert compare(tmp_path / "a", write.pcap(PACKETS, version=(2, minor)))[0][5][0] == PACKETS[5][2]


def test_version_2_3_with_lengths_in_the_old_order(tmp_path):
    data = bytearray(write.pcap(PACKETS, version=(2, 2)))
    data[6] = 3
    assert len(compare(tmp_path / "a", bytes(data))[0]) == len(PACKETS)


def test_time_and_lengths_at_their_limits(tmp_path):
    top = 2**32 - 1
    packets = [(top, top, b"", top), (0, 0, b"", 0), (top, 999_999, b"x" * 262144, 0)]
    frames, _ = compare(tmp_path / "a", write.pcap(packets, network=0xF4000001))
    assert [frame[1] for frame in frames] == [top * SECOND_ns + top * 1000, 0, top * SECOND_ns + 999_999_000]


@pytest.mark.parametrize("order", "<>")
def test_pcapng(tmp_path, order):
    frames, source = compare(tmp_path / "a", a_pcapng(order))
    assert frames == [
        (b"microseconds", 1_600_000_000_000_001_000, 12, 1),
        (b"ns", 1_600_000_000_000_000_001, 1000, 113),
        (bytes(64), None, 2000, 1),
        (b"short", None, 5, 1),
        (b"obsolete", 1_600_000_001_000_001_000, 8, 1),
        (b"binary", 1_600_003_600_000_976_562, 6, 228),
        (b"", 3600 * SECOND_ns + 4_882_812, 0, 228),
    ]
    assert source.problem is None


@pytest.mark.parametrize("resolution", [*range(20), *range(128, 192)])
@pytest.mark.parametrize("offset", [None, 1_600_000_000, -1])
def test_every_resolution(tmp_path, resolution, offset):
    units = 2 ** (resolution - 128) if resolution > 127 else 10**resolution
    counts = [0, 1, units - 1, 1_600_000_000 * units + units // 3, 2**63 - 1, 2**63, 2**64 - 1]
    counts = [c for c in counts if 0 <= c < 2**64 and c // units < 2**62]
    data = write.section() + write.interface(resolution=resolution, offset=offset)
    compare(tmp_path / "a", data + b"".join(write.enhanced(c, b"x") for c in counts))


def test_time_beyond_64_bits_is_kept_as_seconds(tmp_path):
    frames, _ = compare(tmp_path / "a", write.section() + write.interface() + write.enhanced(2**64 - 1, b"x"))
    assert frames[0][1] == (2**64 - 1) * 1000
    (tmp_path / "a").write_bytes(write.section() + write.interface(resolution=0) + write.enhanced(2**64 - 1, b"x"))
    frame = next(open_capture(tmp_path / "a").blocks()).frames[0]
    assert frame["flags"] == TIME_RANGE and frame["ts"] == 2**62


def test_many_interfaces(tmp_path):
    data = write.section() + b"".join(write.interface(linktype=i) for i in range(40))
    data += b"".join(write.enhanced(i, b"", number=i) for i in range(40))
    assert [frame[3] for frame in compare(tmp_path / "a", data)[0]] == list(range(40))


# --- packings and inputs


PACKINGS = {
    "gzip": gzip.compress,
    "gzip of members": lambda d: gzip.compress(d[:100]) + bytes(512) + gzip.compress(d[100:]) + bytes(3),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "zstd of frames": lambda d: zstandard.compress(d[:99]) + b"\x50\x2a\x4d\x18\2\0\0\0ab" + zstandard.compress(d[99:]),
    "zstd, skippable first": lambda d: b"\x5f\x2a\x4d\x18\0\0\0\0" + zstandard.compress(d),
}


def large():
    """A pcap of several buffers, with sizes that leave no record aligned to them."""
    count, largest = (70_000, 50) if JIT else (20_000, 5)  # each so many-th is a large one
    data = np.random.default_rng(1).bytes(2000)
    return write.pcap([(i, i, data[: i * 31 % 1999 if i % largest == 0 else i % 47], i) for i in range(count)])


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "plain"
    data = large()
    path.write_bytes(data)
    return path, data, naive.read(data)[0]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("data", [write.pcap(PACKETS), a_pcapng()], ids=["pcap", "pcapng"])
def test_packed_small(tmp_path, packing, data):
    (tmp_path / "a").write_bytes(PACKINGS[packing](data))
    source = open_capture(tmp_path / "a", block_frames=3)
    assert frames_of(source) == naive.read(data)[0]
    assert source.problem is None and source.bytes_done == source.bytes_total


@pytest.mark.parametrize("hold", [0, 1, 3])
@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd", "zstd of frames"])
def test_large_and_blocks_stay_valid(tmp_path, large_file, packing, hold):
    path, data, expected = large_file
    if packing != "plain":
        path = tmp_path / "a"
        path.write_bytes(PACKINGS[packing](data))
    held, at = [], 0
    for block in open_capture(path, hold=hold).blocks():
        held.append((at, block))
        at += len(block.frames)
        held = held[-hold - 1 :]
        for start, old in held[:: max(hold, 1)]:
            for i in (0, len(old.frames) - 1):
                frame = old.frames[i]
                assert (data_of(old, frame), time_of(frame), int(frame["len"]), 1) == expected[start + i]
    assert at == len(expected)


def through_pipe(data, command="open_capture('-')"):
    """What another interpreter reads from its standard input, which gets `data` in odd pieces."""
    code = (
        "import sys, hashlib\n"
        "from dataplane.capture import CaptureError, open_capture\n"
        "from tests.test_capture import frames_of\n"
        f"try:\n source = {command}\n"
        "except CaptureError as error:\n print(error)\n sys.exit()\n"
        "frames = frames_of(source)\n"
        "print(len(frames), hashlib.sha256(repr(frames).encode()).hexdigest(), source.problem, source.name)\n"
    )
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)

    def pour():
        for i in range(0, len(data), 99_991):
            child.stdin.write(data[i : i + 99_991])
            child.stdin.flush()
        child.stdin.close()

    writer = threading.Thread(target=pour)
    writer.start()
    said = child.stdout.read().decode().strip()
    writer.join()
    child.wait()
    return said


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_standard_input(large_file, packing):
    _, data, _ = large_file
    data = data[:300_000]
    expected, stop = naive.read(data)
    digest = hashlib.sha256(repr(expected).encode()).hexdigest()
    said = through_pipe(PACKINGS[packing](data) if packing != "plain" else data)
    assert said.startswith(f"{len(expected)} {digest} -: stopped at byte {stop}")


def test_standard_input_of_another_kind():
    assert "neither pcap nor pcapng" in through_pipe(b"snoop\0\0\0" + bytes(100))
    assert through_pipe(b"") == "-: is empty"


def test_memory_does_not_grow_with_the_file(tmp_path):
    record = struct.pack("<IIII", 1, 1, 60_000, 60_000) + bytes(60_000)
    with open(tmp_path / "a", "wb") as file:
        file.write(write.pcap([]))
        file.writelines(record * 40 for _ in range(40))
    before, count = resident_kib(), 0
    for block in open_capture(tmp_path / "a").blocks():
        count += len(block.frames)
    assert count == 1600 and resident_kib() - before < 24_000 < os.path.getsize(tmp_path / "a") // 1024


def resident_kib():
    return int(re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    (tmp_path / "a").write_bytes(write.pcap([(1, 1, bytes(60_000), 60_000)] * 400))
    source = open_capture(tmp_path / "a", block_frames=8)
    blocks = source.blocks()
    next(blocks)
    os.truncate(tmp_path / "a", 5_000_000)
    found = 8 + sum(len(block.frames) for block in blocks)
    assert found < 400 and "cut short" in source.problem


# --- directories


def test_directory_in_time_order(tmp_path):
    def put(name, data):
        (tmp_path / name).write_bytes(data)

    put("b.txt", write.pcap([(30, 0, b"", 0)]))
    put("a", gzip.compress(write.pcap([(20, 0, b"", 0)])))
    put("z.pcap", write.section() + write.interface() + write.enhanced(10, b""))
    put("tie.2", write.pcap([(25, 0, b"", 0)]))
    put("tie.1", zstandard.compress(write.pcap([(25, 0, b"", 0)])))
    put("beyond", write.section() + write.interface() + write.enhanced(2**64 - 1, b""))
    put("empty.pcap", write.pcap([]))
    put("old.pcap", write.pcap([], version=(1, 0)))
    put("notes.pcap", b"not a capture")
    put("nothing", b"")
    put(".hidden", write.pcap([(1, 0, b"", 0)]))
    (tmp_path / "below").mkdir()
    names = [os.path.basename(path) for path in expand([tmp_path])]
    assert names == ["z.pcap", "a", "tie.1", "tie.2", "b.txt", "beyond", "empty.pcap", "old.pcap"]
    assert expand(["-", "x", tmp_path / "below" / "y"]) == ["-", "x", str(tmp_path / "below" / "y")]
    with pytest.raises(CaptureError, match="below: holds no captures"):
        expand([tmp_path / "below"])


# --- tshark


def erf(kind, payload, extensions=0):
    """One ERF record of Ethernet at 1 s."""
    length = 16 + 8 * extensions + 2 + len(payload)
    kind |= 128 if extensions else 0
    head = struct.pack("<Q", 1 << 32) + struct.pack(">BBHHH", kind, 4, length, 0, len(payload))
    more = b"".join(bytes([0x80 if i + 1 < extensions else 0]) + bytes(7) for i in range(extensions))
    return head + more + b"\0\0" + payload


def snoop(payload):
    padded = payload + bytes(-len(payload) % 4)
    return b"snoop\0\0\0" + struct.pack(
        ">IIIIIIII", 2, 4, len(payload), len(payload), 24 + len(padded), 0, 1_600_000_000, 5
    ) + padded  # fmt: skip


@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_other_formats_through_tshark(tmp_path):
    payload = bytes(12) + b"\x08\x00E" + bytes(60)
    (tmp_path / "a.pcap").write_bytes(snoop(payload))
    source = open_capture(tmp_path / "a.pcap")
    assert source.comment == "read through tshark, slowly"
    assert frames_of(source) == [(payload, 1_600_000_000_000_005_000, len(payload), 1)] and source.problem is None
    assert expand([tmp_path]) == [str(tmp_path / "a.pcap")]


@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_erf_through_tshark(tmp_path):
    payload = bytes(12) + b"\x08\x00E" + bytes(61)
    (tmp_path / "a").write_bytes(erf(2, payload) + erf(2, payload, 2))
    frames = frames_of(open_capture(tmp_path / "a"))
    assert frames == [(payload, SECOND_ns, len(payload), 1)] * 2


@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_tshark_stops_at_damage(tmp_path):
    whole = snoop(bytes(80))
    (tmp_path / "a").write_bytes(whole + whole[16:-10])
    source = open_capture(tmp_path / "a")
    assert len(frames_of(source)) == 1 and "cut short" in source.problem


def test_without_tshark(tmp_path, monkeypatch):
    from pyshark.tshark import tshark

    def missing():
        raise tshark.TSharkNotFoundException

    monkeypatch.setattr(tshark, "get_process_path", missing)
    (tmp_path / "a").write_bytes(snoop(bytes(80)))
    with pytest.raises(CaptureError, match="apt install tshark"):
        open_capture(tmp_path / "a")


# --- the corpus

# Link type 101 with version 2.3: wiretap takes it for a dialect with longer records, and finds the first one cut short
GUESSED = "malformed/pcpp-cf-5766899836387328.bin"


def test_corpus(corpus):
    folder = corpus / "pcaps"
    files = json.loads((folder / "oracle.json").read_text())["files"]
    for name, said in files.items():
        try:
            source = open_capture(folder / name)
        except CaptureError:
            assert said["tshark"]["rc"] != 0 and said["packets"] == 0, name
            continue
        times = [frame[1] for frame in frames_of(source)]
        if name == GUESSED:
            continue
        assert len(times) == said["packets"], name
        assert (source.problem is not None) == (said["tshark"]["rc"] != 0), name
        if not name.startswith("malformed/"):
            check_times(name, times, said["time"])


def check_times(name, times, said):
    known = [time for time in times if time is not None]
    assert len(times) - len(known) == said["without_timestamp"], name
    assert (known[0] if known else None, known[-1] if known else None) == (said["first_ns"], said["last_ns"]), name
    assert (min(known, default=None), max(known, default=None)) == (said["min_ns"], said["max_ns"]), name
    assert (known == sorted(known)) == said["monotonic"], name


def test_corpus_against_the_twin(corpus, tmp_path):
    for path in sorted((corpus / "pcaps").rglob("*.pcap*")):
        compare(tmp_path / "a", path.read_bytes())

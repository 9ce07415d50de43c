"""Bad input to the command line: what was read is delivered and counted, one sentence says what is wrong."""

import gzip
import json
import os
import re
import struct
import subprocess
import sys

import pytest
import zstandard

from pcaps.packets import eth, ipv4, udp
from tests import captures as write
from tests.helpers import launch, run

DONE, RUN_ERROR, USAGE, INPUT = 0, 1, 2, 4  # exit statuses
FRAME = bytes(eth(ipv4("192.0.2.1", "198.51.100.1", udp(40000, 40001, bytes(60)))))
PACKETS = [(1_700_000_000 + i, i, FRAME, len(FRAME)) for i in range(20)]
PCAP = write.pcap(PACKETS)
RECORD_BYTES = 16 + len(FRAME)
PCAPNG = write.section() + write.interface(resolution=9) + b"".join(
    write.enhanced((s * 10**6 + us) * 1000, data) for s, us, data, _ in PACKETS
)  # fmt: skip
BLOCK_BYTES = len(write.enhanced(1, FRAME))
LARGEST = 2**63 - 1
UNKNOWN_LINK = 9999


class Replayed:
    """A replay of bytes: exit status, events, ledger, and the sentences that are neither announcement nor summary."""

    def __init__(self, tmp_path, data, *options, name="x.pcap"):
        path, out, stats = tmp_path / name, tmp_path / "out.jsonl", tmp_path / "stats.json"
        if data is not None:
            path.write_bytes(data)
        ended = run("replay", path, "-o", out, "--stats", stats, "--detectors", "flow", "--seed", "1", *options)
        self.status, self.path, self.err = ended.status, path, ended.err
        assert ended.out == "" and "Traceback" not in ended.err and "unexpected" not in ended.err
        self.events = [json.loads(line) for line in out.read_text().splitlines()]
        self.ledger = json.loads(stats.read_text())["ledger"]
        self.packets = self.ledger["packets"]
        assert self.ledger["balanced"]
        self.sentences = [line for line in ended.err.splitlines() if str(path) in line]

    @property
    def packets_of_flows(self):
        return sum(event["flow"]["pkts_toserver"] for event in self.events)


def stopped_at(replayed, whole_packets):
    """The byte at which reading stopped, told in one sentence; the packets before it were delivered."""
    assert replayed.status == INPUT and len(replayed.sentences) == 1
    assert replayed.packets["seen"] == replayed.packets_of_flows == whole_packets
    return int(re.search(r": stopped at byte (\d+)( of the decompressed stream)?: \w", replayed.sentences[0])[1])


HEAD_BYTES = {"pcap": 24, "pcapng": len(write.section() + write.interface(resolution=9))}
PACKINGS = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", HEAD_BYTES)
def test_cut_short(tmp_path, kind, packing):
    """The capture ends inside its eighth record."""
    data, size = (PCAP, RECORD_BYTES) if kind == "pcap" else (PCAPNG, BLOCK_BYTES)
    end = HEAD_BYTES[kind] + 7 * size
    replayed = Replayed(tmp_path, PACKINGS[packing](data[: end + 20]))
    assert stopped_at(replayed, 7) == end


def test_corrupt_records(tmp_path):
    """A record of 4 GiB, and a block whose two lengths differ."""
    at = 24 + 5 * RECORD_BYTES
    damaged = bytearray(PCAP)
    struct.pack_into("<II", damaged, at + 8, 2**32 - 1, 2**32 - 1)
    assert stopped_at(Replayed(tmp_path, damaged), 5) == at
    at = HEAD_BYTES["pcapng"] + 5 * BLOCK_BYTES
    damaged = bytearray(PCAPNG)
    damaged[at + BLOCK_BYTES - 4] ^= 4
    assert stopped_at(Replayed(tmp_path, damaged), 5) == at


def test_damaged_gzip(tmp_path):
    """What was unpacked before the damage is delivered."""
    packed = bytearray(gzip.compress(PCAP, 0))
    packed[-12] ^= 255  # of the stored data: only the checksum at the end tells
    replayed = Replayed(tmp_path, packed)
    assert stopped_at(replayed, 20) == len(PCAP) and "gzip data is damaged" in replayed.err


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "is empty"),
        (b"this is no capture, whatever its name says", "not a capture"),
        (gzip.compress(b"neither is this, when unpacked", mtime=0), "not a capture"),
        (PCAP[:20], "file header cut short at byte 20 of 24"),
        (PCAPNG[:20], "cut short"),
        (None, "there is no such file"),
        (b"\x1f\x8b\x08", "gzip data is cut short"),
    ],
)
def test_not_a_capture(tmp_path, data, sentence):
    replayed = Replayed(tmp_path, data)
    assert replayed.status == INPUT and replayed.packets["seen"] == 0 and replayed.events == []
    assert len(replayed.sentences) == 1 and sentence in replayed.sentences[0]


def test_pcap_without_packets(tmp_path):
    replayed = Replayed(tmp_path, PCAP[:24])
    assert replayed.status == DONE and replayed.packets["seen"] == 0


@pytest.mark.parametrize("command", ["replay", "decode"])
def test_directory_without_captures(tmp_path, command):
    (tmp_path / "notes.pcap").write_text("none here")
    ended = run(command, tmp_path, *(["-o", "null"] if command == "replay" else []))
    assert ended.status == INPUT and ended.err == f"qoetap: {tmp_path}: holds no captures\n"


@pytest.mark.parametrize("kind", HEAD_BYTES)
def test_unknown_link_type(tmp_path, kind):
    data = write.pcap(PACKETS, network=UNKNOWN_LINK)
    if kind == "pcapng":
        data = write.section() + write.interface(linktype=UNKNOWN_LINK) + write.enhanced(1, FRAME) * 20
    replayed = Replayed(tmp_path, data)
    assert replayed.status == INPUT and len(replayed.sentences) == 1 and "link type" in replayed.sentences[0]
    assert replayed.packets["seen"] == replayed.packets["undecoded"]["unknown_link_type"] == 20
    decoded = launch("decode", replayed.path, "--format", "tsv")
    assert decoded.status == INPUT and "link type" in decoded.err and len(decoded.out.splitlines()) == 20


def test_some_packets_of_an_unknown_link_type(tmp_path):
    """Counted, but what is known is there."""
    data = write.section() + write.interface(linktype=UNKNOWN_LINK) + write.interface()
    replayed = Replayed(tmp_path, data + write.enhanced(1, FRAME) + write.enhanced(2, FRAME, number=1))
    assert replayed.status == DONE and replayed.packets["undecoded"] == {"unknown_link_type": 1}
    assert replayed.packets_of_flows == 1


def test_one_bad_file_among_good_ones(tmp_path):
    """Each has its sentence, the others are replayed."""
    for name, data in (("a", PCAP), ("b", PCAP[:100]), ("c", b"nothing"), ("d", PCAP)):
        (tmp_path / name).write_bytes(data)
    names = [tmp_path / name for name in "abcd"]
    ended = run("replay", *names, "-o", tmp_path / "out.jsonl", "--detectors", "flow")
    assert ended.status == INPUT and "40 packets" in ended.err
    assert [sum(f"{name}:" in line for line in ended.err.splitlines()) for name in names] == [0, 1, 1, 0]


def unwritable(tmp_path):
    (tmp_path / "is.jsonl").mkdir()
    return (
        tmp_path / "missing" / "out.jsonl",
        tmp_path / "is.jsonl",
        f"jsonl:{tmp_path}",
        f"parquet:{tmp_path}",
        "csv:/proc/x/y",
    )


@pytest.mark.parametrize("which", range(5))
def test_output_that_cannot_be_opened(tmp_path, which):
    output = unwritable(tmp_path)[which]
    (tmp_path / "x.pcap").write_bytes(PCAP)
    ended = run("replay", tmp_path / "x.pcap", "-o", output)
    assert ended.status == USAGE and len(ended.err.splitlines()) == 1
    assert str(output).rpartition(":")[2] in ended.err and "unexpected" not in ended.err


@pytest.mark.parametrize("option", ["-o", "--stats"])
def test_decode_and_stats_that_cannot_be_opened(tmp_path, option):
    (tmp_path / "x.pcap").write_bytes(PCAP)
    command = ("decode",) if option == "-o" else ("replay", "-o", "null")
    ended = run(*command, tmp_path / "x.pcap", option, tmp_path / "missing" / "file")
    assert ended.status == USAGE and len(ended.err.splitlines()) == 1 and "missing/file" in ended.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "argv, status",
    [
        (("replay", "-o", "jsonl:/dev/full"), RUN_ERROR),
        (("replay", "-o", "csv:/dev/full"), USAGE),  # its header line is written when it is opened
        (("decode", "-o", "/dev/full"), RUN_ERROR),
    ],
)
def test_disk_full(tmp_path, argv, status):
    (tmp_path / "x.pcap").write_bytes(PCAP)
    ended = run(argv[0], tmp_path / "x.pcap", *argv[1:])
    told = [line for line in ended.err.splitlines() if "/dev/full" in line]
    assert ended.status == status and len(told) == 1 and "No space left" in told[0]
    assert "unexpected" not in ended.err and "Traceback" not in ended.err and "accounted" not in ended.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("argv", [("replay", "-o", "-", "--detectors", "flow"), ("decode", "--format", "tsv")])
def test_stdout_full(tmp_path, argv):
    (tmp_path / "x.pcap").write_bytes(PCAP)
    command = [sys.executable, "-m", "qoetap", argv[0], tmp_path / "x.pcap", *argv[1:]]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == RUN_ERROR and "No space left" in ended.stderr
    assert "unexpected" not in ended.stderr and "Traceback" not in ended.stderr and "Exception" not in ended.stderr


def nanoseconds(times, frame=FRAME):
    """A pcapng of (interface, units) times; interface 0 counts nanoseconds, 1 seconds, 2 seconds long before 1970."""
    interfaces = ((9, 0), (0, 0), (0, -(2**62)))
    data = write.section() + b"".join(write.interface(resolution=r, offset=o) for r, o in interfaces)
    return data + b"".join(write.enhanced(count, frame, number=number) for number, count in times)


def test_time_that_runs_backwards(tmp_path):
    times = [(0, 10**18 - i * 10**6) for i in range(50)]
    replayed = Replayed(tmp_path, nanoseconds(times))
    assert replayed.status == DONE and replayed.packets["backwards"] == 49 and replayed.packets_of_flows == 50


def test_time_that_jumps_by_years(tmp_path):
    """Each step is a jump, none ends the run; every packet is in a record."""
    year_s = 365 * 86400
    times = [(1, (40 + (7 * i) % 90) * year_s) for i in range(200)]
    replayed = Replayed(tmp_path, nanoseconds(times))
    assert replayed.status == DONE and replayed.packets["jumps"] == 199 and replayed.packets_of_flows == 200


def test_time_that_does_not_fit(tmp_path):
    """Beyond int64 nanoseconds both ways, and without any time: counted, the packets are in records all the same."""
    times = [(0, 10**18), (1, 2**61), (2, 5), (1, 9_223_372_037), (0, 10**18 + 1)]
    replayed = Replayed(tmp_path, nanoseconds(times) + write.simple(FRAME + bytes(-len(FRAME) % 4), len(FRAME)))
    assert replayed.status == DONE and replayed.packets["timeless"] == 4
    assert replayed.packets["seen"] == replayed.packets_of_flows == 6
    decoded = launch("decode", replayed.path, "--format", "tsv")
    assert decoded.status == DONE and decoded.out.splitlines()[1].split("\t")[1] == str(2**61 * 10**9)


@pytest.mark.parametrize("first", [LARGEST // 10**9 - 3, 9_223_372_035])
def test_time_at_the_end_of_int64(tmp_path, first):
    """Deadlines lie beyond what fits; the run ends, the records are there."""
    times = [(1, first)] + [(1, i * 3600) for i in range(5)] + [(1, first)] * 3
    replayed = Replayed(tmp_path, nanoseconds(times))
    assert replayed.status == DONE and replayed.packets["seen"] == replayed.packets_of_flows == 9


def test_clock_driven_to_the_end_of_int64(tmp_path):
    """An hour a packet, as fast as the capture clock follows, on to where int64 ends."""
    last_s = 9_223_372_035
    times = [(1, last_s - 3600 * (40 - i)) for i in range(40)] + [(1, i * 3600) for i in range(100)]
    replayed = Replayed(tmp_path, nanoseconds(times))
    assert replayed.status == DONE and replayed.packets["seen"] == replayed.packets_of_flows == 140


def test_records_without_bytes(tmp_path):
    """Nothing captured of frames that were 0 bytes or 4 GiB on the wire."""
    data = write.pcap([(1, 1, b"", 0), (1, 2, b"", 2**32 - 1), (1, 3, FRAME, 2**32 - 1), (1, 4, FRAME, 0)])
    replayed = Replayed(tmp_path, data)
    assert replayed.status == DONE and replayed.packets["seen"] == 4
    assert replayed.packets["undecoded"] == {"short_link_header": 2} and replayed.packets_of_flows == 2


def test_snap_length_of_zero(tmp_path):
    """In the file header of a pcap, and in an interface of a pcapng, where it means no limit."""
    data = bytearray(PCAP)
    struct.pack_into("<I", data, 16, 0)
    assert Replayed(tmp_path, data).packets_of_flows == 20
    padded = FRAME + bytes(-len(FRAME) % 4)
    data = write.section() + write.interface(snaplen=0) + write.simple(padded, len(FRAME)) * 3
    assert Replayed(tmp_path, data).packets_of_flows == 3


def test_in_a_process_of_its_own(tmp_path):
    """What a shell would see of some of these."""
    (tmp_path / "cut.pcap").write_bytes(PCAP[:-5])
    for argv, status in (
        (("replay", tmp_path / "cut.pcap", "-o", "null"), INPUT),
        (("replay", tmp_path / "missing.pcap", "-o", "null"), INPUT),
        (("decode", tmp_path / "missing.pcap"), INPUT),
        (("replay", tmp_path / "cut.pcap", "-o", tmp_path / "no" / "x.jsonl"), USAGE),
    ):
        ended = launch(*argv)
        assert ended.status == status and ended.err.count("pcap:") + ended.err.count("jsonl:") == 1
        assert "Traceback" not in ended.err

"""Flow records against the slow twin, on sample captures and the corpus; packets and bytes against tshark."""

import re
import subprocess

import pytest

from dataplane.records import JIT, NEVER, PACKET, rows
from detectors.flow import DETECTOR, REASONS
from pcaps.make import make
from tests.helpers import replay_events
from tests.naive import flow as naive
from tests.naive import pcapfile
from tests.naive.runner import drive, params_rows
from tests.rows import run_rows

SECOND_NS = 10**9
TIMEOUTS = {"default": ("120s", "30m", "5s"), "short": ("300ms", "1s", "50ms"), "tiny": ("1ns", "1ns", "1ns")}
NS = {"120s": 120 * SECOND_NS, "30m": 1800 * SECOND_NS, "5s": 5 * SECOND_NS, "300ms": 300_000_000, "1s": SECOND_NS,
      "50ms": 50_000_000, "1ns": 1}  # fmt: skip


def records_of(paths, timeouts, **options):
    """Flow records as the twin writes them."""
    section = dict(zip(("idle", "active", "tcp_close"), timeouts, strict=True))
    _, keep = run_rows(paths, detectors=["flow"], flow=section, **options)
    return sorted(record(event) for _, event in keep.events)


def record(event):
    size = 4 if event["ip_version"] == 4 else 16
    ports = (0, 0) if event["proto"] in naive.NO_PORTS else (int(event["sport"]), int(event["dport"]))
    assert event["duration_ns"] == event["end_ns"] - event["start_ns"]
    names = (
        "pkts_toserver",
        "pkts_toclient",
        "bytes_toserver",
        "bytes_toclient",
        "tcp_flags_toserver",
        "tcp_flags_toclient",
    )
    return (
        (bytes(event["src"][:size]), ports[0]), (bytes(event["dst"][:size]), ports[1]), int(event["proto"]),
        int(event["start_ns"]), int(event["end_ns"]), *(int(event[name]) for name in names), REASONS[event["reason"]],
    )  # fmt: skip


def compare(path, which):
    try:
        frames, _ = pcapfile.read(path.read_bytes())
    except ValueError:
        return 0
    expected = naive.records(naive.packets_of(frames), *(NS[text] for text in TIMEOUTS[which]))
    assert records_of(path, TIMEOUTS[which]) == expected, path.name
    return len(expected)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pcaps")
    make(folder)
    return sorted(folder.glob("*.pcap*"))


@pytest.mark.parametrize("which", TIMEOUTS)
def test_sample_captures(samples, which):
    found = sum(compare(path, which) for path in samples[:: 1 if JIT else 3])
    assert found > 50


@pytest.mark.parametrize("which", ["default", "short"] if JIT else ["short"])
def test_corpus(corpus, which):
    files = [path for path in sorted((corpus / "pcaps").iterdir()) if path.suffix in (".pcap", ".pcapng", ".cap")]
    found = sum(compare(path, which) for path in files[:: 1 if JIT else 4])
    assert found > (1000 if JIT else 200)


@pytest.mark.parametrize("which", ["default", "short"])
def test_malformed(corpus, which):
    for path in sorted((corpus / "pcaps" / "malformed").iterdir())[:: 1 if JIT else 4]:
        compare(path, which)


CONVERSATION = re.compile(r"(\S+):(\d+)\s+<-> (\S+):(\d+)\s+(\d+) (\d+) (\w+)\s+(\d+) (\d+) (\w+)\s")
UNITS = {"bytes": 1, "kB": 1000}


def conversations(tshark, path, proto):
    """{unordered pair of ends: {end that sends: (packets, bytes)}}; tshark writes 10 kB and more in whole kB."""
    options = ("-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE")
    command = [tshark, "-n", *options, "-r", path, "-q", "-z", f"conv,{proto}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for a, a_port, b, b_port, back, back_bytes, back_unit, there, there_bytes, there_unit in CONVERSATION.findall(text):
        left, right = (a, int(a_port)), (b, int(b_port))
        sums = found.setdefault(frozenset((left, right)), {left: [0, 0, 0], right: [0, 0, 0]})
        for end, n, size, unit in ((left, there, there_bytes, there_unit), (right, back, back_bytes, back_unit)):
            add(sums[end], int(n), int(size) * UNITS[unit], 1000 if unit == "kB" else 0)
    return found


def add(sums, packets, size, rounding):
    sums[0], sums[1], sums[2] = sums[0] + packets, sums[1] + size, sums[2] + rounding


LONG = dict(idle="90d", active="90d", tcp_close="90d")
COMPARED = ["arkime-v6.pcap", "ndpi-1kxun.pcap", "ndpi-teams.pcap", "ndpi-netflix.pcap", "pcpp-example.pcap"]


@pytest.mark.parametrize("name", COMPARED)
def test_packets_and_bytes_of_tshark(corpus, tshark, name):
    path = corpus / "pcaps" / name
    flows = [e for e in replay_events(path, detectors=["flow"], flow=LONG) if e["proto"] in ("TCP", "UDP")]
    flows = [e for e in flows if "src_port" in e]  # not of later fragments
    expected = {proto: conversations(tshark, path, proto.lower()) for proto in ("TCP", "UDP")}
    assert len(flows) == sum(map(len, expected.values())) > 5
    for event in flows:
        source, target = (event["src_ip"], event["src_port"]), (event["dest_ip"], event["dest_port"])
        sums = expected[event["proto"]][frozenset((source, target))]
        for end, side in ((source, "toserver"), (target, "toclient")):
            packets, size, rounding = sums[end]
            assert event["flow"][f"pkts_{side}"] == packets
            assert abs(event["flow"][f"bytes_{side}"] - size) <= rounding


# --- through the twin of the runner, by rows


def packet(ts, back=False, flags=0, length=100):
    return dict(
        ts=ts,
        hash=7,
        proto=6,
        sport=2 if back else 1,
        dport=1 if back else 2,
        flags=int(back),
        tcp_flags=flags,
        len=length,
    )


def driven(*fields, **options):
    made = rows(PACKET, len(fields))
    clock = -NEVER
    for i, given in enumerate(fields):
        clock = max(clock, given["ts"])
        for name, value in {"clock": clock, "seq": i, "ip_version": 4, **given}.items():
            made[i][name] = value
    return drive(DETECTOR, params_rows(DETECTOR, **options)[0], made)


def reasons(events):
    return [REASONS[event["reason"]] for event in events]


def test_silence_ends_a_record():
    events = driven(packet(0), packet(120 * SECOND_NS - 1), packet(400 * SECOND_NS))
    assert reasons(events) == ["idle", "end_of_input"]
    assert [int(e["pkts_toserver"]) for e in events] == [2, 1]


def test_a_busy_flow_is_told_in_parts():
    events = driven(*(packet(i * SECOND_NS) for i in range(25)), active="10s")
    assert reasons(events) == ["active", "active", "end_of_input"]
    assert sum(int(e["pkts_toserver"]) for e in events) == 25


def test_a_rst_or_two_fins_end_a_record_after_stragglers():
    fin, ack, rst = 0x11, 0x10, 0x04
    events = driven(packet(0, flags=fin), packet(1, True, fin), packet(2, flags=ack), packet(6 * SECOND_NS, flags=ack))
    assert reasons(events) == ["tcp_end", "end_of_input"]
    assert (events[0]["tcp_flags_toserver"], events[0]["tcp_flags_toclient"]) == (fin | ack, fin)
    assert reasons(driven(packet(0), packet(1, True, rst), packet(6 * SECOND_NS, flags=2))) == [
        "tcp_end",
        "end_of_input",
    ]
    assert reasons(driven(packet(0, flags=fin), packet(1, True, ack), packet(6 * SECOND_NS))) == ["end_of_input"]


def test_the_first_packet_gives_the_direction():
    event = driven(packet(0, True, length=60), packet(1, length=1500), packet(2, length=1500))[0]
    assert [int(event[name]) for name in ("pkts_toserver", "pkts_toclient", "bytes_toserver", "bytes_toclient")] == [
        1,
        2,
        60,
        3000,
    ]
    assert (event["sport"], event["dport"]) == (2, 1)


def test_time_that_runs_back_shortens_nothing():
    event = driven(packet(5 * SECOND_NS), packet(3 * SECOND_NS), packet(4 * SECOND_NS))[0]
    assert (event["start_ns"], event["end_ns"], event["duration_ns"]) == (5 * SECOND_NS, 5 * SECOND_NS, 0)

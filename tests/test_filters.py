"""Filters over captures: events are those of what passes, as if nothing else were there; counts; and wrong filters."""

import json
import random
import shutil

import pytest

from dataplane.batch import new_clock, set_clock
from dataplane.capture import CaptureError, open_capture
from dataplane.capture.sieve import Sieve, blocks_of
from dataplane.records import FRAME, JIT, NO_TIME, TIME_NONE, TIME_RANGE, UNWANTED, rows
from dataplane.wire import LINK_TYPES, REASONS
from pcaps.cases import CASES
from pcaps.files import Interface, Record, pcap, pcapng
from tests import captures as write
from tests import packets as make
from tests.conftest import require
from tests.helpers import replay_bytes, replay_events, run, run_engine
from tests.naive import bpf as naive
from tests.naive import pcapfile
from tests.rows import block_of, decoded, fill

START_S, SECOND_NS = 1_700_000_000, 10**9
SAMPLES = {  # sample captures, and filters of which each lets some of the packets pass
    "stalls_ipv4": ("udp src port 443", "port 50001", "len > 600"),
    "stalls_vlan": ("vlan and udp port 50001", "vlan and src host 203.0.113.20"),
    "two_sources": ("udp[11] & 3 != 0", "udp[11] & 1 = 0"),
    "echo_trouble": ("icmp", "icmp6", "icmp[icmptype] = icmp-echo"),
    "loops": ("icmp6 or ip[8] > 60", "greater 100"),
    "ptp_transports": ("udp portrange 319-320", "ip6", "ether proto 0x88f7"),
    "ptp_crowd": ("udp port 319",),
    "sandwich": ("udp and ip[8] > 3", "len < 200"),
    "flows_tcp": ("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "port 40001", "less 60"),
    "damage_time": ("udp", "icmp", "icmp[7] & 1 = 0"),
    "tunnels": ("udp", "ip proto 47", "ip6"),
    "big_endian": ("ip", "ip6"),
}
SLOW = ("stalls_ipv4", "two_sources")  # where code is interpreted
CORPUS = {
    "ndpi-1kxun.pcap": "udp port 53 or tcp port 80", "zeek-icmp.pcap": "icmp[0] = 8", "ndpi-ptpv2.pcap": "port 319",
    "ndpi-youtube_quic.pcap": "src port 443", "ndpi-rtp.pcapng": "udp", "arkime-dot1ad.pcap": "not arp",
}  # fmt: skip


@pytest.fixture(scope="module")
def tcpdump():
    found = shutil.which("tcpdump") or shutil.which("tcpdump", path="/usr/sbin:/sbin")
    require(found, "tcpdump is not installed (apt install tcpdump)")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pcaps")
    for story in (case() for case in CASES):
        if story.name in SAMPLES:
            (folder / story.file).write_bytes(story.make()[0])
    return folder


def passing(path, expression):
    """Numbers of the packets that libpcap lets pass, from 1."""
    program = naive.compiled(path, expression)
    frames, _ = pcapfile.read(path.read_bytes())
    return [i for i, (data, _, length, _) in enumerate(frames, 1) if naive.verdict(program, data, length)]


def as_in(path, numbers, events):
    """Events of the cut capture as they would be of `path`, whose packets `numbers` it has."""
    for event in events:
        event["pcap_file"], event["pcap_cnt"] = str(path), numbers[event["pcap_cnt"] - 1]
        if event.get("icmp_loop", {}).get("request") is not None:
            event["icmp_loop"]["request"] = numbers[event["icmp_loop"]["request"]] - 1
    return events


def same_as_cut(path, expression, folder, **options):
    """Hold the events of the filtered capture against those of one that tcpdump has cut."""
    cut, numbers = folder / "cut.pcap", passing(path, expression)
    cut.write_bytes(naive.cut(path, expression))
    expected = as_in(path, numbers, replay_events(cut, **options))
    for workers in (1, 2):
        engine, text = run_engine(path, filter=expression, workers=workers, **options)
        assert list(map(json.loads, text.splitlines())) == expected, f"{path.name}: {expression}: {workers} workers"
        assert engine.ledger.seen - engine.ledger.filtered == len(numbers)
    return expected, numbers


@pytest.mark.parametrize("name", [name for name in SAMPLES if JIT or name not in SLOW])
def test_events_are_those_of_the_cut_capture(tcpdump, samples, tmp_path, name):
    """Packet numbers are those of the whole one."""
    path, found = next(samples.glob(f"{name}.*")), []
    for expression in SAMPLES[name]:
        expected, numbers = same_as_cut(path, expression, tmp_path, tunnels=name == "tunnels", batch_rows=64)
        found += expected
        assert 0 < len(numbers) < len(pcapfile.read(path.read_bytes())[0]), expression
    assert found


@pytest.mark.parametrize("name", CORPUS if JIT else list(CORPUS)[1:2])
def test_events_of_cut_captures_of_the_corpus(tcpdump, corpus, tmp_path, name):
    expected, numbers = same_as_cut(corpus / "pcaps" / name, CORPUS[name], tmp_path)
    assert expected and numbers


def test_batches_and_workers_change_nothing(samples):
    path = samples / "ptp_transports.pcap"
    expected = replay_bytes(path, filter="ip6")
    for options in ({"batch_rows": 1}, {"batch_rows": 7, "workers": 2}, {"workers": 3}):
        assert replay_bytes(path, filter="ip6", **options) == expected != replay_bytes(path)


# --- time


def random_times(rng, count):
    """FRAME rows whose times jump, some without one, and some unwanted."""
    frames, now = rows(FRAME, count), START_S * SECOND_NS
    for i in range(count):
        now += rng.choice((0, 1, 10**6, 10**9, -(10**9), 10**13, -(10**12)))
        frames[i].ts, frames[i].flags = now, rng.choice((0, 0, 0, 0, UNWANTED, UNWANTED | TIME_NONE, TIME_RANGE))
    return frames


def test_unwanted_packets_do_not_move_the_clock():
    for seed in range(200 if JIT else 20):
        frames = random_times(random.Random(seed), 40)
        wanted = frames[frames["flags"] & UNWANTED == 0].copy().view(type(frames))
        alone, among = new_clock(), new_clock()
        last = set_clock(wanted, alone)
        assert set_clock(frames, among) == last
        assert (alone == among).all(), f"seed {seed}"
        assert (frames["clock"][frames["flags"] & UNWANTED == 0] == wanted["clock"]).all(), f"seed {seed}"


def test_a_clock_without_wanted_packets():
    frames = rows(FRAME, 3)
    frames["ts"], frames["flags"] = 5, UNWANTED
    clock = new_clock()
    assert set_clock(frames, clock) == 0 and clock[0].now == NO_TIME


# --- link types

UDP = make.ipv4("10.0.0.1", "10.0.0.2", make.udp(1, 2))
UDP6 = make.ipv6("fe80::1", "fe80::2", make.udp(1, 2))
TCP = make.ipv4("10.0.0.1", "10.0.0.2", make.tcp(1, 2, "S"))
BY_LINK = [
    (make.eth(UDP), 1), (make.eth(TCP), 1), (bytes(UDP), 101), (bytes(TCP), 12), (bytes(UDP6), 14), (bytes(UDP), 228),
    (bytes(TCP), 228), (bytes(UDP6), 229), (make.null(UDP, "<"), 0), (make.null(UDP, ">"), 0), (make.null(TCP, "<"), 0),
    (make.null(TCP, ">"), 0), (make.null(UDP6, "<", 24), 0), (make.null(UDP6, ">", 30), 0),
    (make.null(UDP6, ">", 28), 108),
    (make.sll(UDP), 113), (make.sll(TCP), 113), (make.sll2(UDP6), 276), (b"\x00\x02", 0), (b"", 1), (b"", 0),
]  # fmt: skip


def marked(expression, frames):
    block = block_of([(data, len(data), link) for data, link in frames])
    assert Sieve(expression, LINK_TYPES).sift(block) == (len(frames), None)
    return [bool(flags & UNWANTED) for flags in block.frames["flags"]]


@pytest.mark.parametrize(("expression", "wanted"), [("udp", (UDP, UDP6)), ("tcp", (TCP,)), ("ip6", (UDP6,))])
def test_one_expression_for_many_link_types(expression, wanted):
    """In any order, each with the program of its link type; and NULL in both byte orders."""
    frames = BY_LINK * 3
    random.Random(1).shuffle(frames)
    expected = [not any(bytes(packet) in data for packet in wanted) for data, _ in frames]
    assert marked(expression, frames) == expected


@pytest.mark.parametrize("order", "<>")
def test_null_as_tcpdump_reads_it(tcpdump, tmp_path, order):
    """In a file of either byte order, families of all BSDs among them."""
    path = tmp_path / "x.pcap"
    packets = [make.null(layer, order, family) for layer in (UDP, UDP6, TCP) for family in (24, 28, 30)]
    path.write_bytes(pcap([Record(i, data) for i, data in enumerate(packets)], 0, order))
    for expression in ("udp", "ip6", "not ip6", "tcp or len > 60", "link[3] = 2"):
        passes = [i + 1 not in passing(path, expression) for i in range(len(packets))]
        assert marked(expression, [(data, 0) for data in packets]) == passes


def test_what_cannot_be_decoded_is_not_filtered():
    """It is counted under its own reason; libpcap may not even know the link type."""
    assert marked("udp", [(make.eth(UDP), link) for link in (105, 147, 65535, 1)]) == [False] * 4
    assert marked("tcp", [(make.eth(UDP), link) for link in (105, 147, 65535, 1)]) == [False] * 3 + [True]


def test_all_that_is_decoded_can_be_filtered():
    links = [*range(300), 65535]
    reasons = [row["reason"] for row in decoded([(make.eth(UDP), 100, link) for link in links])]
    assert tuple(link for link, reason in zip(links, reasons) if reason != "unknown_link_type") == LINK_TYPES


@pytest.fixture
def mixed(tmp_path):
    """A capture whose packets 1 to 5 are Ethernet, 6 raw IP, 7 Ethernet again."""
    path = tmp_path / "mixed.pcapng"
    records = [Record(START_S * SECOND_NS + i, make.eth(UDP)) for i in range(5)]
    records += [Record(START_S * SECOND_NS + 6, bytes(UDP), None, 1), records[0]]
    path.write_bytes(pcapng(records, (Interface(), Interface(101))))
    return path


@pytest.mark.parametrize("block_frames", [1, 2, 3, 5, 100])
def test_reading_stops_where_the_filter_means_nothing(mixed, block_frames):
    """At the same packet whatever the size of blocks; what was before it is given."""
    source = open_capture(mixed, block_frames)
    given = [len(block.frames) for block in blocks_of(source, Sieve("ether[0] = 2 and vlan", LINK_TYPES))]
    assert sum(given) == 5 and 0 not in given
    assert "mixed.pcapng: stopped at packet 6: filter 'ether[0] = 2 and vlan': no VLAN support" in source.problem


def test_a_filter_that_means_nothing_here_is_an_unreadable_input(mixed, tmp_path):
    for command, out in (("replay", "null"), ("decode", tmp_path / "x")):
        ended = run(command, mixed, "--filter", "not vlan", "-o", out)
        assert ended.status == 4 and "stopped at packet 6" in ended.err and "Traceback" not in ended.err


# --- what is counted


def stats_of(path, folder, *options):
    out = folder / "stats.json"
    assert run("replay", path, "-o", "null", "--stats", out, *options).status == 0
    return json.loads(out.read_text())


def test_counts_are_those_of_the_cut_capture(tcpdump, samples, tmp_path):
    """Of the file, its times among them; and of the ledger."""
    path, cut = samples / "ptp_transports.pcap", tmp_path / "cut.pcap"
    for expression in ("ip6", "udp port 320 or len > 60"):
        cut.write_bytes(naive.cut(path, expression))
        ours, expected = stats_of(path, tmp_path, "--filter", expression), stats_of(cut, tmp_path)
        assert ours["files"][str(path)] == expected["files"][str(cut)]
        packets, fewer = ours["ledger"]["packets"], expected["ledger"]["packets"]
        assert {**packets, "seen": fewer["seen"], "filtered": 0} == fewer
        assert packets["seen"] - packets["filtered"] == fewer["seen"] and packets["filtered"] > 0
        assert ours["ledger"]["balanced"]


def test_times_beyond_int64_are_counted_without_the_unwanted(tmp_path):
    wide = write.interface(resolution=9, offset=2**34)
    frames = [write.enhanced(i, make.eth(packet)) for i, packet in enumerate((TCP, UDP, TCP, UDP, TCP))]
    path = tmp_path / "x.pcapng"
    timeless = make.eth(TCP) + bytes(6)
    path.write_bytes(write.section() + wide + b"".join(frames) + write.simple(timeless, len(timeless)))
    told = stats_of(path, tmp_path, "--filter", "udp")["files"][str(path)]
    assert told["packets"] == 2 and told["time"]["without_timestamp"] == 0
    assert (told["time"]["first_ns"], told["time"]["last_ns"]) == (2**34 * SECOND_NS + 1, 2**34 * SECOND_NS + 3)


def test_a_row_of_an_unwanted_packet_says_nothing():
    block = block_of([(make.eth(UDP), 1500, 1)] * 2)
    block.frames[0].flags = UNWANTED
    batch = fill(block)
    row, other = batch.packets[0], batch.packets[1]
    assert (REASONS[row["reason"]], row["ip_version"], row["proto"], row["hash"]) == ("filtered", 0, 0, 0)
    assert int(row["flags"]) & 0xFFFFFF == 0 and REASONS[other["reason"]] == "ok"
    assert other["hash"] != 0 and batch.reasons[0].sum() == 1


def test_the_summary_tells_how_many_were_filtered_out(samples):
    ended = run("replay", "-r", samples / "echo_trouble.pcap", "icmp6", "-o", "null")
    total = len(pcapfile.read((samples / "echo_trouble.pcap").read_bytes())[0])
    assert ended.status == 0 and f"{total} packets of 1 file" in ended.err and "filtered out: " in ended.err


def test_unknown_link_types_are_told_with_a_filter_too(tmp_path):
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([Record(START_S * SECOND_NS, make.eth(UDP))], 147))
    ended = run("replay", path, "-o", "null", "--filter", "tcp")
    assert ended.status == 4 and "no packet has a link type that qoetap knows" in ended.err


def test_decode_lists_what_passes(tcpdump, samples, tmp_path):
    path = samples / "ptp_transports.pcap"
    whole, some = (tmp_path / name for name in ("whole", "some"))
    assert run("decode", path, "--format", "tsv", "-o", whole).status == 0
    assert run("decode", "-r", path, "--format", "tsv", "-o", some, "ip6", "and", "udp").status == 0
    lines, numbers = whole.read_text().splitlines(), passing(path, "ip6 and udp")
    assert 0 < len(numbers) < len(lines)
    assert some.read_text().splitlines() == [lines[number - 1] for number in numbers]


# --- the command line


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "x.pcap"
    packets = [Record((START_S + i) * SECOND_NS, make.eth((UDP, TCP)[i % 2])) for i in range(4)]
    path.write_bytes(pcap(packets))
    return path


def flows(*argv):
    """Protocols of the flows that a replay finds."""
    ended = run("replay", *argv, "--detectors", "flow", "-o", "-")
    return ended, sorted(json.loads(line)["proto"] for line in ended.out.splitlines())


@pytest.mark.parametrize("words", [["udp"], ["udp", "port", "1"], ["udp port 1"], ["(udp", "or", "icmp)", "and ip"]])
def test_words_behind_r_are_a_filter(monkeypatch, capfd, capture, words):
    monkeypatch.chdir(capture.parent)
    for argv in (("-r", "x.pcap", *words), (*words, "-r", "x.pcap"), ("x.pcap", "--filter", " ".join(words))):
        ended = run("replay", *argv, "--detectors", "flow", "-o", "flows.jsonl")
        assert ended.status == 0, ended.err
        events = [json.loads(line) for line in open("flows.jsonl")]
        assert [(e["proto"], e["pcap_cnt"]) for e in events] == [("UDP", 1)]


def test_several_files_and_one_filter(capture, tmp_path):
    again = tmp_path / "y.pcap"
    again.write_bytes(capture.read_bytes())
    out = tmp_path / "out.jsonl"
    ended = run("replay", "-r", capture, "-r", again, "tcp", "-o", out, "--detectors", "flow")
    assert ended.status == 0 and "8 packets of 2 files" in ended.err and "filtered out: 4 packets" in ended.err


def test_the_filter_of_the_configuration(capture, tmp_path):
    site, out = tmp_path / "site.yaml", tmp_path / "out.jsonl"
    site.write_text("filter: tcp\n")
    for argv, proto in (((), "TCP"), (("--filter", "udp"), "UDP"), (("--set", "filter=udp"), "UDP")):
        assert run("replay", capture, "-c", site, "-o", out, "--detectors", "flow", *argv).status == 0
        assert {json.loads(line)["proto"] for line in out.open()} == {proto}
    assert run("replay", capture, "-c", site, "-o", out, "--detectors", "flow", "--filter", "").status == 0
    assert {json.loads(line)["proto"] for line in out.open()} == {"TCP", "UDP"}
    site.write_text("filter: tcp prot 80\n")
    ended = run("check", site)
    assert ended.status == 2 and "site.yaml: filter 'tcp prot 80': syntax error" in ended.err


def test_wrong_filters_in_one_sentence(capture, tmp_path):
    (tmp_path / "y.pcap").write_bytes(b"")
    for argv, sentence in (
        ((capture, "udp", "port", "443"), "udp: there is no such file; to filter write --filter 'udp port 443', or as"),
        ((capture, "udp", "port", "443"), f" as in tcpdump: -r {capture} 'udp port 443'"),
        ((capture, "ip[8] > 3"), "ip[8] > 3: there is no such file; to filter write --filter 'ip[8] > 3'"),
        (("not", "tcp"), "-r FILE 'not tcp'"),
        (("-r", capture, tmp_path / "y.pcap"), "y.pcap: with -r words are a filter, so name every file by it: -r "),
        (("-r", capture, "udp", "--filter", "tcp"), "two filters, --filter tcp and the words behind -r: join them"),
        ((capture, "--filter", "udp prot 443"), "--filter: filter 'udp prot 443': syntax error (man pcap-filter"),
        (("-r", capture, "udp", "prot", "443"), "the command line: filter 'udp prot 443': syntax error"),
        ((capture, "--filter", "udp and tcp"), "expression rejects all packets"),
    ):  # fmt: skip
        for command in ("replay", "decode"):
            ended = run(command, *argv)
            assert ended.status == 2 and ended.out == "", argv
            assert sentence in ended.err and ended.err.count("\n") == 1, ended.err


def test_files_are_not_taken_for_filters(capture, tmp_path, monkeypatch):
    """A file that is called like a word of filters, and one that is missing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "udp").write_bytes(capture.read_bytes())
    assert "4 packets of 1 file" in run("replay", "udp", "-o", "null").err
    for missing in ("port.pcap", "missing.pcap", "ip/x.pcap"):
        ended = run("replay", capture, missing, "-o", "null")
        assert ended.status == 4 and f"{missing}: there is no such file" in ended.err and "filter" not in ended.err
    assert "filtered out: 2" in run("replay", "-r", "udp", "udp", "-o", "null").err
    with pytest.raises(CaptureError):
        open_capture("missing.pcap")


def test_without_libpcap_only_filters_fail(capture, monkeypatch):
    from dataplane.capture import bpf

    monkeypatch.setattr(bpf, "LIBRARIES", ())
    bpf._libpcap.cache_clear()
    ended = run("replay", capture, "--filter", "udp", "-o", "null")
    assert ended.status == 2 and "filters need libpcap: apt install libpcap0.8" in ended.err
    assert run("replay", capture, "-o", "null").status == 0

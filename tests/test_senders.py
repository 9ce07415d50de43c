"""The senders send what they say, and the live benchmark reports what it measured."""

import errno
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import dpkt
import pytest
from conftest import require

from bench import frames, live_latency, live_readers, live_report, live_soak, senders
from bench.live_readers import Counted
from bench.senders import IMIX, MIXED, SPREAD, Bucket, Sender
from qoetap.lab import Link

ROOT = Path(__file__).resolve().parent.parent
ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
BUFFER = 64 << 20


@pytest.fixture
def link(root):
    require(shutil.which("ip"), "ip is not installed (apt install iproute2)")
    with Link() as made:
        yield made


@pytest.fixture
def ear(link):
    """A socket that hears what the senders send."""
    with link.receiver.inside(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.bind((link.receiver.interface, ETH_P_ALL))
        sock.setblocking(False)
        yield sock


def heard(sock):
    """Every frame that is waiting."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096))
        except BlockingIOError:
            return found


def client(data):
    """Address and port of the client of a datagram."""
    udp = dpkt.ethernet.Ethernet(data).data.data
    ip = dpkt.ethernet.Ethernet(data).data
    return (ip.src, udp.sport) if udp.dport == 443 else (ip.dst, udp.dport)


def sender(link, length=60, flows=100, **options):
    return Sender(link.sender.socket(), length, flows, **options)


# --- senders


def test_what_was_sent_arrives_to_the_packet(link, ear):
    one = sender(link)
    told = one.run(5, packets=3_000)
    frames_heard = heard(ear)
    assert told["sent"] == len(frames_heard) == link.receiver.counters()["rx_packets"] == 3_000
    assert told["bytes"] == sum(map(len, frames_heard)) == 3_000 * 60
    assert told["refused"] == 0 and told["flows_begun"] == len(set(map(client, frames_heard))) == 100


@pytest.mark.parametrize("length", [60, 1496])
def test_datagrams_are_whole(link, ear, length):
    sender(link, length).send(50)
    for data in heard(ear):
        ip = dpkt.ethernet.Ethernet(data).data
        assert len(data) == length and ip.len == length - 14 and ip.data.ulen == length - 34
        assert ip.data.data[0] == 0x40 and 443 in (ip.data.sport, ip.data.dport)
        before, ip.sum = ip.sum, 0
        assert dpkt.ip.IP(bytes(ip)).sum == before


def test_imix_has_its_shares(link, ear):
    sender(link, IMIX).send(1_200)
    shares = Counter(map(len, heard(ear)))
    assert set(shares) == set(frames.IMIX_BYTES)
    assert 600 < shares[60] < 800 and 300 < shares[590] < 500 and 50 < shares[1514] < 150


def test_mixed_are_the_conversations_of_the_benchmark(link, ear):
    """Each conversation begins at its beginning, also in a place that another had before."""
    one = sender(link, MIXED, 50, churn=1e9)
    found = []
    for lowest in (0, 1_000_000):
        one.loads[0].lowest = lowest
        one.send(500)
        found += heard(ear)
    packets = [dpkt.ethernet.Ethernet(data).data for data in found]
    assert len(packets) == 1_000
    first = {}
    for ip in packets:
        if isinstance(ip.data, dpkt.tcp.TCP):
            ends = frozenset([(ip.src, ip.data.sport), (ip.dst, ip.data.dport)])
            first.setdefault(ends, ip.data.flags)
    assert len(first) > 50 and set(first.values()) == {dpkt.tcp.TH_SYN}
    assert {type(ip.data).__name__ for ip in packets} >= {"TCP", "UDP"}


def test_frames_have_nothing_left_of_those_before(link, ear):
    """The buffer's places are used again: behind the headers, all is zero."""
    sender(link, MIXED, 1_000).send(1_000)
    assert not any(any(data[senders.HEADERS_bytes :]) for data in heard(ear))


def test_flows_come_and_go(link, ear):
    one, before = sender(link, flows=10), set()
    for lowest in (0, 5, 10, 1_000):
        one.loads[0].lowest = lowest
        one.send(2 * senders.BATCH_frames)
        living = set(map(client, heard(ear)))
        assert len(living) == 10 and len(living & before) == (0 if lowest in (0, 1_000) else 5)
        before = living


@pytest.fixture
def ticking(monkeypatch):
    """The senders' clock moves on by one millisecond whenever it is read, and by nothing else."""
    reads = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(reads) / 1000, sleep=lambda _: None, time_ns=time.time_ns)
    monkeypatch.setattr(senders, "time", clock)


def test_rate_and_churn_follow_the_clock(link, ear, ticking):
    told = sender(link, flows=10, churn=500.0).run(0.1, rate=2_000)
    assert told["sent"] == len(heard(ear)) == 1 + 2 * 99  # a bucket is not empty at first
    assert told["flows_begun"] == 10 + 49
    assert told["seconds"] == 0.1


def test_two_senders_have_no_flow_in_common(link, ear):
    found = []
    for first in (0, SPREAD):
        sender(link, first=first).send(500)
        found.append(set(map(client, heard(ear))))
    assert all(found) and not found[0] & found[1]


class Refusing:
    """A socket that does not take `times` frames."""

    def __init__(self, sock, times, reason):
        self.sock, self.times, self.reason = sock, times, reason

    def send(self, data):
        if self.times:
            self.times -= 1
            raise OSError(self.reason, os.strerror(self.reason))
        return self.sock.send(data)


def test_a_refused_frame_goes_later_and_none_twice(link, ear):
    one = sender(link)
    fd, one.loads[0].fd = int(one.loads[0].fd), -1  # sendmmsg fails
    one.sock = Refusing(one.sock, 2, errno.ENOBUFS)
    assert [one.send(10) for _ in range(3)] == [0, 0, 1]
    one.loads[0].fd = fd
    assert one.send(9) == 9
    assert one.refused == 2 and len(heard(ear)) == 10 and one.loads[0].bytes == 600


def test_an_interface_that_is_down_ends_it(link):
    one = sender(link)
    link.sender.down()
    with pytest.raises(OSError) as caught:
        one.run(1)
    assert senders.why(caught.value, "a0") == "a0 is down: ip link set dev a0 up"


def test_the_bucket_gives_the_rate_and_no_more_than_a_burst():
    bucket, packet = Bucket(1024, now=5.0), 1 / 1024
    assert bucket.take(5.0, 100) == 1
    assert bucket.take(5.0, 100) == 0 and bucket.wait == packet
    assert bucket.take(5.0 + 4 * packet, 100) == 4
    assert bucket.take(5.0 + 4 * packet, 100) == 0
    assert bucket.take(9.0, 100) == 10  # a stop of four seconds is not caught up
    assert bucket.take(9.0 + 8 * packet, 3) == 3  # what is not taken stays
    assert bucket.take(9.0 + 8 * packet, 100) == 5
    assert Bucket(None, now=0.0).take(0.0, 77) == 77
    assert Bucket(0.1, now=0.0).take(0.0, 1) == 1  # less than one a burst: still one at a time


def test_the_command_on_the_loopback(root, capsys):
    assert senders.main(["--interface", "lo", "--packets", "130", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sent"], told["bytes"]) == (130, 130 * 60)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--interface", "lo", "--size", "63"], "'63' is not imix, mixed or a number of bytes from 64 to 2048"),
        (["--interface", "lo", "--size", "big"], "'big' is not imix"),
        (["--interface", "lo", "--rate", "0"], "--flows and --rate must be more than 0"),
    ],
)
def test_bad_usage_is_named(argv, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        senders.main(argv)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


def test_no_such_interface_is_said(root, capsys):
    assert senders.main(["--interface", "nosuch0"]) == 1
    said = capsys.readouterr()
    assert said.err == "bench.senders: there is no interface 'nosuch0': `ip link` lists those there are\n"


# --- readers and their ledgers


def test_what_tcpdump_and_dumpcap_say_is_read():
    said = "tcpdump: listening on b0\n5 packets captured\n7 packets received by filter\n2 packets dropped by kernel\n"
    assert live_readers.tcpdump_counted(said, None) == Counted(5, 2)
    said = "Packets captured: 46\nPackets received/dropped on interface 'b0': 46/4 (pcap:4/dumpcap:0/flushed:0) (90%)"
    assert live_readers.dumpcap_counted(said, None) == Counted(46, 4)
    with pytest.raises(RuntimeError, match="packets. captured"):
        live_readers.tcpdump_counted("permission denied", None)


@pytest.mark.parametrize(("processed", "exact"), [(90, True), (89, False)])
def test_a_ledger_that_does_not_add_up_is_noticed(tmp_path, processed, exact):
    packets = {"seen": 100, "processed": processed, "filtered": 3, "undecoded": {"arp": 2}, "dropped": {"kernel": 5}}
    (tmp_path / "stats.json").write_text(json.dumps({"ledger": {"packets": packets, "balanced": True}}))
    assert live_readers.ledger("", tmp_path / "stats.json") == Counted(95, 5, exact)


# --- the report


def run(cpu_s, **more):
    told = {"sent": 1_000, "seconds": 2.0, "captured": 990, "dropped": 10, "exact": True, "peak_bytes": 1 << 20}
    return told | {"cpu_s": cpu_s, "whole_cpu_s": 2 * cpu_s} | more


def results(**cases):
    asked = {"seconds": 2.0, "rounds": 3, "ring": 64, "soak": 1800.0}
    machine = {"cpu": "Z80", "cores": 1, "memory_bytes": 65536, "system": "CP/M", "python": "3"}
    told = {"command": "make it so", "machine": machine, "asked": asked, "missing": {}, "failed": {}, "versions": {}}
    return told | {"sizes": {"64": cases} if cases else {}}


def test_the_table_compares_medians():
    told = results(qoetap=[run(0.02), run(0.99), run(0.03)], tcpdump=[run(0.02)])
    text = live_report.markdown(told)
    row = next(line for line in text.splitlines() if line.startswith("| tcpdump"))
    assert row.endswith(" | 1.5 |") and "10 (1.00%) | 0 |" in row
    assert not live_report.complaints(told) and "complaints" not in text


def test_lost_packets_that_nobody_counted_are_a_complaint():
    told = results(qoetap=[run(0.02), run(0.02, captured=988)])
    assert live_report.complaints(told) == ["qoetap, 64: 2 packets are unaccounted for, or its ledger is not exact"]
    assert live_report.complaints(results(qoetap=[run(0.02, exact=False)]))
    assert live_report.complaints(results() | {"failed": {"loop, 64": "it fell"}}) == ["loop, 64: it fell"]


# --- latency


def test_latency_figures_are_of_the_events_that_arrived():
    sent = [at * 1_000_000_000 for at in range(100)]
    arrived = {seq: at + (seq + 1) * 1_000_000 for seq, at in enumerate(sent) if seq != 99}
    stamped = {seq: at + 10_000 for seq, at in enumerate(sent)}
    told = live_latency.figures(sent, arrived, stamped)
    assert (told["replies"], told["arrived"], told["to_kernel_ms"]) == (100, 99, 0.01)
    assert (told["p50_ms"], told["p90_ms"], told["p99_ms"]) == (50, 90, 99)
    with pytest.raises(RuntimeError, match="no event arrived"):
        live_latency.figures(sent, {}, {})


def test_the_watcher_stamps_whole_lines_of_its_own_events(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text("")
    watcher = live_latency.Watcher(path)
    watcher.start()
    line = json.dumps(event(seq=3)) + "\n" + json.dumps(event(seq=4, icmp_id=9)) + "\n" + json.dumps(event(seq=5))
    before = time.time_ns()
    with path.open("a") as file:
        file.write(line)
    deadline = time.monotonic() + 5
    while 3 not in watcher.arrived and time.monotonic() < deadline:
        time.sleep(0.001)
    watcher.stop()
    assert list(watcher.arrived) == [3] and watcher.stamped == {3: 12345}
    assert before <= watcher.arrived[3] <= time.time_ns()


def event(seq, icmp_id=live_latency.IDENT):
    echo = {"icmp_id": icmp_id, "icmp_seq": seq}
    told = {"event_type": "icmp.rtt", "ts_ns": 12345, "src_ip": live_latency.CLIENT, "dest_ip": live_latency.SERVER}
    return told | {"proto": "ICMP", "icmp_loop": echo}


def test_the_echoes_are_what_the_watcher_looks_for():
    request, reply = (dpkt.ethernet.Ethernet(live_latency.echo(kind, 258)).data for kind in (8, 0))
    assert (request.src, request.dst) == (reply.dst, reply.src)
    assert (request.data.type, reply.data.type) == (8, 0)
    assert request.data.data.id == reply.data.data.id == live_latency.IDENT and reply.data.data.seq == 258


# --- soak


def samples(*rss, threads=4, last_threads=4):
    told = [{"seconds": n, "rss_bytes": value, "threads": threads, "descriptors": 9} for n, value in enumerate(rss)]
    told[-1]["threads"] = last_threads
    return told


def verdict(told, captured=100, exact=True):
    found = live_soak.verdict(told, {"sent": 100}, Counted(captured, 0, exact))
    return [name for name, (_, good) in found.items() if not good]


def test_the_soak_judges_its_last_two_thirds():
    assert verdict(samples(50, 60, 100, 101, 102, 100)) == []
    assert verdict(samples(50, 60, 100, 101, 103, 100)) == ["memory within 2%"]
    assert verdict(samples(100, 100, 100, last_threads=5)) == ["no threads leaked"]
    assert verdict(samples(100, 100, 100), captured=99) == ["ledger balanced"]
    assert verdict(samples(100, 100, 100), exact=False) == ["ledger balanced"]


def test_the_samples_are_written(tmp_path):
    live_soak.write(samples(100, 200, 300), tmp_path / "new")
    assert (tmp_path / "new" / "memory.csv").read_text().splitlines()[1] == "0,100,4,9"
    assert (tmp_path / "new" / "memory.png").read_bytes()[:4] == b"\x89PNG"


# --- all of it


def test_a_short_run_of_the_benchmark(root, tmp_path):
    """Two senders, one reader; every packet that was sent was taken or counted as dropped."""
    require(shutil.which("ip"), "ip is not installed (apt install iproute2)")
    argv = ["--seconds", "0.3", "--rounds", "1", "--sizes", "64", "--readers", "loop", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench.live", *argv]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "results.json").read_text())
    [run] = told["sizes"]["64"]["loop"]
    assert not told["failed"]
    assert run["sent"] > 100 and live_report.missing(run) == 0 and run["whole_cpu_s"] > 0
    assert "| loop |" in (tmp_path / "results.md").read_text()

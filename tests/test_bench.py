"""The benchmarks' traffic is valid and repeatable, and their report holds what was measured."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import dpkt
import pytest

from bench import frames, traffic
from dataplane.records import JIT

ROOT = Path(__file__).resolve().parent.parent
SMALL = traffic.Traffic(3_000, 1_000)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("QOETAP_BENCH_DIR", str(tmp_path))
    return tmp_path


def records(path):
    """(frame as captured, bytes on the wire) of every record."""
    found = []
    with path.open("rb") as file:
        file.seek(24)
        while header := file.read(16):
            caplen, length = struct.unpack_from("<II", header, 8)
            found.append((file.read(caplen), length))
    return found


def ends(data):
    """Protocol, both addresses and ports, in one order for both directions."""
    ip = dpkt.ethernet.Ethernet(data).data
    proto = ip.nxt if isinstance(ip, dpkt.ip6.IP6) else ip.p
    sport, dport = getattr(ip.data, "sport", 0), getattr(ip.data, "dport", 0)
    return proto, *sorted([(ip.src, sport), (ip.dst, dport)])


def test_frames_are_whole_and_their_lengths_agree(files):
    for data, length in records(traffic.make(SMALL._replace(snap=traffic.FULL_BYTES))):
        ethernet = dpkt.ethernet.Ethernet(data)
        assert len(data) == length
        assert isinstance(ethernet.data, (dpkt.ip.IP, dpkt.ip6.IP6))
        header = 18 if data[12:14] == b"\x81\x00" else 14
        ip = ethernet.data
        size = 40 + ip.plen if isinstance(ip, dpkt.ip6.IP6) else ip.len
        assert length == max(60, header + size)


def test_snapshots_are_the_same_frames_cut(files):
    full = records(traffic.make(SMALL._replace(snap=traffic.FULL_BYTES)))
    cut = records(traffic.make(SMALL))
    assert len(cut) == SMALL.packets
    assert [(data[:96], length) for data, length in full] == cut


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_finds_every_packet_and_nothing_wrong(files):
    path = traffic.make(SMALL._replace(snap=traffic.FULL_BYTES))
    checks = [f"-o{p}.check_checksum:TRUE" for p in ("ip", "tcp", "udp")]
    fields = ["-Tfields", "-eip.checksum.status", "-etcp.checksum.status", "-eudp.checksum.status"]
    fields += ["-eicmp.checksum.status", "-eicmpv6.checksum.status", "-e_ws.malformed", "-eframe.protocols"]
    out = subprocess.run(["tshark", "-n", "-r", path, *checks, *fields], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in out.stdout.splitlines()]
    assert len(rows) == SMALL.packets
    assert {status for row in rows for status in row[:5]} == {"", "1"}  # 1: good
    assert {row[5] for row in rows} == {""}
    seen = {name for row in rows for name in row[6].split(":")}
    assert {"tcp", "quic", "dns", "icmp", "ptp", "ipv6", "vlan"} <= seen


def test_mix_is_the_one_stated():
    assert sum(frames.PER_THOUSAND) == 1000
    assert tuple(Counter(frames.KINDS.tolist())[kind] for kind in range(9)) == frames.PER_THOUSAND


def test_same_seed_same_bytes(files):
    def digest(spec):
        path = traffic.make(spec)
        data = path.read_bytes()
        path.unlink()
        return hashlib.sha256(data).hexdigest()

    assert digest(SMALL) == digest(SMALL) != digest(SMALL._replace(seed=2))


def test_chunks_leave_no_seam(files, monkeypatch):
    whole = traffic.make(SMALL).read_bytes()
    traffic.make(SMALL).unlink()
    monkeypatch.setattr(traffic, "CHUNK_PACKETS", 700)
    assert traffic.make(SMALL).read_bytes() == whole


def test_trains_are_runs_of_sixteen(files):
    flows = [ends(data) for data, _ in records(traffic.make(SMALL._replace(order="trains")))]
    runs = 1 + sum(a != b for a, b in pairwise(flows))
    assert 12 < len(flows) / runs < 20


def test_every_packet_of_a_flood_is_a_new_flow(files):
    spec = traffic.Traffic(3_000, 3_000, "flood")
    assert len({ends(data) for data, _ in records(traffic.make(spec))}) == spec.packets


def test_tcp_flows_begin_with_syn(files):
    first = {}
    for data, _ in records(traffic.make(SMALL)):
        ip = dpkt.ethernet.Ethernet(data).data
        if isinstance(ip.data, dpkt.tcp.TCP):
            first.setdefault(ends(data), ip.data.flags)
    assert set(first.values()) == {dpkt.tcp.TH_SYN}


def test_head_is_the_first_packets(files):
    path = traffic.make(SMALL)
    assert records(traffic.head(path, 10)) == records(path)[:10]


@pytest.mark.skipif(not JIT, reason="a benchmark of interpreted code takes minutes and says nothing")
def test_quick_run_reports_what_it_measured(tmp_path):
    env = {**os.environ, "QOETAP_BENCH_DIR": str(tmp_path / "files")}
    names = ["dpkt", "tcpdump"] if shutil.which("tcpdump") else ["dpkt"]
    argv = [sys.executable, "-m", "bench", "--quick", "--peers", ",".join(names), "--out", str(tmp_path / "out")]
    done = subprocess.run(argv, check=False, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not results["failed"]
    rows = results["cases"][0]["peers"]
    assert list(rows) == names
    assert all(r["peer"]["packets"] == r["given"] == 20_000 and r["peer"]["loop_s"] > 0 for r in rows["dpkt"])
    text = (tmp_path / "out" / "results.md").read_text()
    assert all(f"| {name} |" in text and name in " ".join(results["versions"]) for name in names)
    assert results["machine"]["cpu"] in text
    assert results["mix"] in text
    assert (tmp_path / "out" / "rates.png").read_bytes()[:4] == b"\x89PNG"

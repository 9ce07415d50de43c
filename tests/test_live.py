"""`qoetap live` in operation: events while it runs, time without packets, several interfaces, filters, HUP and USR1."""

import contextlib
import http.client
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import require

from dataplane.records import CHECKED, JIT
from tests.live import (
    CLIENT,
    REQUEST,
    ROOT,
    SERVER,
    Agent,
    Load,
    START_seconds,
    balanced,
    datagram,
    echo,
    echoes,
    events_in,
    second_pair,
    send,
    wait_until,
)
from tests.packets import eth, ipv4, udp, vlan

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="a process of its own, which is always compiled")
NOBODY = 65534
AT_ONCE_seconds = 0.2  # from the wire to the file, though the machine is busy


# --- events and the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_events_come_while_it_runs_and_a_signal_ends_it(link, tmp_path, number):
    with Agent(link.receiver, tmp_path) as agent:
        late = []
        for n in range(10):
            send(link.sender, echoes(1, n))
            sent_at = time.monotonic()
            agent.wait_for(n + 1, "icmp.rtt")
            late.append(time.monotonic() - sent_at)
        send(link.sender, [b"\x02" * 12 + b"\x08\x06" + bytes(46)] * 3)
        ended = agent.end(number)
    assert sorted(late)[len(late) // 2] < AT_ONCE_seconds
    assert ended.status == 0
    packets = balanced(ended, 23)
    assert packets["processed"] == 20 and packets["undecoded"] == {"not_ip": 3}
    assert ended.stats["ledger"]["events"] == {
        "made": {"flow.end": 1, "icmp.rtt": 10}, "delivered": 11, "queued": 0, "dropped": 0,
    }  # fmt: skip
    assert [e["event_type"] for e in agent.events()] == ["icmp.rtt"] * 10 + ["flow.end"]


def test_time_passes_without_packets(link, tmp_path):
    options = ("--set", "detectors.flow.idle=600ms", "--set", "detectors.icmp_loop.timeout=300ms")
    options += ("--set", "detectors.icmp_loop.loop_max=300ms", "--set", "detectors.icmp_loop.late=300ms")
    with Agent(link.receiver, tmp_path, *options, "--set", "live.stats_every=250ms") as agent:
        send(link.sender, [echo(1)])
        agent.wait_for(1, "icmp.unanswered", 3)
        assert not agent.events("flow.end")
        (record,) = agent.wait_for(1, "flow.end", 3)
        stats = agent.wait_for(4, "stats", 3)
        ended = agent.end()
    assert record["flow"]["reason"] == "idle"
    balanced(ended, 1)
    uptimes = [event["stats"]["uptime_ns"] / 1e9 for event in stats]
    assert all(0.2 < late - early < 1 for early, late in zip(uptimes, uptimes[1:]))
    assert stats[-1]["stats"]["packets"] == stats[-1]["stats"]["processed"] == 1
    assert any("1 packets (" in line for line in agent.said)


def test_a_flow_outlives_a_silence_shorter_than_its_timeout(link, tmp_path):
    """Time that passes in silence counts once."""
    with Agent(link.receiver, tmp_path, "--set", "detectors.flow.idle=20s") as agent:
        send(link.sender, [datagram(1)])
        time.sleep(2.5)
        send(link.sender, [datagram(1)])
        ended = agent.end()
    balanced(ended, 2)
    assert [e["flow"]["pkts_toserver"] for e in agent.events("flow.end")] == [2]
    assert ended.stats["ledger"]["packets"]["jumps"] == 0


# --- which packets


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flow_whose_directions_come_in_on_two_interfaces(link, tmp_path, workers):
    pairs, each = 40, 3
    with second_pair(link) as (sender, receiver):
        names = [link.receiver.interface, receiver.interface]
        with Agent(link.receiver, tmp_path, "--workers", workers, interfaces=names) as agent:
            for _ in range(each):
                send(link.sender, [datagram(flow) for flow in range(pairs)])
                send(sender, [datagram(flow, back=True) for flow in range(pairs)])
            ended = agent.end()
    balanced(ended, 2 * each * pairs)
    records = agent.events("flow.end")
    assert [(e["flow"]["pkts_toserver"], e["flow"]["pkts_toclient"]) for e in records] == [(each, each)] * pairs
    counted = ended.stats["ledger"]["interfaces"]
    assert {name: counted[name]["received"] for name in names} == dict.fromkeys(names, each * pairs)


@pytest.mark.parametrize(
    ("expression", "passing"),
    [
        (["vlan", "5"], {"vlan 5"}),
        (["not", "vlan"], {"icmp", "udp"}),
        (["icmp"], {"icmp"}),
        (["udp port 443"], {"udp"}),
    ],
)
def test_only_what_the_filter_lets_pass_is_seen(link, tmp_path, expression, passing):
    datagrams = {"udp": 443, "vlan 5": 5005, "vlan 6": 6006}  # a port for each, by which to know it
    frames = {name: eth(ipv4("10.9.0.1", "10.9.0.2", udp(port, port, bytes(30)))) for name, port in datagrams.items()}
    for name in ("vlan 5", "vlan 6"):
        inner = ipv4("10.9.0.1", "10.9.0.2", udp(datagrams[name], datagrams[name], bytes(30)))
        frames[name] = eth(vlan(int(name.split()[1]), inner))
    frames["icmp"] = echo(1, REQUEST)
    with Agent(link.receiver, tmp_path, "--", *expression) as agent:
        for number, frame in enumerate(frames.values(), 1):
            send(link.sender, [frame] * number)
        ended = agent.end()
    expected = {name: number for number, name in enumerate(frames, 1) if name in passing}
    balanced(ended, sum(expected.values()))
    names = {5005: "vlan 5", 6006: "vlan 6", 443: "udp"}
    records = {names.get(e.get("dest_port"), "icmp"): e["flow"]["pkts_toserver"] for e in agent.events("flow.end")}
    assert records == expected


# --- HUP and USR1


def lines_of(folder, glob):
    return [json.loads(line) for path in sorted(folder.glob(glob)) for line in path.read_text().splitlines()]


def test_hup_takes_over_a_good_file_and_survives_a_bad_one(link, tmp_path):
    config, first, second = tmp_path / "site.yaml", tmp_path / "first.jsonl", tmp_path / "second.jsonl"

    def configure(output, idle):
        config.write_text(f"outputs: ['{output}']\ndetectors: {{flow: {{idle: {idle}}}}}\n")

    configure(first, "1h")
    with Agent(link.receiver, tmp_path, "-c", config, spec=None) as agent:
        send(link.sender, [datagram(1)] + echoes(5))
        wait_until(lambda: len(events_in(first)) == 5)
        config.write_text("detectors: {flow: {idel: 1s}}\n")
        said = agent.tell(signal.SIGHUP, "reload:")
        assert "unknown key detectors.flow.idel, did you mean detectors.flow.idle" in said
        assert said.endswith("going on as before")
        config.write_text("outputs: ['/nowhere/events.jsonl']\n")
        said = agent.tell(signal.SIGHUP, "reload:")
        assert "make the directory first" in said and said.endswith("going on as before")
        send(link.sender, echoes(5, 5))
        wait_until(lambda: len(events_in(first)) == 10)
        configure(second, "300ms")
        assert agent.tell(signal.SIGHUP, "reload:") == "qoetap: reload: done"
        send(link.sender, [datagram(1), datagram(2)])
        records = wait_until(lambda: len(found := events_in(second, "flow.end")) == 2 and found, 4)
        ended = agent.end()
    assert {e["flow"]["reason"] for e in records} == {"idle"}
    assert [e["flow"]["pkts_toserver"] for e in records] == [2, 1]  # the state of before went on
    balanced(ended, 23)
    assert len(events_in(first)) == 10 and len(events_in(first)) + len(events_in(second)) == ended.made


def test_hup_while_kernels_compile_does_not_end_it(link, tmp_path):
    """With a kernel cache that lacks one detector's."""
    cache = copied_cache(tmp_path)
    for path in cache.rglob("loop.stage_flow*"):
        path.unlink()
    environment = {"QOETAP_CACHE_DIR": str(cache)}
    with Agent(link.receiver, tmp_path, detectors="flow", environment=environment, heard="compiling") as agent:
        assert "SIGHUP came too early" in agent.tell(signal.SIGHUP, "SIGHUP")
        agent.hear("listening;", START_seconds)
        assert agent.end().status == 0


def test_what_takes_a_restart_is_named_and_stays(link, tmp_path):
    config = tmp_path / "site.yaml"
    config.write_text("")
    with Agent(link.receiver, tmp_path, "-c", config) as agent:
        config.write_text("live: {ring_size: 4MiB, loss_allowed: 0.5}\n")
        said = agent.tell(signal.SIGHUP, "reload:")
        ended = agent.end()
    assert said == "qoetap: reload: done; what takes a restart stays as it was: live.ring_size"
    assert ended.status == 0


def test_hup_after_the_file_was_renamed_loses_nothing(link, tmp_path):
    with Agent(link.receiver, tmp_path) as agent, Load(link.sender, echoes(300), pause_seconds=0.01) as load:
        for turn in range(3):
            wait_until(lambda: agent.output.exists() and agent.output.stat().st_size > 0)
            agent.output.rename(tmp_path / f"events.jsonl.{turn}")
            agent.tell(signal.SIGHUP, "reload: done")
        sent = load.stop()
        ended = agent.end()
    balanced(ended, sent)
    found = lines_of(tmp_path, "events.jsonl*")
    assert len(found) == ended.made == ended.stats["ledger"]["events"]["delivered"]
    assert all((tmp_path / f"events.jsonl.{turn}").stat().st_size for turn in range(3))


def test_usr1_finishes_the_file_at_hand(link, tmp_path):
    with Agent(link.receiver, tmp_path, output="events-%Y.jsonl") as agent:
        for turn in range(3):
            send(link.sender, echoes(4, turn * 4))
            agent.rest()
            agent.send(signal.SIGUSR1)
            wait_until(lambda turn=turn: len(list(tmp_path.glob("events-*.jsonl"))) == turn + 1)
        ended = agent.end()
    assert ended.status == 0
    counts = sorted(len(path.read_text().splitlines()) for path in tmp_path.glob("events-*.jsonl"))
    assert counts == [1, 4, 4, 4]  # the flow's record comes at the end


def test_it_ends_when_nobody_reads_what_it_prints(link, tmp_path):
    options = ("--set", "live.stats_every=100ms")
    with Agent(link.receiver, tmp_path, *options, spec="-", stdout=subprocess.PIPE) as agent:
        assert json.loads(agent.process.stdout.readline())["event_type"] == "stats"
        agent.process.stdout.close()
        assert agent.end(None).status == 0


# --- evidence, --top, metrics


def comment_of(path):
    """The comment of a pcapng's section, which is its first option (draft-ietf-opsawg-pcapng, 4.1)."""
    data = path.read_bytes()
    code, size = struct.unpack_from("=HH", data, 24)
    assert code == 1
    return data[28 : 28 + size].decode()


def test_evidence_holds_the_packets_of_the_event_and_no_others(link, tmp_path, tshark):
    folder = tmp_path / "evidence"
    options = ("--write", folder, "--on", "icmp.rtt", "--set", "live.write_files=3")
    with Agent(link.receiver, tmp_path, *options) as agent:
        for n in range(5):
            send(link.sender, [datagram(n), datagram(n, back=True), *echoes(1, n), datagram(n, size=900)])
            agent.wait_for(n + 1, "icmp.rtt")
            time.sleep(0.15)  # not too many a second
        agent.hear("evidence: no more than 3 files (live.write_files)")
        ended = agent.end()
    balanced(ended, 25)
    assert any("3 files of evidence, 2 events left none" in line for line in agent.said)
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    events = agent.events("icmp.rtt")[:3]
    assert [path.name for path in files] == [f"icmp.rtt-{event['ts_ns']}.pcapng" for event in events]
    for number, (path, event) in enumerate(zip(files, events), 1):
        assert json.loads(comment_of(path)) == event
        fields = [word for name in ("ip.src", "ip.dst", "icmp.type", "icmp.seq", "frame.len") for word in ("-e", name)]
        command = [tshark, "-n", "-r", path, "-T", "fields", *fields]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = [line.split("\t") for line in done.stdout.splitlines()]
        ends = [[CLIENT, SERVER, "8"], [SERVER, CLIENT, "0"]]
        assert found == [[*ends[side], str(n), "74"] for n in range(number) for side in (0, 1)]


def test_evidence_is_bounded_in_rate(link, tmp_path):
    folder = tmp_path / "evidence"
    with Agent(link.receiver, tmp_path, "--write", folder, "--on", "icmp.rtt") as agent:
        send(link.sender, echoes(200))
        agent.wait_for(200, "icmp.rtt")
        agent.hear("a second")
        ended = agent.end()
    balanced(ended, 400)
    written = len(list(folder.iterdir()))
    assert 0 < written <= 20  # of ten a second, if a second ended meanwhile
    assert any(f"{written} files of evidence, {200 - written} events left none" in line for line in agent.said)


def read_while(master, condition):
    """What comes out of a terminal until `condition(text)`."""
    text, limit = "", time.monotonic() + 15
    while not condition(text):
        assert time.monotonic() < limit, text
        if select.select([master], [], [], 0.1)[0]:
            try:
                text += os.read(master, 1 << 16).decode(errors="replace")
            except OSError:  # its other side was closed
                break
    return text


def test_top_draws_and_leaves_the_terminal_as_it_was(link, tmp_path):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    environment = {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with Agent(link.receiver, tmp_path, "--top", heard="1 worker", stdout=slave, environment=environment) as agent:
        read_while(master, lambda text: "qoetap, up" in text)
        send(link.sender, echoes(7))
        drawn = read_while(master, lambda text: "icmp.rtt" in text and "198.18.0.1" in text)
        agent.send(signal.SIGTERM)
        drawn += read_while(master, lambda _: agent.process.poll() is not None)
        drawn += read_while(master, lambda text: "\x1b[?1049l" in text or not select.select([master], [], [], 0.2)[0])
        ended = agent.end(0)
    assert ended.status == 0 and balanced(ended, 14)
    assert "b0" in drawn and "14" in drawn and "delays, latest" in drawn
    assert drawn.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in drawn and "\x1b[?25h" in drawn
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def answer(path, port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def test_metrics_are_served_where_it_runs(link, tmp_path):
    subprocess.run(["ip", "-n", link.receiver.namespace, "link", "set", "dev", "lo", "up"], check=True)
    with Agent(link.receiver, tmp_path, "--set", "live.metrics=127.0.0.1:9464") as agent:
        send(link.sender, echoes(5))
        agent.wait_for(5, "icmp.rtt")
        status, page = link.receiver.inside(answer, "/metrics", 9464)
        assert status == 200 and 'qoetap_interface_packets_received_total{interface="b0"} 10.0' in page
        assert link.receiver.inside(answer, "/healthz", 9464) == (200, "ok\n")
        link.receiver.down()
        agent.hear("is down")
        assert link.receiver.inside(answer, "/healthz", 9464) == (503, "b0 is down\n")
        link.receiver.up()
        agent.hear("up again")
        assert link.receiver.inside(answer, "/healthz", 9464)[0] == 200
        assert agent.end().status == 0


# --- without privileges

# In its namespace of mounts, folders that only root may look into are covered, and only what is needed shows through
UNCOVER = """
set -e
mount -t tmpfs none /mnt
for path in $PATHS; do mkdir -p /mnt$path; mount --bind $path /mnt$path; done
for above in $ABOVE; do mount -t tmpfs -o mode=755 none $above; done
for path in $PATHS; do mkdir -p $path; mount --bind /mnt$path $path; done
exec "$@"
"""


def private_above(path):
    """The outermost folder above a path that not everybody may look into, None if there is none."""
    above = [folder for folder in reversed(Path(path).parents) if not folder.stat().st_mode & 0o001]
    return above[0] if above else None


def copied_cache(folder):
    """A copy of the kernel cache at hand, which is in use, in `folder`."""
    cache, kernels = folder / "cache", Path(os.environ["NUMBA_CACHE_DIR"])
    shutil.copytree(kernels, cache / kernels.name)
    for path in (cache, cache / kernels.name):
        path.chmod(0o700)
    return cache


def nobody(folder, capabilities):
    """Words and variables that run a command as nobody with these capabilities; files go to `folder`."""
    cache = copied_cache(folder)
    for path in (cache, *cache.rglob("*"), folder):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder.chmod(0o755)
    needed = dict.fromkeys(map(str, (sys.base_prefix, sys.prefix, ROOT, folder)))
    needed = {path: private_above(path) for path in needed}
    covered = {path: above for path, above in needed.items() if above}
    variables = {"PATHS": " ".join(covered), "ABOVE": " ".join({str(above) for above in covered.values()})}
    variables |= {"QOETAP_CACHE_DIR": str(cache), "HOME": str(folder)}
    drop = [f"--{kind}-caps=-all{capabilities}" for kind in ("inh", "ambient", "bounding")]
    drop[2] = drop[2].replace("bounding-caps", "bounding-set")
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *drop]
    return {"before": ["sh", "-c", UNCOVER, "sh", *user], "environment": variables}


def test_it_runs_with_cap_net_raw_alone(link, tmp_path):
    require(shutil.which("setpriv"), "setpriv is not installed (apt install util-linux)")
    folder = tmp_path / "own"
    folder.mkdir()
    how = nobody(folder, ",+net_raw")
    options = ("--workers", 2, "--set", "live.hardware_timestamps=true", "--", "icmp")
    with Agent(link.receiver, folder, *options, **how) as agent:
        status = Path(f"/proc/{agent.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t" in status and "CapEff:\t0000000000002000" in status
        sent = send(link.sender, echoes(10) + [datagram(1)]) - 1
        agent.wait_for(10, "icmp.rtt")
        ended = agent.end()
    assert ended.status == 0
    balanced(ended, sent)
    assert any("hardware timestamps need CAP_NET_ADMIN" in line for line in agent.said)


def test_without_cap_net_raw_it_says_what_to_do(link, tmp_path):
    require(shutil.which("setpriv"), "setpriv is not installed (apt install util-linux)")
    folder = tmp_path / "own"
    folder.mkdir()
    agent = Agent(link.receiver, folder, **nobody(folder, ""))
    try:
        assert agent.process.wait(START_seconds) == 3
    finally:
        agent.__exit__()
    assert "b0: capturing needs the privilege CAP_NET_RAW" in agent.said[-1]


def test_hardware_timestamps_that_there_are_not(link, tmp_path):
    with Agent(link.receiver, tmp_path, "--set", "live.hardware_timestamps=true") as agent:
        agent.hear("b0: has no hardware timestamps, the kernel's are used")
        send(link.sender, echoes(3))
        agent.wait_for(3, "icmp.rtt")
        assert agent.end().status == 0

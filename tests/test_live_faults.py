"""What befalls a running `qoetap live`: too much, interfaces that go, outputs that stop. All of it is counted."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dataplane.capture import interface
from dataplane.capture.port import Port
from dataplane.capture.ring import RingOptions
from dataplane.records import CHECKED, JIT
from tests.live import Agent, Load, balanced, datagram, echoes, many_echoes, send, wait_until

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="a process of its own, which is always compiled")
DRAIN_seconds = 10
FLOWS = [datagram(flow, back) for flow in range(2000) for back in (False, True)]


def packets_in(records):
    """Packets in flow records."""
    return sum(e["flow"]["pkts_toserver"] + e["flow"]["pkts_toclient"] for e in records)


# --- more than it can take


@pytest.mark.parametrize(("workers", "allowed", "status"), [(1, 0.01, 5), (1, 1, 0), (2, 1, 0)])
def test_a_stopped_reader_loses_what_is_counted(link, tmp_path, workers, allowed, status):
    options = ("--set", "live.ring_size=256KiB", "--set", f"live.loss_allowed={allowed}", "--workers", workers)
    with Agent(link.receiver, tmp_path, *options) as agent:
        agent.stop()
        sent = send(link.sender, FLOWS * 5)
        agent.send(signal.SIGCONT)
        agent.rest()
        sent += send(link.sender, echoes(10))
        agent.wait_for(10, "icmp.rtt")
        ended = agent.end()
    packets = balanced(ended, sent)
    assert packets["dropped"]["kernel"] > sent // 2
    assert packets["processed"] == sent - packets["dropped"]["kernel"] == packets_in(agent.events("flow.end"))
    assert ended.stats["ledger"]["interfaces"]["b0"]["freezes"] > 0
    assert ended.status == status
    told = [line for line in agent.said if "of the packets were lost" in line]
    assert bool(told) == (status == 5)
    if told:
        assert "live.loss_allowed" in told[0] and "enlarge live.ring_size" in told[0]


def test_term_under_load_delivers_what_was_taken(link, tmp_path):
    flows = [datagram(flow) for flow in range(20_000)]
    with Agent(link.receiver, tmp_path, "--set", "live.loss_allowed=1") as agent, Load(link.sender, flows) as load:
        wait_until(lambda: load.sent > 20_000)
        ended = agent.end()
    packets = ended.packets
    assert ended.status == 0 and ended.seconds < DRAIN_seconds
    balanced(ended, packets["seen"])
    assert 20_000 < packets["processed"] == packets_in(agent.events("flow.end"))
    assert len(agent.events("flow.end")) == ended.made >= 20_000
    assert ended.stats["ledger"]["events"]["dropped"] == 0


def test_a_second_term_ends_it_at_once(link, tmp_path):
    fifo = tmp_path / "slow"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.closing(os.fdopen(reader)), Agent(link.receiver, tmp_path, spec=f"jsonl:{fifo}") as agent:
        send(link.sender, FLOWS)
        time.sleep(0.3)
        agent.send(signal.SIGTERM)
        time.sleep(0.5)
        assert agent.process.poll() is None  # it waits for the reader
        ended = agent.end()
    assert ended.status == -signal.SIGTERM and ended.seconds < DRAIN_seconds / 2


def test_killed_and_started_again_on_the_same_file(link, tmp_path):
    with Agent(link.receiver, tmp_path) as agent, Load(link.sender, echoes(500)):
        wait_until(lambda: agent.output.stat().st_size > 1 << 21)
        agent.end(signal.SIGKILL)
    before = agent.output.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    with Agent(link.receiver, tmp_path) as agent:
        send(link.sender, echoes(5))
        agent.wait_for(5)
        ended = agent.end()
    text = agent.output.read_bytes()
    assert text.startswith(whole) and text.endswith(b"\n")
    lines = text[len(whole) :].splitlines()
    assert len(lines) == ended.made == 6
    assert all(json.loads(line)["event_type"] in ("icmp.rtt", "flow.end") for line in lines)


# --- interfaces that go and come back


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interface_goes_down_and_comes_up(link, tmp_path, workers):
    with Agent(link.receiver, tmp_path, "--workers", workers) as agent:
        sent = send(link.sender, echoes(20))
        agent.wait_for(20)
        link.receiver.down()
        agent.hear("b0: the interface is down")
        time.sleep(0.3)
        used, began = agent.busy(), time.monotonic()
        time.sleep(0.5)
        assert agent.busy() - used < 0.5 * (time.monotonic() - began)  # it sleeps
        link.receiver.up()
        agent.hear("b0: the interface is up again")
        sent += send(link.sender, echoes(20, 20))
        agent.wait_for(40, "icmp.rtt")
        ended = agent.end()
    balanced(ended, sent)
    assert ended.status == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interface_vanishes_and_is_made_again(pair, tmp_path, workers):
    with Agent(pair.receiver, tmp_path, "--workers", workers) as agent:
        sent = 0
        for turn in range(2):
            sent += send(pair.sender, echoes(20, turn * 20))
            since = len(agent.said)
            pair.remove_pair()
            agent.hear("b0: the interface is gone", since=since)
            pair.make_pair()
            agent.hear("b0: the interface is back", since=since)
        sent += send(pair.sender, echoes(20, 40))
        agent.wait_for(60, "icmp.rtt")
        ended = agent.end()
    balanced(ended, sent)
    assert ended.status == 0


def test_workers_see_new_rings_only_when_the_port_is_open(link):
    """Else one could take the new ring for that of the interface that is gone, and close it."""

    class Watched(Port):
        def __setattr__(self, name, value):
            assert name != "rings" or not any(value) or not self.gone
            super().__setattr__(name, value)

    port = link.receiver.inside(Watched, "b0", RingOptions(1 << 18, 1 << 16, 1))
    port.gone = True
    port.leave(0)
    link.receiver.inside(port._open, port.index)
    assert port.rings[0] and not port.gone
    port.close()


class Stamps:
    """Stands for fcntl.ioctl: cards that stamp packets when asked to, except where told `refusal`. None is here."""

    def __init__(self):
        self.asked, self.refusal, self.ioctl = 0, None, fcntl.ioctl

    def __call__(self, sock, code, request):
        if code not in (interface.SIOCSHWTSTAMP, interface.SIOCGHWTSTAMP):
            return self.ioctl(sock, code, request)
        if code == interface.SIOCGHWTSTAMP:  # not turned on yet
            raise OSError(errno.EOPNOTSUPP, "")
        self.asked += 1
        if self.refusal:
            raise OSError(self.refusal, "")
        return request


def test_an_interface_that_is_back_stamps_again_or_says_that_it_does_not(pair, monkeypatch):
    stamps = Stamps()
    monkeypatch.setattr(interface.fcntl, "ioctl", stamps)
    inside = pair.receiver.inside

    def come_back(refusal=None):
        """What is said when the interface has gone and come back."""
        pair.remove_pair()
        assert inside(port.look) == ["b0: the interface is gone; waiting for it to come back"]
        port.leave(0)
        stamps.refusal = refusal
        pair.make_pair()
        return inside(port.look)

    port = inside(Port, "b0", RingOptions(1 << 18, 1 << 16, 1, hardware=True))
    assert (stamps.asked, port.notes, port.rings[0].options.hardware) == (1, [], True)
    back = "b0: the interface is back"
    assert come_back() == [back]
    assert (stamps.asked, port.rings[0].options.hardware) == (2, True)
    assert come_back(errno.EOPNOTSUPP) == [back, "b0: has no hardware timestamps, the kernel's are used"]
    assert not port.rings[0].options.hardware
    said = come_back(errno.EPERM)
    assert said[0] == back and said[1].startswith("b0: hardware timestamps need CAP_NET_ADMIN")
    assert come_back() == [back]
    assert (stamps.asked, port.rings[0].options.hardware) == (5, True)
    port.close()


def test_an_interface_that_is_gone_at_the_end(pair, tmp_path):
    with Agent(pair.receiver, tmp_path) as agent:
        sent = send(pair.sender, echoes(20))
        agent.wait_for(20)
        pair.remove_pair()
        agent.hear("b0: the interface is gone")
        ended = agent.end()
    balanced(ended, sent)
    assert ended.status == 0 and ended.seconds < 3


def test_no_thread_or_descriptor_is_left_behind(pair, tmp_path):
    def turn():
        pair.receiver.down()
        pair.receiver.up()
        since = len(agent.said)
        pair.remove_pair()
        agent.hear("the interface is gone", since=since)
        pair.make_pair()
        agent.hear("the interface is back", since=since)
        return send(pair.sender, echoes(2))

    with Agent(pair.receiver, tmp_path, "--workers", 2) as agent:
        sent = turn()
        wait_until(lambda: agent.events("icmp.rtt"))
        before = agent.threads(), agent.descriptors()
        sent += sum(turn() for _ in range(9))
        wait_until(lambda: (agent.threads(), agent.descriptors()) == before)
        maps = Path(f"/proc/{agent.pid}/maps").read_text()
        assert sum("packet" in line or "socket:" in line for line in maps.splitlines()) == 2
        ended = agent.end()
    balanced(ended, sent)


# --- outputs that stop


def test_a_slow_reader_does_not_hold_up_capture(link, tmp_path):
    fifo = tmp_path / "slow"
    os.mkfifo(fifo)
    taken = bytearray()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Agent(link.receiver, tmp_path, spec=f"jsonl:{fifo}") as agent:
        sent = send(link.sender, many_echoes(80_000))
        os.set_blocking(reader, True)

        def read():
            while data := os.read(reader, 1 << 16):
                taken.extend(data)

        late = threading.Thread(target=read)
        time.sleep(1.5)
        agent.send(signal.SIGTERM)
        late.start()
        ended = agent.end(0)
        late.join()
        os.close(reader)
    packets, events = balanced(ended, sent), ended.stats["ledger"]["events"]
    assert packets["dropped"]["kernel"] == 0
    assert ended.made == 80_001 and events["queued"] == 0
    assert 0 < events["dropped"] == ended.made - events["delivered"]
    lines = taken.splitlines()
    assert len(lines) == events["delivered"] and all(map(json.loads, lines))


@contextlib.contextmanager
def small_disk(folder, size):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_said_and_survived(link, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "64k"), Agent(link.receiver, tmp_path, output="disk/events.jsonl") as agent:
        sent = send(link.sender, echoes(500))
        said = agent.hear("No space left on device")
        assert "events are dropped and counted until it can be written" in said
        whole = len(agent.events())
        sent += send(link.sender, echoes(500, 500))
        time.sleep(0.6)
        assert sum("No space left" in line for line in agent.said) == 1
        os.truncate(agent.output, 0)
        sent += send(link.sender, echoes(10, 1000))
        agent.hear("written again")
        ended = agent.end()
        last = len(agent.events())
    packets, events = balanced(ended, sent), ended.stats["ledger"]["events"]
    assert packets["dropped"]["kernel"] == 0
    assert ended.made == 1011 and events["delivered"] == whole + last and events["dropped"] > 500

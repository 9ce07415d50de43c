"""A Link passes what is sent and nothing else, and leaves nothing behind."""

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require

from qoetap import lab
from qoetap.exits import PRIVILEGE, RUN_ERROR, Exit
from qoetap.lab import NAMESPACES, SIOCETHTOOL, Link

ROOT = Path(__file__).resolve().parent.parent
ETH_P_ALL = 3
SETTINGS = (0x16, 0x18, 0x1E, 0x23, 0x2B)  # linux/ethtool.h: ETHTOOL_G TXCSUM, SG, TSO, GSO, GRO
LEAVE_IT = """
import os, signal
from qoetap.lab import Link
link = Link()
print(link.sender.namespace, link.receiver.namespace, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _tools(root):
    require(shutil.which("ip"), "ip is not installed (apt install iproute2)")


@pytest.fixture
def link():
    with Link() as made:
        yield made


def hearing(end):
    """A packet socket that receives on this side."""
    sock = end.inside(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((end.interface, ETH_P_ALL))
    sock.settimeout(5)
    return sock


def frame(size, mark=b"qoetap"):
    return bytes.fromhex("0200000000020200000000010800") + mark + bytes(size - 14 - len(mark))


def names(link):
    return {end.namespace for end in link.ends} & set(os.listdir(NAMESPACES))


def test_a_frame_passes_in_both_directions(link):
    for here, there in (link.ends, link.ends[::-1]):
        with hearing(there) as ear, here.socket() as mouth:
            mouth.send(frame(60))
            assert ear.recv(2000) == frame(60)


def test_the_longest_frame_is_the_mtu_and_its_header():
    with Link(mtu=9000) as link, hearing(link.receiver) as ear, link.sender.socket() as mouth:
        mouth.send(frame(9014))
        assert ear.recv(10_000) == frame(9014)
        with pytest.raises(OSError, match="Message too long"):
            mouth.send(frame(9015))


def test_it_counts_what_was_sent_and_is_silent_otherwise(link):
    with link.sender.socket() as mouth:
        for _ in range(7):
            mouth.send(frame(100))
    wanted, limit = dict.fromkeys(lab.COUNTER_NAMES, 0) | {"rx_packets": 7, "rx_bytes": 700}, time.monotonic() + 5
    while link.receiver.counters() != wanted and time.monotonic() < limit:
        time.sleep(0.01)  # the other side's processor is busy
    assert link.receiver.counters() == wanted
    assert link.sender.counters()["tx_packets"] == 7
    for end in link.ends:
        silence = Path(f"/proc/sys/net/ipv6/conf/{end.interface}/disable_ipv6")
        assert end.inside(lambda path=silence: not path.exists() or path.read_text() == "1\n")


def test_a_sending_socket_hears_nothing(link):
    with link.sender.socket() as mouth, link.receiver.socket() as other:
        other.send(frame(60))
        mouth.setblocking(False)
        with pytest.raises(BlockingIOError):
            mouth.recv(100)


def test_a_command_runs_on_its_side_under_its_own_pid(link):
    show = [sys.executable, "-c", "import os, socket; print(os.getpid(), *sorted(n for _, n in socket.if_nameindex()))"]
    with subprocess.Popen(link.receiver.command(*show), stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0].split() == [str(process.pid), "b0", "lo"]


def test_down_and_up(link):
    with hearing(link.receiver) as ear, link.sender.socket() as mouth:
        link.receiver.down()
        with pytest.raises(OSError):
            ear.recv(100)
        link.sender.down()
        with pytest.raises(OSError, match="Network is down"):
            mouth.send(frame(60))
        link.sender.up()
        link.receiver.up()
        mouth.send(frame(60))
        assert ear.recv(100) == frame(60)


def test_the_pair_goes_and_comes_back(link):
    link.remove_pair()
    assert link.receiver.inside(socket.if_nameindex) == [(1, "lo")]
    link.make_pair()
    with hearing(link.receiver) as ear, link.sender.socket() as mouth:
        mouth.send(frame(60))
        assert ear.recv(100) == frame(60)


def offloads(end):
    """Whether each of SETTINGS is on."""
    with end.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return [setting(sock, end.interface, command) for command in SETTINGS]


def setting(sock, interface, command):
    value = lab.array.array("I", [command, 7])
    fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), value.buffer_info()[0]))
    return value[1]


def test_offloads_go_off_where_asked(link):
    assert any(offloads(link.sender))
    with Link(offloads=False) as plain:
        for end in plain.ends:
            assert offloads(end) == [0] * len(SETTINGS)


def test_nothing_stays_after_an_exception():
    with pytest.raises(ZeroDivisionError), Link() as link:
        assert len(names(link)) == 2
        raise ZeroDivisionError
    assert not names(link)
    link.close()  # once more does no harm


def test_nothing_stays_when_it_cannot_be_made():
    before = set(os.listdir(NAMESPACES)) if NAMESPACES.is_dir() else set()
    with pytest.raises(Exit, match="mtu") as caught:
        Link(mtu=1 << 30)
    assert caught.value.status == RUN_ERROR
    assert not [name for name in set(os.listdir(NAMESPACES)) - before if name.startswith(f"qoetap-{os.getpid()}-")]


def test_what_a_killed_process_left_is_removed_and_nothing_else(link):
    done = subprocess.run([sys.executable, "-c", LEAVE_IT], check=False, cwd=ROOT, capture_output=True, text=True)
    left = set(done.stdout.split())
    assert done.returncode == -signal.SIGKILL and len(left) == 2
    with Link() as other:
        assert not left & set(os.listdir(NAMESPACES))
        assert len(names(link)) == len(names(other)) == 2


def test_a_name_of_somebody_else_stays():
    assert lab.OURS.fullmatch("qoetap-1-1-a")
    assert not any(map(lab.OURS.fullmatch, ("qoetap-1-1-c", "qoetap-x-1-a", "myqoetap-1-1-a", "qoetap-1-1-ab")))


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Exit, match="needs root: run with sudo") as caught:
        Link()
    assert caught.value.status == PRIVILEGE


def test_without_ip_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Exit, match="apt install iproute2"):
        Link()

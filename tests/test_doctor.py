"""Findings of `qoetap doctor` about what live capture needs, on real interfaces where the kernel makes them."""

import array
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time

import pytest

from dataplane.capture import CaptureError, bpf
from qoetap import doctor
from qoetap.findings import MISSING, OK, WRONG, host, nic
from qoetap.lab import Link
from tests.conftest import require
from tests.helpers import run

GGRO, SGRO = 0x2B, 0x2C  # linux/ethtool.h
GIB = 1 << 30


@pytest.fixture(scope="module")
def link():
    """A pair of interfaces of this machine's own, with jumbo frames."""
    require(os.geteuid() == 0, "this needs root")
    require(shutil.which("ip"), "ip is not installed (apt install iproute2)")
    with Link(mtu=9000) as found:
        yield found


@pytest.fixture
def name(link):
    return link.receiver.interface


def within(link, call, *args):
    return link.receiver.inside(call, *args)


def found_by(findings):
    """Findings by their names."""
    return {finding.name: finding for finding in findings}


def gro(name, code, value=0):
    """Ask for software GRO, or set it, by the ioctl that speaks of nothing else."""
    request = array.array("I", [code, value])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, nic.SIOCETHTOOL, struct.pack("16sP16x", name.encode(), request.buffer_info()[0]))
    return request[1]


def test_an_interface_as_it_should_be(link, name):
    deadline = time.monotonic() + 5  # the kernel notices the carrier within a second
    while within(link, nic.link, name).state != OK and time.monotonic() < deadline:
        time.sleep(0.05)
    found = found_by(within(link, nic.interface, name, False))
    assert [finding.state for finding in found.values()] == [OK] * 4, found
    assert found[name].found == "up" and found[f"{name} MTU"].found.startswith("9000 bytes")
    assert found[f"{name} timestamps"].found == "kernel's only"


def test_merging_is_found_and_how_to_end_it(link, name):
    within(link, gro, name, SGRO, 1)
    on = within(link, nic.offloads, name)
    assert on.state == WRONG and on.found == "packets are merged by rx-gro"
    assert on.mend == f"ethtool -K {name} gro off"
    within(link, gro, name, SGRO, 0)
    off = within(link, nic.offloads, name)
    assert off.state == OK and off.found == "none merges packets" and not off.mend


def test_features_agree_with_the_ioctl_for_each(link, name):
    for value in (1, 0):
        within(link, gro, name, SGRO, value)
        assert within(link, nic.features, name)["rx-gro"] == (bool(within(link, gro, name, GGRO)), False)
    assert within(link, nic.features, name)["rx-lro"] == (False, True)  # a veth has none


def test_what_cannot_be_turned_off_here_is_said(monkeypatch):
    there = {"rx-gro": (True, False), "rx-lro": (False, True), "rx-gro-hw": (True, True)}
    monkeypatch.setattr(nic, "features", lambda _: there)
    found = nic.offloads("eth9")
    assert found.found == "packets are merged by rx-gro, rx-gro-hw"
    assert found.mend.startswith("ethtool -K eth9 gro off; what is fixed") and "hypervisor" in found.mend


def test_an_interface_that_does_not_tell_its_features(monkeypatch):
    def refuse(_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(nic, "features", refuse)
    assert nic.offloads("eth9")[1:3] == (MISSING, "the interface does not tell (Operation not supported)")


def test_an_interface_that_is_down(link, name):
    link.receiver.down()
    try:
        found = within(link, nic.link, name)
    finally:
        link.receiver.up()
    assert found[1:] == (WRONG, "is down", f"ip link set dev {name} up")


def test_a_cable_that_is_out(link, name):
    link.sender.down()
    try:
        deadline = time.monotonic() + 5
        while within(link, nic.link, name).state == OK and time.monotonic() < deadline:
            time.sleep(0.05)
        found = within(link, nic.link, name)
    finally:
        link.sender.up()
    assert found.state == WRONG and "without a carrier" in found.found and "cable" in found.mend


def test_hardware_timestamps_that_are_not_offered(link, name):
    assert within(link, nic.timestamps, name, False).state == OK
    wanted = within(link, nic.timestamps, name, True)
    assert wanted.state == WRONG and wanted.mend == "set live.hardware_timestamps: false"


def test_hardware_timestamps_that_are_offered(monkeypatch):
    """The answer of a card that stamps everything (struct ethtool_ts_info)."""
    answer = struct.pack("IIiI12xI12x", nic.GET_TS_INFO, nic.RX_HARDWARE | nic.RAW_HARDWARE, 0, 3, nic.FILTER_ALL)
    monkeypatch.setattr(nic, "ethtool", lambda *_, **__: answer)
    assert nic.timestamps("eth9", True)[1:3] == (OK, "hardware and kernel")


def test_the_command_names_interfaces(link, name):
    """`doctor -i`, there in the namespace, with an interface that is there and one that is not."""
    command = link.receiver.command(sys.executable, "-m", "qoetap", "doctor", "-i", name, "-i", "nope", "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = found_by(doctor.Finding(**one) for one in json.loads(done.stdout))
    assert done.returncode == 1 and done.stderr == ""
    assert found["nope"].state == WRONG and f"there are {name}, lo" in found["nope"].found
    assert found[f"{name} offloads"].state == OK and found["rings"].found.startswith("2 of 64 MiB")


def test_the_loopback_is_no_card():
    assert [finding.name for finding in nic.interface("lo", False)] == ["lo", "lo MTU"]


def test_interfaces_of_the_configuration_are_looked_at(tmp_path):
    (tmp_path / "site.yaml").write_text("live: {interfaces: [lo, nope0]}\n")
    ended = run("doctor", "-c", tmp_path / "site.yaml")
    assert ended.status == 1
    assert re.search(r"^wrong +nope0 +there is no interface 'nope0'", ended.out, re.MULTILINE)


def without_capture(*words):
    """Findings of a doctor that may not open packet sockets."""
    require(os.geteuid() == 0 and shutil.which("setpriv"), "this needs root and setpriv (apt install util-linux)")
    command = ["setpriv", "--bounding-set", "-net_raw", sys.executable, "-m", "qoetap", "doctor", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, found_by(doctor.Finding(**one) for one in json.loads(done.stdout))


def test_the_privilege_is_missing_only_to_who_captures():
    status, found = without_capture()
    assert status == 0 and found["CAP_NET_RAW"].state == MISSING
    status, found = without_capture("-i", "lo", "--set", "live.hardware_timestamps=true")
    assert status == 1 and found["CAP_NET_RAW"].state == WRONG
    assert "AmbientCapabilities=CAP_NET_RAW" in found["CAP_NET_RAW"].mend
    assert found["AF_PACKET"].state == OK  # it is there, one may only not use it
    assert found["CAP_NET_ADMIN"].state == OK


@pytest.mark.parametrize("bits, raw, admin", [("0000000000002000", OK, MISSING), ("0000000000001000", WRONG, OK)])
def test_capabilities_are_bits(bits, raw, admin, monkeypatch):
    monkeypatch.setattr(host.Path, "read_text", lambda _: f"Name:\tx\nCapPrm:\tffffffff\nCapEff:\t{bits}\nCapBnd:\t0\n")
    assert host.capture_privilege(WRONG).state == raw and host.timestamp_privilege().state == admin


def test_without_proc_no_capability_is_claimed(monkeypatch):
    def refuse(_):
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(host.Path, "read_text", refuse)
    assert host.effective_capabilities() == 0


def test_a_kernel_without_packet_sockets(monkeypatch):
    def refuse(*_):
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(host.socket, "socket", refuse)
    found = host.packet_sockets(WRONG)
    assert found.state == WRONG and "not supported" in found.found and "RestrictAddressFamilies" in found.mend


def test_filters_need_libpcap(monkeypatch):
    assert host.filters(WRONG).state == OK
    monkeypatch.setattr(bpf, "LIBRARIES", ("libnone.so.9",))
    bpf._libpcap.cache_clear()
    try:
        found = host.filters(MISSING)
    finally:
        bpf._libpcap.cache_clear()
    assert found.state == MISSING and "apt install libpcap0.8" in found.found


@pytest.mark.parametrize("left, state", [(3 * GIB, OK), (2 * GIB, WRONG), (-1, WRONG), (None, OK)])
def test_rings_and_memory(left, state):
    found = host.rings(GIB, 2, left, WRONG)
    assert found.state == state and found.found.startswith("2 of 1024 MiB")
    assert ("lower live.ring_size" in found.mend) == (state == WRONG)


def test_rings_of_the_configuration_are_counted(monkeypatch):
    """One for each worker and interface, beside the tables."""
    monkeypatch.setattr(doctor, "available_bytes", lambda: GIB)
    fits = ("doctor", "-i", "lo", "--set", "live.ring_size=256MiB", "--set", "workers=2")
    assert re.search(r"^ok +rings +2 of 256 MiB, \d+ MiB left by the tables$", run(*fits).out, re.MULTILINE)
    assert re.search(r"^wrong +rings +4 of 256 MiB,.*lower live.ring_size", run(*fits, "-i", "nope").out, re.MULTILINE)


@pytest.fixture
def sources(tmp_path):
    """Writes what the kernel says of its clock sources."""

    def write(current, *others):
        (tmp_path / "current_clocksource").write_text(f"{current}\n")
        (tmp_path / "available_clocksource").write_text(" ".join([*others, current]) + " \n")
        return tmp_path

    return write


def test_clock_sources(sources, tmp_path):
    assert host.clock_source(WRONG, tmp_path / "none").state == MISSING
    for quick in ("tsc", "kvm-clock", "arch_sys_counter"):
        assert host.clock_source(WRONG, sources(quick, "hpet"))[:3] == ("clock source", OK, quick)
    slow = host.clock_source(WRONG, sources("hpet", "acpi_pm", "tsc"))
    assert slow.state == WRONG and "echo tsc > " in slow.mend
    none = host.clock_source(MISSING, sources("acpi_pm", "hpet"))
    assert none.state == MISSING and "dmesg" in none.mend and "echo" not in none.mend


def test_the_system_clock(monkeypatch):
    status, error_us = host.kernel_time()
    assert status >= 0 and error_us >= 0
    assert host.system_clock().state == (MISSING if status & host.STA_UNSYNC else OK)
    monkeypatch.setattr(host, "kernel_time", lambda: (0x2001, 1500))
    assert host.system_clock()[:3] == ("system clock", OK, "synchronised, off by 1.5 ms at most")
    monkeypatch.setattr(host, "kernel_time", lambda: (0x2041, 16_000_000))
    assert host.system_clock().state == MISSING and "chrony" in host.system_clock().mend


def test_a_sandbox_that_forbids_the_question(monkeypatch):
    def refuse():
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(host, "kernel_time", refuse)
    assert host.system_clock()[1:3] == (MISSING, "the kernel does not tell (Operation not permitted)")


def test_an_interface_of_a_kind_that_is_not_read(monkeypatch):
    def refuse(name):
        raise CaptureError(f"{name}: is of a kind (ARPHRD 801) that qoetap does not read")

    monkeypatch.setattr(nic, "link_type", refuse)
    (found,) = nic.interface("lo", False)
    assert found.state == WRONG and "ARPHRD 801" in found.found

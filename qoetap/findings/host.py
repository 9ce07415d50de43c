"""What live capture needs of the machine: privileges, packet sockets, memory for the rings, and clocks.

`fault` is the state of what is not there: wrong where the configuration names interfaces, else only missing.
"""

import ctypes
import errno
import os
import re
import socket
from pathlib import Path

from dataplane.capture.bpf import ETHERNET, FilterError, compile_filter
from qoetap.findings import MISSING, OK, Finding, judged

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13  # linux/capability.h
MIB = 1 << 20
CLOCKSOURCES = Path("/sys/devices/system/clocksource/clocksource0")
QUICK_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase", "riscv_clocksource")
STA_UNSYNC = 0x40  # linux/timex.h


class Timex(ctypes.Structure):
    """The beginning of struct timex (adjtimex(2)), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),  # errors in microseconds
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def effective_capabilities():
    """Bits of the capabilities that this process has, as proc(5) tells them; 0 where it does not."""
    try:
        found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1], 16) if found else 0


def capture_privilege(fault):
    has = effective_capabilities() >> CAP_NET_RAW & 1
    mend = (
        "run it as root, give it to the service (AmbientCapabilities=CAP_NET_RAW, ops/qoetap.service), or try "
        "`setpriv --reuid USER --regid GROUP --init-groups --inh-caps +net_raw --ambient-caps +net_raw qoetap …`"
    )
    return judged("CAP_NET_RAW", has, "effective" if has else "this process does not have it", mend, fault)


def timestamp_privilege():
    """Asked for only where hardware timestamps are."""
    has = effective_capabilities() >> CAP_NET_ADMIN & 1
    mend = "without it somebody else has to turn hardware timestamps on: as root, hwstamp_ctl -i IFACE -r 1"
    return judged("CAP_NET_ADMIN", has, "effective" if has else "this process does not have it", mend, MISSING)


def packet_sockets(fault):
    """Whether the kernel has AF_PACKET: it says so even to those who may not use it."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
        why = None
    except OSError as error:
        why = None if error.errno == errno.EPERM else error.strerror
    mend = "modprobe af_packet; in a service, name AF_PACKET in RestrictAddressFamilies"
    return judged("AF_PACKET", not why, why or "there", mend, fault)


def filters(fault):
    """Whether filter expressions can be used."""
    try:
        compile_filter("ip", ETHERNET)
    except FilterError as error:
        return Finding("libpcap", fault, str(error), "or use no filter expressions")
    return Finding("libpcap", OK, "there")


def rings(ring_bytes, count, left_bytes, fault):
    """count: of rings, one for each worker and interface; left_bytes: memory that tables leave, None: unknown."""
    need = ring_bytes * count
    fine = left_bytes is None or need < left_bytes
    left = "" if left_bytes is None else f", {max(0, left_bytes) // MIB} MiB left by the tables"
    found = f"{count} of {ring_bytes / MIB:g} MiB{left}"
    return judged("rings", fine, found, "lower live.ring_size, or workers", fault)


def clock_source(fault, folder=CLOCKSOURCES):
    """What the kernel reads to stamp a packet."""
    try:
        name = (folder / "current_clocksource").read_text().strip()
        others = (folder / "available_clocksource").read_text().split()
    except OSError:
        return Finding("clock source", MISSING, "the kernel does not tell", "mount /sys")
    better = next((other for other in QUICK_CLOCKS if other in others), None)
    if better:
        mend = f"each packet waits for a slow clock: echo {better} > {folder}/current_clocksource"
    else:
        mend = "each packet waits for a slow clock: see dmesg for why tsc is not used, and the firmware's settings"
    return judged("clock source", name in QUICK_CLOCKS, name, mend, fault)


def kernel_time():
    """(status bits, greatest error in microseconds) of the system clock. OSError."""
    timex, libc = Timex(), ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.byref(timex)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return timex.status, timex.maxerror


def system_clock():
    """Events carry wall time; durations are right without."""
    try:
        status, error_us = kernel_time()
    except OSError as error:
        return Finding("system clock", MISSING, f"the kernel does not tell ({error.strerror})")
    fine = not status & STA_UNSYNC
    found = f"synchronised, off by {error_us / 1000:g} ms at most" if fine else "not synchronised"
    mend = "events carry its time: apt install chrony, or turn systemd-timesyncd on"
    return judged("system clock", fine, found, mend, MISSING)

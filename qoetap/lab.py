"""A network of this machine's own, for tests and measurements: namespaces and veth pairs between them. Needs root.

A Link is two namespaces and a pair; street.py has a router in the middle. Nothing but what is sent on purpose passes:
no IPv6 autoconfiguration, no ARP. All of it is removed at the end, also after an exception; what a killed process left
behind goes when the next Lab is made (namespaces(7), veth(4)).
"""

import array
import contextlib
import ctypes
import fcntl
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qoetap.exits import PRIVILEGE, RUN_ERROR, Exit

NAMESPACES = Path("/run/netns")  # where ip-netns(8) keeps them
OURS = re.compile(r"qoetap-(?P<pid>\d+)-\d+-[abrs]")
CLONE_NEWNET = 0x40000000  # linux/sched.h
CARRIER_seconds = 10
SIOCETHTOOL = 0x8946  # linux/sockios.h
OFFLOADS = (0x17, 0x19, 0x1F, 0x24, 0x2C)  # linux/ethtool.h: ETHTOOL_S TXCSUM, SG, TSO, GSO, GRO
COUNTERS = (0, 1, 2, 3, 8, 9, 10, 11)  # columns of /proc/net/dev
COUNTER_NAMES = tuple(f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped"))

_numbers, _live = itertools.count(1), set()


def tool(name):
    """Path of ip(8) or tc(8). Exit: it is not there."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Exit(RUN_ERROR, f"{name} is not installed: apt install iproute2")
    return found


def run(name, *words):
    """Run ip(8) or tc(8); what it wrote. Exit: it is not there, or says no."""
    done = subprocess.run([tool(name), *map(str, words)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise Exit(RUN_ERROR, f"`{name} {' '.join(map(str, words))}` failed: {done.stderr.strip()}")
    return done.stdout


def _enter(namespace):
    """Move the calling thread into the namespace (setns(2); os.setns came with Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NAMESPACES / namespace).open("rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_leftovers():
    """Remove the namespaces of Labs whose process is gone; their names."""
    removed = []
    for name in sorted(os.listdir(NAMESPACES)) if NAMESPACES.is_dir() else ():
        found = OURS.fullmatch(name)
        if not found or name in _live:
            continue
        pid = int(found["pid"])
        if pid == os.getpid() or not _is_alive(pid):
            with contextlib.suppress(Exit):  # another process was quicker
                run("ip", "netns", "del", name)
                removed.append(name)
    return removed


class End:
    """One side of a veth pair: the interface `interface` in the namespace `namespace`."""

    def __init__(self, namespace, interface):
        self.namespace, self.interface = namespace, interface

    def command(self, *argv):
        """The command line that runs `argv` on this side; its process is that of `argv` itself."""
        return [tool("ip"), "netns", "exec", self.namespace, *map(str, argv)]

    def inside(self, call, *args):
        """What `call(*args)` returns in a thread on this side: sockets that it opens stay here."""
        with ThreadPoolExecutor(1, initializer=_enter, initargs=(self.namespace,)) as pool:
            return pool.submit(call, *args).result()

    def socket(self):
        """A raw packet socket for sending whole frames out of the interface; it receives nothing (packet(7))."""
        sock = self.inside(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((self.interface, 0))
        return sock

    def up(self):
        run("ip", "-n", self.namespace, "link", "set", "dev", self.interface, "up")

    def down(self):
        run("ip", "-n", self.namespace, "link", "set", "dev", self.interface, "down")

    def remove(self):
        """Remove the interface, and with it its other end."""
        run("ip", "-n", self.namespace, "link", "del", "dev", self.interface)

    def counters(self):
        """What the interface has counted: rx_ and tx_ bytes, packets, errors, dropped."""
        text = self.inside(Path("/proc/thread-self/net/dev").read_text)
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{self.interface}:"))
        columns = line.split(":", 1)[1].split()
        return {name: int(columns[at]) for name, at in zip(COUNTER_NAMES, COUNTERS, strict=True)}

    def _without_offloads(self):
        """Packets stay as they were sent: nothing merges them or leaves their checksums to a card (ethtool(8))."""
        with self.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for command in OFFLOADS:
                value = array.array("I", [command, 0])
                request = struct.pack("16sP16x", self.interface.encode(), value.buffer_info()[0])
                with contextlib.suppress(OSError):  # what the interface cannot do is off already
                    fcntl.ioctl(sock, SIOCETHTOOL, request)

    def _await_carrier(self):
        """Wait until the kernel has noticed that both ends are up: it drops what is sent before (link_watch.c)."""
        limit = time.monotonic() + CARRIER_seconds
        while "state UP" not in run("ip", "-n", self.namespace, "-o", "link", "show", "dev", self.interface):
            if time.monotonic() > limit:
                raise Exit(RUN_ERROR, f"{self.interface} has no carrier after {CARRIER_seconds} s")
            time.sleep(0.01)

    def _prepare(self, mtu, offloads):
        run("ip", "-n", self.namespace, "link", "set", "dev", self.interface, "mtu", mtu, "arp", "off")
        if not offloads:
            self._without_offloads()
        self.up()


class Lab:
    """One namespace for each of `letters`, and what a subclass builds in them with `build`.

    mtu: of all interfaces, in bytes; offloads: whether the kernel may hand on merged segments and unfilled checksums.
    Exit: not root, or the kernel does not do it.
    """

    letters = ""

    def __init__(self, mtu=1500, offloads=True):
        if os.geteuid():
            raise Exit(PRIVILEGE, "making network namespaces needs root: run with sudo")
        self.mtu, self.offloads, self.pairs = mtu, offloads, []
        stem = f"qoetap-{os.getpid()}-{next(_numbers)}"
        self.namespaces = [f"{stem}-{letter}" for letter in self.letters]
        _live.update(self.namespaces)
        remove_leftovers()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        for namespace in self.namespaces:
            run("ip", "netns", "add", namespace)
            silence = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
            if silence.exists():
                End(namespace, "lo").inside(silence.write_text, "1")
        self.build()

    def build(self):
        raise NotImplementedError

    def join(self, a, b):
        """Make the veth pair of two Ends; both are up then."""
        if (a, b) not in self.pairs:
            self.pairs.append((a, b))
        veth = ("type", "veth", "peer", "name", b.interface, "netns", b.namespace)
        run("ip", "link", "add", a.interface, "netns", a.namespace, *veth)
        for end in (a, b):
            end._prepare(self.mtu, self.offloads)
        for end in (a, b):
            end._await_carrier()

    def close(self):
        """Remove all of it; once more does no harm."""
        for a, _ in self.pairs:  # at once, a namespace takes its time
            with contextlib.suppress(Exit):
                a.remove()
        for namespace in self.namespaces:
            if (NAMESPACES / namespace).exists():
                run("ip", "netns", "del", namespace)
            _live.discard(namespace)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Link(Lab):
    """Two namespaces joined by a veth pair: `sender` (interface a0) and `receiver` (b0), both up, without addresses."""

    letters = "ab"

    def build(self):
        a, b = self.namespaces
        self.sender, self.receiver = self.ends = End(a, "a0"), End(b, "b0")
        self.make_pair()

    def make_pair(self):
        """Make the two interfaces, at the start or after `remove_pair`."""
        self.join(*self.ends)

    def remove_pair(self):
        """Remove both interfaces: for their readers they vanish."""
        self.sender.remove()

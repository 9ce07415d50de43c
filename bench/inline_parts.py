"""What every measurement of `qoetap inline` needs: a router whose firewall has a queue, who looks after that queue, UDP
load, and what arrives behind the router.
"""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.live_parts import LOOK_seconds, Reader, READY_seconds, Senders
from bench.live_readers import tcpdump_counted
from bench.udp_sender import FIRST_PORT
from dataplane.capture.nfqueue import TABLE, counts_of
from qoetap import firewall
from qoetap.street import RECEIVER, Street

QUEUE = 5
MOST = 16384  # packets that a queue holds where two are compared
LENGTH_bytes = 500  # of a datagram with its IP header
BITS = LENGTH_bytes * 8
SETTLE_seconds = 1.0  # of load before anything counts
STILL_seconds = 15  # in which all that classes hold has left
SNAP_bytes = 64  # of a packet: headers, and always as many
RING_KiB = 64 << 10
RECORD = np.dtype(  # of a pcap file in which every packet has SNAP_bytes; IPv4 over Ethernet
    [
        ("seconds", "<u4"),
        ("ns", "<u4"),
        ("caplen", "<u4"),
        ("frame_bytes", "<u4"),
        ("ethernet", "14u1"),
        ("ip", "2u1"),
        ("length", ">u2"),
        ("rest", "18u1"),
        ("dport", ">u2"),
        ("more", f"{SNAP_bytes - 38}u1"),
    ]
)
PCAP_bytes, PCAP_NANO = 24, 0xA1B23C4D  # the length of its header, and how that begins


@contextlib.contextmanager
def router():
    """A Street whose router hands on what it forwards to the queue QUEUE. Exit: it cannot be made."""
    with Street() as street:
        street.router.inside(firewall.install, [firewall.Rule(QUEUE)])
        street.receiver.inside(_be_silent)
        yield street


def _be_silent():
    """Drop datagrams, so that no ICMP error says that nobody hears them; captures and counters see them before."""
    where = ["-t", "mangle", "-A", "PREROUTING", "-p", "udp", "-j", "DROP"]
    subprocess.run(["iptables", *where], check=True)


def classes(count, rate, first=FIRST_PORT, **more):
    """Classes c0, c1, … of UDP to the ports from `first` on, with a rate in bit/s; more: their other keys."""
    rest = {"rate": rate, **more}
    return [{"name": f"c{i}", "match": {"proto": "udp", "dport": first + i}, **rest} for i in range(count)]


class Looking(Reader):
    """Who looks after the queue; `word` in what it prints says that it does."""

    def __init__(self, street, argv, word):
        super().__init__(street.router, argv)
        self.word = word

    def ready(self):
        """Wait for the word."""
        deadline = time.monotonic() + READY_seconds
        while self.word not in self.text:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.word!r} was not said: {self.text.strip()[-400:]}")
            time.sleep(LOOK_seconds)
        time.sleep(2 * LOOK_seconds)


class Inline(Looking):
    """`qoetap inline` with these classes and all default detectors; its files are in `folder`.

    events: whether they are kept, in `events.jsonl`; more: keys of the section `inline`.
    """

    def __init__(self, street, folder, classes=(), events=False, **more):
        self.folder = Path(folder)
        self.control, self.stats, self.events = (self.folder / name for name in ("control", "stats", "events.jsonl"))
        section = {"control": f"unix:{self.control}", "stats_every": "0s", "classes": list(classes), **more}
        config = self.folder / "inline.yaml"
        config.write_text(json.dumps({"inline": section}))  # JSON is YAML
        out = self.events if events else "null"
        options = ("-q", QUEUE, "-c", config, "-o", out, "--stats", self.stats)
        super().__init__(street, [sys.executable, "-m", "qoetap", "inline", *options], "TERM or INT ends it")

    def seen(self):
        """Packets that it got, as it says at the end."""
        return self.told()["ledger"]["seen"]

    def passes(self):
        """How often it let everything pass by, because it was late."""
        return self.text.count("everything passes by")

    def told(self):
        """What --stats wrote: {"classes": …, "ledger": …, "seconds": …}."""
        return json.loads(self.stats.read_text())

    def dropped(self):
        """Packets that classes dropped, as it says at the end."""
        return sum(row["over_bytes"] + row["over_time"] for row in self.told()["classes"].values())

    def put(self, path, body):
        """PUT to the control API; what it answers, as a dict. RuntimeError: it refuses."""
        with contextlib.closing(UnixConnection(self.control)) as connection:
            connection.request("PUT", path, body, {"Host": "localhost", "Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read().decode()
        if reply.status != http.HTTPStatus.OK:
            raise RuntimeError(f"PUT {path}: {reply.status} {text.strip()}")
        return json.loads(text)


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a socket in the file system."""

    def __init__(self, path, timeout=10):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Load(Senders):
    """`count` processes of bench.udp_sender to `ports` ports, each at `rate` packets a second (None: what it can)."""

    def __init__(self, street, ports, seconds, rate=None, count=1, before=None):
        self.running = []
        options = ["--to", RECEIVER.ipv4, "--ports", ports, "--length", LENGTH_bytes, "--seconds", seconds]
        options += ["--rate", rate] if rate else []
        options += ["--before", before] if before is not None else []  # evenly, see there
        for _ in range(count):
            self.start(street.sender, "bench.udp_sender", *options)


class Capture(Reader):
    """tcpdump behind the router: of each datagram its time and its headers."""

    def __init__(self, street, folder):
        self.path = Path(folder) / "behind.pcap"
        clock = ("-j", "host", "--time-stamp-precision=nano")
        size = ("-s", SNAP_bytes, "-B", RING_KiB)
        interface = street.receiver.interface
        argv = ["tcpdump", "-i", interface, "-n", "-Z", "root", *clock, *size, "-w", self.path, "udp"]
        super().__init__(street.receiver, argv)

    def finish(self):
        """End it when nothing arrives any more: RECORD rows, in the order of arrival. RuntimeError: it lost some."""
        before, deadline = -1, time.monotonic() + STILL_seconds
        while (now := self.end.counters()["rx_packets"]) > before and time.monotonic() < deadline:
            before = now
            time.sleep(SETTLE_seconds)
        self.drained()
        self.stop()
        if lost := tcpdump_counted(self.text, None).dropped:
            raise RuntimeError(f"the capture behind the router lost {lost} packets")
        return self.departures()

    def departures(self):
        """RECORD rows, in the order of arrival. RuntimeError: the file is none of ours."""
        rows = np.fromfile(self.path, RECORD, offset=PCAP_bytes)
        if np.fromfile(self.path, "<u4", 1) != PCAP_NANO or (rows["caplen"] != SNAP_bytes).any():
            raise RuntimeError("the capture behind the router is not as tcpdump was asked to write it")
        return rows


def times_of(rows):
    """ns since 1970 of RECORD rows, int64."""
    return rows["seconds"].astype(np.int64) * 1_000_000_000 + rows["ns"]


def by_class(rows):
    """{number of the class: its RECORD rows}."""
    order = np.argsort(rows["dport"], kind="stable")
    ports, firsts = np.unique(rows["dport"][order], return_index=True)
    return dict(zip((ports.astype(int) - FIRST_PORT).tolist(), np.split(rows[order], firsts[1:]), strict=True))


def arrived(street):
    """Packets that the receiver's interface has got so far."""
    return street.receiver.counters()["rx_packets"]


def queue_counts(street):
    """Counts of the queue QUEUE: what waits in it and what was ever in it (`last_id`)."""
    return counts_of(street.router.inside(TABLE.read_text))[QUEUE]


def under_load(looking, load, settle=SETTLE_seconds):
    """Begin the load when all are ready, and let it settle."""
    load.ready()
    looking.ready()
    load.go()
    time.sleep(settle)

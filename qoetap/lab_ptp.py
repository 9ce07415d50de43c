"""Paths under study: ptp4l as master and as slave, load from the master's side over a bottleneck, our tap at the slave.

PTP runs over UDP/IPv4 unicast, so that it is routed and queues with the load; both clocks are this machine's and run
free.
"""

import contextlib
import json
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from endhost.bursts import PORT
from qoetap.exits import RUN_ERROR, Exit
from qoetap.lab import End
from qoetap.lab_site import AGENT_READY, Processes
from qoetap.street import RECEIVER, SENDER, Fork, Side, Street, narrow, passed

LOG_INTERVAL = -7  # of Sync and Delay_Req: 128 a second, the most of telecom profiles (ITU-T G.8275.2)
QUEUE_ms = 500  # of the bottleneck
BURST_bytes, BURST_seconds = 2000, 320e-6  # it passes so much at once, at least: a packet, and what a late timer costs
TAP_READY = "listening; TERM or INT ends it"
FIRST_seconds = 60  # for ptp4l to find its master and the first samples to come

# ptp4l(8), linuxptp 3.1. free_running: the clock is not touched. A slave that loses its master in congestion asks anew.
COMMON = """\
[global]
time_stamping software
network_transport UDPv4
delay_mechanism E2E
domainNumber {domain}
logSyncInterval {log_interval}
logMinDelayReqInterval {log_interval}
logAnnounceInterval -2
announceReceiptTimeout 12
fault_reset_interval 0
free_running 1
inhibit_multicast_service 1
tx_timestamp_timeout 50
uds_address {control}
verbose 1
use_syslog 0
"""
MASTER = """\
priority1 10
unicast_listen 1
[{interface}]
"""
SLAVE = """\
priority1 200
slaveOnly 1
[unicast_master_table]
table_id 1
logQueryInterval 0
UDPv4 {master}
[{interface}]
unicast_master_table 1
"""


def ptp4l():
    """Path of ptp4l(8). Exit: it is not there."""
    found = shutil.which("ptp4l") or shutil.which("ptp4l", path="/usr/sbin:/sbin")
    if found is None:
        raise Exit(RUN_ERROR, "ptp4l is not installed: apt install linuxptp")
    return found


class Tap(NamedTuple):
    """A `qoetap live` at a slave: where its events go, None if to no file."""

    process: object
    events: Path | None


class Paths(Processes):
    """A lab with `sides`, each with a master at its sender, a slave at its receiver, and a bottleneck of rate_bps."""

    def __init__(self, folder, rate_bps, log_interval=LOG_INTERVAL, queue_ms=QUEUE_ms):
        super().__init__(folder)
        self.rate_bps, self.log_interval, self.queue_ms = rate_bps, log_interval, queue_ms
        self.taps = []

    def lab(self):
        """(the Lab, its sides)"""
        raise NotImplementedError

    def build(self):
        lab, self.sides = self.lab()
        self.controls = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="qoetap-")))  # short paths
        End(self.sides[0].receiver.namespace, "lo").up()  # for the services there
        for number, side in enumerate(self.sides):
            burst_bytes = max(BURST_bytes, round(BURST_seconds * self.rate_bps / 8))
            narrow(side.far, self.rate_bps, burst_bytes, self.queue_ms)
            self._take_load(side)
            self._run_ptp4l(number, side)

    def _take_load(self, side):
        """A socket that takes what the load sends and is never read: without one, each packet is answered by ICMP."""
        sock = self.stack.enter_context(side.receiver.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((side.receiver_place.ipv4, PORT))

    def _run_ptp4l(self, number, side):
        for what, text, end in (("master", MASTER, side.sender), ("slave", SLAVE, side.receiver)):
            name = f"{what}{number}"
            values = {"domain": number, "log_interval": self.log_interval, "control": self.controls / name}
            values |= {"interface": end.interface, "master": side.sender_place.ipv4}
            path = self.folder / f"{name}.cfg"
            path.write_text((COMMON + text).format(**values))
            self.start(end, ["-f", path], name, ptp4l())

    def tap(self, number=0, output=None, agent_id="lab"):
        """Run `qoetap live` at the slave of that side. output: a URL; None: into a file. Returns when it listens."""
        end = self.sides[number].receiver
        events = None if output else self.folder / f"events{number}.jsonl"
        if events:
            events.unlink(missing_ok=True)  # of an earlier run: they would be added to
        words = ["-m", "qoetap", "live", "-i", end.interface, "--detectors", "ptp", "--set", f"agent_id={agent_id}"]
        words += ["--set", "live.metrics=''", "-o", output or events, "udp port 319 or udp port 320"]
        tap = Tap(self.start(end, words, f"tap{number}"), events)
        tap.process.await_text(tap.process.err, TAP_READY)
        self.taps.append(tap)
        return tap

    def await_samples(self, tap, count=1):
        """Wait until the tap has written so many. Exit: they do not come."""
        limit = time.monotonic() + FIRST_seconds
        while not tap.events.exists() or tap.events.read_bytes().count(b'"ptp.delay"') < count:
            if time.monotonic() > limit:
                raise Exit(RUN_ERROR, f"ptp4l gave no sample in {FIRST_seconds} s (-o FOLDER keeps what it said)")
            if tap.process.process.poll() is not None:
                raise tap.process.failed()
            time.sleep(0.1)

    def load(self, steps, begin_ns, seed, number=0):
        """Start the load of one side: `steps` are (share of the capacity, seconds)."""
        side = self.sides[number]
        options = {"address": side.receiver_place.ipv4, "begin_ns": begin_ns, "capacity_bps": self.rate_bps}
        return self.agent(side.sender, "bursts", f"bursts{number}", **options, steps=steps, seed=seed)

    def passed(self, number=0):
        """What the bottleneck of a side has counted, see street.passed."""
        return passed(self.sides[number].far)

    def passed_since(self, before, number=0):
        """The same since it said `before`."""
        return {name: count - before[name] for name, count in self.passed(number).items()}

    def source(self, role, number=0, **options):
        """An agent at the sender of a side that others ask; it listens when this returns."""
        side = self.sides[number]
        found = self.agent(side.sender, role, f"{role}{number}", address=side.sender_place.ipv4, **options)
        found.await_text(found.out, AGENT_READY)


class OnePath(Paths):
    """A street: one data centre and one aggregation point."""

    def lab(self):
        street = self.stack.enter_context(Street())
        return street, (Side(street.sender, street.far, street.receiver, SENDER, RECEIVER),)


class TwoPaths(Paths):
    """A fork: two data centres, one aggregation point."""

    def lab(self):
        fork = self.stack.enter_context(Fork())
        return fork, fork.sides


def samples(path):
    """(ts_ns, delay_ns) of the ptp.delay events in a file of JSON lines, but for a last line that is cut short."""
    found = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if event["event_type"] == "ptp.delay":
                found.append((event["ts_ns"], event["ptp"]["mean_path_delay_ns"]))
    return found

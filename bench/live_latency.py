"""Event latency: from an echo reply on the wire to the line of its `icmp.rtt` event in the output file.

The sender notes the real-time clock just before it sends the reply; a watcher notes it when inotify(7) has told of a
write and the line was read. So the sender's system call and the watcher's wake-up (some 50 us) are in the figures.
"""

import ctypes
import json
import math
import os
import random
import select
import struct
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from bench.live_parts import Reader, Senders
from bench.live_readers import BEGINS, qoetap
from bench.live_report import say
from pcaps.packets import eth, icmp_echo, ipv4
from qoetap.lab import Link

CASES = [(retire, load) for retire in (None, "1ms") for load in (0, 100_000)]  # setting; packets a second besides
REQUEST, REPLY, IDENT = 8, 0, 0x51A7
CLIENT, SERVER = "192.0.2.1", "192.0.2.2"
ANSWER_seconds = 0.001
PAUSE_seconds = (0.005, 0.035)  # drawn evenly between: no rhythm that falls in with that of the ring
LAST_seconds = 2.0  # that the last lines get
IN_MODIFY = 2  # linux/inotify.h
EVENT_bytes = 4096


class Watcher(threading.Thread):
    """Follows the file at `path`: `arrived[icmp_seq]` is when the line of that event was there, ns since 1970."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.arrived, self.stamped, self.done = path, {}, {}, False
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_CLOEXEC)
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY) < 0:
            raise RuntimeError(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")

    def run(self):
        with self.path.open("rb") as file:
            rest = b""
            while not self.done:
                if select.select([self.fd], [], [], 0.1)[0]:
                    os.read(self.fd, EVENT_bytes)
                    *lines, rest = (rest + file.read()).split(b"\n")
                    self._note(lines, time.time_ns())

    def _note(self, lines, now):
        for line in lines:
            if b'"icmp.rtt"' not in line:
                continue
            event = json.loads(line)
            echo = event["icmp_loop"]
            if echo["icmp_id"] == IDENT and event["proto"] == "ICMP" and CLIENT in (event["src_ip"], event["dest_ip"]):
                self.arrived[echo["icmp_seq"]], self.stamped[echo["icmp_seq"]] = now, event["ts_ns"]

    def stop(self):
        self.done = True
        self.join()
        os.close(self.fd)


def echo(kind, seq):
    """A frame of the one conversation that is watched."""
    ends = (CLIENT, SERVER) if kind == REQUEST else (SERVER, CLIENT)
    return eth(ipv4(*ends, icmp_echo(kind, IDENT, seq, struct.pack(">Q", seq))))


def converse(sock, seconds):
    """Send requests and their replies; when each reply went, ns since 1970, in the order of icmp_seq."""
    rng, sent, end = random.Random(1), [], time.monotonic() + seconds
    while time.monotonic() < end:
        seq = len(sent)
        request, reply = echo(REQUEST, seq), echo(REPLY, seq)
        sock.send(request)
        time.sleep(ANSWER_seconds)
        now = time.time_ns()
        sock.send(reply)
        sent.append(now)
        time.sleep(rng.uniform(*PAUSE_seconds))
    return sent


def watch(link, path, load, seconds):
    """Send and watch, under `load` packets a second besides: (when replies went, the Watcher)."""
    with ExitStack() as stack:
        options = ("--size", "imix", "--seconds", seconds + LAST_seconds, "--rate", load)
        if load:
            senders = stack.enter_context(Senders(link, 1, *options))
            senders.ready()
            senders.go()
        watcher = Watcher(path)
        watcher.start()
        with link.sender.socket() as sock:
            sent = converse(sock, seconds)
        time.sleep(LAST_seconds)
        watcher.stop()
        if load:
            senders.finish()
    return sent, watcher


def percentile(values, share):
    """The value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures(sent, arrived, stamped):
    """What a case shows, as a dict; milliseconds. RuntimeError: nothing arrived."""
    waits = [(arrived[seq] - at) / 1e6 for seq, at in enumerate(sent) if seq in arrived]
    if not waits:
        raise RuntimeError("no event arrived")
    kernel = [(stamped[seq] - at) / 1e6 for seq, at in enumerate(sent) if seq in stamped]
    told = {"replies": len(sent), "arrived": len(waits), "to_kernel_ms": percentile(kernel, 0.5)}
    return told | {f"p{int(share * 100)}_ms": percentile(waits, share) for share in (0.5, 0.9, 0.99)}


def case(retire, load, args):
    """The figures of one setting under one load."""
    with tempfile.TemporaryDirectory() as folder, Link() as link:
        path, stats = Path(folder) / "events.jsonl", Path(folder) / "stats.json"
        options = ("--set", f"live.retire={retire}") if retire else ()
        argv = qoetap(link.receiver.interface, None, stats, "-o", path, *options)
        with Reader(link.receiver, argv) as reader:
            reader.ready(BEGINS)
            sent, watcher = watch(link, path, load, args.seconds)
            reader.stop()
    return figures(sent, watcher.arrived, watcher.stamped)


def measure(results, args):
    """Every case, `args.rounds` times, in turns."""
    results["latency"] = [{"retire": retire or "default", "load_pps": load, "rounds": []} for retire, load in CASES]
    for _ in range(args.rounds):
        for row, (retire, load) in zip(results["latency"], CASES, strict=True):
            try:
                row["rounds"].append(case(retire, load, args))
            except RuntimeError as error:
                results["failed"][f"retire {row['retire']}, {load:,} packets a second"] = str(error)
                continue
            say("  retire {retire}, {load_pps:,} pps: {p50_ms:.2f} ms".format(**row, **row["rounds"][-1]))

"""`python -m bench.redirect`: where `qoetap dns` sends users while loads change and `qoetap serve` is killed, stopped.

Two data centres, a path to each; samples of both paths are posted with noise, and users at random among 256 prefixes
ask, one after the other. Exit 1 if a query was not answered.
"""

import argparse
import contextlib
import json
import math
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from dnslib import EDNS0, DNSRecord, EDNSOption

from bench.control import summary
from bench.report import machine
from controlplane import load as load_model

QUIET, BUSY, NOISE = 0.3, 0.8, 0.1  # loads; standard deviation of ln(delay)
A_ns, B = 36_100.0, 6.218
MOVED = 0.95  # share of new queries
WINDOW_queries = 40  # that the share is taken of
START_seconds, WAIT_seconds = 60.0, 5.0
FIRST = "both quiet"  # phase
NAME, FALLBACK = "video.example.com", "192.0.2.9"
PLACES = {"a": "192.0.2.1", "b": "192.0.2.2"}
SITE = """
serve:
  state: {folder}/state.sqlite
  requests: 100000
  aggregations: [{{name: all, prefixes: [10.0.0.0/8]}}]
  data_centres:
    - {{name: a, addresses: [192.0.2.1], paths: {{all: a}}}}
    - {{name: b, addresses: [192.0.2.2], paths: {{all: b}}}}
  paths:
    - {{name: a, agent: a, master_clock: aaaaaaaaaaaaaaaa}}
    - {{name: b, agent: b, master_clock: bbbbbbbbbbbbbbbb}}
dns:
  rate: 1000000
  names: [{{name: video.example.com, fallback: [192.0.2.9]}}]
"""


class Asked(NamedTuple):
    """A query."""

    at: float
    phase: str
    address: str | None  # None: no answer
    seconds: float


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.redirect", description=__doc__.splitlines()[0])
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default 1)")
    parser.add_argument("--w", type=float, default=0.87, help="weight of the past (default 0.87)")
    parser.add_argument("--rate", type=float, default=200.0, help="queries a second at most (default 200)")
    parser.add_argument("--hold", type=float, default=40.0, help="intervals that a load lasts (default 40)")
    parser.add_argument("--away", type=float, default=5.0, help="seconds that the service is away (default 5)")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench/results/redirect"), help="folder of the report")
    return parser.parse_args(argv)


def launch(folder, ready, *words):
    """(process, match of `ready` in what it says at its start)."""
    log = folder / f"{words[0]}.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "qoetap", *words, "-c", folder / "site.yaml"], stderr=file)
    began = time.monotonic()
    while not (found := re.search(ready, log.read_text())):
        if process.poll() is not None or time.monotonic() - began > START_seconds:
            process.kill()
            raise RuntimeError(f"qoetap {words[0]} did not start: {log.read_text()}")
        time.sleep(0.02)
    return process, found


class Feeder(threading.Thread):
    """Posts a sample of each path every interval, as the loads are."""

    def __init__(self, address, interval):
        super().__init__(daemon=True)
        self.address, self.interval, self.loads, self.ending = address, interval, dict.fromkeys(PLACES, QUIET), False

    def run(self):
        rng, due = random.Random(1), time.monotonic()
        while not self.ending:
            delays = {path: delay_ns(load) * rng.lognormvariate(0, NOISE) for path, load in self.loads.items()}
            now_ns = time.time_ns()
            body = [{"path": path, "ts_ns": now_ns, "delay_ns": round(delay)} for path, delay in delays.items()]
            with contextlib.suppress(OSError):  # the service is away
                post(self.address, "/v1/delay", body, "POST")
            due += self.interval
            time.sleep(max(0.0, due - time.monotonic()))


def delay_ns(load):
    """Of the paper's model."""
    return A_ns * math.exp(B * load)


def post(address, path, body, method):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=WAIT_seconds) as reply:
        return json.load(reply)


class Users(threading.Thread):
    """Asks for the name, as users of prefixes at random. asked: what came of it."""

    def __init__(self, port, rate):
        super().__init__(daemon=True)
        self.port, self.rate, self.asked, self.phase, self.ending = port, rate, [], FIRST, False

    def run(self):
        rng, due = random.Random(2), time.monotonic()
        while not self.ending:
            subnet = bytes([0, 1, 24, 0, 10, 1, rng.randrange(256)])
            query = DNSRecord.question(NAME)
            query.add_ar(EDNS0(udp_len=1232, opts=[EDNSOption(8, subnet)]))
            at, phase, address = time.monotonic(), self.phase, None
            with contextlib.suppress(OSError):
                address = str(DNSRecord.parse(query.send("127.0.0.1", self.port, timeout=WAIT_seconds)).a.rdata)
            self.asked.append(Asked(at, phase, address, time.monotonic() - at))
            due = max(due + 1 / self.rate, at)
            time.sleep(max(0.0, due - time.monotonic()))


def moved_after(asked, phase, place):
    """Seconds from the beginning of a phase until the end of the first window of which MOVED went to a place."""
    found = [one for one in asked if one.phase == phase]
    to = [one.address == PLACES[place] for one in found]
    for end in range(WINDOW_queries, len(found) + 1):
        if sum(to[end - WINDOW_queries : end]) >= MOVED * WINDOW_queries:
            return found[end - 1].at - found[0].at
    return None


def measure(args, folder):
    """The results."""
    (folder / "site.yaml").write_text(SITE.format(folder=folder))
    model = load_model.to_document(load_model.Model(A_ns, B, 0.2, 0.95, w=args.w, interval_s=args.interval))
    with contextlib.ExitStack() as stack:
        service, found = launch(folder, r"http://(127\.0\.0\.1:\d+),", "serve", "--listen", "127.0.0.1:0")
        stack.callback(service.kill)
        address = found[1]
        for path in PLACES:
            post(address, f"/v1/models/{path}", model, "PUT")
        dns, found = launch(
            folder, r"127\.0\.0\.1:(\d+);", "dns", "--listen", "127.0.0.1:0", "--service", f"http://{address}"
        )
        stack.callback(dns.kill)
        feeder, users = Feeder(address, args.interval), Users(int(found[1]), args.rate)
        feeder.start()
        time.sleep(3 * args.interval)
        users.start()

        def phase(name, seconds, **loads):
            feeder.loads, users.phase = dict.fromkeys(PLACES, QUIET) | loads, name
            time.sleep(seconds)

        hold = args.hold * args.interval
        phase(FIRST, 10 * args.interval)
        phase("a busy", hold, a=BUSY)
        phase("a quiet again", hold)
        phase("b busy", hold, b=BUSY)
        service.kill()
        service.wait()
        phase("service killed", args.away, b=BUSY)
        users.phase = "service starting"
        service, _ = launch(folder, r"http://", "serve", "--listen", address)
        stack.callback(service.kill)
        phase("service back", args.away, b=BUSY)
        service.send_signal(signal.SIGSTOP)
        phase("service stopped", args.away, b=BUSY)
        service.send_signal(signal.SIGCONT)
        phase("service going on", args.away, b=BUSY)
        feeder.ending = users.ending = True
        users.join()
        dns.send_signal(signal.SIGTERM)
        dns.wait(START_seconds)
        return results(users.asked, args.interval) | {"said": (folder / "dns.log").read_text().splitlines()[-1]}


def results(asked, interval):
    phases = {}
    for name in dict.fromkeys(one.phase for one in asked):
        of = [one for one in asked if one.phase == name]
        places = {**PLACES, "fallback": FALLBACK}
        answers = {title: sum(one.address == address for one in of) for title, address in places.items()}
        lost = sum(one.address is None for one in of)
        phases[name] = {**answers, "lost": lost, **summary([one.seconds for one in of])}
    moves = {"a busy": moved_after(asked, "a busy", "b"), "b busy": moved_after(asked, "b busy", "a")}
    return {"phases": phases, "moves": {name: after and after / interval for name, after in moves.items()}}


def markdown(found):
    """The report."""
    m = found["machine"]
    lines = ["# Redirection", "", f"`{found['command']}`", ""]
    lines += [f"{m['cpu']}, {m['cores']} cores, {m['system']}, Python {m['python']}", ""]
    lines += ["| phase | queries | to a | to b | fallback | no answer | median ms | 99 % ms | most ms |"]
    lines += ["|" + "---|" * 9]
    for name, one in found["phases"].items():
        counts = [str(one[key]) for key in ("count", "a", "b", "fallback", "lost")]
        times = [f"{one[key] * 1e3:.1f}" for key in ("p50", "p99", "max")]
        lines.append(f"| {' | '.join([name, *counts, *times])} |")
    for name, intervals in found["moves"].items():
        told = "never" if intervals is None else f"{intervals:.1f} sample intervals after that"
        lines += ["", f"{name}: {MOVED:.0%} of new queries went to the other one {told}."]
    return "\n".join([*lines, "", found["said"], ""])


def main(argv=None):
    args = arguments(argv)
    command = shlex.join(["python", "-m", "bench.redirect", *(sys.argv[1:] if argv is None else argv)])
    with tempfile.TemporaryDirectory() as folder:
        found = {"command": command, "machine": machine(), **measure(args, Path(folder))}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "results.md").write_text(markdown(found))
    print(markdown(found))
    return 1 if any(one["lost"] for one in found["phases"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())

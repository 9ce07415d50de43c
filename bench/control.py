"""`python -m bench.control`: agents post events to `qoetap serve` while loads are asked for; then kill -9, and on.

What was acknowledged is looked up in the state file: after the kill, and at the end. Exit 1 if one event is missing or
counted twice; the time that answers take is reported, not judged.
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.control_clients import Load, agents, asker, name
from bench.report import machine
from controlplane import load as load_model

START_seconds = 60.0
TICKS = os.sysconf("SC_CLK_TCK")
MODEL = load_model.Model(a_ns=36_100.0, b=6.218, low=0.2, congested=0.95)  # of the paper
ADDRESS = re.compile(r"http://([\d.]+):(\d+),")


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.control", description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--events", type=float, default=2000.0, help="a second, of all agents together (default 2000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="before the kill (default 60)")
    parser.add_argument("--after", type=float, default=3.0, help="seconds after each restart (default 3)")
    parser.add_argument("--kills", type=int, default=5, help="how often it is killed (default 5)")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench/results/control"), help="folder of the report")
    return parser.parse_args(argv)


class Service:
    """`qoetap serve` in a process of its own. port 0: any."""

    def __init__(self, folder, port=0):
        self.state, log = folder / "state.sqlite", folder / "serve.log"
        command = [sys.executable, "-m", "qoetap", "serve", "--listen", f"127.0.0.1:{port}", "--state", self.state]
        command += ["--model", folder / "model.json", "--set", "serve.requests=5000"]  # all agents are one client here
        began = time.monotonic()
        with open(log, "wb") as file:
            self.process = subprocess.Popen([str(word) for word in command], stderr=file)
        while not (found := ADDRESS.search(log.read_text())):
            if self.process.poll() is not None or time.monotonic() - began > START_seconds:
                self.process.kill()
                raise RuntimeError(f"qoetap serve did not start: {log.read_text()}")
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - began
        self.address = (found[1], int(found[2]))

    def usage(self):
        """(CPU seconds so far, resident bytes)."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return (int(stat[11]) + int(stat[12])) / TICKS, pages * os.sysconf("SC_PAGE_SIZE")

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(30)


class Client:
    """One of the functions of control_clients in a process."""

    def __init__(self, function, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=function, args=(theirs, *args), daemon=True)
        self.process.start()

    def ask(self, what):
        self.pipe.send(what)
        return self.pipe.recv()


def stored(state, load):
    """[set of ts_ns in the state file] of each agent, [samples counted of each], duplicates counted."""
    connection = sqlite3.connect(state)
    found, counted = [], []
    for agent in range(load.agents):
        row = connection.execute("SELECT id, accepted FROM paths WHERE name = ?", (name(agent),)).fetchone()
        times = connection.execute("SELECT ts_ns FROM samples WHERE path = ?", row[:1] if row else (0,)).fetchall()
        found.append([ts_ns for (ts_ns,) in times])
        counted.append(row[1] if row else 0)
    (duplicates,) = connection.execute("SELECT value FROM numbers WHERE name = 'duplicates'").fetchone() or (0,)
    connection.close()
    return found, counted, duplicates


def held(found, load, counts):
    """(events among each agent's first `counts` that are missing, rows beyond one each)."""
    missing = twice = 0
    for agent, (times, count) in enumerate(zip(found, counts, strict=True)):
        missing += len(set(load.times(agent, count)) - set(times))
        twice += len(times) - len(set(times))
    return missing, twice


def copied(state, folder):
    """A copy of the state file as the kill left it, so that looking changes nothing."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        if Path(f"{state}{suffix}").exists():
            shutil.copy(f"{state}{suffix}", folder)
    return folder / state.name


def killed(service, posting, load, folder):
    """What is in the state file right after a kill -9 amid a post, against what had been acknowledged."""
    posting.pipe.send(service.process.pid)
    service.process.wait(START_seconds)
    acked = posting.ask("acked")  # after the kill, so all of these were before it
    found, _, _ = stored(copied(service.state, folder), load)
    missing, twice = held(found, load, acked)
    return {"acked": sum(acked), "stored": sum(map(len, found)), "missing": missing, "twice": twice}


def measure(args, folder):
    """The results."""
    (folder / "model.json").write_text(json.dumps(load_model.to_document(MODEL)))
    service = Service(folder)
    load = Load(args.agents, args.events, time.time_ns())
    posting, asking = Client(agents, load, service.address), Client(asker, load, service.address)
    time.sleep(args.seconds)
    asked, (cpu_seconds, resident_bytes) = asking.ask("end"), service.usage()
    kills, starts = [], [service.start_seconds]
    for number in range(args.kills):
        kills.append(killed(service, posting, load, folder / f"kill-{number}"))
        service = Service(folder, service.address[1])
        starts.append(service.start_seconds)
        time.sleep(args.after)
    told = posting.ask("end")
    service.end(signal.SIGTERM)
    found, counted, duplicates = stored(service.state, load)
    missing, twice = held(found, load, told["made"])
    return {
        "gets": summary(asked.pop("seconds")) | asked,
        "posts": summary(told.pop("post_seconds")),
        "kills": kills,
        "end": {
            "made": sum(told["made"]), "stored": sum(map(len, found)), "counted": sum(counted),
            "missing": missing, "twice": twice + sum(counted) - sum(told["made"]),
            "batches": told["batches"], "resent": told["resent"], "duplicates": duplicates,
        },
        "service": {
            "cpu_share": cpu_seconds / args.seconds, "resident_bytes": resident_bytes,
            "state_bytes": service.state.stat().st_size, "start_seconds": max(starts),
        },
    }  # fmt: skip


def summary(seconds):
    """Count and quantiles."""
    seconds = sorted(seconds)
    if not seconds:
        raise RuntimeError("nothing was answered")
    last = len(seconds) - 1
    at = {f"p{share * 100:g}": seconds[min(int(len(seconds) * share), last)] for share in (0.5, 0.99, 0.999)}
    return {"count": len(seconds), **at, "max": seconds[last]}


def markdown(results):
    """The report."""
    m, asked = results["machine"], results["asked"]
    size = f"{m['cores']} cores, {m['memory_bytes'] / 1e9:.0f} GB"
    lines = ["# Control plane", "", f"`{results['command']}`", ""]
    lines += [f"{m['cpu']}, {size}, {m['system']}, Python {m['python']}"]
    lines += [
        "",
        f"{asked['agents']} agents post {asked['events']:g} events/s in all for {asked['seconds']:g} s, gzip, a batch "
        "a second each; one other asks for loads. Then kill -9 amid a post and restart, again and again; what is not "
        "acknowledged is sent again. Everything on the same cores.",
        "",
        "| requests | count | median ms | 99 % ms | 99.9 % ms | most ms |",
        "|---|---|---|---|---|---|",
    ]
    for title, key in (("GET /v1/load", "gets"), ("POST /v1/events", "posts")):
        found = results[key]
        cells = " | ".join(f"{found[at] * 1e3:.1f}" for at in ("p50", "p99", "p99.9", "max"))
        lines.append(f"| {title} | {found['count']:,} | {cells} |")
    end, service = results["end"], results["service"]
    lines += ["", "| events | acknowledged | in the state file | acknowledged, but missing | there or counted twice |"]
    lines += ["|---|---|---|---|---|"]
    for number, found in enumerate([*results["kills"], {**end, "acked": end["made"]}], 1):
        title = f"after kill {number}" if number <= len(results["kills"]) else "at the end"
        cells = " | ".join(f"{found[what]:,}" for what in ("acked", "stored", "missing", "twice"))
        lines.append(f"| {title} | {cells} |")
    lines += [
        "",
        f"Batches: {end['batches']:,}, sent again {end['resent']:,} times; {end['duplicates']:,} events came twice. "
        f"Service: {service['cpu_share']:.0%} of a core, {service['resident_bytes'] / 1e6:.0f} MB, state "
        f"{service['state_bytes'] / 1e6:.1f} MB, answers {service['start_seconds']:.1f} s after its start.",
    ]
    return "\n".join(lines) + "\n"


def main(argv=None):
    args = arguments(argv)
    command = shlex.join(["python", "-m", "bench.control", *(sys.argv[1:] if argv is None else argv)])
    asked = {key: getattr(args, key) for key in ("agents", "events", "seconds", "after", "kills")}
    with tempfile.TemporaryDirectory() as folder:
        results = {"command": command, "machine": machine(), "asked": asked, **measure(args, Path(folder))}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "results.md").write_text(markdown(results))
    print(markdown(results))
    wrong = any(found[what] for found in (*results["kills"], results["end"]) for what in ("missing", "twice"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

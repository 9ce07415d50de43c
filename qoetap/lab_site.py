"""A site under study: processes in the namespaces of a lab. Here `qoetap inline` in the router of a street, agents at
its ends; lab_ptp.py has others.

Each process writes into files of one folder. They end with the context, and with this process if it is killed.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from qoetap.exits import PRIVILEGE, RUN_ERROR, USAGE, Exit
from qoetap.plane import PASS_ns
from qoetap.say import say
from qoetap.street import RECEIVER, SENDER, Street

LINK_bps, BURST_bytes, QUEUE_ms = 10_000_000, 10_000, 200
QUEUE_NUMBER = 5
READY_seconds = 300  # kernels may have to be compiled
BEGIN_seconds = 3  # for agents to start in, before they begin together
END_seconds = 30
TRIES = 5
LOST_seconds = 5  # of a run, for which the machine may have kept inline from its work
LATE = re.compile(r"left (\d+) ms late: everything passes by")
INLINE_READY, AGENT_READY = "TERM or INT ends it", "ready"


def check_needs():
    """Exit if something is missing that a site needs."""
    if os.geteuid():
        raise Exit(PRIVILEGE, "making network namespaces needs root: run with sudo")
    if importlib.util.find_spec("aioquic") is None:
        raise Exit(USAGE, "aioquic, the QUIC of the lab, is not installed: pip install 'qoetap[lab]'")
    if shutil.which("setpriv") is None:
        raise Exit(RUN_ERROR, "setpriv is not installed: apt install util-linux")


def lost_s(said):
    """How long `qoetap inline` was late or let everything pass because of it, by what it said on stderr."""
    return sum(int(late_ms) / 1000 + PASS_ns / 1e9 for late_ms in LATE.findall(said))


class TooBusy(Exit):
    """What was measured says nothing; another time it may."""


def tried(run, *args):
    """What run(*args) returns, at the latest of TRIES times. TooBusy: it was that each time."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return run(*args)
        except TooBusy as error:
            if not left:
                raise
            say(f"{error}; once more")


class Process:
    """A program, Python unless told, on one side of a lab. Its output goes to `out`, what it says to `err`, paths."""

    def __init__(self, end, words, folder, name, program=sys.executable):
        self.name, self.out, self.err = name, folder / f"{name}.jsonl", folder / f"{name}.log"
        command = end.command("setpriv", "--pdeathsig", "TERM", program, *words)
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def await_text(self, path, text):
        """Wait until `text` stands in the file. Exit if the process ends without it."""
        limit = time.monotonic() + READY_seconds
        while text not in path.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise self.failed()
            time.sleep(0.05)

    def finish(self, seconds):
        """Wait for its end. Exit if that is no good one."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        if status != 0:
            raise self.failed()

    def failed(self):
        lines = self.err.read_text(errors="replace").strip().splitlines() or ["nothing"]
        status = self.process.poll()
        if self.name == "inline" and status == USAGE:
            return Exit(status, lines[-1].removeprefix("qoetap: "))
        if status is None:
            return TooBusy(RUN_ERROR, f"the machine was too busy: {self.name} did not get ready or end in time")
        return Exit(
            RUN_ERROR, f"{self.name} ended with status {status}: {lines[-1]} (-o FOLDER keeps what was said before)"
        )

    def stop(self):
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_seconds)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def lines(self):
        """What it wrote, JSON lines, as dicts."""
        return read_lines(self.out)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Processes:
    """Use it as a context: it makes the lab by `build`, and ends what was started. folder: where the files go."""

    def __init__(self, folder):
        self.folder, self.stack = Path(folder), contextlib.ExitStack()

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.stack:
            self.build()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def build(self):
        raise NotImplementedError

    def start(self, end, words, name, program=sys.executable):
        process = Process(end, words, self.folder, name, program)
        self.stack.callback(process.stop)
        return process

    def agent(self, end, role, name=None, **options):
        """A process of endhost in that role; its files are called like it, or `name`."""
        return self.start(end, ["-m", "endhost", role, json.dumps(options)], name or role)


class Site(Processes):
    """A street with a bottleneck of LINK_bps."""

    def __init__(self, folder):
        super().__init__(folder)
        self.inline, self.events = None, self.folder / "events.jsonl"

    def build(self):
        self.street = self.stack.enter_context(Street())
        self.street.bottleneck(LINK_bps, BURST_bytes, QUEUE_ms)

    def run_inline(self, options):
        """Run `qoetap inline` in the router, until `end_inline`. options: words of its command line."""
        self.events.unlink(missing_ok=True)  # of an earlier run: they would be added to
        words = ["-m", "qoetap", "inline", "-q", QUEUE_NUMBER, "--install", *options, "-o", self.events]
        self.inline = self.start(self.street.router, words, "inline")
        self.inline.await_text(self.inline.err, INLINE_READY)

    def end_inline(self):
        """End it in good order; its events, as dicts. TooBusy: everything passed by for too long."""
        self.inline.process.send_signal(signal.SIGTERM)
        self.inline.finish(END_seconds)
        lost = lost_s(self.inline.err.read_text())
        if lost > LOST_seconds:
            raise TooBusy(RUN_ERROR, f"the machine was too busy: `qoetap inline` lost {lost:.1f} s of it")
        if lost:
            say(f"the machine was busy: `qoetap inline` lost {lost:.1f} s of it")
        return read_lines(self.events)

    def source(self, role, **options):
        """An agent on the sender that others ask; it listens when this returns."""
        found = self.agent(self.street.sender, role, address=SENDER.ipv4, **options)
        found.await_text(found.out, AGENT_READY)

    def sink(self, role, **options):
        """An agent on the receiver."""
        return self.agent(self.street.receiver, role, **options)


def begin_ns():
    """When agents that are started now may begin, since 1970."""
    return time.time_ns() + BEGIN_seconds * 10**9


CLIENT, SERVER = RECEIVER.ipv4, SENDER.ipv4

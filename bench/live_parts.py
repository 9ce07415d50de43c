"""What every live measurement needs: senders that begin together, and a reader whose use of the machine is watched."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.senders import SPREAD

ROOT = Path(__file__).resolve().parent.parent
READY_seconds = 300  # a reader or sender may compile first
STOP_seconds = 30
DRAIN_seconds = 10
LOOK_seconds = 0.2
HELD_seconds = 1.5  # tcpdump gets a block that is not full after one second
TICKS = os.sysconf("SC_CLK_TCK")  # of proc(5)'s times
DONE, LOST = 0, 5  # exit statuses; 5: qoetap lost packets, which it has counted
ETH_P_ALL, RUNNING = "0003", "1"  # in /proc/net/packet


class Senders:
    """`count` processes of bench.senders on a Link; as a context manager, none outlives the block.

    options: their command line, but the interface and the first flow. RuntimeError: one does not start or send.
    """

    def __init__(self, link, count, *options):
        self.running = []
        for number in range(count):
            own = ("--interface", link.sender.interface, "--first", number * SPREAD)
            self.start(link.sender, "bench.senders", *own, *options)

    def start(self, end, module, *options):
        """Start one more, which waits for `go`."""
        argv = end.command(sys.executable, "-m", module, "--json", "--wait", *options)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.running.append(subprocess.Popen(argv, **pipes))

    def ready(self):
        """Wait until all are compiled and wait for `go`."""
        for process in self.running:
            found, _, _ = select.select([process.stdout], [], [], READY_seconds)
            if not found or process.stdout.readline() != "ready\n":
                raise RuntimeError("a sender did not start; what it says is above")

    def go(self):
        """Let all begin."""
        for process in self.running:
            process.stdin.write("\n")
            process.stdin.flush()

    def finish(self):
        """Wait for all to end: the sums of what they sent, and their longest time, as a dict."""
        told = [json.loads(process.communicate()[0] or "null") for process in self.running]
        if None in told:
            raise RuntimeError("a sender failed; what it says is above")
        sums = {name: sum(one[name] for one in told) for name in told[0] if name != "seconds"}
        return sums | {"seconds": max(one["seconds"] for one in told)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()


class Reader:
    """A command that reads packets on one End, and what it uses (proc(5)). RuntimeError: it fails."""

    def __init__(self, end, argv):
        self.end = end
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed at the end of the block
        self.process = subprocess.Popen(end.command(*argv), stdout=self.said, stderr=subprocess.STDOUT, cwd=ROOT)
        self.proc = Path(f"/proc/{self.process.pid}")

    @property
    def text(self):
        """What it printed so far; where it goes on printing does not change."""
        fd = self.said.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def ready(self, word=""):
        """Wait until it has a packet socket that receives, and has said `word`."""
        deadline = time.monotonic() + READY_seconds
        while not (self.end.inside(is_capturing) and word in self.text):
            if self.process.poll() is not None:
                raise RuntimeError(f"the reader ended with {self.process.returncode}: {self.text.strip()[-400:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the reader does not capture: {self.text.strip()[-400:]}")
            time.sleep(LOOK_seconds)
        time.sleep(2 * LOOK_seconds)

    def cpu_seconds(self):
        """User and system time of all its threads, in steps of a clock tick (10 ms)."""
        user, system = (self.proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS

    def usage(self):
        """Resident bytes, threads, open descriptors, as a dict."""
        lines = (line.split(":") for line in (self.proc / "status").read_text().splitlines())
        status = {name: value.split() for name, value in lines}
        rss, threads = int(status["VmRSS"][0]) << 10, int(status["Threads"][0])
        return {"rss_bytes": rss, "threads": threads, "descriptors": len(os.listdir(self.proc / "fd"))}

    def drained(self):
        """Wait until it has nothing more to do: its CPU time stands still."""
        time.sleep(HELD_seconds)
        deadline, before = time.monotonic() + DRAIN_seconds, -1.0
        while time.monotonic() < deadline and (now := self.cpu_seconds()) > before + 1 / TICKS:
            before = now
            time.sleep(LOOK_seconds)

    def stop(self, how=signal.SIGINT):
        """End it with a signal: the CPU seconds and the peak memory in bytes of its whole life."""
        self.process.send_signal(how)
        deadline, ended = time.monotonic() + STOP_seconds, 0
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
            ended, status, used = os.wait4(self.process.pid, os.WNOHANG)
        if not ended:
            raise RuntimeError(f"the reader did not end within {STOP_seconds} s")
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode not in (DONE, LOST):
            raise RuntimeError(f"the reader ended with {self.process.returncode}: {self.text.strip()[-400:]}")
        return used.ru_utime + used.ru_stime, used.ru_maxrss << 10

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.said.close()


def is_capturing():
    """Whether a packet socket of the calling thread's namespace hears all protocols (its column R is 1)."""
    lines = Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]
    return any(line.split()[3] == ETH_P_ALL and line.split()[5] == RUNNING for line in lines)

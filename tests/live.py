"""`qoetap live` as a process on the receiving side of a Link, and what is sent to it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests.packets import eth, icmp_echo, ipv4, udp

ROOT = Path(__file__).resolve().parent.parent
START_seconds, END_seconds, WAIT_seconds = 240, 15, 15  # kernels may have to be compiled before it listens
REST_seconds, TICK_seconds = 0.5, 0.01
REQUEST, REPLY = 8, 0  # ICMP
ECHO_AT = 38  # identifier and sequence number, in a frame
CLIENT, SERVER = "10.1.0.1", "198.18.0.1"


class Ended(NamedTuple):
    """What a run left behind."""

    status: int
    err: str
    stats: dict  # of --stats; {} if there are none
    seconds: float  # from the signal to the end

    @property
    def packets(self):
        return self.stats["ledger"]["packets"]

    @property
    def made(self):
        return sum(self.stats["ledger"]["events"]["made"].values())


def wait_until(condition, seconds=WAIT_seconds):
    """What `condition()` returns as soon as that is true; fails if it does not become so."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, f"waited {seconds} s in vain"
        time.sleep(0.005)
    return found


class Agent:
    """`qoetap live` in the namespace of `end`; events go to `output` in `folder`. Use it as a context. `ask`: the
    words of the command line before those of outputs, of another command.

    before: words in front of the command, such as setpriv's. Keywords: interfaces (default: the end's), spec of the
    output (None: what the configuration says), detectors, environment (variables added), heard (the line that says that
    it runs), and those of Popen.
    """

    def __init__(self, end, folder, *options, output="events.jsonl", before=(), python=sys.executable, **keywords):
        self.output, self.stats, self.said = Path(folder) / output, Path(folder) / "stats.json", []
        interfaces = [word for name in keywords.pop("interfaces", [end.interface]) for word in ("-i", name)]
        spec, self.heard = keywords.pop("spec", self.output), keywords.pop("heard", "listening")
        words = keywords.pop("ask", ["live", *interfaces])
        words = [*words, *(["-o", spec] if spec else []), "--stats", self.stats]
        words += ["--detectors", keywords.pop("detectors", "flow,icmp_loop"), *options]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | keywords.pop("environment", {})
        command = end.command(*before, python, "-m", "qoetap", *words)
        keywords = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "cwd": ROOT} | keywords
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **keywords)
        self.pid, self.change = self.process.pid, threading.Condition()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self):
        for line in self.process.stderr:
            with self.change:
                self.said.append(line.rstrip("\n"))
                self.change.notify_all()
        with self.change:
            self.change.notify_all()

    def __enter__(self):
        try:
            self.hear(self.heard, START_seconds)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.listener.join(END_seconds)
        self.process.stderr.close()

    def hear(self, text, seconds=WAIT_seconds, since=0):
        """The first line on stderr, from number `since` on, that holds `text`; fails if none comes."""

        def found():
            return next((line for line in self.said[since:] if text in line), None)

        with self.change:
            self.change.wait_for(lambda: found() or not self.listener.is_alive(), seconds)
        assert found(), f"no {text!r} in {self.said}"
        return found()

    def send(self, number):
        os.kill(self.pid, number)

    def tell(self, number, answer):
        """Send a signal; the line with `answer` that it says then."""
        since = len(self.said)
        self.send(number)
        return self.hear(answer, since=since)

    def events(self, kind=""):
        """What is in the output now, as dicts: whole lines of event types that begin with `kind`."""
        return events_in(self.output, kind)

    def wait_for(self, count, kind="", seconds=WAIT_seconds):
        """Events as soon as there are so many."""
        return wait_until(lambda: len(found := self.events(kind)) >= count and found, seconds)

    def end(self, number=signal.SIGTERM):
        """Send a signal and wait for the end; Ended."""
        since = time.monotonic()
        if number:
            self.send(number)
        status = self.process.wait(END_seconds)
        seconds = time.monotonic() - since
        self.listener.join(END_seconds)
        text = self.stats.read_text() if self.stats.exists() else ""
        return Ended(status, "\n".join(self.said), json.loads(text) if text else {}, seconds)

    def stop(self):
        """SIGSTOP, and wait until it does nothing any more."""
        self.send(signal.SIGSTOP)
        wait_until(lambda: self._fields()[0] == "T")

    def rest(self):
        """Wait until it has nothing to do, as when it was stopped and has emptied its ring."""

        def rests():
            used = self.busy()
            time.sleep(REST_seconds)
            return self.busy() - used <= 2 * TICK_seconds

        wait_until(rests)

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def descriptors(self):
        return sorted(os.listdir(f"/proc/{self.pid}/fd"), key=int)

    def _fields(self):
        """Of /proc/PID/stat (proc(5)), from the state on."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()

    def busy(self):
        """Seconds of CPU that it has used."""
        fields = self._fields()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def events_in(path, kind=""):
    """Events of the whole lines of a file, [] where there is none."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [event for event in found if event["event_type"].startswith(kind)]


def balanced(ended, sent):
    """That the ledger adds up and has `sent` packets; the packets."""
    packets, events = ended.packets, ended.stats["ledger"]["events"]
    assert ended.stats["ledger"]["balanced"] is True
    assert packets["seen"] == sent
    gone = sum(packets["undecoded"].values()) + sum(packets["dropped"].values())
    assert packets["processed"] + packets["filtered"] + gone == sent
    assert ended.made == events["delivered"] + events["queued"] + events["dropped"]
    return packets


def echo(number, kind=REQUEST, ident=1):
    """An echo request of the client, or the reply to it."""
    ends = (CLIENT, SERVER) if kind == REQUEST else (SERVER, CLIENT)
    return eth(ipv4(*ends, icmp_echo(kind, ident, number, bytes(32))))


def echoes(count, first=0):
    """`count` requests, each followed by its reply."""
    return [echo(n, kind) for n in range(first, first + count) for kind in (REQUEST, REPLY)]


def many_echoes(count):
    """The same for a large count, quickly made; their checksums are wrong."""
    pair = [echo(0, kind) for kind in (REQUEST, REPLY)]
    numbers = [n.to_bytes(4, "big") for n in range(count)]  # identifier and sequence number
    return [frame[:ECHO_AT] + number + frame[ECHO_AT + 4 :] for number in numbers for frame in pair]


def datagram(flow, back=False, size=18):
    """A datagram of flow `flow`, a number: from client to server, or back."""
    client, port = f"10.{2 + (flow >> 16)}.{flow >> 8 & 255}.{flow & 255}", 10000 + flow % 50000
    payload = b"\x40" + bytes(size - 1)
    if back:
        return eth(ipv4(SERVER, client, udp(443, port, payload)))
    return eth(ipv4(client, SERVER, udp(port, 443, payload)))


def send(end, frames):
    """Send frames out of the end's interface; how many."""
    with end.socket() as sock:
        for frame in frames:
            sock.send(frame)
    return len(frames)


class Load(threading.Thread):
    """Sends `frames` again and again, at most `packets`, with a pause after each turn, until the end of its context."""

    def __init__(self, end, frames, packets=sys.maxsize, pause_seconds=0.0):
        super().__init__(daemon=True)
        self.pause_seconds = pause_seconds
        self.socket, self.frames, self.most, self.sent, self.stopped = end.socket(), frames, packets, 0, False

    def run(self):
        call, sent = self.socket.send, 0
        while not self.stopped and sent < self.most:
            for frame in self.frames[: self.most - sent]:
                call(frame)
                sent += 1
                if self.stopped:
                    break
            self.sent = sent
            time.sleep(self.pause_seconds)
        self.sent = sent

    def stop(self):
        """How many were sent."""
        self.stopped = True
        self.join()
        return self.sent

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        self.socket.close()


@contextlib.contextmanager
def second_pair(link):
    """Another pair of interfaces between the two ends of a Link, a1 and b1; the names."""
    from qoetap import lab

    pair = [lab.End(end.namespace, end.interface[0] + "1") for end in link.ends]
    names = ("type", "veth", "peer", "name", pair[1].interface, "netns", pair[1].namespace)
    lab.run("ip", "link", "add", pair[0].interface, "netns", pair[0].namespace, *names)
    try:
        for end in pair:
            end._prepare(link.mtu, link.offloads)
        yield pair
    finally:
        lab.run("ip", "-n", pair[0].namespace, "link", "del", "dev", pair[0].interface)

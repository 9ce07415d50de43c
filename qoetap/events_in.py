"""Events from files, pipes and Kafka, for `qoetap serve`: each source a thread that hands lines to the service.

A source waits until what it handed over is on disk, and only then goes on, so it is never ahead by more than a block.
It tells `trouble`, a sentence, or None. What was read before is read again after a restart: events count once.
"""

import os
import select
import stat
import threading
import time

from controlplane.database import Busy, StateError
from controlplane.ingest import LINE_MAX_bytes
from qoetap.exits import USAGE, Exit

BLOCK_bytes = 1 << 20
LOOK_seconds = 0.25  # at a file that does not grow, at a pipe without a writer
AGAIN_seconds = 0.5  # before what could not be written is tried again
LEAVE_seconds = 1.0  # a file that has lost its name is read for so long still: its writer may not know yet
END_seconds = 5.0


class Lines:
    """Whole lines of a stream that comes in parts. One that is too long is given as its beginning, which is refused."""

    def __init__(self):
        self.rest, self.skipping = b"", False

    def feed(self, part):
        """The lines that are whole now, as bytes."""
        if self.skipping:
            _, newline, part = part.partition(b"\n")
            self.skipping = not newline
        text, newline, rest = (self.rest + part).rpartition(b"\n")
        self.rest = rest
        if len(rest) > LINE_MAX_bytes:
            text, newline = text + newline + rest, b"\n"
            self.rest, self.skipping = b"", True
        return text + newline

    def end(self):
        """What is left without a newline."""
        rest, self.rest, self.skipping = self.rest, b"", False
        return rest


class Source:
    """A thread that reads. `step` of the kinds below does a part of it and returns the seconds to wait before the next,
    None at the end."""

    def __init__(self, name, service):
        self.name, self.service, self.trouble, self.ending = name, service, None, threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"qoetap-{name}", daemon=True)
        self.thread.start()

    def close(self):
        self.ending.set()
        self.thread.join(END_seconds)

    def _run(self):
        try:
            while not self.ending.is_set() and (wait := self.step()) is not None:
                self.ending.wait(wait)
        except Exception as error:  # the service goes on without this source
            self.trouble = f"{self.name}: {getattr(error, 'strerror', None) or error}; no more is read from it"
        finally:
            self.shut()

    def take(self, lines):
        """Hand over lines; whether they are on disk: False only if it ends before."""
        while not self.ending.is_set():
            try:
                self.service.take(lines, time.time_ns())
            except (Busy, StateError) as error:
                self.trouble = f"{self.name}: {error}; it is tried again"
                self.ending.wait(AGAIN_seconds)
            else:
                self.trouble = None
                return True
        return False


class Tail(Source):
    """A file to its end and on as it grows, also when another one takes its place (tail -F); or a named pipe, whose
    writers come and go."""

    def __init__(self, path, service):
        self.fd, self.lines, self.poll = None, Lines(), select.poll()
        self.nameless_s = None  # since when another file has its name, by the monotonic clock
        super().__init__(path, service)

    def step(self):
        if self.fd is None and not self.open():
            return LOOK_seconds
        if not self.poll.poll(LOOK_seconds * 1000):
            return 0
        part = os.read(self.fd, BLOCK_bytes)
        if not part:
            return self.at_end()
        self.hand(self.lines.feed(part))
        return 0

    def hand(self, lines):
        if lines:
            self.take(lines)

    def open(self):
        """Open it; whether it is there."""
        try:
            self.fd = os.open(self.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.trouble = f"{self.name}: cannot be read ({error.strerror}); it is tried again"
            return False
        self.trouble = None
        self.poll.register(self.fd, select.POLLIN)
        return True

    def at_end(self):
        status = os.fstat(self.fd)
        if stat.S_ISFIFO(status.st_mode):
            self.hand(self.lines.end())  # its writer went
        if self._cut(status) or self._left(status):
            self.hand(self.lines.end())
            self.shut()
            return 0
        return LOOK_seconds

    def _cut(self, status):
        return stat.S_ISREG(status.st_mode) and status.st_size < os.lseek(self.fd, 0, os.SEEK_CUR)

    def _left(self, status):
        """Whether another file has its name, and has had it for LEAVE_seconds."""
        try:
            now = os.stat(self.name)
        except OSError:
            return False  # another one may come
        if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino):
            self.nameless_s = None
            return False
        self.nameless_s = self.nameless_s or time.monotonic()
        return time.monotonic() - self.nameless_s > LEAVE_seconds

    def shut(self):
        self.nameless_s = None
        if self.fd is not None:
            self.poll.unregister(self.fd)
            os.close(self.fd)
        self.fd = None


class Standard(Tail):
    """Standard input, to its end."""

    def open(self):
        self.fd = os.dup(0)
        self.poll.register(self.fd, select.POLLIN)
        return True

    def at_end(self):
        self.hand(self.lines.end())


def open_source(spec, service):
    """The Source of a FILE, `-` or kafka://HOST/TOPIC. Exit if it cannot be one."""
    if spec.startswith("kafka://"):
        from qoetap.kafka_in import Topic  # late: confluent-kafka may not be there

        return Topic(spec, service)
    if "://" in spec:
        raise Exit(USAGE, f"serve.events: {spec}: events come from FILE.jsonl, -, kafka://HOST/TOPIC, or over HTTP")
    if os.path.isdir(spec):
        raise Exit(USAGE, f"serve.events: {spec} is a directory: name a file or a pipe")
    return Standard(spec, service) if spec == "-" else Tail(spec, service)

"""What a sink is: it takes events, says what became of them, and fails with one sentence. Knows no engine."""

import contextlib
import errno
import os


class SinkError(Exception):
    """An output cannot be written. The message is one sentence for the user."""


class ReaderGone(SinkError):
    """The reader of a pipe closed it. No fault: who wrote to it stops quietly."""


ADVICE = {
    errno.ENOSPC: "free some space or give -o another place",
    errno.EDQUOT: "free some space or give -o another place",
    errno.ENOENT: "make the directory first",
    errno.EACCES: "give -o a place that you may write to",
    errno.EROFS: "give -o a place that you may write to",
    errno.EISDIR: "give -o the name of a file",
}


def sink_error(path, error):
    """The SinkError that says what an OSError on `path` means."""
    if isinstance(error, BrokenPipeError):
        return ReaderGone(f"nobody reads {path} any more")
    what = os.strerror(error.errno) if error.errno else str(error)
    advice = ADVICE.get(error.errno)
    return SinkError(f"cannot write {path}: {what}" + (f"; {advice}" if advice else ""))


class Sink:
    """Takes Events. Subclasses give `put` and, where they hold something back, `flush` and `close`.

    Of the events written, `delivered` are out, `queued` wait inside and `dropped` are lost; `put` counts the first two.
    """

    path = ""

    def __init__(self):
        self.delivered = self.queued = self.dropped = 0

    def write(self, events):
        """Deliver Events. SinkError if that fails; those not delivered are then counted as dropped."""
        settled = self.delivered + self.queued
        try:
            self.put(events)
        except OSError as error:
            self.dropped += len(events.order) - (self.delivered + self.queued - settled)
            raise sink_error(self.path, error) from error

    def put(self, events):
        raise NotImplementedError

    def flush(self):
        """Hand on what waits inside."""

    def close(self):
        """Flush and let go of the output; a second call does nothing."""


class Output:
    """A file or standard output (`-`), written without a buffer of its own. SinkError if it cannot be opened."""

    def __init__(self, path):
        self.path = "standard output" if path == "-" else path
        try:
            self.fd = os.dup(1) if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise sink_error(self.path, error) from error

    def write(self, data):
        """Write all of `data` (memoryview); an OSError's `written` says how many bytes were."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self.fd, data[written:])
        except OSError as error:
            error.written = written
            raise
        return written

    def cut(self, count):
        """Take back the last `count` bytes, where the output is a file."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, os.lseek(self.fd, 0, os.SEEK_CUR) - count)

    def close(self):
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

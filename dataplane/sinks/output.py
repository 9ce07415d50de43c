"""A file or standard output that holds lines: opened anew, or gone on with after what is there."""

import contextlib
import fcntl
import os
import select
import stat

from dataplane.sinks.base import SinkError, sink_error

LINE_MAX_bytes = 1 << 20  # no line of ours is longer
STEP_bytes = 1 << 16


class Output:
    """A file or standard output (`-`), written without a buffer of its own. SinkError if it cannot be opened.

    head: what an empty file begins with. With `append` a file is gone on with: a last line that is not whole, because
    its writer was killed, is cut off. The file stays locked (flock), so that no two do this.
    """

    def __init__(self, path, head=b"", append=False):
        self.path = "standard output" if path == "-" else path
        self.fd = -1
        try:
            self.fd = os.dup(1) if path == "-" else open_to_write(path, append)
            if not (append and path != "-" and self._go_on(head)):
                self.write(memoryview(head))
        except OSError as error:
            self.close()
            raise sink_error(self.path, error) from error
        except SinkError:
            self.close()
            raise

    def _go_on(self, head):
        """Take over a regular file; True if something is in it."""
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            return False
        if not lock(self.fd):
            raise SinkError(f"another process writes {self.path}: give -o another name")
        with open(self.path, "rb", buffering=0) as file:
            whole = whole_bytes(file.fileno())
            first = file.read(len(head))
        if os.fstat(self.fd).st_size - whole > LINE_MAX_bytes:
            raise SinkError(f"{self.path} is there already and holds no lines: give -o another name")
        if whole and first != head:
            raise SinkError(f"{self.path} has other columns, of other detectors or another version: move it away")
        os.ftruncate(self.fd, whole)
        return whole > 0

    def write(self, data):
        """Write all of `data` (memoryview); an OSError's `written` says how many bytes were."""
        written = 0
        try:
            while written < len(data):
                try:
                    written += os.write(self.fd, data[written:])
                except BlockingIOError:  # standard output may have been made so by who else has it
                    wait_for_room(self.fd)
        except OSError as error:
            error.written = written
            raise
        return written

    def cut(self, count):
        """Take back the last `count` bytes, where the output is a file."""
        with contextlib.suppress(OSError):
            end = os.lseek(self.fd, 0, os.SEEK_CUR) - count
            os.ftruncate(self.fd, end)
            os.lseek(self.fd, end, os.SEEK_SET)

    def close(self):
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def open_to_write(path, append):
    """Descriptor of a file, emptied or to append to. A pipe that nobody reads is not waited for when appending."""
    how = os.O_APPEND | os.O_NONBLOCK if append else os.O_TRUNC
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o666)
    os.set_blocking(fd, True)
    return fd


def lock(fd, unknown=True):
    """Lock a file for this process; False if another one has it, `unknown` where the file system knows no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def wait_for_room(fd):
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def whole_bytes(fd):
    """Size of a file up to the end of its last whole line."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - STEP_bytes)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0

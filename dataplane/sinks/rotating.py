"""A file sink whose name holds the time: one file after another, each finished by time or size.

A file is written as `.NAME.part` beside its place and renamed when it is finished, so what has a name is whole. Its
writer holds a lock (flock) on it; one without a lock was left behind by a process that was killed.
"""

import errno
import glob
import itertools
import os
import re
import time
from typing import NamedTuple

import numpy as np

from dataplane.sinks.base import Sink, SinkError, sink_error
from dataplane.sinks.output import lock

CONVERSIONS = "YymdHMSjFTsGVu"  # of strftime, those that are the same in every language
SLICE_EVENTS = 2048  # written before the size is looked at


class Rotation(NamedTuple):
    """When a file is finished; 0: never."""

    every_ns: int = 3_600 * 10**9  # at multiples of this since 1970: 1h is on the hour, UTC
    size_bytes: int = 256 << 20  # when it has become larger


def rotates(path):
    """True if a path holds the time."""
    return "%" in path


def named(template, now_ns):
    """The path of a template at a time, UTC."""
    seconds = now_ns // 10**9
    moment, own = time.gmtime(seconds), {"%s": str(seconds), "%%": "%"}  # strftime's %s is a local time's
    return re.sub("%.", lambda found: own.get(found[0]) or time.strftime(found[0], moment), template)


def require_template(template):
    """SinkError if a template holds what is no conversion."""
    for text, letter in re.findall("(%(.?))", template):
        if not letter or letter not in CONVERSIONS + "%":
            known = " ".join(f"%{c}" for c in CONVERSIONS)
            raise SinkError(f"{template}: {text} is no conversion of the time ({known}); write a plain % as %%")


def hidden(path):
    """Where a file is written until it is finished."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.part")


def shown(path):
    """The reverse of hidden."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name[1 : -len(".part")])


def free_names(path):
    """`path`, then with -1, -2 and so on before its suffix, without those that exist."""
    stem, suffix = os.path.splitext(path)
    for number in itertools.count():
        name = f"{stem}-{number}{suffix}" if number else path
        if not os.path.exists(name):
            yield name


def new_part(path):
    """(descriptor, path) of a new hidden file, locked, for what will be called `path` or, if that exists, like it."""
    for name in free_names(path):
        try:
            fd = os.open(hidden(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        if lock(fd) and os.fstat(fd).st_nlink:  # else it was taken for a left-over just now
            return fd, hidden(name)
        os.close(fd)


def finish(part):
    """Give a hidden file its name, or one like it if that exists; the name."""
    name = next(free_names(shown(part)))
    os.rename(part, name)
    return name


def left_over(template):
    """Hidden files of a template."""

    def pattern(text):
        return re.sub("%(.)|[^%]+", lambda f: glob.escape(f[0]) if f[1] is None else "%" if f[1] == "%" else "*", text)

    stem, suffix = os.path.splitext(template)
    return sorted(glob.glob(hidden(f"{pattern(stem)}*{pattern(suffix)}")))


def slices(events):
    """Events in pieces of at most SLICE_EVENTS, which hold no more rows than they need."""
    if len(events.order) <= SLICE_EVENTS:
        return (events,)
    return (piece(events, events.order[at : at + SLICE_EVENTS]) for at in range(0, len(events.order), SLICE_EVENTS))


def piece(events, order):
    order, parts = order.copy(), []
    for index, (detector, rows) in enumerate(events.parts):
        chosen = order[:, 0] == index
        parts.append((detector, rows[order[chosen, 1]]))
        order[chosen, 1] = np.arange(int(chosen.sum()))
    return events._replace(parts=parts, order=order)


def require_folder(template):
    """OSError if the folder of a template, as far as it has no time in its name, cannot be written to."""
    folder = os.path.dirname(template)
    while rotates(folder):
        folder = os.path.dirname(folder)
    os.stat(folder or ".")
    if not os.access(folder or ".", os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class Rotating(Sink):
    """Files of the sink `kind`, (path, detectors) -> Sink; its `mend(fd)` tells whether a left-over one can be read.

    clock: () -> ns since 1970. `rotation` may be set anew at any time. A file is begun when its first event comes.
    """

    def __init__(self, kind, template, detectors, rotation, clock=time.time_ns):
        super().__init__()
        require_template(template)
        self.path, self.kind, self.detectors, self.rotation, self.clock = template, kind, detectors, rotation, clock
        self.sink, self.fd, self.part, self.due, self.counted = None, -1, "", 0, (0, 0, 0)
        try:
            require_folder(template)
            self.notes = tuple(self._recover())
        except OSError as error:
            raise sink_error(template, error) from error

    def put(self, events):
        self.tick()
        for some in slices(events):
            if self.sink is None:
                self._begin()
            try:
                self.sink.write(some)
            except Exception:
                self._finish()
                raise
            self._count()
            if 0 < self.rotation.size_bytes <= os.fstat(self.fd).st_size:
                self._finish()

    def tick(self):
        if self.due and self.clock() >= self.due:
            self._finish()

    def rotate(self):
        self._finish()

    def close(self):
        self._finish()

    def _begin(self):
        now, every = self.clock(), self.rotation.every_ns
        path = named(self.path, now)
        if rotates(os.path.dirname(self.path)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        self.fd, self.part = new_part(path)
        try:
            self.sink = self.kind(self.part, self.detectors)
        except SinkError as error:
            self._name(False)
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None
        self.sink.path, self.counted = self.path, (0, 0, 0)
        self.due = (now // every + 1) * every if every else 0

    def _count(self):
        """Add what has become of events in the file at hand since the last time."""
        sink, before = self.sink, self.counted
        self.counted = sink.delivered, sink.queued, sink.dropped
        self.delivered += sink.delivered - before[0]
        self.queued += sink.queued - before[1]
        self.dropped += sink.dropped - before[2]

    def _finish(self):
        """Close the file at hand and give it its name; one without an event goes."""
        if self.sink is None:
            return
        try:
            self.sink.close()
        finally:
            self._count()
            keep = self.sink.delivered > 0
            self.sink, self.due = None, 0
            self._name(keep)

    def _name(self, keep):
        try:
            if keep:
                os.fsync(self.fd)
                finish(self.part)
            else:
                os.unlink(self.part)
        except OSError as error:
            raise sink_error(self.path, error) from error
        finally:
            os.close(self.fd)

    def _recover(self):
        """Finish what a process that was killed left behind; a sentence about each."""
        for part in left_over(self.path):
            try:
                with open(part, "rb+", buffering=0) as file:
                    fd = file.fileno()
                    if lock(fd, unknown=False) and os.path.samestat(os.fstat(fd), os.stat(part)):
                        yield from self._finish_left(fd, part)
            except FileNotFoundError:
                pass  # its writer has just finished it
            except OSError as error:
                yield f"{part} was left unfinished and cannot be finished ({error.strerror})"

    def _finish_left(self, fd, part):
        if not self.kind.mend(fd):
            yield f"{part} cannot be read, for its writer was killed before it was finished: delete it"
        elif os.fstat(fd).st_size:
            yield f"{finish(part)} holds what a process that was killed had written until then"
        else:
            os.unlink(part)

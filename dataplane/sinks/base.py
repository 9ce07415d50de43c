"""What a sink is: it takes events, says what became of them, and fails with one sentence. Knows no engine."""

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
    errno.ENXIO: "start its reader first",
}


def sink_error(path, error):
    """The SinkError that says what an OSError on `path` means."""
    if isinstance(error, BrokenPipeError):
        return ReaderGone(f"nobody reads {path} any more")
    what = os.strerror(error.errno) if error.errno else str(error)
    advice = ADVICE.get(error.errno)
    return SinkError(f"cannot write {path}: {what}" + (f"; {advice}" if advice else ""))


class Sink:
    """Takes Events. Subclasses give `put`, and of the others what they need.

    Of the events written, `delivered` are out, `queued` wait inside and `dropped` are lost; `put` counts them, but for
    those that it did not get to. All methods are called by one thread.
    """

    path = ""  # as sentences call the output
    trouble = None  # a sentence about what is wrong now, though no call failed: a broker is away, say
    rotation = None  # when a file is finished, where they are written one after the other
    notes = ()  # sentences for the user about what was found when it was opened

    def __init__(self):
        self.delivered = self.queued = self.dropped = 0

    def write(self, events):
        """Deliver Events. SinkError if that fails; those not delivered are then counted as dropped."""
        settled = self.settled
        try:
            self.put(events)
        except Exception as error:
            self.dropped += len(events.order) - (self.settled - settled)
            if isinstance(error, OSError):
                raise sink_error(self.path, error) from error
            raise

    @property
    def settled(self):
        """Events whose fate is counted."""
        return self.delivered + self.queued + self.dropped

    def put(self, events):
        raise NotImplementedError

    def tick(self):
        """Some times a second, also while no events come."""

    def reopen(self):
        """The file may have been renamed: go on in a new one of the same name."""

    def rotate(self):
        """Finish the file at hand and begin the next."""

    def close(self):
        """Hand on what waits inside and let go of the output; a second call does nothing."""

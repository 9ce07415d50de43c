"""Events as lines of text in a file or on standard output: what the JSON lines and CSV sinks share."""

import os

import numpy as np

from dataplane.events import Renderer
from dataplane.sinks.base import Sink, sink_error
from dataplane.sinks.output import Output, whole_bytes


class Lines(Sink):
    """Renders events by a layout of dataplane.events and writes whole lines; with `append` after those that are there.

    A write that fails takes nothing with it: the next may succeed.
    """

    layout = None

    def __init__(self, path, detectors, append=False):
        super().__init__()
        self.renderer = Renderer(detectors, type(self).layout)
        self.where = path, self.head(detectors), append
        self.output = Output(*self.where)
        self.path = self.output.path

    @staticmethod
    def head(_detectors):
        """The line that a file begins with."""
        return b""

    @staticmethod
    def mend(fd):
        """Make a file that its writer did not finish readable; True if that was possible."""
        os.ftruncate(fd, whole_bytes(fd))
        return True

    def put(self, events):
        if self.output is None:  # it could not be opened anew
            self.output = Output(*self.where)
        for text, ends in self.renderer.chunks(events):
            try:
                self.output.write(text)
            except OSError as error:
                whole = int(np.searchsorted(ends, error.written, side="right"))
                self.output.cut(error.written - (int(ends[whole - 1]) if whole else 0))
                self.delivered += whole
                raise
            self.delivered += len(ends)

    def reopen(self):
        if self.where[0] != "-":
            self.close()
            self.output = Output(*self.where)

    def rotate(self):
        """The same: a file without a time in its name is renamed by who asks for this."""
        self.reopen()

    def close(self):
        output, self.output = self.output, None
        try:
            if output is not None:
                output.close()
        except OSError as error:
            raise sink_error(self.path, error) from error

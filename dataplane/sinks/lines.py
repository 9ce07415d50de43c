"""Events as lines of text in a file or on standard output: what the JSON lines and CSV sinks share."""

import numpy as np

from dataplane.events import Renderer
from dataplane.sinks.base import Output, Sink, sink_error


class Lines(Sink):
    """Renders events by a layout of dataplane.events and writes whole lines."""

    layout = None

    def __init__(self, path, detectors):
        super().__init__()
        self.renderer = Renderer(detectors, type(self).layout)
        self.output = Output(path)
        self.path = self.output.path

    def put(self, events):
        for text, ends in self.renderer.chunks(events):
            try:
                self.output.write(text)
            except OSError as error:
                whole = int(np.searchsorted(ends, error.written, side="right"))
                self.output.cut(error.written - (int(ends[whole - 1]) if whole else 0))
                self.delivered += whole
                raise
            self.delivered += len(ends)

    def close(self):
        try:
            self.output.close()
        except OSError as error:
            raise sink_error(self.path, error) from error

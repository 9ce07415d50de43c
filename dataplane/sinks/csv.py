"""CSV (RFC 4180, lines ended by LF): a header, the common columns, then `detector.field` of every detector."""

from dataplane.events import csv_header, csv_lines
from dataplane.sinks.base import sink_error
from dataplane.sinks.lines import Lines


class Csv(Lines):
    layout = staticmethod(csv_lines)

    def __init__(self, path, detectors):
        super().__init__(path, detectors)
        try:
            self.output.write(memoryview(csv_header(detectors)))
        except OSError as error:
            raise sink_error(self.path, error) from error


SINK = Csv

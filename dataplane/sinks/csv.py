"""CSV (RFC 4180, lines ended by LF): a header, the common columns, then `detector.field` of every detector."""

from dataplane.events import csv_header, csv_lines
from dataplane.sinks.lines import Lines


class Csv(Lines):
    layout = staticmethod(csv_lines)
    head = staticmethod(csv_header)


SINK = Csv

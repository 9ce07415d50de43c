"""JSON lines: one event, one object, one line."""

from dataplane.events import json_lines
from dataplane.sinks.lines import Lines


class JsonLines(Lines):
    layout = staticmethod(json_lines)


SINK = JsonLines

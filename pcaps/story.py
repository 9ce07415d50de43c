"""A story: frames at given times and the events that they must lead to. Knows no detector; the cases tell it the truth.

The first line of an expected file describes the case, each further line is one event in the order of delivery:
a subset of what must be found, with tolerances by path under "~".
"""

import json
from functools import partial

from pcaps.files import Record, pcap

SECOND_NS, MILLISECOND_NS, MICROSECOND_NS = 1_000_000_000, 1_000_000, 1_000
EPOCH_NS = 1_704_067_200 * SECOND_NS  # 2024-01-01T00:00:00Z


def ms(value):
    return round(value * MILLISECOND_NS)


def us(value):
    return round(value * MICROSECOND_NS)


class Mark:
    """A frame of a story; its number is known once the story is told."""

    def __init__(self, record):
        self.record, self.number = record, None

    @property
    def ts(self):
        return self.record.ts_ns


class Story:
    """Frames are added in any order and sorted by time, unless `sort` is off.

    `hour` sets when it plays, so that a folder of stories replayed as one has them one after the other. `write` makes
    the file of the records; None: the story tells of another story's `file`. `header` goes into the first line of the
    expected file: `options` of the replay, `exit` status.
    """

    def __init__(self, name, hour, detectors, write=partial(pcap, unit="ns"), file=None, sort=True, **header):
        self.name, self.detectors, self.header = name, list(detectors), header
        self.start_ns = EPOCH_NS + hour * 3600 * SECOND_NS
        self.file, self.write, self.sort = file or name + ".pcap", write, sort
        self.marks, self.events = [], []

    def at(self, seconds):
        """Time in ns, `seconds` (to the nanosecond) after the story's start."""
        return self.start_ns + round(seconds * SECOND_NS)

    def add(self, ts_ns, frame, length=None, interface=0):
        mark = Mark(Record(ts_ns, bytes(frame), length, interface))
        self.marks.append(mark)
        return mark

    def expect(self, event_type, mark, ends=(), known_ns=None, near=None, **fields):
        """One event, delivered at `known_ns` (the frame's time if not given).

        `ends` is (src_ip, src_port, dest_ip, dest_port, proto) or shorter; `fields` replace head fields (ts_ns=) or are
        objects (iqn={...}); a field that is None is left out. `near` maps paths to tolerances.
        """
        names = ("src_ip", "src_port", "dest_ip", "dest_port", "proto")
        who = dict(zip(names, ends, strict=False))
        event = {"event_type": event_type, "ts_ns": mark.ts, **who, "pcap_cnt": mark, **fields}
        if near:
            event["~"] = near
        event = {name: value for name, value in event.items() if value is not None}
        self.events.append((mark.ts if known_ns is None else known_ns, event))

    def records(self):
        if self.sort:
            self.marks.sort(key=lambda mark: mark.ts)
        for number, mark in enumerate(self.marks, 1):
            mark.number = number
        return [mark.record for mark in self.marks]

    def make(self):
        """(bytes of the capture or None, text of the expected file)."""
        records = self.records()
        return (self.write(records) if self.write else None), self.lines()

    def lines(self):
        header = {"file": self.file, "packets": len(self.marks), "detectors": self.detectors, **self.header}
        events = [event for _, event in sorted(self.events, key=lambda entry: entry[0])]
        for event in events:
            if isinstance(event.get("pcap_cnt"), Mark):
                event["pcap_cnt"] = event["pcap_cnt"].number
        return "".join(json.dumps(line) + "\n" for line in [header, *events])

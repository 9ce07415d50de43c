"""Events of two made-up detectors, and sinks to give them to: for the tests of sinks, queues and outputs."""

import threading
import time

import numpy as np

from dataplane.events import Events, Renderer, json_lines
from dataplane.records import NO_TIME, rows
from dataplane.sinks import open_sink
from dataplane.sinks.base import Sink
from detectors.base import Detector, EventType, Field, event_row

FLOW = (
    Field("start_ns", np.int64, "a time"),
    Field("duration_ns", np.int64, "a duration"),
    Field("bytes_toserver", np.int64, "bytes"),
    Field("bytes_toclient", np.int64, "bytes"),
    Field("lost", np.uint8, "a flag", "bool"),
)
LINK = (
    Field("rtt_ms", np.float64, "ms", "float"),
    Field("clock", np.uint64, "id", "hex"),
    Field("why", np.uint8, "", ("a", "b")),
)


def detector(name, *types):
    return Detector(name, 0, np.dtype([]), event_row(*types), types, (), None, None, None)


DETECTORS = (
    detector("flow", EventType("flow.record", FLOW, "a flow ended"), EventType("flow.short", FLOW[:1], "a short one")),
    detector("link", EventType("link.rtt", LINK, "a round trip")),
)
START_NS = 1_700_000_000_000_000_000


def batch(count, seed=0):
    """Events of both detectors, taking turns."""
    rng = np.random.default_rng(seed)
    parts = [(d, rows(d.event, count - count // 2 if i == 0 else count // 2)) for i, d in enumerate(DETECTORS)]
    for d, made in parts:
        made.code = rng.integers(1, len(d.events) + 1, len(made))
        made.ts = START_NS + rng.integers(0, 10**12, len(made))
        made.src, made.dst = rng.integers(0, 256, (2, len(made), 16))
        made.ip_version, made.proto = rng.choice([0, 4, 6], len(made)), rng.choice([1, 6, 17, 47, 58], len(made))
        made.sport, made.dport, made.vlan = rng.integers(0, 3, (3, len(made)))
        made.seq = rng.integers(0, 300, len(made))
    flow, link = (made for _, made in parts)
    flow.start_ns, flow.duration_ns = flow.ts - 5, np.where(rng.random(len(flow)) < 0.2, NO_TIME, 1_500_000)
    flow.bytes_toserver, flow.bytes_toclient = rng.integers(0, 10**6, (2, len(flow)))
    flow.lost = rng.integers(0, 2, len(flow))
    link.rtt_ms, link.clock = rng.choice([1.5, np.nan, 3.25], len(link)), rng.integers(0, 2**63, len(link))
    link.why = rng.integers(0, 3, len(link))
    order = np.array([(k % 2, k // 2) for k in range(count)], np.int64).reshape(-1, 2)
    return Events(parts, order, [(0, "a.pcap"), (200, "b,c.pcap")], "agent")


def text_of(events, layout=json_lines):
    return b"".join(bytes(text) for text, _ in Renderer(DETECTORS, layout).chunks(events))


def deliver(spec, *batches):
    sink = open_sink(str(spec), DETECTORS)
    for events in batches:
        sink.write(events)
    sink.close()
    return sink


class Slow(Sink):
    """Waits for `go` before each batch; fails where told."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.go, self.got, self.fail_at, self.closed = threading.Semaphore(0), [], fail_at, False

    def put(self, events):
        self.go.acquire()
        if len(self.got) == self.fail_at:
            raise OSError(28, "No space left on device")
        self.got.append(text_of(events))
        self.delivered += len(events.order)

    def close(self):
        self.closed = True


def balanced(queued):
    counts = queued.counts()
    return counts.made == counts.delivered + counts.queued + counts.dropped


def until(true, seconds=60, pause=0.002):
    """Wait until true(); a kernel may have to be compiled meanwhile."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)


class Recorder(Sink):
    """Writes down in `calls` what it is asked for besides events."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def reopen(self):
        self.calls.append("reopen")

    def rotate(self):
        self.calls.append("rotate")

    def close(self):
        self.calls.append("close")

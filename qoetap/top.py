"""`qoetap live --top`: what goes on, refreshed in place: rates and losses, stalls in progress, path delays, events."""

import socket
import threading
import time
from collections import OrderedDict

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table

from dataplane.records import NO_TIME
from dataplane.sinks.table import PLAIN

SHOWN, KEPT, SENTENCES = 8, 4096, 3  # rows shown of a table; remembered; lines below
REDRAW_SECONDS = 1.0
DELAYS = {"ptp.delay": "mean_path_delay_ns", "icmp.rtt": "rtt_ns"}  # event type: its field


def address(data, version):
    return socket.inet_ntop(socket.AF_INET6, bytes(data)) if version == 6 else socket.inet_ntoa(bytes(data[:4]))


def ends_of(event):
    """(source, destination) as text; ("", "") where the event has none."""
    version = int(event["ip_version"])
    if not version:
        return "", ""
    ends = ((event["src"], int(event["sport"])), (event["dst"], int(event["dport"])))
    return tuple(f"{address(data, version)} {port or ''}".strip() for data, port in ends)


class Latest(OrderedDict):
    """A dict that forgets what was set first when it holds too much."""

    def put(self, key, value):
        self[key] = value
        self.move_to_end(key)
        if len(self) > KEPT:
            self.popitem(last=False)


class Top:
    """Takes events from any thread; the one that made it draws."""

    def __init__(self):
        self.stalls, self.delays, self.counts = Latest(), Latest(), {}
        self.lock, self.drawn, self.before = threading.Lock(), 0.0, None
        self.sentences = []
        self.screen = Screen(console=Console(**PLAIN), screen=True, auto_refresh=False)

    def look(self, events):
        """Note what Events say."""
        with self.lock:
            for detector, found in events.parts:
                for code, kind in enumerate(detector.events, 1):
                    rows = found[found["code"] == code]
                    if len(rows):
                        self.counts[kind.name] = self.counts.get(kind.name, 0) + len(rows)
                        self._note(kind.name, rows[-KEPT:])

    def _note(self, name, rows):
        if name in DELAYS:
            for row in rows:
                if (delay := int(row[DELAYS[name]])) != NO_TIME:
                    self.delays.put((name, *ends_of(row)), delay)
        elif name == "iqn.stall_start":
            for row in rows:
                self.stalls.put(ends_of(row), int(row["ts"]))
        elif name == "iqn.stall_end":
            for row in rows:
                self.stalls.pop(ends_of(row), None)

    def say(self, sentence):
        """The latest sentences stand below the tables."""
        self.sentences = [*self.sentences[1 - SENTENCES :], sentence]

    def draw(self, take_snapshot):
        """Redraw, if the last time is long enough ago."""
        now = time.monotonic()
        if now - self.drawn < REDRAW_SECONDS:
            return
        snapshot = take_snapshot()
        if self.before is None:
            self.screen.start()
        seconds = now - self.drawn if self.before else 0.0
        with self.lock:
            self.screen.update(Group(*self.tables(snapshot, seconds, time.time_ns())), refresh=True)
        self.drawn, self.before = now, snapshot

    def tables(self, snapshot, seconds, now_ns):
        """The tables, of a snapshot `seconds` after the one before."""
        yield self._packets(snapshot, seconds)
        yield self._states(snapshot)
        if self.stalls:
            yield self._stalls(now_ns)
        if self.delays:
            yield self._delays()
        if self.counts:
            yield self._events(snapshot)
        yield from self.sentences

    def _packets(self, snapshot, seconds):
        before = self.before["packets"]["seen"] if self.before else 0
        rate = (snapshot["packets"]["seen"] - before) / seconds if seconds else 0.0
        why = f"  {snapshot['why']}" if snapshot["why"] else ""
        table = table_of(f"qoetap, up {snapshot['uptime_seconds']:.0f} s, {rate:,.0f} packets/s{why}",
                         "interface", "state", "packets", "dropped", "missed")  # fmt: skip
        for name, port in snapshot["interfaces"].items():
            state = "up" if port["up"] else "down"
            table.add_row(name, state, *(f"{port[key]:,}" for key in ("received", "dropped", "missed")))
        return table

    def _states(self, snapshot):
        table = table_of("states", "detector", "live", "made", "given up")
        for name, state in snapshot["states"].items():
            table.add_row(name, *(f"{state[key]:,}" for key in ("live", "created", "emergency")))
        return table

    def _stalls(self, now_ns):
        table = table_of(f"stalls in progress: {len(self.stalls)}", "server", "client", "since")
        for (source, target), ts in list(self.stalls.items())[-SHOWN:]:
            table.add_row(source, target, f"{max(0, now_ns - ts) / 1e9:.1f} s")
        return table

    def _delays(self):
        table = table_of("delays, latest", "event", "from", "to", "ms")
        for (name, source, target), delay in list(self.delays.items())[-SHOWN:]:
            table.add_row(name, source, target, f"{delay / 1e6:.3f}")
        return table

    def _events(self, snapshot):
        events = snapshot["events"]
        title = f"events: {events['delivered']:,} delivered, {events['queued']:,} waiting, {events['dropped']:,} lost"
        table = table_of(title, "event", "count")
        for name, count in sorted(self.counts.items()):
            table.add_row(name, f"{count:,}")
        return table

    def close(self):
        if self.before is not None:
            self.screen.stop()


def table_of(title, *columns):
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        right = name in ("packets", "dropped", "missed", "live", "made", "given up", "since", "ms", "count")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table

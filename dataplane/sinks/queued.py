"""A bounded queue and a thread in front of a sink, so that rendering and writing do not hold up the packets."""

import threading
import time
from collections import deque
from typing import NamedTuple

from dataplane.sinks.base import SinkError

LIMIT_EVENTS = 65_536  # that wait at most; one larger batch is taken when none wait
TICK_S = 0.25
HANG_S = 30.0  # one whose call does not come back for so long hangs
STALL_S = 2.0  # a sink that took nothing for so long is not waited for where dropping is allowed


class Counts(NamedTuple):
    """made = delivered + queued + dropped."""

    made: int
    delivered: int
    queued: int
    dropped: int


class Queued:
    """Copies events and hands them to `sink` in a thread, in order. That thread makes all calls of the sink.

    Without `drop`, `write` waits while the queue is full; once the sink has failed everything is dropped and every call
    raises its error. With `drop`, no call raises and none waits: a batch is lost when the queue is full or when the
    sink fails, and the next is tried again. name: as sentences call the sink, whose own `path` may hold a secret.
    """

    def __init__(self, sink, drop=False, limit_events=LIMIT_EVENTS, name=None):
        self.sink, self.drop, self.limit, self.name = sink, drop, limit_events, name or sink.path
        self.made = self.waiting = self.lost = 0  # lost: dropped here, before the sink
        self.sent = (0, 0, 0)  # the sink's delivered, queued and dropped, after its last call
        self.calls, self.error, self.last_trouble = deque(), None, None  # the latter: of the sink, when it was closed
        self.closing = self.closed = self.left = False  # asked to; done; given up
        self.alive = time.monotonic()  # when a call of the sink last came back, or it was seen to have delivered more
        self.delivered_then = 0  # at that time
        self.asked = 0.0  # when it was to finish
        self.patient_until = 0.0  # until then `write` waits although it may drop
        self.change = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="qoetap-sink", daemon=True)
        self.thread.start()

    def counts(self):
        """Counts that add up, at any time and from any thread."""
        with self.change:
            delivered, queued, dropped = self.sent
            return Counts(self.made, delivered, self.waiting + queued, self.lost + dropped)

    @property
    def trouble(self):
        """What is wrong now, in one sentence; None if nothing is. A failure is over when something is delivered."""
        error, sink = self.error, self.sink
        if error is None:
            return sink and (sink.trouble or self._hanging(sink))
        return str(error) if self.left else f"{error}; events are dropped and counted until it can be written"

    def _hanging(self, sink):
        delivered, now = sink.delivered, time.monotonic()
        if delivered > self.delivered_then:
            self.delivered_then, self.alive = delivered, now
        if now - self.alive <= HANG_S:
            return None
        what = f"{self.name} hangs: it has taken nothing for {HANG_S:.0f} s"
        return f"{what}; events wait, and are dropped and counted in the end"

    def write(self, events):
        """Take a copy of Events. Without `drop`, raises what the sink has failed with since."""
        count = len(events.order)
        with self.change:
            while not self.error_is_final and self._full(count) and self._may_wait():
                if not self.change.wait(STALL_S):
                    self.patient_until = 0.0
            self.made += count
            if self.error_is_final or self.closing or self._full(count):
                self.lost += count
            else:
                self.waiting += count
                self._ask(self.sink.write, events.copy())
            self._check()

    def reopen(self):
        """Ask the sink to open its file anew, in order with the events."""
        with self.change:
            self._ask(self.sink.reopen)

    def rotate(self):
        """Ask the sink to begin its next file, in order with the events."""
        with self.change:
            self._ask(self.sink.rotate)

    def drain(self, seconds):
        """From now on, for so long, `write` waits for room also with `drop`, while the sink takes something."""
        with self.change:
            self.patient_until = time.monotonic() + seconds

    def finish(self):
        """Take no more; what waits is delivered and the sink closed meanwhile."""
        with self.change:
            self.closing, self.asked = True, self.asked or time.monotonic()
            self.change.notify_all()

    def close(self, seconds=None):
        """Finish and wait for that; after `seconds` give up: what is not delivered is dropped."""
        self.finish()
        self.thread.join(seconds)
        if self.thread.is_alive():
            self._leave()
        self._check()

    @property
    def error_is_final(self):
        return self.error is not None and not self.drop

    def _full(self, count):
        return self.waiting > 0 and self.waiting + count > self.limit

    def _may_wait(self):
        return not self.closing and (not self.drop or time.monotonic() < self.patient_until)

    def _check(self):
        if self.error_is_final:
            raise self.error

    def _ask(self, function, *args):
        self.calls.append((function, *args))
        self.change.notify_all()

    def _leave(self):
        """Give up a sink that hangs. Its thread may still be in it, but counts no more."""
        with self.change:
            if self.closed:
                return
            self.left, self.sent = True, (self.sink.delivered, 0, self.sink.dropped)
            rest = self.made - sum(self.sent) - self.lost
            self.waiting, self.lost = 0, self.lost + rest
            seconds = time.monotonic() - self.asked
            self.error = SinkError(f"{self.name} hangs: given up after {seconds:.1f} s, {rest:,} events dropped")

    def _run(self):
        due = time.monotonic() + TICK_S
        while (call := self._next(due)) is not None:
            if call:
                self._do(*call)
            if time.monotonic() >= due:
                self._do(self.sink.tick)
                due = time.monotonic() + TICK_S
        if not self.left:
            self._do(self.sink.close)
            with self.change:
                self.closed, self.last_trouble, self.sink = True, self.sink.trouble, None

    def _next(self, due):
        """What to call next, () if nothing until `due`; None when closing and nothing is left."""
        with self.change:
            while not self.calls and not self.closing:
                if (wait := due - time.monotonic()) <= 0:
                    return ()
                self.change.wait(wait)
            return self.calls.popleft() if self.calls and not self.left else None

    def _do(self, function, *events):
        """Make a call of the sink, unless it is given up, and keep count."""
        count = sum(len(e.order) for e in events)
        given_up = self.error_is_final and function != self.sink.close
        sent = self.sent if given_up else self._call(function, *events)
        self.alive = time.monotonic()
        with self.change:
            if not self.left:
                self.sent = sent
                self.waiting -= count
                self.lost += count if given_up else 0
            self.change.notify_all()

    def _call(self, function, *args):
        """Call the sink and read its counts; its failure is kept, without `drop` the first one."""
        before = self.sink.delivered
        try:
            function(*args)
        except Exception as error:  # whatever it is, the thread must live to count what is lost
            if not self.left:
                self.error = self._told(error) if self.drop else self.error or error
        else:
            if self.drop and self.sink.delivered > before:
                self.error = None
        return self.sink.delivered, self.sink.queued, self.sink.dropped

    def _told(self, error):
        """The same without its traceback, which holds the batch."""
        if isinstance(error, SinkError):
            return type(error)(str(error))
        return SinkError(f"{self.name}: {type(error).__name__}: {error}")

"""A bounded queue and a thread in front of a sink, so that rendering and writing do not hold up the packets."""

import threading
from collections import deque
from typing import NamedTuple

LIMIT_EVENTS = 65_536  # that wait at most; one larger batch is taken when none wait


class Counts(NamedTuple):
    """made = delivered + queued + dropped."""

    made: int
    delivered: int
    queued: int
    dropped: int


class Queued:
    """Copies events and hands them to `sink` in a thread, in order.

    When the queue is full `write` waits, or with `drop` loses the batch. Once the sink has failed everything is dropped
    and every call raises its error.
    """

    def __init__(self, sink, drop=False, limit_events=LIMIT_EVENTS):
        self.sink, self.drop, self.limit = sink, drop, limit_events
        self.made = self.waiting = self.lost = 0  # lost: dropped here, before the sink
        self.sent = (0, 0, 0)  # the sink's delivered, queued and dropped, after its last call
        self.batches, self.closing, self.error = deque(), False, None
        self.change = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="qoetap-sink", daemon=True)
        self.thread.start()

    def counts(self):
        """Counts that add up, at any time and from any thread."""
        with self.change:
            delivered, queued, dropped = self.sent
            return Counts(self.made, delivered, self.waiting + queued, self.lost + dropped)

    def write(self, events):
        """Take a copy of Events. Raises what the sink has failed with since."""
        count = len(events.order)
        with self.change:
            while not self.drop and self.error is None and self._full(count):
                self.change.wait()
            self.made += count
            if self.error is not None or self._full(count):
                self.lost += count
                return self._check()
            self.waiting += count
            self.batches.append(events.copy())
            self.change.notify_all()

    def flush(self):
        """Wait until nothing waits here, and flush the sink."""
        with self.change:
            while self.waiting:
                self.change.wait()
            self._check()
            self.sent = self._call(self.sink.flush)
            self._check()

    def close(self):
        """Deliver what waits, end the thread, close the sink."""
        with self.change:
            self.closing = True
            self.change.notify_all()
        self.thread.join()
        self.sent = self._call(self.sink.close)
        self._check()

    def _full(self, count):
        return self.waiting > 0 and self.waiting + count > self.limit

    def _check(self):
        if self.error is not None:
            raise self.error

    def _call(self, function, *args):
        """Call the sink and read its counts; its first failure is kept."""
        try:
            function(*args)
        except Exception as error:  # whatever it is, the thread must live to count what is lost
            self.error = self.error or error
        return self.sink.delivered, self.sink.queued, self.sink.dropped

    def _next(self):
        """The next batch, waiting for it; None when closing and none is left."""
        with self.change:
            while not self.batches and not self.closing:
                self.change.wait()
            return self.batches.popleft() if self.batches else None

    def _run(self):
        while (events := self._next()) is not None:
            failed = self.error is not None
            sent = self.sent if failed else self._call(self.sink.write, events)
            with self.change:
                self.sent = sent
                self.waiting -= len(events.order)
                self.lost += len(events.order) if failed else 0
                self.change.notify_all()

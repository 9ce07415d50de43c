"""Live loads as server-sent events (HTML Living Standard, 9.2): one Reading an event, to a bounded number of listeners.

A listener is sent the readings at once, then that of a path whenever it has changed: at most every PERIOD_seconds, and
also when it becomes stale, which no sample tells. A comment now and then shows that the connection lives.
"""

import asyncio
import json
import time
from http import HTTPStatus

from controlplane.problems import Refused

LISTENERS_MAX = 64
PERIOD_seconds = 0.5
HEARTBEAT_seconds = 15.0
RETRY_ms = 2000  # a browser connects again after this
KIND = "text/event-stream"


class Streams:
    """The listeners. clock: ns since 1970."""

    def __init__(self, service, clock):
        self.service, self.clock, self.listeners, self.ending = service, clock, 0, False
        self.latest, self.made_at = [], float("-inf")  # readings of all paths, and when they were made

    def enter(self):
        """Count one more listener. Refused if there are enough."""
        if self.listeners >= LISTENERS_MAX or self.ending:
            detail = f"there are {self.listeners} listeners already"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, detail, {"Retry-After": str(int(HEARTBEAT_seconds))})
        self.listeners += 1

    async def events(self, name):
        """Text of the events of one path, None: of all. For one who has entered; leaves at the end."""
        seen, quiet_seconds = {}, 0.0
        try:
            yield f"retry: {RETRY_ms}\n\n"
            while not self.ending:
                text = "".join(map(event, news(await self._readings(name), seen)))
                quiet_seconds = 0.0 if text else quiet_seconds + PERIOD_seconds
                if quiet_seconds >= HEARTBEAT_seconds:
                    text, quiet_seconds = ": alive\n\n", 0.0
                if text:
                    yield text
                await asyncio.sleep(PERIOD_seconds)
        finally:
            self.listeners -= 1

    async def _readings(self, name):
        """Of one path; of all they are made once for all listeners, in another thread, since there may be many."""
        if name is not None:
            return [self.service.load(name, self.clock())]
        if time.monotonic() - self.made_at >= PERIOD_seconds / 2:
            self.made_at = time.monotonic()
            self.latest = await asyncio.to_thread(self.service.paths, self.clock())
        return self.latest


def news(readings, seen):
    """Those that have changed; `seen` is what was sent last, {path: what tells a change}."""
    found = [reading for reading in readings if seen.get(reading["path"]) != mark(reading)]
    seen.update((reading["path"], mark(reading)) for reading in found)
    return found


def mark(reading):
    """What differs when a reading has changed, but for its age."""
    return reading["samples"], reading["late"], reading["stale"], reading["reason"], reading["model"]


def event(reading):
    return f"event: load\ndata: {json.dumps(reading, separators=(',', ':'))}\n\n"

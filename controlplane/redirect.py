"""Which addresses a user gets: asked of the load service, remembered for a moment, told without it while it is away.

    cache      an answer of the last FRESH_seconds, for the same prefix and content
    service    its answer, if it comes within the time that a query may wait
    last_good  else the last answer for that prefix, for KEPT_seconds
    fallback   else, and for users of no aggregation point, the addresses that the configuration gives

After FAILURES in a row the service is not asked for REST_seconds, then by one query only, so that not each one waits.
`now` is an argument, in seconds of any clock that does not jump; `ask` is what reaches the service.
"""

import asyncio
import contextlib
from functools import partial
from typing import NamedTuple

FRESH_seconds = 0.5
KEPT_seconds = 30.0
FAILURES = 3
REST_seconds = 1.0
REMEMBERED = 65536  # users' prefixes
CACHE, SERVICE, LAST_GOOD, FALLBACK = "cache", "service", "last_good", "fallback"


class NoAnswer(Exception):
    """The service did not answer, or not with what it should."""


class Answer(NamedTuple):
    addresses: tuple  # text, IPv4 and IPv6
    origin: str


class Breaker:
    """Whether the service may be asked."""

    def __init__(self):
        self.failures, self.next_try = 0, 0.0

    def allows(self, now):
        if self.failures < FAILURES:
            return True
        if now < self.next_try:
            return False
        self.next_try = now + REST_seconds  # this one tries, those after it do not wait
        return True

    def note(self, answered, now):
        self.failures = 0 if answered else self.failures + 1
        if self.failures >= FAILURES:
            self.next_try = now + REST_seconds


class Memory:
    """The last answers, `size` of them at most: those used last. An answer None: no aggregation point has the user."""

    def __init__(self, size=REMEMBERED):
        self.size, self.known = size, {}

    def put(self, key, addresses, now):
        self.known.pop(key, None)
        self.known[key] = (addresses, now)
        if len(self.known) > self.size:
            del self.known[next(iter(self.known))]

    def get(self, key, now, seconds):
        """(addresses,) of an answer that is no older; () without."""
        addresses, since = self.known.get(key, (None, float("-inf")))
        return (addresses,) if now - since < seconds else ()


class Redirector:
    """Answers for users. ask(prefix, content): coroutine of addresses, None: no aggregation point; NoAnswer.

    timeout_seconds: that a query waits for the service.
    """

    def __init__(self, ask, timeout_seconds, clock):
        self.ask, self.timeout_seconds, self.clock = ask, timeout_seconds, clock
        self.breaker, self.memory, self.asked = Breaker(), Memory(), {}

    def at_hand(self, prefix, item):
        """Answer that needs no waiting; None: the service may be asked. item: has a content and a fallback."""
        now, key = self.clock(), (prefix, item.content)
        fresh = self.memory.get(key, now, FRESH_seconds)
        if fresh:
            return _told(fresh[0], item, CACHE)
        if key in self.asked or self.breaker.allows(now):
            return None
        return self.without(prefix, item)

    def without(self, prefix, item):
        """Answer without the service."""
        kept = self.memory.get((prefix, item.content), self.clock(), KEPT_seconds)
        return _told(kept[0] if kept else None, item, LAST_GOOD)

    async def answer(self, prefix, item):
        """Answer of the service, or what takes its place. Those that ask the same at a time ask once."""
        key = (prefix, item.content)
        if key not in self.asked:
            self.asked[key] = asyncio.ensure_future(self._asked(key))
            self.asked[key].add_done_callback(partial(self._done, key))
        with contextlib.suppress(NoAnswer):
            return _told(await asyncio.shield(self.asked[key]), item, SERVICE)
        return self.without(prefix, item)

    def give_up(self):
        """Whoever waits for the service is answered without it."""
        for future in self.asked.values():
            future.cancel()

    def _done(self, key, future):
        del self.asked[key]
        if not future.cancelled():
            future.exception()  # nobody may be left who waits for it

    async def _asked(self, key):
        answered = False
        try:
            addresses = await asyncio.wait_for(self.ask(*key), self.timeout_seconds)
            self.memory.put(key, addresses, self.clock())
            answered = True
        except (Exception, asyncio.CancelledError) as error:  # late, given up, whatever: a query has to be answered
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        finally:
            self.breaker.note(answered, self.clock())
        return addresses


def _told(addresses, item, origin):
    """An Answer; what the service does not know is the fallback's."""
    return Answer(tuple(item.fallback), FALLBACK) if addresses is None else Answer(tuple(addresses), origin)

"""What became of DNS queries, and how many of them an asker may send: counts and limits. Pure."""

from collections import Counter

from controlplane.prefixes import cut, network_of

ASKERS_MAX = 65536  # prefixes remembered
BURST_seconds = 1.0  # of its rate, at once


class Counts:
    """Every query is replied to or dropped, or waits still: received = replied + dropped + waiting."""

    def __init__(self):
        self.received, self.replied, self.dropped, self.origins = Counter(), Counter(), Counter(), Counter()

    @property
    def waiting(self):
        return self.received.total() - self.replied.total() - self.dropped.total()

    def sentence(self):
        parts = [
            f"{self.received.total()} queries ({_listed(self.received)})",
            f"replies: {_listed(self.replied)}",
            f"addresses from: {_listed(self.origins)}",
            f"dropped: {_listed(self.dropped)}",
        ]
        return "; ".join(parts)


def _listed(counter):
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


class RateLimit:
    """A bucket of tokens for each prefix of askers. rate: that it gets in a second. `now`: s, of any clock."""

    def __init__(self, rate, size=ASKERS_MAX):
        self.rate, self.size, self.buckets = rate, size, {}

    def allows(self, prefix, now):
        tokens, since = self.buckets.pop(prefix, (self.rate * BURST_seconds, now))
        tokens = min(self.rate * BURST_seconds, tokens + (now - since) * self.rate)
        allowed = tokens >= 1
        self.buckets[prefix] = (tokens - allowed, now)
        if len(self.buckets) > self.size:
            del self.buckets[next(iter(self.buckets))]
        return allowed


def asker_prefix(address):
    """The prefix of a socket address's host, as text."""
    return str(cut(network_of(address.partition("%")[0])))

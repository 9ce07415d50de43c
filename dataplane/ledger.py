"""Every packet and every event accounted for, by reason. Both sides of an equation are counted in different places."""

import numpy as np

from dataplane.wire import FILTERED, REASONS


def add(counts, more):
    """Add the counts in `more` to those of the same name."""
    for name, n in list(more.items()):
        counts[name] = counts.get(name, 0) + n


class Ledger:
    """Counts of one run.

    packets: seen = processed + filtered + undecoded (by reason) + dropped (by who);
    events: made = delivered + queued + dropped;
    states of each detector: created = expired + emergency + ended + live.
    """

    def __init__(self):
        self.seen = 0  # frames that the captures handed over
        self.lists = np.zeros((2, len(REASONS)), np.int64)  # batch.fill: in no list, in one; by where it stopped
        self.lost = {}  # packets that were counted, but did not come, by who lost them
        self.clock = {"backwards": 0, "jumps": 0, "timeless": 0}
        self.made = {}  # event type -> events that detectors made
        self.delivered = self.queued = self.dropped = 0
        self.states = {}  # detector -> counts

    @classmethod
    def of(cls, ledgers):
        """The sum of several: what they saw and made, not what became of the events."""
        found = cls()
        for one in ledgers:
            found.seen += one.seen
            found.lists += one.lists
            for mine, its in ((found.clock, one.clock), (found.lost, one.lost), (found.made, one.made)):
                add(mine, its)
            for name, counts in one.states.items():
                add(found.states.setdefault(name, {}), counts)
        return found

    def take_lists(self, reasons):
        """Add a Batch's `reasons`, which are zeroed."""
        self.lists += reasons
        reasons[:] = 0

    @property
    def processed(self):
        return int(self.lists[1].sum())

    @property
    def filtered(self):
        """Packets that a filter did not let pass, in files: live, the kernel does not show them."""
        return int(self.lists[0, FILTERED])

    @property
    def undecoded(self):
        """Packets that no detector saw, by reason; 'not_ip' is nothing wrong."""
        reasons = enumerate(zip(REASONS, self.lists[0], strict=True))
        return {reason: int(n) for number, (reason, n) in reasons if n and number != FILTERED}

    @property
    def cut(self):
        """Packets that detectors saw, but of which a header was missing or wrong."""
        return {reason: int(n) for reason, n in zip(REASONS[2:], self.lists[1][2:], strict=True) if n}

    def imbalance(self):
        """What does not add up, one sentence each; empty when all is accounted for."""
        found = []
        right = self.processed + self.filtered + sum(self.undecoded.values()) + sum(self.lost.values())
        if self.seen != right:
            found.append(f"packets: {self.seen} seen, {right} accounted for")
        made, gone = sum(self.made.values()), self.delivered + self.queued + self.dropped
        if made != gone:
            found.append(f"events: {made} made, {gone} accounted for")
        for name, s in self.states.items():
            if s["created"] != s["expired"] + s["emergency"] + s["ended"] + s["live"]:
                found.append(f"{name} states: {s}")
        return found

    def as_dict(self):
        return {
            "packets": {
                "seen": self.seen,
                "processed": self.processed,
                "filtered": self.filtered,
                "dropped": self.lost,
                "undecoded": self.undecoded,
                "cut": self.cut,
                **self.clock,
            },
            "events": {
                "made": dict(sorted(self.made.items())),
                "delivered": self.delivered,
                "queued": self.queued,
                "dropped": self.dropped,
            },
            "states": self.states,
            "balanced": not self.imbalance(),
        }

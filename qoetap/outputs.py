"""The outputs of a run: each a sink behind its own queue. Knows sinks by what open_sink says of them only.

An output that fails is told once and gets no more; when none is left, `failed` asks the run to end.
"""

from dataplane.sinks import Queued, ReaderGone, SinkError, open_sink
from qoetap.exits import USAGE, Exit

DISCARD = "null"


class Outputs:
    """What the engine sees as its sink. Exit(USAGE) if one of `specs` cannot be opened."""

    def __init__(self, specs, detectors):
        self.sinks, self.errors = {}, {}
        try:
            for spec in specs:
                self.sinks[spec] = Queued(open_sink(spec, detectors))
        except SinkError as error:
            for sink in self.sinks.values():
                sink.close()
            raise Exit(USAGE, f"{error}") from error

    @property
    def failed(self):
        """True when no output is left."""
        return len(self.errors) == len(self.sinks)

    def write(self, events):
        """Hand Events to every output; never raises, what is lost is counted."""
        self._each(lambda sink: sink.write(events))

    def close(self):
        """Deliver what waits and close."""
        self._each(lambda sink: sink.close())

    def _each(self, call):
        for spec, sink in self.sinks.items():
            try:
                call(sink)
            except SinkError as error:
                self.errors.setdefault(spec, error)

    def complaints(self):
        """A sentence for each output that failed; a reader that went away is no failure."""
        return [str(error) for error in self.errors.values() if not isinstance(error, ReaderGone)]

    def counts(self):
        """Counts of each output by its spec."""
        return {spec: sink.counts()._asdict() for spec, sink in self.sinks.items()}

    def settle(self, ledger):
        """Tell the ledger what became of the events at the output that lost most of them."""
        worst = max(self.counts().values(), key=lambda counts: (counts["dropped"], counts["queued"]))
        ledger.delivered, ledger.queued, ledger.dropped = worst["delivered"], worst["queued"], worst["dropped"]

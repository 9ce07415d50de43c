"""The outputs of a run: each a sink behind its own queue. Knows sinks by what open_sink says of them only.

In `replay` a full queue holds up the reading, an output that fails is told once and gets no more, and when none is left
`failed` asks the run to end. In `live` nothing is held up: what cannot be written is dropped, and the next tried again.
"""

import itertools
import threading
import time
from typing import NamedTuple

from dataplane.sinks import Queued, ReaderGone, Rotation, SinkError, open_sink, redacted
from dataplane.sinks.names import output_label
from dataplane.sinks.queued import Counts
from qoetap.exits import USAGE, Exit
from qoetap.loss import excess

STDOUT = "-"
DRAIN_SECONDS = 9.0  # for what waits at the end of a live run, which is to take 10 s at most
LEAST_SECONDS = 1.0  # for closing all, however long the rest took
FAILING_SECONDS = 60.0  # an output that could not deliver for so long is said to fail


def rotation_of(settings):
    """When files that have the time in their name are finished."""
    return Rotation(settings.rotate_every, settings.rotate_size)


class Place(NamedTuple):
    """An output."""

    spec: str
    name: str  # as it is shown
    queued: Queued
    since: int  # events that there had been when it was opened


def name_of(spec, taken):
    """The spec as it may be shown; numbered where that name is taken."""
    name = redacted(spec)
    names = itertools.chain([name], (f"{name}#{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def failure(place, seconds):
    """The sentence about an output that has had trouble for so long; "" if that is too short, or over.

    It goes to /healthz, so it tells no more than a label of /metrics does.
    """
    trouble = place.queued.trouble if seconds > FAILING_SECONDS else None
    if not trouble:
        return ""
    told = trouble.replace(redacted(place.spec), output_label(place.spec))
    return f"an output has failed for {seconds:.0f} s: {told}"


class Outputs:
    """What the engines see as their sink. Exit(USAGE) if one of `specs` cannot be opened.

    Any thread may write and ask for counts; the other methods are for one thread.
    """

    def __init__(self, specs, detectors, live=False, rotation=None):
        self.detectors, self.live, self.rotation = tuple(detectors), live, rotation or Rotation()
        self.made, self.errors, self.told, self.notes = 0, {}, {}, []
        self.troubled = {}  # name of each output with trouble: since when
        self.lock = threading.Lock()
        self.names = {}  # of all outputs that there were, in this order
        self.places = self._open(specs)  # where events go, by spec
        self.former = []  # where they went
        self.deadline = None  # by which all must be delivered

    def _open(self, specs, staying=()):
        """Places of `specs`, beside those that stay. Exit if one cannot be opened; then none is."""
        places, taken = {}, {place.name for place in staying}
        try:
            for spec in specs:
                sink = open_sink(spec, self.detectors, self.live, self.rotation)
                self.notes += sink.notes
                name = name_of(spec, taken)
                taken.add(name)
                places[spec] = Place(
                    spec, name, Queued(sink, drop=self.live, name=name if spec != STDOUT else None), self.made
                )
        except SinkError as error:
            for place in places.values():
                place.queued.close(LEAST_SECONDS)
            raise Exit(USAGE, f"{error}") from error
        self.names |= dict.fromkeys(place.name for place in places.values())
        return places

    @property
    def failed(self):
        """True when no output is left."""
        return not self.live and len(self.errors) == len(self.places)

    @property
    def deserted(self):
        """True when all goes to standard output and nobody reads that any more."""
        errors = [place.queued.error for place in self.places.values()]
        return set(self.places) == {STDOUT} and all(isinstance(error, ReaderGone) for error in errors)

    def write(self, events):
        """Hand Events to every output; never raises, what is lost is counted."""
        with self.lock:
            self.made += len(events.order)
            for place in self.places.values():
                self._try(place, place.queued.write, events)

    def _try(self, place, call, *args):
        try:
            call(*args)
        except SinkError as error:
            self.errors.setdefault(place.spec, error)

    def reopen(self):
        """Go on in new files of the same names: the old ones were renamed."""
        for place in self.places.values():
            place.queued.reopen()

    def rotate(self):
        """Finish the files at hand and begin the next."""
        for place in self.places.values():
            place.queued.rotate()

    def replace(self, specs, rotation=None):
        """From now on write to `specs`; those that stay go on, new ones are opened, the others end by themselves.

        Exit(USAGE) if one cannot be opened; then nothing changes.
        """
        rotation, before, specs = rotation or self.rotation, self.rotation, dict.fromkeys(specs)
        self.rotation = rotation
        try:
            staying = [place for spec, place in self.places.items() if spec in specs]
            new = self._open([spec for spec in specs if spec not in self.places], staying)
        except Exit:
            self.rotation = before
            raise
        with self.lock:
            new = {spec: place._replace(since=self.made) for spec, place in new.items()}
            gone = [place for spec, place in self.places.items() if spec not in specs]
            self.places = {spec: self.places.get(spec) or new[spec] for spec in specs}
            self.former += gone
        for place in self.places.values():
            place.queued.sink.rotation = rotation
        for place in gone:
            place.queued.finish()

    def drain(self):
        """The run ends: from now on what comes is waited for, by all outputs together for DRAIN_SECONDS."""
        self.deadline = time.monotonic() + DRAIN_SECONDS
        for place in self.places.values():
            place.queued.drain(DRAIN_SECONDS)

    def close(self):
        """Deliver what waits and close; in `live` give up what is not taken in time."""
        if self.live and self.deadline is None:
            self.drain()
        every = [*self.former, *self.places.values()]
        for place in every:
            place.queued.finish()
        if self.live:
            self.deadline = max(self.deadline, time.monotonic() + LEAST_SECONDS)
        for place in every:
            left = max(0.0, self.deadline - time.monotonic()) if self.live else None
            self._try(place, place.queued.close, left)

    def troubles(self):
        """Sentences about what has changed since the last call: an output cannot be written, or can be again."""
        found, self.notes = self.notes, []
        for place in [*self.former, *self.places.values()]:
            now, before = place.queued.trouble, self.told.get(place)
            if now != before:
                self.told[place] = now
                if now or place not in self.former:  # one that was removed is not written again
                    found.append(now or f"{place.name}: written again")
        self._note_trouble(time.monotonic())
        return found

    def _note_trouble(self, now):
        """Since when each has trouble, whichever it is."""
        troubled = [place.name for place in self.places.values() if place.queued.trouble]
        self.troubled = {name: self.troubled.get(name, now) for name in troubled}

    def failures(self, now):
        """{name: why it fails, "" if it does not} of each output that there is at monotonic time `now`."""
        with self.lock:
            places, since = list(self.places.values()), self.troubled
        return {place.name: failure(place, now - since.get(place.name, now)) for place in places}

    def complaints(self):
        """A sentence for each output that failed; a reader that went away is no failure."""
        errors = [*self.errors.values(), *(p.queued.error for p in [*self.former, *self.places.values()] if self.live)]
        return [str(error) for error in errors if error and not isinstance(error, ReaderGone)]

    def losses(self, allowed):
        """A sentence for each output that lost a larger share of its events; a reader that left is no loss."""
        found, counts = [], self.counts()
        places = {place.name: place.queued for place in [*self.former, *self.places.values()]}
        for name, queued in places.items():
            lost = excess(counts[name]["dropped"], counts[name]["made"], allowed, f"the events for {name}")
            if lost and not isinstance(queued.error, ReaderGone):
                found.append(
                    lost + (f"; the last that was wrong: {queued.last_trouble}" if queued.last_trouble else "")
                )
        return found

    def counts(self):
        """Counts of each output that there was, by its name. One that differed in a secret only is the same."""
        with self.lock:
            found, places = dict.fromkeys(self.names, NONE), [*self.former, *self.places.values()]
        for place in places:
            found[place.name] = added(found[place.name], place.queued.counts())
        return {name: counts._asdict() for name, counts in found.items()}

    def settle(self, ledger):
        """Tell the ledger what became of the events at the output that lost most of them.

        At several, where a reload had one follow the other. Events that went to others only, before the first and after
        the last, count as delivered: the others lost less.
        """
        with self.lock:
            made, former, places = self.made, list(self.former), list(self.places.values())
            counted = [(place.since, place.queued.counts()) for place in [*former, *places]]
        worst = worst_succession(counted)
        ledger.delivered = worst.delivered + made - worst.made
        ledger.queued, ledger.dropped = worst.queued, worst.dropped


NONE = Counts(0, 0, 0, 0)


def added(one, other):
    return Counts(*map(sum, zip(one, other, strict=True)))


def loss(counts):
    return counts.dropped, counts.queued, counts.made


def worst_succession(counted):
    """Counts of the outputs that lost most together, of those that followed each other; counted: (since, Counts)."""
    ended = [(0, NONE)]  # when, and what those until then lost at most
    for since, counts in sorted(counted, key=lambda one: one[0] + one[1].made):
        before = max((lost for end, lost in ended if end <= since), key=loss)
        ended.append((since + counts.made, added(before, counts)))
    return max((lost for _, lost in ended), key=loss)

"""A detector at work: its loop, table and event buffer, for one worker. Knows what a detector is, but no detector."""

import functools
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
from numba import njit

from dataplane.chain import Stage
from dataplane.flowtable import BLOCK_SLOTS, EMPTY, new_tables, table_bytes
from dataplane.kernels import Kernel, stage_address
from dataplane.records import NEVER, rows, zeros

GROUP_PACKETS = 8  # the states of a group are asked for while those of the group before are stepped
ROOM_EVENTS = 2 * GROUP_PACKETS  # a packet makes at most two: one of its own, one of the state it drives out
BUFFER_EVENTS = 16384  # handed over when full, at the latest
FINISH_STATES = BUFFER_EVENTS - ROOM_EVENTS
DENSE = 24  # packets a state, at most: each takes four bytes

TURN = np.dtype(
    [
        ("worker", np.int64),
        ("workers", np.int64),
        ("position", np.int64),  # of the chosen packets, how many are done
        ("chosen", np.int64),  # packets of the batch that are for this worker
        ("made", np.int64),  # events in the buffer
        ("room", np.int64),  # of which more than this must not be made before they are taken
    ],
    align=True,
)

CONTEXT = np.dtype(  # of a detector's stage: addresses of a runner's arrays, and their sizes
    [
        (name, np.int64)
        for name in (
            *("keys", "states", "links", "tally", "used", "control", "slots", "sections", "workers"),
            *("chosen", "chosen_keys", "chosen_slots", "events", "room", "params", "turns"),
        )
    ],
    align=True,
)

LOOP = Path(__file__).with_name("loop.py")


@functools.cache
def bind(detector, params):
    """The detector's own loop: loop.py executed with DETECTOR set, as a module that numba can keep on disk.

    One for each dtype of params rows, since compiled code takes one set of types only. The names of its functions hold
    a hash of what is compiled in, so that what changed is compiled anew.
    """
    name = f"dataplane.loop_{detector.name}"
    source = inspect.getsource(inspect.getmodule(detector.tick))
    spec = importlib.util.spec_from_file_location(name, LOOP)
    module = importlib.util.module_from_spec(spec)
    module.DETECTOR, module.PARAMS, module.CONTEXT, module.TURN = detector, params, CONTEXT, TURN
    module.GROUP_PACKETS = GROUP_PACKETS
    numbers = detector.kind, detector.packet_ends, detector.silent, detector.usual_bytes
    compiled_in = source, (params, detector.state, detector.event), numbers
    module.TAG = f"{detector.name}_{hashlib.sha256(repr(compiled_in).encode()).hexdigest()[:12]}"
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module, Kernel(module.finish)


class Runner:
    """One detector's share of the work of one worker. `rows_max`: of the batches it will see."""

    def __init__(self, detector, loop, table, params, share, rows_max):
        self.detector, self.table, self.params = detector, table, params
        self.loop, self.finish = loop
        self.events = rows(detector.event, BUFFER_EVENTS)
        self.event_bytes = np.asarray(self.events).view(np.uint8)
        self.scratch = tuple(zeros(t.itemsize * rows_max).view(t) for t in map(np.dtype, ("u4", "u8", "u4")))
        self.turns = rows(TURN, 1)
        self._made = np.asarray(self.turns)["made"]  # cheaper to ask than a row
        turn = self.turns[0]
        turn.worker, turn.workers = share
        turn.room = BUFFER_EVENTS - ROOM_EVENTS
        self.context = self._context()

    def _context(self):
        context = rows(CONTEXT, 1)
        row, table = context[0], self.table
        for name in ("keys", "states", "links", "tally", "used", "control"):
            row[name] = getattr(table, name).ctypes.data
        for name, array in zip(("chosen", "chosen_keys", "chosen_slots"), self.scratch, strict=True):
            row[name] = array.ctypes.data
        for name in ("events", "params", "turns"):
            row[name] = getattr(self, name).ctypes.data
        row.slots, row.sections = len(table.keys), len(table.used)
        row.workers, row.room = self.turns[0].workers, BUFFER_EVENTS
        return context

    def stage(self):
        """The detector's loop, as a Stage. It is done with a batch when it did not ask for its events to be taken."""
        return Stage(self.detector.name, stage_address(self.loop.stage), self.context, self.step)

    def step(self, batch):
        """The stage where it is called from Python."""
        kind = self.detector.kind
        packets = batch.buf, batch.packets, batch.views[kind], int(batch.counts[kind]), batch.clock
        fixed = self.table, self.scratch, self.events, self.event_bytes, self.params, self.turns
        return self.loop.run(*packets, *fixed)

    @property
    def made(self):
        """Events in the buffer."""
        return int(self._made[0])

    def take(self):
        """The bytes of the events in the buffer, which are zeroed: a field that is left out reads 0."""
        events = self.event_bytes[: self.made * self.detector.event.itemsize]
        taken = events.copy()
        events[:] = 0
        self.turns[0].made = 0
        return taken

    def forget_batch(self):
        """Leave a batch in the middle, because a stage has failed; its events stay."""
        self.turns[0].position = 0

    def live(self):
        """Slots of this worker's live states and the seq of the packet that made each, oldest first."""
        slots = np.flatnonzero(self.table.keys != EMPTY)
        sections, turn = len(self.table.used), self.turns[0]
        if turn.workers > 1:
            slots = slots[slots // BLOCK_SLOTS % sections * int(turn.workers) // sections == turn.worker]
        born = self.table.states["born"][slots]
        return in_order(slots, born)

    def end(self, slots, clock):
        """Tick the states in `slots` (at most FINISH_STATES) for the last time; bytes of the events made."""
        self.finish(self.table, slots, clock, self.events, self.event_bytes, self.params, self.turns)
        return self.take()


def in_order(slots, born):
    """The same by `born`, each number of which comes once. Where these lie dense they are put in place, not sorted: in
    a tenth of the time.
    """
    first, span = int(born.min(initial=NEVER)), int(np.ptp(born)) + 1 if len(born) else 0
    if span > DENSE * len(born):
        order = np.argsort(born)
        return slots[order], born[order]
    put_in_place(slots, born, first, np.zeros(span, np.uint32))
    return slots, born


@njit(nogil=True, cache=True)
def spread(slots, born, first, place):
    """Sort both by `born`, whose least is `first`; `place` is zeroed and has room for its span."""
    for i in range(np.uint64(slots.size)):
        place[np.uint64(born[i] - first)] = np.uint32(slots[i] + 1)
    n = np.uint64(0)
    for i in range(np.uint64(place.size)):  # written always, counted if so: no branch to guess
        slots[n], born[n] = np.int64(place[i]) - 1, first + np.int64(i)
        n += np.uint64(place[i] != 0)


put_in_place = Kernel(spread)


def make_runners(detector, params, capacity, workers, rows_max):
    """A runner for each worker; together they own one table of `capacity` states."""
    loop = bind(detector, np.asarray(params).dtype)
    tables = new_tables(capacity, detector.state, workers)
    return [Runner(detector, loop, table, params, (i, workers), rows_max) for i, table in enumerate(tables)]


def runner_bytes(detector, capacity, workers):
    """Memory that make_runners may come to use."""
    return table_bytes(capacity, detector.state) + workers * BUFFER_EVENTS * detector.event.itemsize

"""Several workers over one capture: one decodes, the others each bring a share of the states over what it gives on.

Tiles go on in a ring of batches, small enough to stay near both. Counters say how many were given and how many each
taker has done with; they are read and written in compiled code, so a tile costs no word of Python. Interpreted, with
bounds checks, or where each tile is watched, the same is done by methods; beside compiled takers, they rely on stores
being seen in order, as they are on x86-64.

When the slowest taker will soon have nothing to do, the next tile goes on raw: takers decode such tiles in turn.
"""

import contextlib
import functools
import threading
import time

import numpy as np
from numba import njit, types

from dataplane.batch import Batch
from dataplane.chain import AGAIN, DONE, SPENT, Stage, batch_at
from dataplane.kernels import stage_address
from dataplane.memory import acquire, array_at, release
from dataplane.records import BATCH, FRAME, LINE_BYTES, rows, zeros

SLOTS = 4  # batches in the ring: one is being decoded, the others are given
LOOKS, YIELDS, NAPS = 1000, 1000, 40  # how long a stage waits before it asks Python
NAP_us, NAP_MOST_us = 20, 5000
NAP_s = NAP_us / 1e6
ENOUGH = 2  # with fewer tiles before it a taker will soon have nothing to do
BATCH_BYTES, READY_AT = BATCH.itemsize, BATCH.fields["ready"][1]

RELAY = np.dtype(  # context of the stages of one worker: addresses and counts
    [
        *((name, np.int64) for name in ("slots", "count")),  # BATCH rows
        # addresses of counters: tiles that were given; that the first taker has done with, the others' follow; 1: no
        # more will come
        *((name, np.int64) for name in ("given_at", "taken_at", "closed_at")),
        ("nap", np.int64),  # us, the next one
        ("takers", np.int64),
        ("me", np.int64),  # which of them
        ("due", np.int64),  # the next tile is the last before events are delivered; asked for by two, it is one
        ("gave", np.int64),  # the tile at hand was given, but no batch was free
    ],
    align=True,
)

sched_yield = types.ExternalFunction("sched_yield", types.int32())
usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@njit
def reached(c, counter, least):
    """Wait until a counter is at least so much; False if it takes long, or no more will come.

    Busily for about as long as a tile takes: with naps alone there were runs in which the giver took three times as
    long for all it did. Then with naps that grow as long as nothing comes.
    """
    for _ in range(YIELDS):
        for _ in range(LOOKS):
            if acquire(counter) >= least:
                return True
        sched_yield()
    for _ in range(NAPS):
        if acquire(c.closed_at):
            break
        usleep(c.nap)
        c.nap = min(2 * c.nap, NAP_MOST_us)
        if acquire(counter) >= least:
            c.nap = NAP_us
            return True
    return acquire(counter) >= least


@njit
def relay_at(context):
    """The RELAY row at an address."""
    return array_at(context, 1, RELAY)[0]


@njit
def slots_of(c):
    """The BATCH rows of the ring."""
    return array_at(c.slots, c.count, BATCH)


@njit
def counter_of(c, taker):
    """Address of a taker's counter."""
    return c.taken_at + taker * LINE_BYTES


def give_stage(context, batch):
    """Give the tile at hand on and take up a batch that all have done with."""
    c, row = relay_at(context), batch_at(batch)
    slots, given = slots_of(c), acquire(c.given_at)
    if not c.gave:
        row.due, c.due = c.due, 0
        slots[given % c.count] = row
        given += 1
        release(c.given_at, given)
        c.gave = 1
    least = given
    for taker in range(c.takers):
        if not reached(c, counter_of(c, taker), given - c.count + 1):
            return AGAIN
        least = min(least, acquire(counter_of(c, taker)))
    c.gave = 0
    free = slots[given % c.count]
    row.packets, row.lists, row.counts, row.window = free.packets, free.lists, free.counts, free.window
    row.raw = given - least < ENOUGH
    return DONE


def take_stage(context, batch):
    """Take the next tile; not before it is decoded, unless that is this taker's turn."""
    c, row = relay_at(context), batch_at(batch)
    taken = acquire(counter_of(c, c.me))
    if not reached(c, c.given_at, taken + 1):
        return SPENT
    slots, at, mine = slots_of(c), taken % c.count, taken % c.takers == c.me
    if slots[at].raw and not mine and not reached(c, c.slots + at * BATCH_BYTES + READY_AT, taken + 1):
        return SPENT
    array_at(batch, 1, BATCH)[0] = slots[at]
    row.raw = slots[at].raw and mine
    return DONE


def ready_stage(context, batch):
    """Where the tile was raw, tell that it is decoded."""
    c, row = relay_at(context), batch_at(batch)
    taken = acquire(counter_of(c, c.me))
    if row.raw:
        release(c.slots + taken % c.count * BATCH_BYTES + READY_AT, taken + 1)
    return DONE


def end_stage(context, batch):
    """The taker has done with its tile."""
    c, row = relay_at(context), batch_at(batch)
    release(counter_of(c, c.me), acquire(counter_of(c, c.me)) + 1)
    return SPENT if row.due else DONE


class Relay:
    """A ring of batches of `size` rows between the `giver`, whose Batch is that, and so many takers.

    `deliver()` is called by one of them when all have done with a tile that was due.
    """

    def __init__(self, giver, size, takers, deliver):
        self.giver, self.takers = giver, [Batch(size) for _ in range(takers)]
        self.slots, self.rows, self.windows = [Batch(size) for _ in range(SLOTS)], rows(BATCH, SLOTS), []
        self.counters = zeros(LINE_BYTES * (2 + takers)).view(np.int64)[:: LINE_BYTES // 8]  # given, closed, taken
        self.taken = self.counters[2:]
        self.contexts = [self._context(i) for i in range(takers)]
        self.giving = self._context(0)
        self.barrier, self.deliver, self.error = None, deliver, None
        for i, slot in enumerate(self.slots):
            self.rows[i] = slot.row[0]
            slot.row = self.rows[i : i + 1]

    def _context(self, taker):
        context, first = rows(RELAY, 1), self.counters.ctypes.data
        row = context[0]
        row.slots, row.count, row.takers, row.me = self.rows.ctypes.data, SLOTS, len(self.takers), taker
        row.given_at, row.closed_at, row.taken_at = (first + i * LINE_BYTES for i in range(3))
        row.nap = NAP_us
        return context

    def giving_stage(self):
        """The giver's last stage."""
        return Stage("waiting", stage_address(give_stage), self.giving, self.give)

    def taking_stages(self, taker, decoding, detecting):
        """All stages of a taker: `decoding` for raw tiles, and the list `detecting`."""
        context = self.contexts[taker]
        take, ready, end = (
            Stage("waiting", stage_address(function), context, functools.partial(method, taker))
            for function, method in ((take_stage, self.take), (ready_stage, self.ready), (end_stage, self.end))
        )
        return [take, decoding, ready, *detecting, end]

    # What the stages do, in Python

    @property
    def given(self):
        return int(self.counters[0])

    @property
    def closed(self):
        """No more will be given."""
        return bool(self.counters[1])

    def resume(self):
        """The giver takes up the batch that is next, wherever it was."""
        self.giver.point_at(self.slots[self.given % SLOTS])
        self.giver.row[0].raw = self.giving[0].gave = 0

    def give(self, batch, all_decoded=False):
        slot, row = self.slots[self.given % SLOTS], batch.row[0]
        row.due, self.giving[0].due = self.giving[0].due, 0
        slot.row[0], slot.block = row, batch.block
        self.counters[0] += 1
        while self.given - self.taken.min() >= SLOTS:
            self.check()
            time.sleep(NAP_s)
        batch.point_at(self.slots[self.given % SLOTS])
        row.raw = self.given - self.taken.min() < ENOUGH and not all_decoded
        return DONE

    def take(self, taker, batch):
        taken = int(self.taken[taker])
        slot, mine = self.slots[taken % SLOTS], taken % len(self.takers) == taker
        if taken == self.given or (slot.row[0].raw and not mine and slot.row[0].ready <= taken):
            time.sleep(NAP_s)
            return SPENT
        batch.point_at(slot)
        batch.row[0], batch.block = slot.row[0], slot.block
        batch.row[0].raw = slot.row[0].raw and mine
        return DONE

    def ready(self, taker, batch):
        if batch.row[0].raw:
            taken = int(self.taken[taker])
            self.slots[taken % SLOTS].row[0].ready = taken + 1
        return DONE

    def end(self, taker, batch):
        self.taken[taker] += 1
        return SPENT if batch.row[0].due else DONE

    # Around them

    @contextlib.contextmanager
    def at_work(self, work):
        """`work(taker)` by a thread for each, which must return when `finished`. Raises what one of them raised."""
        self.barrier, self.counters[1] = threading.Barrier(len(self.takers), self.deliver), 0
        self.resume()
        threads = [threading.Thread(target=self._attempt, args=(work, i), daemon=True) for i in range(len(self.takers))]
        try:
            for thread in threads:
                thread.start()
            yield
        finally:
            self.counters[1] = 1
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        self.check()

    def _attempt(self, work, taker):
        try:
            work(taker)
        except threading.BrokenBarrierError:
            pass  # who broke it says why
        except BaseException as error:
            self.error = self.error or error
            self.barrier.abort()

    def check(self):
        """Raise what a worker raised."""
        if self.error is not None:
            raise self.error

    def finished(self, taker):
        """Whether the worker has done with all there will be, or nobody needs it any more."""
        return self.error is not None or (self.closed and self.taken[taker] == self.given)

    def meet(self):
        """Wait until all workers have done with the tile that was due and one has delivered."""
        self.barrier.wait()

    def mark_due(self):
        """The next tile is to be the last before events are delivered."""
        self.giving[0].due = 1

    def make_windows(self, size):
        """Room for the frames and bytes of each tile, for a stage that reads them itself."""
        size += len(self.giver.packets) * FRAME.itemsize
        if not self.windows or len(self.windows[0]) < size:
            self.windows = [zeros(size) for _ in self.slots]
            self.rows["window"] = [window.ctypes.data for window in self.windows]
            self.resume()

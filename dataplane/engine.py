"""The loop: read blocks, decode them, run detectors, hand events on. Knows no header, detector or sink by name.

One worker takes a block through decoding and all detectors tile by tile. With several (crew.py) blocks are decoded
ahead while the states, divided into shares, are brought over those that are ready.
Events are delivered in order of the capture clock, whoever made them and however the capture was cut into blocks: a
deadline before the packets of the same instant, then by packet number, then by detector.
"""

import threading
import time
from typing import NamedTuple

import numpy as np

from dataplane.batch import BATCH_ROWS, CLOCK_MAX_NS, Batch, new_clock, set_clock
from dataplane.chain import Chain
from dataplane.crew import Crew
from dataplane.events import Events
from dataplane.flowtable import TICK_BITS
from dataplane.kernels import Kernel
from dataplane.ledger import Ledger
from dataplane.records import FRAME, Block, Stretch, rows, rows_of
from dataplane.runner import FINISH_STATES, make_runners

BLOCK_TILES = 4  # a block has so many
DELIVER_PACKETS = 1 << 18  # events are sorted and handed on after so many packets, or when a detector's buffer was full
DELIVER_BLOCKS = 8  # with several workers, after so many blocks
DELIVER_SECONDS = 0.2  # or when the last time is so long ago: input may be slow
STATE_COUNTS = ("created", "expired", "emergency", "live")
STAGES = ("read", "decode", "detect", "deliver")
SECONDS_OF = {"reading": "read", "decoding": "decode"}  # by a chain's stage
NOTHING = Block(np.zeros(1, np.uint8), rows(FRAME, 0))  # a block in which only time passes


def shares_of(workers):
    """In how many shares the states are divided: one for each worker that detects."""
    return max(1, workers // 2)


class Job(NamedTuple):
    """A block among several workers."""

    block: object
    first: int  # number of its first packet
    clock: int  # capture clock after its last one
    due: bool  # events made until its end are to be delivered
    made: dict  # share -> bytes of the events made, by detector


class Engine:
    """Detectors over captures.

    detectors: list of (Detector, params rows (1,), capacity); sink: has write(Events); options: wire.DECODE rows (1,).
    Sources are to be opened with `block_frames` and `hold`.
    """

    def __init__(self, detectors, sink, options, workers=1, batch_rows=BATCH_ROWS, agent_id=""):
        self.detectors = [detector for detector, _, _ in detectors]
        self.sink, self.agent_id, self.workers, self.tile = sink, agent_id, workers, batch_rows
        self.block_frames, shares = batch_rows * BLOCK_TILES, shares_of(workers)
        size, count = (batch_rows, 1) if workers == 1 else (self.block_frames, 2 * workers)
        self.hold = count
        self.ledger, self.clock, self.files, self.seen = Ledger(), new_clock(), [], 0
        self.batches = [Batch(size) for _ in range(count)]
        per_detector = [make_runners(*d, shares, size) for d in detectors]
        self.runners = [list(share) for share in zip(*per_detector, strict=True)] or [[] for _ in range(shares)]
        detecting = [[runner.stage() for runner in share] for share in self.runners]
        if workers == 1:
            detecting[0].insert(0, self.batches[0].stage(options, self.clock))
        self.chains, self.stretching = [Chain(stages) for stages in detecting], None
        self.options, self.set_clock = options, Kernel(set_clock)
        self.pending, self.delivered_at, self.delivered_s = [[] for _ in self.detectors], 0, time.perf_counter()
        self.seconds, self.booking = dict.fromkeys(STAGES, 0.0), threading.Lock()
        self.ended = {}  # by detector: states ticked at the end of input

    def run(self, source, watch=None):
        """Read one capture to its end. `watch(batch, block)` sees each tile or batch after decoding, in order.

        The source must keep `hold` blocks valid. Where nobody watches and it offers `stretches`, they are taken.
        """
        self.files.append((self.seen, source.name))
        if self.workers > 1:
            self.run_together(source.blocks(), watch)
        else:
            self.run_alone(source.stretches() if not watch and hasattr(source, "stretches") else source.blocks(), watch)

    def next_block(self, blocks):
        started = time.perf_counter()
        block = next(blocks, None)
        self.spent("read", started)
        return block

    def run_alone(self, blocks, watch):
        """Each block through one chain."""
        while (block := self.next_block(blocks)) is not None:
            if isinstance(block, Stretch):
                self.go_on(block)
            else:
                self.go_through(block, watch)

    def follow(self, blocks, watch=None):
        """Live, with one worker: `blocks` yields a Block, or where none is ready the ns since the last one.

        Then events are delivered at once and deadlines come without packets.
        """
        then = 0  # by the capture's clock
        while (block := self.next_block(blocks)) is not None:
            if isinstance(block, int):
                self.pass_time(then + block)
                self.hand_on()
            else:
                self.go_through(block, watch)
                then = int(self.clock[0]["now"])

    def go_through(self, block, watch=None):
        """One block through decoding and all detectors, in tiles, by the calling thread."""
        batch = self.batches[0]
        for part in tiles_of(block, self.tile) if watch else (block,):
            batch.give(part, self.seen)
            self.run_chain(self.chains[0], part, watch)

    def go_on(self, stretch):
        """What a stretch has to give, by the calling thread."""
        if self.stretching is None or self.stretching.stages[0] is not stretch.stage:
            self.stretching = Chain([stretch.stage, *self.chains[0].stages])
        self.batches[0].expect(DELIVER_PACKETS, self.seen)
        self.run_chain(self.stretching, None, None)

    def run_chain(self, chain, block, watch):
        """What the batch was given or may expect, through a chain of one worker; hands events on when it is time."""
        started, batch = time.perf_counter(), self.batches[0]
        made = self.detect(chain, 0, batch, self.tile)
        self.divide(chain, time.perf_counter() - started)
        self.settle(batch, block, [made], watch)
        waited = time.perf_counter() - self.delivered_s > DELIVER_SECONDS
        if waited or any(made) or self.seen - self.delivered_at >= DELIVER_PACKETS:
            self.hand_on()

    def load(self):
        """Load what is compiled now, not at the first packet, with one worker."""
        self.go_through(NOTHING)

    def divide(self, chain, busy):
        """Book the seconds of a chain's run under its stages."""
        tick = busy / max(1, int(chain.ticks.sum()))
        for stage, ticks in zip(chain.stages, chain.ticks.tolist(), strict=True):
            self.seconds[SECONDS_OF.get(stage.name, "detect")] += ticks * tick
        chain.ticks[:] = 0

    def pass_time(self, clock):
        """Bring the capture clock to `clock` without a packet, with one worker."""
        if self.seen and clock >> TICK_BITS > int(self.clock[0]["now"]) >> TICK_BITS:
            self.clock[0]["now"] = min(clock, CLOCK_MAX_NS)
            self.go_through(NOTHING)

    def retune(self, params):
        """Take over new params rows, {detector's name: rows}, between two blocks; states stay."""
        for runners in self.runners:
            for runner in runners:
                runner.params[:] = params[runner.detector.name]

    def hand_on(self):
        """Deliver the events that one worker has made."""
        self.take(0, self.pending)
        if any(self.pending):
            self.deliver()

    def run_together(self, blocks, watch):
        """Blocks are decoded ahead, in any order, while each share of the states is brought over them in order."""
        jobs = self.jobs(blocks)

        def decode(slot, job):
            started = time.perf_counter()
            self.batches[slot].fill(job.block, self.options, job.first, job.clock)
            self.spent("decode", started)

        def detect(share, slot, job):
            started, batch = time.perf_counter(), self.batches[slot]
            made = job.made[share] = self.detect(self.chains[share], share, batch, batch.frames)
            if job.due:
                self.take(share, made)
            self.spent("detect", started)

        def settle(slot, job):
            self.settle(self.batches[slot], job.block, job.made.values(), watch)
            if job.due:
                self.deliver()

        Crew(self.workers, len(self.chains), len(self.batches), lambda: next(jobs, None), decode, detect, settle).run()

    def jobs(self, blocks):
        """Each block with its clocks set."""
        first, number, last = self.seen, 0, time.perf_counter()
        while (block := self.next_block(blocks)) is not None:
            now = time.perf_counter()
            due = number % DELIVER_BLOCKS == 0 or now - last > DELIVER_SECONDS
            yield Job(block, first, self.set_clock(block.frames, self.clock), due, {})
            first, number, last = first + len(block.frames), number + 1, now if due else last

    def detect(self, chain, share, batch, tile):
        """Run a share's chain over the block or batch at hand; the bytes of the events made, by detector."""
        made = [[] for _ in self.detectors]
        for _ in chain.over(batch, tile):
            self.take(share, made)
            if chain is self.stretching:
                chain.end_with_tile(batch)  # events are handed on when a buffer was full
        return made

    def take(self, share, made):
        for parts, runner in zip(made, self.runners[share], strict=True):
            if runner.made:
                parts.append(runner.take())

    def settle(self, batch, block, made, watch):
        """What follows for each block, in order, when all shares have seen it."""
        self.seen += batch.frames
        self.ledger.seen += batch.frames
        self.ledger.lists += batch.reasons
        batch.reasons[:] = 0
        if watch:
            watch(batch, block)
        for share in made:
            for waiting, parts in zip(self.pending, share, strict=True):
                waiting += parts

    def deliver(self):
        """Sort the pending events into delivery order and write them to the sink."""
        started = time.perf_counter()
        made = zip(self.detectors, self.pending, strict=True)
        parts = [(d, rows_of(data[0] if len(data) == 1 else np.concatenate(data), d.event)) for d, data in made if data]
        self.pending, self.delivered_at, self.delivered_s = [[] for _ in self.detectors], self.seen, started
        if parts:
            for detector, events in parts:
                self.count(detector, events)
            self.sink.write(Events(parts, delivery_order(parts), self.files, self.agent_id))
        self.spent("deliver", started)

    def count(self, detector, events):
        numbers = np.bincount(events["code"], minlength=len(detector.events) + 1)
        for kind, n in zip(detector.events, numbers[1:], strict=True):
            if n:
                self.ledger.made[kind.name] = self.ledger.made.get(kind.name, 0) + int(n)

    def end(self):
        """End of input: tick every live state once more, oldest first, and settle the ledger."""
        clock = int(self.clock[0].now) if self.seen else 0
        for share in range(len(self.runners)):
            self.take(share, self.pending)
        self.deliver()
        started, delivering = time.perf_counter(), self.seconds["deliver"]
        live = [[runner.live() for runner in runners] for runners in self.runners]
        for low, high in age_ranges([born for share in live for _, born in share]):
            for runners, share in zip(self.runners, live, strict=True):
                for waiting, runner, (slots, born) in zip(self.pending, runners, share, strict=True):
                    first, last = np.searchsorted(born, (low, high))
                    waiting.append(runner.end(slots[first:last], clock))
            self.deliver()
        for runners, slots in zip(zip(*self.runners, strict=True), zip(*live, strict=True), strict=True):
            self.ended[runners[0].detector.name] = sum(len(found) for found, _ in slots)
        self.book()
        self.seconds["deliver"] = delivering + time.perf_counter() - started

    def book(self):
        """The ledger, with the counts of clock and states as they are now."""
        for name in self.ledger.clock:
            self.ledger.clock[name] = int(self.clock[0][name])
        for runners in zip(*self.runners, strict=True):
            counts = {name: sum(int(r.table.control[0][name]) for r in runners) for name in STATE_COUNTS}
            name = runners[0].detector.name
            self.ledger.states[name] = {**counts, "ended": self.ended.get(name, 0)}
        return self.ledger

    def spent(self, stage, since):
        with self.booking:
            self.seconds[stage] += time.perf_counter() - since


def tiles_of(block, tile):
    """The block in blocks of at most `tile` frames."""
    return [block._replace(frames=block.frames[at : at + tile]) for at in range(0, len(block.frames), tile)]


def delivery_order(parts):
    """Events of several detectors in delivery order: (n, 2) of part and row.

    By capture clock; at one instant deadlines first, then by the packet that caused them, then by detector.
    """
    part = np.repeat(np.arange(len(parts)), [len(events) for _, events in parts])
    row = np.concatenate([np.arange(len(events)) for _, events in parts])
    keys = [np.concatenate([events[name] for _, events in parts]) for name in ("cause", "by_packet", "order")]
    order = np.argsort(keys[-1], kind="stable")  # fast, for each detector's events are nearly in order
    ordered = keys[-1][order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort(keys)
    return np.stack((part[order], row[order]), axis=1)


def age_ranges(borns):
    """Ranges [low, high) of birth numbers that hold at most FINISH_STATES states each, over all the arrays."""
    born = np.sort(np.concatenate(borns)) if borns else np.zeros(0, np.int64)
    if not len(born):
        return []
    edges = np.unique(born[:: FINISH_STATES - 64])  # a birth number may occur once in each detector
    return list(zip(edges, [*edges[1:], born[-1] + 1], strict=True))

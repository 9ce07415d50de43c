"""The loop: read blocks, decode them, run detectors, hand events on. Knows no header, detector or sink by name.

One worker takes a block through decoding and all detectors tile by tile. With several, one half of them reads and
decodes the next group of blocks while the other half runs the detectors over the last one, each for the states it owns.
Events are delivered in order of the capture clock, whoever made them and however the capture was cut into blocks: a
deadline before the packets of the same instant, then by packet number, then by detector.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dataplane.batch import BATCH_ROWS, Batch, new_clock, set_clock
from dataplane.capture import Block
from dataplane.chain import Chain
from dataplane.events import Events
from dataplane.kernels import Kernel
from dataplane.ledger import Ledger
from dataplane.records import rows_of
from dataplane.runner import FINISH_STATES, make_runners

BLOCK_TILES = 8  # a block has so many
GROUP_PACKETS, GROUP_BATCHES = 32_768, 32  # in a group, with several workers: at most; at least one batch each
DELIVER_PACKETS = (
    262_144  # events are sorted and handed on after so many packets, or when one detector's buffer is full
)
STATE_COUNTS = ("created", "expired", "emergency", "live")
STAGES = ("read", "decode", "detect", "deliver")


def shares_of(workers):
    """In how many shares the states are divided: one for each worker that detects."""
    return max(1, workers // 2)


class Engine:
    """Detectors over captures.

    detectors: list of (Detector, params rows (1,), capacity); sink: has write(Events); options: wire.DECODE rows (1,).
    Sources are to be opened with `block_frames` and `hold`.
    """

    def __init__(self, detectors, sink, options, workers=1, batch_rows=BATCH_ROWS, agent_id=""):
        self.detectors = [detector for detector, _, _ in detectors]
        self.sink, self.agent_id, self.workers, self.tile = sink, agent_id, workers, batch_rows
        self.block_frames, shares = batch_rows * BLOCK_TILES, shares_of(workers)
        size = batch_rows if workers == 1 else self.block_frames
        self.group_size = 1 if workers == 1 else max(workers, min(GROUP_PACKETS // size, GROUP_BATCHES))
        self.hold = self.group_size if workers == 1 else 2 * self.group_size
        self.ledger, self.clock, self.files, self.seen = Ledger(), new_clock(), [], 0
        self.batches = [[Batch(size) for _ in range(self.group_size)] for _ in range(1 if workers == 1 else 2)]
        per_detector = [make_runners(*d, shares, size) for d in detectors]
        self.runners = [list(share) for share in zip(*per_detector, strict=True)] or [[] for _ in range(shares)]
        detecting = [[runner.stage() for runner in share] for share in self.runners]
        if workers == 1:
            detecting[0].insert(0, self.batches[0][0].stage(options, self.clock))
        self.chains = [Chain(stages) for stages in detecting]
        self.pool = ThreadPoolExecutor(workers) if workers > 2 else None
        self.options, self.set_clock = options, Kernel(set_clock)
        self.pending, self.delivered_at = [[] for _ in self.detectors], 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def run(self, source, watch=None):
        """Read one capture to its end. `watch(batch, block)` sees each tile or batch after decoding, in order.

        The source must keep `hold` blocks valid.
        """
        self.files.append((self.seen, source.name))
        if self.workers == 1:
            self.run_alone(source, watch)
            return
        with ThreadPoolExecutor(1) as detecting:
            turn = None
            for group in self.groups(source):
                batches = self.decode(group, watch)
                if turn:
                    turn.result()
                turn = detecting.submit(self.detect, batches)
            if turn:
                turn.result()

    def groups(self, source):
        """Lists of at most `group_size` blocks."""
        group, started = [], time.perf_counter()
        for block in source.blocks():
            group.append(block)
            if len(group) == self.group_size:
                self.spent("read", started)
                yield group
                group, started = [], time.perf_counter()
        self.spent("read", started)
        if group:
            yield group

    # --- one worker

    def run_alone(self, source, watch):
        batch, chain, busy = self.batches[0][0], self.chains[0], 0.0
        for (block,) in self.groups(source):
            for part in tiles_of(block, self.tile) if watch else (block,):
                started = time.perf_counter()
                batch.give(part, self.seen)
                full = self.detect_one(chain, self.runners[0], batch, self.tile)
                busy += time.perf_counter() - started
                self.count_packets(batch)
                if watch:
                    watch(batch, part)
                self.deliver_if(full)
        decoding = busy * int(chain.ticks[0]) / max(1, int(chain.ticks.sum()))
        self.seconds["decode"] += decoding
        self.seconds["detect"] += busy - decoding
        chain.ticks[:] = 0

    # --- several workers

    def decode(self, blocks, watch=None):
        """A batch of each block. The clock comes first, since it runs through all of them."""
        started, jobs, seen = time.perf_counter(), [], self.seen
        batches = self.batches[0]
        self.batches.reverse()  # the other ones may still be at work
        for batch, block in zip(batches, blocks, strict=False):
            jobs.append((batch, block, self.options, seen, self.set_clock(block.frames, self.clock)))
            seen += len(block.frames)
        self.map(lambda job: job[0].fill(*job[1:]), jobs)
        for batch, block, *_ in jobs:
            self.count_packets(batch)
            if watch:
                watch(batch, block)
        self.spent("decode", started)
        return batches[: len(blocks)]

    def detect(self, batches):
        """Run every detector over the batches."""
        started = time.perf_counter()

        def work(share):
            return [self.detect_one(*share, batch, batch.frames) for batch in batches]

        full = any(map(any, self.map(work, list(zip(self.chains, self.runners, strict=True)))))
        self.spent("detect", started)
        self.deliver_if(full)

    def map(self, function, jobs):
        return list(self.pool.map(function, jobs)) if self.pool else [function(job) for job in jobs]

    # --- both

    def detect_one(self, chain, runners, batch, tile):
        """Run a chain over the block or batch at hand; whether an event buffer was full."""
        full = False
        for _ in chain.over(batch, tile):
            full = True
            self.take(runners)
        return full

    def take(self, runners):
        """Events made so far wait in `pending`, bytes by detector."""
        for waiting, runner in zip(self.pending, runners, strict=True):
            if runner.made:
                waiting.append(runner.take())

    def count_packets(self, batch):
        self.seen += batch.frames
        self.ledger.seen += batch.frames
        self.ledger.lists += batch.reasons
        batch.reasons[:] = 0

    def deliver_if(self, full):
        if full or self.seen - self.delivered_at >= DELIVER_PACKETS:
            self.deliver()

    def deliver(self):
        """Sort the events made so far into delivery order and write them to the sink."""
        started = time.perf_counter()
        for runners in self.runners:
            self.take(runners)
        made = zip(self.detectors, self.pending, strict=True)
        parts = [(d, rows_of(data[0] if len(data) == 1 else np.concatenate(data), d.event)) for d, data in made if data]
        self.pending, self.delivered_at = [[] for _ in self.detectors], self.seen
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
        self.deliver()
        started, delivering = time.perf_counter(), self.seconds["deliver"]
        live = [[runner.live() for runner in runners] for runners in self.runners]
        for low, high in age_ranges([born for share in live for _, born in share]):
            for runners, share in zip(self.runners, live, strict=True):
                for waiting, runner, (slots, born) in zip(self.pending, runners, share, strict=True):
                    first, last = np.searchsorted(born, (low, high))
                    waiting.append(runner.end(slots[first:last], clock))
            self.deliver()
        self.settle([sum(len(slots) for slots, _ in states) for states in zip(*live, strict=True)])
        self.seconds["deliver"] = delivering + time.perf_counter() - started
        if self.pool:
            self.pool.shutdown()

    def settle(self, ended):
        for name in self.ledger.clock:
            self.ledger.clock[name] = int(self.clock[0][name])
        for runners, n in zip(zip(*self.runners, strict=True), ended, strict=True):
            counts = {name: sum(int(r.table.control[0][name]) for r in runners) for name in STATE_COUNTS}
            self.ledger.states[runners[0].detector.name] = {**counts, "ended": n}

    def spent(self, stage, since):
        now = time.perf_counter()
        self.seconds[stage] += now - since
        return now


def tiles_of(block, tile):
    """The block in blocks of at most `tile` frames."""
    return [Block(block.buf, block.frames[at : at + tile]) for at in range(0, len(block.frames), tile)]


def delivery_order(parts):
    """Events of several detectors in delivery order: (n, 2) of part and row.

    By capture clock; at one instant deadlines first, then by the packet that caused them, then by detector.
    """
    part = np.repeat(np.arange(len(parts)), [len(events) for _, events in parts])
    row = np.concatenate([np.arange(len(events)) for _, events in parts])
    keys = [np.concatenate([events[name] for _, events in parts]) for name in ("cause", "by_packet", "order")]
    keys = [key for key in keys if (key != key[:1]).any()]
    if keys:
        order = np.lexsort(keys) if len(keys) > 1 else np.argsort(keys[0], kind="stable")
        part, row = part[order], row[order]
    return np.stack((part, row), axis=1)


def age_ranges(borns):
    """Ranges [low, high) of birth numbers that hold at most FINISH_STATES states each, over all the arrays."""
    born = np.sort(np.concatenate(borns)) if borns else np.zeros(0, np.int64)
    if not len(born):
        return []
    edges = np.unique(born[:: FINISH_STATES - 64])  # a birth number may occur once in each detector
    return list(zip(edges, [*edges[1:], born[-1] + 1], strict=True))

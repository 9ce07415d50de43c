"""The loop: read blocks, decode them, run detectors, hand events on. Knows no header, detector or sink by name.

One worker takes a block through decoding and all detectors tile by tile. With several (relay.py) the calling thread
reads and decodes, while the states, divided into shares, are brought over the tiles that are ready.
Events are delivered in order of the capture clock, whoever made them and however the capture was cut into blocks: a
deadline before the packets of the same instant, then by packet number, then by detector.
"""

import contextlib
import itertools
import threading
import time

import numpy as np

from dataplane.batch import BATCH_ROWS, CLOCK_MAX_NS, Batch, new_clock
from dataplane.chain import Chain
from dataplane.events import Events
from dataplane.flowtable import TICK_BITS
from dataplane.ledger import Ledger
from dataplane.records import FRAME, NEVER, Block, Stretch, rows, rows_of
from dataplane.relay import SLOTS, Relay
from dataplane.runner import FINISH_STATES, make_runners

BLOCK_TILES = 4  # a block has so many
DELIVER_PACKETS = 1 << 18  # events are sorted and handed on after so many packets, or when a detector's buffer was full
DIVIDE_SECONDS = 0.05  # a chain's time is divided among its stages so often
SAMPLES = 32  # of the births of each detector's states, in a range that age_ranges makes
DELIVER_SECONDS = 0.2  # or when the last time is so long ago: input may be slow
STATE_COUNTS = ("created", "expired", "emergency", "live")
STAGES = ("read", "decode", "detect", "deliver", "wait", "judge")
SECONDS_OF = {
    "reading": "read",
    "arrive": "read",
    "decoding": "decode",
    "waiting": "wait",
    "judge": "judge",
}  # by a chain's stage
NOTHING = Block(np.zeros(1, np.uint8), rows(FRAME, 0))  # a block in which only time passes


def shares_of(workers):
    """In how many shares the states are divided: one for each worker that detects."""
    return max(1, workers - 1)


class Engine:
    """Detectors over captures.

    detectors: list of (Detector, params rows (1,), capacity); sink: has write(Events); options: wire.DECODE rows (1,).
    Sources are to be opened with `block_frames` and `hold`.
    """

    def __init__(self, detectors, sink, options, workers=1, batch_rows=BATCH_ROWS, agent_id=""):
        self.detectors = [detector for detector, _, _ in detectors]
        self.sink, self.agent_id, self.workers, self.tile = sink, agent_id, workers, batch_rows
        self.block_frames, shares = batch_rows * BLOCK_TILES, shares_of(workers)
        self.hold = SLOTS if workers > 1 else 1
        self.ledger, self.clock, self.files, self.seen = Ledger(), new_clock(), [], 0
        self.now = np.asarray(self.clock)["now"]  # cheaper than a row
        self.batch = Batch(batch_rows)
        decode = self.batch.stage(options, self.clock)
        per_detector = [make_runners(*d, shares, batch_rows) for d in detectors]
        self.runners = [list(share) for share in zip(*per_detector, strict=True)] or [[] for _ in range(shares)]
        detecting = [[runner.stage() for runner in share] for share in self.runners]
        self.relay = self.decoding = self.stretching = None
        if workers == 1:
            self.chain = Chain([decode, *detecting[0]])
        else:
            self.relay = Relay(self.batch, batch_rows, shares, self.deliver_round)
            self.chain, self.decoding = Chain([decode, self.relay.giving_stage()]), Chain([decode])
            raw = [batch.stage(options, raw=1) for batch in self.relay.takers]
            self.taking = [Chain(self.relay.taking_stages(i, raw[i], stages)) for i, stages in enumerate(detecting)]
        self.round = [self.nothing_made() for _ in range(shares)]  # events of each share since the last delivery
        self.pending, self.delivered_at, self.delivered_s = self.nothing_made(), 0, time.perf_counter()
        self.seconds, self.booking = dict.fromkeys(STAGES, 0.0), threading.Lock()
        self.ended = {}  # by detector: states ticked at the end of input

    def run(self, source, watch=None):
        """Read one capture to its end. `watch(batch, block)` sees each tile after decoding, in order.

        The source must keep `hold` blocks valid, for with several workers nobody else does. Where nobody watches and it
        offers `stretches`, they are taken.
        """
        self.files.append((self.seen, source.name))
        blocks = source.stretches() if not watch and hasattr(source, "stretches") else source.blocks()
        with self.relay.at_work(self.bring_share) if self.relay else contextlib.nullcontext():
            self.run_over(blocks, watch)
        for batch in self.relay.takers if self.relay else ():
            self.ledger.take_lists(batch.reasons)

    def nothing_made(self):
        """For each detector no event yet, as parts."""
        return [[] for _ in self.detectors]

    def next_block(self, blocks):
        started = time.perf_counter()
        block = next(blocks, None)
        self.spent("read", started)
        return block

    def run_over(self, blocks, watch):
        while (block := self.next_block(blocks)) is not None:
            if isinstance(block, Stretch):
                self.go_on(block)
            else:
                self.go_through(block, watch)

    def follow(self, blocks, watch=None):
        """Live, with one worker: `blocks` yields a Block or Stretch, or where none is ready the ns since the last one.

        Then events are delivered at once and deadlines come without packets.
        """
        then = 0  # by the capture's clock
        while (block := self.next_block(blocks)) is not None:
            if isinstance(block, int):
                self.pass_time(then + block)
                self.hand_on()
                continue
            if isinstance(block, Stretch):
                self.go_on(block)
                if not self.batch.frames:
                    continue  # `now` may already be past the last packet
            else:
                self.go_through(block, watch)
            then = int(self.now[0])

    def go_through(self, block, watch=None):
        """One block through the chain, in tiles, by the calling thread."""
        for part in tiles_of(block, self.tile) if watch else (block,):
            self.batch.give(part, self.seen)
            self.run_chain(self.decoding if watch and self.relay else self.chain, part, watch)

    def go_on(self, stretch):
        """What a stretch has to give, by the calling thread."""
        if self.stretching is None or self.stretching.stages[0] is not stretch.stage:
            self.divide(self.stretching)
            self.stretching = Chain([stretch.stage, *self.chain.stages, *stretch.after])
        if self.relay:
            self.relay.make_windows(stretch.window_bytes)
        self.batch.expect(DELIVER_PACKETS, self.seen)
        self.run_chain(self.stretching, None, None)

    def run_chain(self, chain, block, watch):
        """What the batch was given or may expect, through a chain; hands events on when it is time."""
        started, was_full = time.perf_counter(), False
        for _ in chain.over(self.batch, self.tile):
            was_full = self.go_between(chain)
        now = time.perf_counter()
        chain.busy += now - started
        if chain.busy > DIVIDE_SECONDS:
            self.divide(chain)
        self.settle(block, watch)
        if was_full or self.seen - self.delivered_at >= DELIVER_PACKETS or now - self.delivered_s > DELIVER_SECONDS:
            self.hand_on()

    def go_between(self, chain):
        """A buffer of events was full: True; or, with several workers, no batch was free for long."""
        if self.relay:
            return self.relay.check()
        self.take_events(0, self.pending)
        if chain is self.stretching:
            chain.end_with_tile(self.batch)  # so that events are handed on
        return True

    def load(self):
        """Load what is compiled now, not at the first packet, with one worker."""
        self.go_through(NOTHING)

    def give_up(self, frames):
        """After a stage has failed in go_on: what came before counts, and so do the `frames` of the tile at hand."""
        self.batch.frames += frames
        self.settle(None, None)
        for runner in itertools.chain(*self.runners):
            runner.forget_batch()

    def divide(self, chain):
        """Book the seconds that a chain, if there is one, was busy under its stages."""
        if chain is None:
            return
        tick = chain.busy / max(1, int(chain.ticks.sum()))
        with self.booking:
            for stage, ticks in zip(chain.stages, chain.ticks.tolist(), strict=True):
                self.seconds[SECONDS_OF.get(stage.name, "detect")] += ticks * tick
        chain.ticks[:], chain.busy = 0, 0.0

    def pass_time(self, clock):
        """Bring the capture clock to `clock` without a packet, with one worker."""
        if self.seen and clock >> TICK_BITS > int(self.now[0]) >> TICK_BITS:
            self.now[0] = min(clock, CLOCK_MAX_NS)
            self.go_through(NOTHING)

    def retune(self, params):
        """Take over new params rows, {detector's name: rows}, between two blocks; states stay."""
        for runners in self.runners:
            for runner in runners:
                runner.params[:] = params[runner.detector.name]

    def hand_on(self):
        """Deliver the events made so far; with several workers a last tile, an empty one, tells them to."""
        if self.relay:
            self.relay.mark_due()
            self.batch.give(NOTHING, self.seen)
            for _ in self.chain.over(self.batch, self.tile):
                self.relay.check()
            self.relay.resume()
        else:
            self.take_events(0, self.pending)
            if any(self.pending):
                self.deliver()
        self.delivered_at, self.delivered_s = self.seen, time.perf_counter()

    def bring_share(self, share):
        """Bring a share of the states over all tiles that the calling thread decodes, in a thread of its own."""
        batch, chain, made = self.relay.takers[share], self.taking[share], self.round[share]
        while not self.relay.finished(share):
            started = time.perf_counter()
            batch.expect(NEVER, 0)
            for _ in chain.over(batch, self.tile):
                self.take_events(share, made)
                self.relay.mark_due()
            chain.busy += time.perf_counter() - started
            self.divide(chain)
            if batch.row[0]["due"]:
                batch.row[0]["due"] = 0
                self.take_events(share, made)
                self.relay.meet()

    def deliver_round(self):
        """Deliver what all shares have made up to a tile that was due."""
        for made in self.round:
            for waiting, parts in zip(self.pending, made, strict=True):
                waiting += parts
                parts.clear()
        self.deliver()

    def take_events(self, share, made):
        for parts, runner in zip(made, self.runners[share], strict=True):
            if runner.made:
                parts.append(runner.take())

    def settle(self, block, watch):
        """What follows when a block or tile was decoded."""
        batch = self.batch
        self.seen += batch.frames
        self.ledger.seen += batch.frames
        self.ledger.take_lists(batch.reasons)
        if watch:
            watch(batch, block)
            if self.relay:
                started = time.perf_counter()
                self.relay.give(batch, all_decoded=True)
                self.spent("wait", started)

    def deliver(self):
        """Sort the pending events into delivery order and write them to the sink."""
        started = time.perf_counter()
        made = zip(self.detectors, self.pending, strict=True)
        parts = [(d, rows_of(joined(arrays), d.event)) for d, arrays in made if arrays]
        self.pending = self.nothing_made()
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
        for chain in (self.chain, self.decoding, self.stretching):
            self.divide(chain)
        clock = int(self.now[0]) if self.seen else 0
        for share, made in enumerate(self.round):
            self.take_events(share, made)
        self.deliver_round()
        started, delivering = time.perf_counter(), self.seconds["deliver"]
        live = [[runner.live() for runner in runners] for runners in self.runners]
        for low, high in age_ranges([born for share in live for _, born in share]):
            for runners, share in zip(self.runners, live, strict=True):
                for waiting, runner, (slots, born) in zip(self.pending, runners, share, strict=True):
                    first, last = np.searchsorted(born, (low, high))
                    if first < last:
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


def joined(arrays):
    """The bytes of all; the list is emptied on the way, so that few are kept twice."""
    if len(arrays) == 1:
        return arrays.pop()
    found, at = np.empty(sum(map(len, arrays)), np.uint8), 0
    while arrays:
        part = arrays.pop(0)
        found[at : at + len(part)] = part
        at += len(part)
    return found


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
        order = np.lexsort([key for key in keys if (key != key[0]).any()] or keys[:1])
    return np.stack((part[order], row[order]), axis=1)


def age_ranges(borns):
    """Ranges [low, high) of birth numbers that hold at most FINISH_STATES states each, over all the arrays, each of
    which is sorted.
    """
    borns = [born for born in borns if len(born)]
    if not borns:
        return []
    apart = max(1, FINISH_STATES // (SAMPLES * len(borns)))  # a sample of an array stands for as many of its states
    samples = np.sort(np.concatenate([born[::apart] for born in borns]))
    edges = np.unique(samples[:: FINISH_STATES // apart - 2 * len(borns)])  # two more of each may lie at the edges
    return list(zip(edges, [*edges[1:], max(born[-1] for born in borns) + 1], strict=True))

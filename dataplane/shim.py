"""The shim: packets that wait in queues of the firewall go through decoding, detectors and pacing, and get a verdict.

Two stages around the others of a chain (chain.py): `arrive` waits for packets, and while it does lets those go that are
due; `judge` finds each packet's class and offers it to its pacer. What is held stays in the kernel, only its verdict
waits here. The chain comes back to Python after BUSY_ns, or IDLE_ns while nothing comes: only then are rates changed,
so no lock is needed. Compiled only, for a packet costs less than a call from Python.
"""

import time

import numpy as np
from numba import njit

from dataplane import pacing, wheel
from dataplane.capture.nfcalls import MONOTONIC, QUEUES, REALTIME, clock, receive, send, wait
from dataplane.capture.nfnetlink import VERDICT as ANSWER
from dataplane.capture.nfqueue import SLOTS
from dataplane.chain import DONE, SPENT, Stage, batch_at
from dataplane.classify import Classifier, classify
from dataplane.kernels import stage_address
from dataplane.memory import array_at, load64, store64
from dataplane.pacing import SET_CE, SET_DSCP, SET_MARK, VERDICT, Pacer
from dataplane.records import FRAME, META, NF_ACCEPT, PACKET, TUNNEL, Stretch, rows, zeros
from dataplane.wire.marks import set_traffic_class

BUSY_ns, IDLE_ns = 5_000_000, 50_000_000
AHEAD_MAX_ns, AHEAD_STEP_ns = 50_000, 100  # of waking before something is due
AT_ONCE_ns = 20_000  # a packet that comes so soon was there before
KEPT_bytes = 2048  # of a packet that is held and will be rewritten; longer ones go as they are
ATTEMPTS = 8  # at sending verdicts
ROUND = 256  # verdicts at a time
FRAME_BYTES = FRAME.itemsize
PLACES = 8192  # for flows that are treated apart
APART_MAX = PLACES // 2  # of these
SAME = -1

OVERRIDE = np.dtype(  # what a flow's packets are given in place of what their class says
    [
        ("hash", np.uint64),  # PACKET.hash; 0: nobody
        ("class_index", np.int32),  # SAME: as rules say
        ("mark", np.uint32),
        ("mark_mask", np.uint32),
        ("dscp", np.int32),  # SAME
    ],
    align=True,
)

PACER, RULES = ("classes", "held", "nodes", "heap", "bits", "wheel", "pacing"), Classifier._fields
SHIM = np.dtype(
    [
        *(
            (name, np.int64)
            for name in ("queues", "frames", "metas", "verdicts", "answers", "where", "overrides", "kept")
        ),
        *((name, np.int64) for name in PACER),  # addresses, as the ones above
        *((f"rules_{name}", np.int64) for name in RULES),
        ("overridden", np.int64),  # flows that are treated apart
        ("until", np.int64),  # when to come back to Python, ns
        ("left", np.int64),  # when `arrive` was left, ns
        ("away_max", np.int64),  # the longest time until it was back, with packets there, ns; may be set to 0
        ("ahead", np.int64),  # ns by which we wake before something is due
        ("tick", np.int64),  # ns: what is due so soon leaves too
        ("unwritten", np.int64),  # packets that should have been rewritten but were not whole, or too long
        ("unanswered", np.int64),  # verdicts that the kernel did not take: their packets wait until the end
        ("arrived", np.int64),  # frames of the tile at hand
        ("judged", np.int64),  # of them, those that have their verdict, or are held
    ],
    align=True,
)


@njit
def pacer_at(c):  # only compiled
    """What pacing's functions take."""
    return Pacer(c.classes, c.held, wheel.Wheel(c.nodes, c.heap, c.bits, c.wheel), c.pacing)


@njit
def answer(c, q, count):  # only compiled
    """Send the first `count` verdicts."""
    verdicts, answers = array_at(c.verdicts, ROUND, VERDICT), array_at(c.answers, ROUND, ANSWER)
    where = array_at(c.where, ROUND, np.int64)
    for i in range(count):
        verdict, told = verdicts[i], answers[i]
        told.id, told.queue, told.what = verdict.id, verdict.queue, verdict.verdict
        told.mark, told.set_mark, told.bytes = verdict.mark, np.int64(verdict.flags) & SET_MARK, 0
        if np.int64(verdict.flags) & (SET_CE | SET_DSCP) and verdict.verdict == NF_ACCEPT:
            told.offset = c.kept + np.int64(verdict.slot) * KEPT_bytes if verdict.slot >= 0 else where[i]
            told.bytes = verdict.length
            dscp = np.int64(verdict.dscp) if np.int64(verdict.flags) & SET_DSCP else SAME
            set_traffic_class(told.offset, 0, np.int64(verdict.flags) & SET_CE != 0, dscp)
    first = 0
    for _ in range(ATTEMPTS):
        first += send(q, answers[first:count], 0)
        if first >= count:
            return
    c.unanswered += count - first


@njit
def let_go(c, q, pacer, now):  # only compiled
    """Send verdicts on what is due."""
    verdicts, count = array_at(c.verdicts, ROUND, VERDICT), ROUND
    while count == ROUND:
        count = pacing.release(pacer, now + c.tick, verdicts, ROUND)
        answer(c, q, count)


@njit
def spin_until(q, due, ahead):  # only compiled
    """Let time pass until `due`, if that is less than `ahead` from now; the time, ns. What comes meanwhile waits."""
    now = clock(q, MONOTONIC)
    if due - now < ahead:
        while now < due:
            now = clock(q, MONOTONIC)
    return now


@njit
def doze(c, q, until):  # only compiled
    """Wait for a packet, but not beyond a time; whether one is there.

    Waking takes its time: `c.ahead` becomes so much that it is enough for 24 of 25 wakes.
    """
    left = until - clock(q, MONOTONIC)
    if wait(q, left):
        return True
    if left > 0:
        late = clock(q, MONOTONIC) - until > c.ahead
        c.ahead = min(c.ahead + 24 * AHEAD_STEP_ns, AHEAD_MAX_ns) if late else max(0, c.ahead - AHEAD_STEP_ns)
    return False


def arrive(context, batch):  # only compiled
    """The first stage: as many frames as there are, SPENT when it is time for Python."""
    c, b = array_at(context, 1, SHIM)[0], batch_at(batch)
    q, pacer = array_at(c.queues, 1, QUEUES)[0], pacer_at(c)
    frames, metas = array_at(c.frames, SLOTS, FRAME), array_at(c.metas, SLOTS, META)
    b.count = c.arrived = c.judged = 0
    begun = clock(q, MONOTONIC)
    while True:
        now = clock(q, MONOTONIC)
        let_go(c, q, pacer, now)
        if now >= c.until:
            c.left = now
            return SPENT
        due = pacing.next_due(pacer)
        if spin_until(q, due, c.ahead) >= due:
            let_go(c, q, pacer, clock(q, MONOTONIC))
        if q.slot < q.got or doze(c, q, min(pacing.next_due(pacer) - c.ahead, c.until)):
            count = receive(q, frames, metas, clock(q, REALTIME))
            if count:
                break
    if c.left and clock(q, MONOTONIC) - begun < AT_ONCE_ns:
        c.away_max = max(c.away_max, begun - c.left)
    c.left = clock(q, MONOTONIC)
    c.until, c.arrived = min(c.until, now + BUSY_ns), count
    b.buf, b.buf_bytes, b.count = q.buf, q.slots * q.slot_bytes, count
    b.frames = c.frames - b.first * FRAME_BYTES  # as if all tiles were of one long block
    return DONE


@njit
def override_of(c, pkt):  # only compiled
    """Number of the packet's OVERRIDE row, -1 if its flow has none."""
    if c.overridden == 0 or pkt.hash == np.uint64(0):
        return -1
    overrides, at = array_at(c.overrides, PLACES, OVERRIDE), np.int64(pkt.hash >> np.uint64(20)) & (PLACES - 1)
    while overrides[at].hash != np.uint64(0):
        if overrides[at].hash == pkt.hash:
            return at
        at = (at + 1) & (PLACES - 1)
    return -1


@njit
def set_apart(override, verdict):  # only compiled
    """What an override says of a verdict."""
    if override.mark_mask:
        verdict.mark = (verdict.mark & ~override.mark_mask) | (override.mark & override.mark_mask)
        verdict.flags = np.int64(verdict.flags) | SET_MARK
    if override.dscp >= 0:
        verdict.flags, verdict.dscp = np.int64(verdict.flags) | SET_DSCP, override.dscp


@njit
def keep(c, frame, address, verdict):  # only compiled
    """Keep the bytes of a packet that is held."""
    target = c.kept + np.int64(verdict.slot) * KEPT_bytes
    for i in range(0, frame.caplen, 8):
        store64(target, i, load64(address, i))


@njit
def offer(c, pacer, index, frame, meta, pkt, apart, verdict, now):  # only compiled
    """Offer a packet to its class; whether it got its verdict at once. Bytes are rewritten of whole packets only."""
    row = pacing.class_at(pacer, index)
    pacing.prepare(verdict, meta, frame.len, row)
    if apart >= 0:
        set_apart(array_at(c.overrides, PLACES, OVERRIDE)[apart], verdict)
    whole = c.kept != 0 and np.int64(frame.caplen) == np.int64(frame.len) <= KEPT_bytes and pkt.ip_version != 0
    tos = np.int64(pkt.tos) if whole and pkt.flags & TUNNEL == 0 else 0  # 0: not ECN-capable, as far as we know
    if np.int64(verdict.flags) & SET_DSCP and not whole:
        verdict.flags = np.int64(verdict.flags) & ~SET_DSCP
        c.unwritten += 1
    return pacing.offer(pacer, index, verdict, tos, now)


def judge(context, batch):  # only compiled
    """The last stage: a verdict on each frame of the tile, or a place where it waits."""
    c, b = array_at(context, 1, SHIM)[0], batch_at(batch)
    q, pacer = array_at(c.queues, 1, QUEUES)[0], pacer_at(c)
    rules = Classifier(c.rules_rules, c.rules_keys, c.rules_entries, c.rules_seen, c.rules_control)
    frames, metas = array_at(c.frames, SLOTS, FRAME), array_at(c.metas, SLOTS, META)
    packets, verdicts = array_at(b.packets, b.rows, PACKET), array_at(c.verdicts, ROUND, VERDICT)
    where, made, now = array_at(c.where, ROUND, np.int64), 0, clock(q, MONOTONIC)
    for i in range(b.count):
        frame, meta, pkt, verdict = frames[i], metas[i], packets[i], verdicts[made]
        apart = override_of(c, pkt)
        index = np.int64(array_at(c.overrides, PLACES, OVERRIDE)[apart].class_index) if apart >= 0 else SAME
        if index == SAME:
            index = classify(rules, q.buf, pkt, meta)
        if offer(c, pacer, index, frame, meta, pkt, apart, verdict, now):
            where[made] = q.buf + frame.offset
            made += 1
        elif np.int64(verdict.flags) & (SET_CE | SET_DSCP):
            keep(c, frame, q.buf + frame.offset, verdict)
        c.judged = i + 1
        if made == ROUND or i + 1 == b.count:
            answer(c, q, made)
            made = 0
    return DONE


# For Python, between two runs of the chain


@njit(nogil=True, cache=True)
def change_rates(pacer, indices, rates, limits, now):  # only compiled
    """Give the classes `indices` other rates, bit/s, and bounds on the time that their packets are held, ns."""
    at = pacing.places(pacer)
    for i in range(len(indices)):
        pacing.class_at(at, indices[i]).limit_ns = limits[i]
        pacing.set_rate(at, indices[i], rates[i], now)


@njit(nogil=True, cache=True)
def flush(context, pacer, now):  # only compiled
    """Let all that is held go."""
    c, at, count = context[0], pacing.places(pacer), ROUND
    while count == ROUND:
        count = pacing.flush(at, now, array_at(c.verdicts, ROUND, VERDICT), ROUND)
        answer(c, array_at(c.queues, 1, QUEUES)[0], count)


class Shim:  # only compiled
    """The shim's rows around a Pacer and a Classifier, compiled; `attach` gives it Queues.

    rewrite: whether classes or overrides change bytes, for which room is needed; tick_ns: what is due so soon leaves
    too. `stretch` is to be given to Engine.go_on after each call of `turn`.
    """

    def __init__(self, pacer, rules, rewrite=False, tick_ns=0):
        self.queues, self.pacer, self.rules, self.context = None, pacer, rules, rows(SHIM, 1)
        self.frames, self.metas, self.overrides = rows(FRAME, SLOTS), rows(META, SLOTS), rows(OVERRIDE, PLACES)
        self.verdicts, self.answers, self.where = rows(VERDICT, ROUND), rows(ANSWER, ROUND), zeros(8 * ROUND)
        self.kept = zeros(len(pacer.held) * KEPT_bytes if rewrite else 8)
        row = self.context[0]
        for name in ("frames", "metas", "overrides", "verdicts", "answers", "where"):
            row[name] = getattr(self, name).ctypes.data
        row.kept, row.tick = self.kept.ctypes.data if rewrite else 0, tick_ns
        arrays = pacer.classes, pacer.held, *pacer.wheel, pacer.control
        for name, array in zip(PACER, arrays, strict=True):
            row[name] = array.ctypes.data
        for name, array in zip(RULES, rules, strict=True):
            row[f"rules_{name}"] = array.ctypes.data
        first, last = (Stage(f.__name__, stage_address(f), self.context, None) for f in (arrive, judge))
        self.stretch = Stretch(first, 0, (last,))
        self.flush()
        nothing = np.zeros(0, np.int64)
        self.change_rates(nothing, nothing, nothing, 0)

    def attach(self, queues):
        """Take packets from these Queues."""
        queues.send(self.answers[:0])  # compiles it
        self.queues, self.context[0].queues = queues, queues.context.ctypes.data

    def begin(self):
        """From now on it counts how long we are away."""
        self.context[0].left = 0

    @property
    def tile_frames(self):
        """Frames of the tile at hand."""
        return int(self.context[0].arrived)

    def leave_tile(self):
        """All that the tile at hand holds is judged or pardoned."""
        self.context[0].arrived = self.context[0].judged = 0

    def turn(self):
        """Begin a time in which the chain stays in compiled code."""
        self.context[0].until = time.monotonic_ns() + IDLE_ns

    def change_rates(self, indices, rates, limits, now):
        """Give classes other rates at once: int64 arrays of their numbers, bit/s, and ns that they may hold packets."""
        change_rates(self.pacer, indices, rates, limits, now)

    def flush(self):
        """Let all that is held go."""
        flush(self.context, self.pacer, time.monotonic_ns())

    def set_overrides(self, overrides):
        """Treat these flows apart and no others: rows of OVERRIDE, of which at most APART_MAX count."""
        table, overrides = self.overrides, overrides[:APART_MAX]
        table[:] = 0
        for row in overrides:
            at = (int(row["hash"]) >> 20) & (PLACES - 1)
            while table[at]["hash"]:
                at = (at + 1) & (PLACES - 1)
            table[at] = row
        self.context[0].overridden = len(overrides)

    def pardon(self):
        """Accept the packets of the tile at hand that have no verdict, because a stage failed; how many."""
        metas = self.metas[int(self.context[0].judged) : int(self.context[0].arrived)]
        answers = rows(ANSWER, len(metas))
        answers["id"], answers["queue"], answers["what"] = metas["id"], metas["queue"], NF_ACCEPT
        row, sent = self.context[0], 0
        for _ in range(ATTEMPTS):
            sent += self.queues.send(answers[sent:])
        row.judged, row.unanswered = row.arrived, row.unanswered + len(answers) - sent
        return len(answers)

"""Sandwich: how much the gap between two small probes grew on the way, because a large one was queued between them.

A sender emits P1, d later P2 (large) and P3 (small) back to back; P1 and P3 go to receiver R1, P2 to R1 with TTL j (it
dies at the j-th router) or to R2. At a tap near R1, gap = (arrival of P3 - arrival of P1) - d, with one clock. The
format is docs/probe-format.md, the method NetScan of QoEScope ("Adaptive IP Service Management for Heterogeneous
Enterprise Networks").

Members are told by (session, round, j), not by addresses: P2 may go elsewhere. Each sandwich gives one event, `timeout`
after its first member: until then a copy, a late P2 or a P1 behind its P3 may still spoil it. Nothing is guessed: a gap
needs one P1 and one P3 in order, and no P2 outside them.
"""

import numpy as np
from numba import njit

from dataplane.records import NO_TIME, SANDWICH
from detectors.base import DURATION, FORGET, Detector, EventType, Field, Option, event_row, mix, state_row

P1, P2, P3 = 1, 2, 3  # probe_role
TIME_END_NS = 1 << 62  # times and d from 0 up to here: their differences fit int64

# Why there is no gap: Field "reason"
LOST_P1, LOST_P3, ONLY_P2, REORDERED, INCONSISTENT = range(5)
WHY = ("lost_p1", "lost_p3", "only_p2", "reordered", "inconsistent")
COMPLETE = -1
ENDED_BY = ("timeout", "emergency", "end_of_input")  # by detectors.base.DUE, EMERGENCY, END

STATE = state_row(
    ("session", np.uint64),
    ("p1", np.int64),  # ts of the first copy of each, NO_TIME before it
    ("p2", np.int64),
    ("p3", np.int64),
    ("d", np.int64),
    ("seq", np.int64),  # packet of the event: P3, else the first member
    ("round", np.uint32),
    ("duplicates", np.int32),
    ("members", np.uint8),  # bit set of roles seen
    ("ttl_index", np.uint8),
    ("conflict", np.uint8),  # members disagree about d, or a time is out of range
)

GAP_EVENT, INCOMPLETE_EVENT = 1, 2
WHOSE = (
    Field("session", np.uint64, "session of the sender", "hex"),
    Field("round", np.uint32, "round of the session, from 0"),
    Field("ttl_index", np.uint8, "j: P2 was sent with this TTL; 0: to the second receiver"),
    Field("d_ns", np.int64, "ns between P1 and P2 as sent"),
)
ARRIVALS = (
    Field("p1_ns", np.int64, "arrival of P1 at the tap"),
    Field("p2_ns", np.int64, "arrival of P2 at the tap, null where it was not seen"),
    Field("p3_ns", np.int64, "arrival of P3 at the tap"),
    Field("p2_seen", np.uint8, "P2 passed the tap too", "bool"),
    Field("duplicates", np.int32, "further copies of members; the first copy counts"),
)
EVENTS = (
    EventType(
        "sandwich.gap",
        (*WHOSE, Field("gap_ns", np.int64, "(p3_ns - p1_ns) - d_ns, negative where they came closer"), *ARRIVALS),
        "a sandwich whose P1 and P3 arrived in order",
    ),
    EventType(
        "sandwich.incomplete",
        (
            *WHOSE,
            Field("reason", np.uint8, "what is wrong with it", WHY),
            Field("ended_by", np.uint8, "why it was not waited for any longer", ENDED_BY),
            *ARRIVALS,
        ),
        "a sandwich without a gap: members lost, out of order or in contradiction",
    ),
)

OPTIONS = (Option("timeout", "2s", DURATION, "time from a sandwich's first member to its event", low=1_000_000),)


@njit
def key(pkt, params):
    if pkt.probe_role < P1 or pkt.probe_role > P3:
        return np.uint64(0)
    h = mix(params.secret, pkt.probe_session)
    return mix(h, (np.uint64(pkt.probe_round) << np.uint64(8)) | np.uint64(pkt.probe_ttl))


@njit
def step(pkt, state, event, params):
    if state.members == 0:
        begin(pkt, state)
        state.due = pkt.clock + params.timeout
    if pkt.probe_d != state.d or not 0 <= pkt.ts < TIME_END_NS:
        state.conflict = 1
    bit = 1 << np.int64(pkt.probe_role)
    if np.int64(state.members) & bit:
        state.duplicates = np.int64(state.duplicates) + 1
        return 0
    state.members = np.int64(state.members) | bit
    arrive(pkt, state)
    return 0


@njit
def begin(pkt, state):
    state.session = pkt.probe_session
    state.round = pkt.probe_round
    state.ttl_index = pkt.probe_ttl
    state.d = pkt.probe_d
    state.conflict = 0 if 0 <= pkt.probe_d < TIME_END_NS else 1
    state.seq = pkt.seq
    state.p1 = state.p2 = state.p3 = NO_TIME


@njit
def arrive(pkt, state):
    if pkt.probe_role == P1:
        state.p1 = pkt.ts
    elif pkt.probe_role == P2:
        state.p2 = pkt.ts
    else:
        state.p3 = pkt.ts
        state.seq = pkt.seq


@njit
def verdict(state):
    """COMPLETE, or what is wrong."""
    has1 = np.int64(state.members) & (1 << P1)
    has3 = np.int64(state.members) & (1 << P3)
    if not has1 and not has3:
        return ONLY_P2
    if not has1:
        return LOST_P1
    if not has3:
        return LOST_P3
    if state.conflict:
        return INCONSISTENT
    outside = state.p2 != NO_TIME and (state.p2 < state.p1 or state.p2 > state.p3)
    return REORDERED if state.p3 < state.p1 or outside else COMPLETE


@njit
def tick(state, clock, reason, event, params):
    state.due = FORGET
    event.seq = state.seq
    event.session, event.round, event.ttl_index, event.d_ns = state.session, state.round, state.ttl_index, state.d
    event.p1_ns, event.p2_ns, event.p3_ns = state.p1, state.p2, state.p3
    event.p2_seen = state.p2 != NO_TIME
    event.duplicates = state.duplicates
    wrong = verdict(state)
    if wrong == COMPLETE:
        event.ts = state.p3
        event.gap_ns = (state.p3 - state.p1) - state.d
        return GAP_EVENT
    event.reason, event.ended_by = wrong, reason
    return INCOMPLETE_EVENT


DETECTOR = Detector("sandwich", SANDWICH, STATE, event_row(*EVENTS), EVENTS, OPTIONS, key, step, tick, capacity=16384)

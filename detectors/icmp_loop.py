"""ICMP echo: round trips, loops, duplicates and what stays unanswered (RFC 792, RFC 4443). docs/icmp-loop.md

A state is one pair of addresses with one identifier and sequence number. It has a lane for the requests of each
direction, because both ends may use the same numbers. A reply belongs to the latest unanswered request of the other
direction. A request seen again is a duplicate if it is answered and a loop if it is not: that is known once `loop_max`
has passed without a reply.
"""

import numpy as np
from numba import njit

from dataplane.records import ECHO, NEVER, REVERSE, SELF, TIMELESS
from detectors.base import (
    CHOICE,
    DUE,
    DURATION,
    END,
    FLAG,
    FORGET,
    Detector,
    EventType,
    Field,
    Option,
    event_row,
    mix,
    state_row,
)

ICMP, ECHO_REQUEST, ECHO_REQUEST_V6 = 1, 8, 128  # protocol; types

RTT, LOOP, UNANSWERED, DUPLICATE = 1, 2, 3, 4  # event codes
WAYS = ("unmodified", "swapped", "rewritten")
UNMODIFIED, SWAPPED, REWRITTEN, NO_LOOP = 0, 1, 2, -1
GIVEN_UP = ("timeout", "replaced", "emergency", "end_of_input")
TIMED_OUT, REPLACED, IN_EMERGENCY, END_OF_INPUT = range(4)
SEEN = ("request", "reply")
OF_REQUEST, OF_REPLY = range(2)
MONITORING = ("none", "marked", "all")
MARKED, ALL = 1, 2

IDLE, OPEN, ANSWERED = range(3)  # LANE.status
LANE = np.dtype(
    [
        ("ts", np.int64),  # of the latest sight of the request
        ("clock", np.int64),  # of it, or of the latest reply
        ("packet", np.int64),  # PACKET.seq of the latest sight
        ("gap_ns", np.int64),  # from the first sight to the second
        ("swap_gap_ns", np.int64),  # from the latest sight to the request of the other direction
        ("reply_ts", np.int64),
        ("payload_len", np.int32),
        ("copies", np.uint32),  # sights after the first, not yet reported
        ("tos", np.uint8),
        ("ttl", np.uint8),
        ("status", np.uint8),
        ("repeat", np.uint8),  # the first sight was a copy of an answered request
        ("swapped", np.uint8),  # the other direction has a request that may be this one's return
        ("returned", np.uint8),  # may be the return of the other direction's request
        ("told", np.uint8),  # it was reported that no reply came
    ],
    align=True,
)
STATE = state_row(("icmp_id", np.uint16), ("icmp_seq", np.uint16), ("lanes", LANE, 2))


def prepare(params):
    """ValueError unless 0 <= loop_min <= loop_max <= timeout <= late."""
    if not 0 <= params.loop_min <= params.loop_max <= params.timeout <= params.late:
        raise ValueError("icmp_loop: loop_min, loop_max, timeout and late must not decrease in this order")


@njit
def key(pkt, params):
    if pkt.hash == np.uint64(0) or pkt.flags & TIMELESS:
        return np.uint64(0)
    h = mix(pkt.hash, np.int64(pkt.icmp_id) << 16 | np.int64(pkt.icmp_seq))
    return mix(h, np.int64(pkt.tos) + 1) if params.tos_in_key else h


@njit
def step(pkt, state, event, params):
    state.icmp_id, state.icmp_seq = pkt.icmp_id, pkt.icmp_seq
    _describe(event, state)
    to = 1 if pkt.flags & REVERSE else 0
    if _is_request(pkt):
        code = _request(pkt, state, to, event, params)
    else:
        code = _reply(pkt, state.lanes[to if pkt.flags & SELF else 1 - to], event, params)
    due = min(_lane_due(state.lanes[0], params), _lane_due(state.lanes[1], params))
    state.due = FORGET if due == NEVER else due
    return code


@njit
def tick(state, clock, reason, event, params):
    _describe(event, state)
    if reason != DUE:
        return _end(state, END_OF_INPUT if reason == END else IN_EMERGENCY, event, params)
    at = 0 if _lane_due(state.lanes[0], params) <= _lane_due(state.lanes[1], params) else 1
    lane, other = state.lanes[at], state.lanes[1 - at]
    code = _decide(lane, other, event, params)
    due = min(_lane_due(lane, params), _lane_due(other, params))
    state.due = FORGET if due == NEVER else max(due, np.int64(clock) + 1)
    return code


@njit
def _is_request(pkt):
    return pkt.sport == ECHO_REQUEST if pkt.proto == ICMP else pkt.sport == ECHO_REQUEST_V6


@njit
def _lane_due(lane, params):
    if lane.status == IDLE:
        return np.int64(NEVER)
    if lane.status == ANSWERED:
        return lane.clock if lane.copies else lane.clock + params.timeout
    if not lane.told and (lane.copies or lane.swapped):
        return lane.clock + params.loop_max
    return lane.clock + (params.late if lane.told else params.timeout)


@njit
def _same(pkt, lane, params):
    """The packet can be the lane's request, seen again."""
    fits = lane.tos == pkt.tos and lane.payload_len == pkt.payload_len and pkt.ttl <= lane.ttl
    return fits and 0 <= pkt.ts - lane.ts <= params.loop_max


@njit
def _request(pkt, state, at, event, params):
    lane, other = state.lanes[at], state.lanes[1 - at]
    again = lane.status != IDLE and _same(pkt, lane, params)
    code = 0
    if lane.status == OPEN and again:
        lane.copies += 1
        if lane.copies == 1:
            lane.gap_ns = pkt.ts - lane.ts
    else:
        if lane.status == OPEN:
            code = _give_up(lane, other, REPLACED, event, params)
        elif lane.status == ANSWERED and lane.copies:
            code = _duplicate(event, lane)
        repeat = lane.status == ANSWERED and again
        lane.copies = lane.repeat = 1 if repeat else 0
        lane.gap_ns = pkt.ts - lane.ts if repeat else 0
        lane.status, lane.told, lane.swapped, lane.returned = OPEN, 0, 0, 0
        if other.status == OPEN and not other.told and not other.swapped and _same(pkt, other, params):
            other.swapped, other.swap_gap_ns, lane.returned = 1, pkt.ts - other.ts, 1
    lane.ts, lane.clock, lane.packet = pkt.ts, pkt.clock, pkt.seq
    lane.tos, lane.ttl, lane.payload_len = pkt.tos, pkt.ttl, pkt.payload_len
    return code


@njit
def _reply(pkt, lane, event, params):
    if lane.status == IDLE:
        return 0
    event.tos, event.ttl, event.return_tos, event.return_ttl = lane.tos, lane.ttl, pkt.tos, pkt.ttl
    code = DUPLICATE
    if lane.status == OPEN:
        event.rtt_ns = event.loop_ns = pkt.ts - lane.ts
        event.copies, event.request, event.way = lane.copies, lane.packet, REWRITTEN
        event.late = 1 if lane.told and not lane.repeat else 0
        monitoring = params.monitoring == ALL or (params.monitoring == MARKED and lane.tos != 0)
        code = LOOP if monitoring else RTT
        if lane.told:
            lane.copies = 0
        lane.status, lane.told, lane.swapped = ANSWERED, 0, 0
    else:
        event.what, event.copies, event.gap_ns = OF_REPLY, 1, pkt.ts - lane.reply_ts
    lane.reply_ts, lane.clock = pkt.ts, pkt.clock
    return code


@njit
def _decide(lane, other, event, params):
    """What a lane's deadline means."""
    if lane.status == ANSWERED:
        if lane.copies:
            return _duplicate(event, lane)
        lane.status = IDLE
        return 0
    if lane.told:
        lane.status = IDLE
        return 0
    if not (lane.copies or lane.swapped):
        event.ts = lane.clock + params.timeout
        return _unanswered(event, lane, TIMED_OUT)
    way = _loop_way(lane, other, params)
    lane.swapped = 0
    if way != NO_LOOP:
        return _loop(event, lane, other, way)
    return _duplicate(event, lane) if lane.copies else 0


@njit
def _give_up(lane, other, reason, event, params):
    """An open request will get no reply any more."""
    if lane.told:
        return 0
    way = _loop_way(lane, other, params)
    if way != NO_LOOP:
        return _loop(event, lane, other, way)
    return _duplicate(event, lane) if lane.repeat and lane.copies else _unanswered(event, lane, reason)


@njit
def _end(state, reason, event, params):
    """One event for what is left: of the older open request, else of copies not yet reported."""
    at = 0 if state.lanes[0].packet <= state.lanes[1].packet else 1
    code = 0
    for i in (at, 1 - at):
        lane, other = state.lanes[i], state.lanes[1 - i]
        if code == 0 and lane.status == OPEN:
            code = _give_up(lane, other, reason, event, params)
            if code == UNANSWERED and other.status == OPEN and not other.told:
                event.requests = 2
    for i in (at, 1 - at):
        if code == 0 and state.lanes[i].status == ANSWERED and state.lanes[i].copies:
            code = _duplicate(event, state.lanes[i])
    return code


@njit
def _loop_way(lane, other, params):
    if lane.copies and not lane.repeat and lane.gap_ns >= params.loop_min:
        return UNMODIFIED
    came_back = lane.swapped and other.status == OPEN and other.returned and lane.swap_gap_ns >= params.loop_min
    return SWAPPED if came_back else NO_LOOP


@njit
def _loop(event, lane, other, way):
    lane.told = 1
    home = lane
    if way == SWAPPED:
        home = other
        other.told = 1
    event.ts, event.seq = home.ts, home.packet
    event.way, event.loop_ns = way, lane.gap_ns if way == UNMODIFIED else lane.swap_gap_ns
    event.copies, event.late, event.request = lane.copies if way == UNMODIFIED else 1, 0, lane.packet
    event.tos, event.ttl, event.return_tos, event.return_ttl = lane.tos, lane.ttl, home.tos, home.ttl
    return LOOP


@njit
def _duplicate(event, lane):
    """Copies of the request: of one that was answered, or too close together to be a loop."""
    event.ts, event.seq = lane.ts, lane.packet
    event.what, event.copies, event.gap_ns = OF_REQUEST, lane.copies, lane.gap_ns
    event.tos, event.ttl, event.return_tos, event.return_ttl = lane.tos, lane.ttl, lane.tos, lane.ttl
    lane.copies, lane.told = 0, lane.repeat
    return DUPLICATE


@njit
def _unanswered(event, lane, reason):
    event.seq = lane.packet
    event.reason, event.copies, event.requests = reason, lane.copies, 1
    event.tos, event.ttl = lane.tos, lane.ttl
    lane.told = 1
    return UNANSWERED


@njit
def _describe(event, state):
    event.icmp_id, event.icmp_seq = state.icmp_id, state.icmp_seq


NUMBERS = (
    Field("icmp_id", np.uint16, "identifier"),
    Field("icmp_seq", np.uint16, "sequence number"),
    Field("tos", np.uint8, "ToS or traffic class of the request"),
    Field("ttl", np.uint8, "TTL or hop limit of the request, when last seen"),
)
RETURN = (
    Field("return_tos", np.uint8, "ToS or traffic class of what came back"),
    Field("return_ttl", np.uint8, "its TTL or hop limit"),
)
REQUEST = Field("request", np.int64, "0-based packet number of the request")
COPIES = Field("copies", np.uint32, "sights of the request after the first")
ROUND_TRIP = Field("rtt_ns", np.int64, "reply minus latest sight of the request, ns")
LOOP_TIME = Field("loop_ns", np.int64, "second sight minus first, ns")
EVENTS = (
    EventType(
        "icmp.rtt",
        (*NUMBERS, *RETURN, ROUND_TRIP, REQUEST, COPIES, Field("late", np.uint8, "after it was given up", "bool")),
        "an echo reply and its request",
    ),
    EventType(
        "icmp.loop",
        (*NUMBERS, *RETURN, LOOP_TIME, Field("way", np.uint8, "how it came back", WAYS), REQUEST, COPIES),
        "an echo request that came back to the tap",
    ),
    EventType(
        "icmp.unanswered",
        (
            *(*NUMBERS, COPIES, Field("reason", np.uint8, "why it was given up", GIVEN_UP)),
            Field("requests", np.uint8, "requests given up by this event: 2 at the end if both directions wait"),
        ),
        "an echo request without reply",
    ),
    EventType(
        "icmp.duplicate",
        (
            *(*NUMBERS, *RETURN, Field("what", np.uint8, "what was seen again", SEEN), COPIES),
            Field("gap_ns", np.int64, "from the sight before (requests: from first to second), ns"),
        ),
        "an answered request, or a reply, that was seen again",
    ),
)

DETECTOR = Detector(
    name="icmp_loop",
    kind=ECHO,
    state=STATE,
    event=event_row(*EVENTS),
    events=EVENTS,
    options=(
        Option("timeout", "5s", DURATION, "a request without reply is reported after this", low=1),
        Option("late", "300s", DURATION, "a later reply still gives its round trip until this", low=1),
        Option("loop_max", "900ms", DURATION, "a longer way home is no loop: the request was sent again", low=0),
        Option("loop_min", "10us", DURATION, "a shorter one is no loop: the capture saw the packet twice", low=0),
        Option("tos_in_key", False, FLAG, "a reply must have the ToS or traffic class of its request"),
        Option(
            "monitoring", "none", CHOICE, "requests whose reply is themselves, rewritten: marked have a ToS", MONITORING
        ),
    ),
    key=key,
    step=step,
    tick=tick,
    prepare=prepare,
    capacity=16384,
)

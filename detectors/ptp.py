"""PTP: path delay and offset from PTPv2 exchanges seen by a tap (IEEE 1588-2019, 11.3 and 11.4). docs/ptp.md

End-to-end: t1 and t4 come from the master's messages, t2 and t3 are the captures of Sync and Delay_Req at the tap.
Peer-to-peer: t2 and t3 come from the responder's messages, t1 and t4 are the captures of Pdelay_Req and Pdelay_Resp.

A state is one PTP domain, since a Sync serves every slave of its master and a Delay_Req does not name its master. It
holds its last Syncs and its last requests, each in a ring in order of capture. All times are int64 ns, all corrections
int64 of 2**-16 ns (scaledNanoseconds).
"""

import numpy as np
from numba import njit

from dataplane.records import NEVER, NO_TIME, PTP, TIMELESS
from detectors.base import DUE, DURATION, END, FORGET, Detector, EventType, Field, Option, event_row, mix, state_row

SYNCS = 512  # of a domain, the last ones
REQUESTS = 256  # of a domain; the oldest one gives way

# messageType
SYNC, DELAY_REQ, PDELAY_REQ, PDELAY_RESP = 0, 1, 2, 3
FOLLOW_UP, DELAY_RESP, PDELAY_RESP_FOLLOW_UP = 8, 9, 10
TWO_STEP_FLAG = 0x0200

MAX_TIME_ns = (1 << 62) - (1 << 52)  # later times (2116) would overflow the sums
TOO_LARGE = np.iinfo(np.int64).max  # correctionField of 0x7FFF FFFF FFFF FFFF; its negative's negative is out of range

E2E, P2P = 0, 1
REASONS = (
    *("no_request", "no_response", "no_follow_up", "no_sync"),
    *("bad_timestamp", "correction_too_large", "negative_delay"),
    *("superseded", "several_responders", "overflow", "emergency", "end_of_input"),
)
NO_REQUEST, NO_RESPONSE, NO_FOLLOW_UP, NO_SYNC = range(4)
BAD_TIMESTAMP, CORRECTION_TOO_LARGE, NEGATIVE_DELAY = range(4, 7)
SUPERSEDED, SEVERAL_RESPONDERS, OVERFLOW, IN_EMERGENCY, END_OF_INPUT = range(7, 12)

DELAY, INCOMPLETE = 1, 2  # event codes


def _row(**names):
    """Dtype of the fields named in `names`, {numpy type: "name name"}."""
    return np.dtype([(name, kind) for kind, text in names.items() for name in text.split()], align=True)


# `packet`, `ts`: of the Sync; `clock`, `completed`: capture clock of the first and the last of it and its Follow_Up
_TIMES = "packet clock completed ts t1 correction follow_up_correction"
SYNC_ROW = _row(i8=_TIMES, u8="master pair", u2="port sequence", u1="have")
HAVE_SYNC, HAVE_FOLLOW_UP, TWO_STEP = 1, 2, 4  # SYNC_ROW.have

# `ts`, `response_ts`: captures of request and response; `response_time`, `follow_up_time`: in their bodies;
# `response`, `follow_up`: 1 if they were seen
REQUEST = _row(
    i8="packet clock ts response_ts response_time response_correction follow_up_time follow_up_correction",
    u8="requester responder pair response_pair",
    u2="requester_port responder_port sequence",
    u1="mechanism status response follow_up",
)
OPEN, WAITING, DONE = range(3)  # REQUEST.status: not answered; answered in part; nothing more to report

STATE = state_row(
    ("clock", np.int64),  # of the last message
    ("head", np.int64),  # requests ever made
    ("tail", np.int64),  # all before this one are DONE
    ("syncs_head", np.int64),  # Syncs ever held
    ("domain", np.uint8),
    ("sdo", np.uint16),
    ("syncs", SYNC_ROW, SYNCS),
    ("requests", REQUEST, REQUESTS),
    ("stray", REQUEST),  # scratch: what a response without its request says
)


@njit
def key(pkt, params):
    """The domain. Needs no secret: a domain is one row, whoever speaks in it."""
    kind = pkt.ptp_type
    if pkt.ptp_version != 2 or kind > PDELAY_RESP_FOLLOW_UP or (PDELAY_RESP < kind < FOLLOW_UP):
        return np.uint64(0)
    return mix(np.uint64(PTP), np.int64(pkt.ptp_sdo) << 8 | np.int64(pkt.ptp_domain))


@njit
def step(pkt, state, event, params):
    state.domain, state.sdo, state.clock = pkt.ptp_domain, pkt.ptp_sdo, pkt.clock
    kind, code = pkt.ptp_type, 0
    if kind == SYNC:
        _sync(pkt, state, params)
    elif kind == FOLLOW_UP:
        code = _follow_up(pkt, state, event, params)
    elif kind == DELAY_REQ or kind == PDELAY_REQ:
        code = _request(pkt, state, event, params, E2E if kind == DELAY_REQ else P2P)
    elif kind == DELAY_RESP:
        code = _delay_resp(pkt, state, event, params)
    else:
        code = _pdelay_resp(pkt, state, event, params)
    if code == 0 and pkt.clock >= _next_due(state, params):
        code = _expire(event, state, params)  # deadlines that came together are ticked one at a time
    state.due = _next_due(state, params)
    return code


@njit
def tick(state, clock, reason, event, params):
    if state.tail == state.head:
        state.due = FORGET
        return 0
    if reason != DUE:
        request = state.requests[state.tail % REQUESTS]
        event.seq = request.packet
        return _incomplete(event, request, state, END_OF_INPUT if reason == END else IN_EMERGENCY, _open(state))
    code = _expire(event, state, params)
    state.due = max(_next_due(state, params), np.int64(clock) + 1)
    return code


@njit
def _next_due(state, params):
    """The oldest open request's timeout; without one, when nothing held is of use any more."""
    _skip_done(state)
    if state.tail < state.head:
        return state.requests[state.tail % REQUESTS].clock + params.timeout
    return state.clock + max(params.timeout, params.sync_age)


@njit
def _skip_done(state):
    while state.tail < state.head and state.requests[state.tail % REQUESTS].status == DONE:
        state.tail += 1


@njit
def _open(state):
    count = 0
    for i in range(state.tail, state.head):
        count += state.requests[i % REQUESTS].status != DONE
    return count


@njit
def _capture_time(pkt):
    return NO_TIME if pkt.flags & TIMELESS else pkt.ts


@njit
def _pairs_fit(a, b):
    """Both to the same pair of addresses, or one of them to a group (hybrid mode)."""
    return a == b or a == np.uint64(0) or b == np.uint64(0)


@njit
def _partner(pkt, state, have, params):
    """Sync row for this Sync or Follow_Up: the latest that has `have` and lacks it, else a new one."""
    for back in range(1, min(state.syncs_head, SYNCS) + 1):
        sync = state.syncs[(state.syncs_head - back) % SYNCS]
        if pkt.clock - sync.clock >= params.timeout:
            break
        same = sync.master == pkt.ptp_clock and sync.port == pkt.ptp_port and sync.sequence == pkt.ptp_seq
        if same and sync.have == have and sync.pair == pkt.ptp_pair:
            return sync
    sync = state.syncs[state.syncs_head % SYNCS]
    state.syncs_head += 1
    sync.master, sync.port, sync.sequence, sync.pair = pkt.ptp_clock, pkt.ptp_port, pkt.ptp_seq, pkt.ptp_pair
    sync.clock, sync.have, sync.follow_up_correction = pkt.clock, 0, 0
    return sync


@njit
def _sync(pkt, state, params):
    two_step = pkt.ptp_flags & TWO_STEP_FLAG != 0
    sync = _partner(pkt, state, HAVE_FOLLOW_UP if two_step else 255, params)  # a one-step Sync has no partner
    sync.packet, sync.ts, sync.correction = pkt.seq, _capture_time(pkt), pkt.ptp_correction
    if not two_step:
        sync.t1 = pkt.ptp_time
    sync.have |= HAVE_SYNC | TWO_STEP if two_step else HAVE_SYNC
    sync.completed = pkt.clock


@njit
def _follow_up(pkt, state, event, params):
    """Complete a Sync, and finish the first exchange that waits for it; others finish at their timeout."""
    sync = _partner(pkt, state, HAVE_SYNC | TWO_STEP, params)
    sync.t1, sync.follow_up_correction = pkt.ptp_time, pkt.ptp_correction
    sync.have |= HAVE_FOLLOW_UP
    sync.completed = pkt.clock
    for i in range(state.tail, state.head):
        request = state.requests[i % REQUESTS]
        waits = request.status == WAITING and request.mechanism == E2E and pkt.clock - request.clock < params.timeout
        if waits and _same_responder(pkt, request):
            code = _try_delay(event, request, state, params)
            if code:
                return code
    return 0


@njit
def _latest_sync(state, request, complete, not_before, before):
    """Index into `syncs` of the responder's latest one before the request, -1: none.

    Between the clock values `not_before`, at which it came, and `before`, at which it was all there.
    """
    best, best_packet = -1, np.int64(-1)
    for i in range(min(state.syncs_head, SYNCS)):
        sync = state.syncs[i]
        if sync.master != request.responder or sync.port != request.responder_port:
            continue
        if not (sync.have & HAVE_SYNC and (sync.have != HAVE_SYNC | TWO_STEP) == complete):
            continue
        usable = _pairs_fit(sync.pair, request.response_pair) and not_before <= sync.clock <= sync.completed < before
        if usable and best_packet < sync.packet < request.packet:
            best, best_packet = i, sync.packet
    return best


@njit
def _request(pkt, state, event, params, mechanism):
    """Put a request into the ring. Reports the one that it replaces."""
    old = _find(pkt, pkt.ptp_clock, pkt.ptp_port, state, params, mechanism)
    code = 0
    if old >= 0 and state.requests[old].status != DONE and state.requests[old].pair == pkt.ptp_pair:
        state.requests[old].status = DONE
        event.seq = state.requests[old].packet
        code = _incomplete(event, state.requests[old], state, SUPERSEDED, 1)
    _skip_done(state)
    request = state.requests[state.head % REQUESTS]
    if state.head - state.tail == REQUESTS:
        event.seq = request.packet
        code = _incomplete(event, request, state, OVERFLOW, 1 if code == 0 else 2)
        state.tail += 1
    state.head += 1
    _open_request(pkt, request, mechanism)
    return code


@njit
def _open_request(pkt, request, mechanism):
    request.packet, request.clock, request.ts = pkt.seq, pkt.clock, _capture_time(pkt)
    request.requester, request.requester_port = pkt.ptp_clock, pkt.ptp_port
    request.pair, request.sequence = pkt.ptp_pair, pkt.ptp_seq
    request.mechanism, request.status = mechanism, OPEN
    _clear_response(request)


@njit
def _clear_response(request):
    request.responder, request.responder_port, request.response_pair = 0, 0, 0
    request.response_ts = request.response_time = request.follow_up_time = NO_TIME
    request.response_correction = request.follow_up_correction = request.response = request.follow_up = 0


@njit
def _find(pkt, requester, port, state, params, mechanism):
    """Slot of the latest live request of this port with the packet's sequenceId, -1: none."""
    for back in range(1, min(state.head, REQUESTS) + 1):
        slot = (state.head - back) % REQUESTS
        request = state.requests[slot]
        if pkt.clock - request.clock >= params.timeout:
            break
        if request.mechanism != mechanism or request.sequence != pkt.ptp_seq:
            continue
        if request.requester == requester and request.requester_port == port and _pairs_fit(request.pair, pkt.ptp_pair):
            return slot
    return -1


@njit
def _same_responder(pkt, request):
    return request.responder == pkt.ptp_clock and request.responder_port == pkt.ptp_port


@njit
def _take_responder(pkt, state, slot):
    """Make the sender the responder of a request, also of one that is done with another responder."""
    request = state.requests[slot]
    _clear_response(request)
    request.responder, request.responder_port, request.response_pair = pkt.ptp_clock, pkt.ptp_port, pkt.ptp_pair
    request.status = WAITING
    newest = state.head - 1
    state.tail = min(state.tail, newest - (newest - slot) % REQUESTS)


@njit
def _take_response(pkt, request):
    request.response_ts, request.response_time = _capture_time(pkt), pkt.ptp_time
    request.response_correction, request.response = pkt.ptp_correction, 1


@njit
def _delay_resp(pkt, state, event, params):
    slot = _find(pkt, pkt.ptp_requesting_clock, pkt.ptp_requesting_port, state, params, E2E)
    if slot < 0:
        return _unmatched(event, pkt, state, NO_REQUEST)
    request = state.requests[slot]
    if request.status != OPEN and _same_responder(pkt, request):
        return 0  # said again
    if request.status == WAITING:
        return _unmatched(event, pkt, state, SEVERAL_RESPONDERS)
    _take_responder(pkt, state, slot)
    _take_response(pkt, request)
    code = _try_delay(event, request, state, params)
    if code or _latest_sync(state, request, False, request.clock - params.timeout + 1, NEVER) >= 0:
        return code  # finished, or a Sync waits for its Follow_Up
    request.status = DONE
    return _incomplete(event, request, state, NO_SYNC, 1)


@njit
def _try_delay(event, request, state, params):
    """Finish a delay exchange if a complete Sync, not too old, came before its request."""
    at = _latest_sync(state, request, True, request.clock - params.sync_age, request.clock + params.timeout)
    if at < 0:
        return 0
    request.status = DONE
    sync = state.syncs[at]
    _describe(event, request, state)
    event.t1_ns, event.t2_ns = sync.t1, sync.ts
    event.sync_correction, event.follow_up_correction = sync.correction, sync.follow_up_correction
    event.sync_id, event.two_step = sync.sequence, 1 if sync.have & TWO_STEP else 0
    return _judge(event)


@njit
def _pdelay_resp(pkt, state, event, params):
    """Pdelay_Resp and Pdelay_Resp_Follow_Up, in either order. A lone Follow_Up says nothing: its Pdelay_Resp did."""
    is_response = pkt.ptp_type == PDELAY_RESP
    slot = _find(pkt, pkt.ptp_requesting_clock, pkt.ptp_requesting_port, state, params, P2P)
    if slot < 0:
        return _unmatched(event, pkt, state, NO_REQUEST) if is_response else 0
    request = state.requests[slot]
    same = _same_responder(pkt, request)
    if request.status == OPEN or (request.status == DONE and is_response and not same):
        _take_responder(pkt, state, slot)
    elif request.status == DONE or (same and (request.response if is_response else request.follow_up)):
        return 0  # said again
    elif not same:
        return _unmatched(event, pkt, state, SEVERAL_RESPONDERS) if is_response else 0
    if is_response:
        _take_response(pkt, request)
        if pkt.ptp_flags & TWO_STEP_FLAG == 0:
            return _finish_peer(event, request, state, 0)
    else:
        request.follow_up_time, request.follow_up_correction, request.follow_up = pkt.ptp_time, pkt.ptp_correction, 1
    return _finish_peer(event, request, state, 1) if request.response and request.follow_up else 0


@njit
def _finish_peer(event, request, state, two_step):
    request.status = DONE
    _describe(event, request, state)
    event.two_step = two_step
    if not two_step:  # the turnaround is in the correction
        event.t3_ns, event.follow_up_correction = NO_TIME, 0
    return _judge(event)


@njit
def _expire(event, state, params):
    """Report the oldest open request, whose timeout has come."""
    request = state.requests[state.tail % REQUESTS]
    event.ts, event.seq = request.clock + params.timeout, request.packet
    if request.mechanism == E2E and request.status == WAITING:
        code = _try_delay(event, request, state, params)
        if code:
            return code
    request.status = DONE
    return _incomplete(event, request, state, NO_FOLLOW_UP if request.response else NO_RESPONSE, 1)


@njit
def _describe(event, request, state):
    """Everything that the request and its responses say; `_judge` or the caller adds the rest."""
    event.domain, event.sdo, event.mechanism = state.domain, state.sdo, request.mechanism
    event.master_clock, event.master_port = request.responder, request.responder_port
    event.slave_clock, event.slave_port = request.requester, request.requester_port
    event.request_id, event.sync_id, event.two_step = request.sequence, 0, 0
    event.sync_correction, event.response_correction = 0, request.response_correction
    event.follow_up_correction = request.follow_up_correction
    event.mean_path_delay_ns = event.offset_ns = NO_TIME
    if request.mechanism == E2E:
        event.t1_ns = event.t2_ns = NO_TIME
        event.t3_ns, event.t4_ns = request.ts, request.response_time
    else:
        event.t1_ns, event.t4_ns = request.ts, request.response_ts
        event.t2_ns, event.t3_ns = request.response_time, request.follow_up_time


@njit
def _incomplete(event, request, state, reason, exchanges):
    _describe(event, request, state)
    event.reason, event.exchanges = reason, exchanges
    return INCOMPLETE


@njit
def _unmatched(event, pkt, state, reason):
    """Report a response that belongs to no request."""
    stray = state.stray
    _clear_response(stray)
    stray.ts, stray.sequence = NO_TIME, pkt.ptp_seq
    stray.mechanism = E2E if pkt.ptp_type == DELAY_RESP else P2P
    stray.requester, stray.requester_port = pkt.ptp_requesting_clock, pkt.ptp_requesting_port
    stray.responder, stray.responder_port = pkt.ptp_clock, pkt.ptp_port
    _take_response(pkt, stray)
    return _incomplete(event, stray, state, reason, 1)


@njit
def _judge(event):
    """Compute delay and offset from the event's times and corrections; what cannot be measured is INCOMPLETE."""
    event.exchanges = 1
    cs, cf, cr = event.sync_correction, event.follow_up_correction, event.response_correction
    if min(cs, cf, cr) < -TOO_LARGE or max(cs, cf, cr) == TOO_LARGE:
        event.reason = CORRECTION_TOO_LARGE
        return INCOMPLETE
    least, most = min(event.t1_ns, event.t4_ns), max(event.t1_ns, event.t4_ns)
    if event.mechanism == E2E or event.two_step:  # t2 and t3 are used
        least, most = min(least, event.t2_ns, event.t3_ns), max(most, event.t2_ns, event.t3_ns)
    if least < 0 or most >= MAX_TIME_ns:
        event.reason = BAD_TIMESTAMP
        return INCOMPLETE
    _measure(event)
    event.reason = NEGATIVE_DELAY
    return INCOMPLETE if event.mean_path_delay_ns < 0 else DELAY


@njit
def _measure(event):
    """meanPathDelay = ((t2 - t3) + (t4 - t1) - corrections) / 2, without t2 and t3 for a one-step Pdelay_Resp.

    offset = t2 - t1 - meanPathDelay - cF(Sync) - cF(Follow_Up), the tap's clock minus the master's. Peer-to-peer, minus
    the responder's: ((t1 - t2) + (t4 - t3)) / 2, where the responder tells its times.
    """
    t1, t2, t3, t4 = event.t1_ns, event.t2_ns, event.t3_ns, event.t4_ns
    cs, cf, cr = event.sync_correction, event.follow_up_correction, event.response_correction
    if event.mechanism == E2E:
        event.mean_path_delay_ns = _half((t2 - t3) + (t4 - t1), cs, cf, cr)
        event.offset_ns = _half((t2 - t1) - (t4 - t3), cs, cf, -cr)
        return
    turnaround_ns = t3 - t2 if event.two_step else np.int64(0)
    event.mean_path_delay_ns = _half((t4 - t1) - turnaround_ns, np.int64(0), cf, cr)
    if event.two_step and t2 > 0:
        event.offset_ns = ((t1 - t2) + (t4 - t3)) >> 1


@njit
def _half(sum_ns, a, b, c):
    """floor((sum_ns - (a + b + c) / 2**16) / 2), exactly, without the overflow of a + b + c."""
    whole_ns = sum_ns - (a >> 16) - (b >> 16) - (c >> 16)
    part = (a & 0xFFFF) + (b & 0xFFFF) + (c & 0xFFFF)
    return (whole_ns - ((part + 0xFFFF) >> 16)) >> 1


WHO = (
    Field("mechanism", np.uint8, "delay mechanism", ("e2e", "p2p")),
    Field("domain", np.uint8, "domainNumber"),
    Field("sdo", np.uint16, "sdoId: majorSdoId * 256 + minorSdoId"),
    Field("master_clock", np.uint64, "clockIdentity of the master (p2p: of the responder), 0 if unknown", "hex"),
    Field("master_port", np.uint16, "its portNumber"),
    Field("slave_clock", np.uint64, "clockIdentity of the slave (p2p: of the requester)", "hex"),
    Field("slave_port", np.uint16, "its portNumber"),
    Field("request_id", np.uint16, "sequenceId of Delay_Req or Pdelay_Req"),
    Field("sync_id", np.uint16, "sequenceId of the Sync used (p2p: 0)"),
    Field("two_step", np.uint8, "Sync (p2p: Pdelay_Resp) announced a Follow_Up", "bool"),
)
TIMES = (
    Field("t1_ns", np.int64, "Sync sent, by the master (p2p: Pdelay_Req captured), ns; null unknown"),
    Field("t2_ns", np.int64, "Sync captured (p2p: Pdelay_Req received, by the responder), ns; null unknown"),
    Field("t3_ns", np.int64, "Delay_Req captured (p2p: Pdelay_Resp sent, by the responder), ns; null unknown"),
    Field("t4_ns", np.int64, "Delay_Req received, by the master (p2p: Pdelay_Resp captured), ns; null unknown"),
    Field("sync_correction", np.int64, "correctionField of Sync, 2**-16 ns (p2p: 0)"),
    Field("follow_up_correction", np.int64, "correctionField of Follow_Up or Pdelay_Resp_Follow_Up, 2**-16 ns"),
    Field("response_correction", np.int64, "correctionField of Delay_Resp or Pdelay_Resp, 2**-16 ns"),
    Field("mean_path_delay_ns", np.int64, "mean one-way delay to master (p2p: responder), floor ns; null unknown"),
    Field("offset_ns", np.int64, "tap's capture clock minus the master's (p2p: responder's), floor ns; null unknown"),
)
GIVEN_UP = (
    Field("reason", np.uint8, "why it was given up", REASONS),
    Field("exchanges", np.uint16, "exchanges given up by this event; the fields describe the oldest"),
)

DETECTOR = Detector(
    name="ptp",
    kind=PTP,
    state=STATE,
    event=event_row(EventType("", (*WHO, *TIMES, *GIVEN_UP), "")),
    events=(
        EventType("ptp.delay", (*WHO, *TIMES), "a finished delay exchange"),
        EventType("ptp.incomplete", (*WHO, *TIMES, *GIVEN_UP), "a delay exchange that was given up"),
    ),
    options=(
        Option("timeout", "4s", DURATION, "wait for a response, and between Sync and Follow_Up", low=1),
        Option("sync_age", "10s", DURATION, "an older Sync is not used for a Delay_Req", low=1),
    ),
    key=key,
    step=step,
    tick=tick,
    capacity=64,
    packet_ends=True,
)

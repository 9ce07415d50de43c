"""IQN: a player's stalls, from the packets that its user's agent makes the service send while playback stands still.

The agent looks at the screen every p and, while it sees the spinner, has the server answer n times. So a stall shows
at a tap as about n packets of a characteristic size every p, in the flow of the service's API host. After Peroni,
Gorinsky, Tashtarian, "In-Band Quality Notification from Users to ISPs" (YouStall). docs/iqn.md gives the
definitions, what the guards and the duration estimate rest on, and what was measured.

Arrivals are kept sorted by ts; a window is complete when the capture clock has passed its end, packets or not.
"""

import numpy as np
from numba import njit

from dataplane.records import LINE_BYTES, QUIC
from detectors.base import (
    CHOICE,
    COUNT,
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
    state_row,
)

UDP, HTTPS_PORT = 17, 443
LONG_HEADER = 0x80  # first byte of a QUIC packet, RFC 9000, 17.2
HEADERS_V4_BYTES = 42  # Ethernet 14, IPv4 20, UDP 8
HEADERS_V6_BYTES = 62  # Ethernet 14, IPv6 40, UDP 8

LARGE_BYTES = 1000  # payload of a packet that bulk transfer may consist of
BULK_RATE = 3  # times the signal's n packets per p: what a flow's large packets may come at for long
BULK_BURST = 4  # times n: what they may be ahead of that rate
BULK_MEMORY_NS = 10_000_000_000  # a flow is left out at most so long after its last large packet
VOTES_MAX = 255
IDLE_NS = 60_000_000_000  # a flow without a stall is forgotten after so long without large packets
TIME_END_NS = 1 << 62

N_MAX = 8
FLOWS_MAX = 8  # flows of one client whose guards are kept

FRAME, FRAME_V4, PAYLOAD = range(3)  # basis
FORWARD, TRAILING = range(2)  # window
PER_FLOW, PER_CLIENT = range(2)  # pool

WATCHING, PENDING, STALLED = range(3)  # PENDING: a stall, unless the flow proves to be bulk

START_EVENT, END_EVENT = 1, 2
BY_WINDOW, BY_END, BY_EMERGENCY = range(3)
ENDED_BY = ("window", "end_of_input", "emergency")

GUARD = np.dtype(
    [
        ("flow", np.uint64),  # PACKET.hash
        ("seen", np.int64),  # clock of the flow's last large packet
        ("busy_until", np.int64),  # clock to which its large packets would last at BULK_RATE
        ("full_size", np.uint16),  # largest long-header packet: the server fills its packets so far
        ("common_size", np.uint16),  # what most packets of its bulk transfer measure
        ("votes", np.uint8),  # majority of common_size
        ("proven", np.uint8),  # has made a stall and no bulk since
    ],
    align=True,
)
STATE = state_row(
    ("phase", np.uint8),
    ("count", np.uint8),  # of arrivals
    ("starter", np.uint8),  # index of the flow whose candidate completed the stall's first window
    ("guards", GUARD, FLOWS_MAX),  # the first lies in the first cache line: most packets touch no other
    ("end_due", np.int64),  # clock at which the window in hand is complete
    ("shift", np.int64),  # clock - ts at the newest arrival
    ("start", np.int64),
    ("last", np.int64),  # trailing: last arrival whose window was full
    ("covered", np.int64),  # forward: from start to arrivals[0], each gap at most w_s
    ("seq", np.int64),  # of the last candidate
    ("total", np.int32),  # candidates of the stall that have left `arrivals`
    ("owners", np.uint8, N_MAX + 1),  # index of each arrival's flow
    ("arrivals", np.int64, N_MAX + 1),  # ts, ascending
)

STALL_START = (
    Field("start_ns", np.int64, "when playback stopped, ns since 1970"),
    Field("candidates", np.int32, "candidate packets of the stall so far"),
)
STALL_END = (
    Field("start_ns", np.int64, "when playback stopped, ns since 1970"),
    Field("end_ns", np.int64, "when it went on, ns since 1970"),
    Field("duration_ns", np.int64, "end_ns - start_ns"),
    Field("candidates", np.int32, "candidate packets of the stall"),
    Field("ended_by", np.uint8, "why it ended", ENDED_BY),
)
EVENTS = (
    EventType("iqn.stall_start", STALL_START, "playback at the client has stopped"),
    EventType("iqn.stall_end", STALL_END, "a stall is over"),
)

OPTIONS = (
    Option("n", 4, COUNT, f"candidates that make a full window: toggles a screenshot, 2 to {N_MAX}", low=2),
    Option("p", "200ms", DURATION, "the agent's screenshot interval", low=1_000_000),
    Option("w_s", "0s", DURATION, "window in which a stall starts; 0: 3p/2"),
    Option("w_e", "0s", DURATION, "window in which a stall ends; 0: 4p"),
    Option("size_low", 1180, COUNT, "smallest candidate, bytes"),
    Option("size_high", 1288, COUNT, "largest candidate, bytes"),
    Option(
        "basis",
        "frame",
        CHOICE,
        "what size_low and size_high measure: UDP payload with untagged Ethernet, bare IP and UDP headers in front "
        "(frame), the same with IPv4's header also for IPv6 (frame_v4), or alone (payload)",
        ("frame", "frame_v4", "payload"),
    ),
    Option("window", "forward", CHOICE, "windows slide from an arrival on, or back from it", ("forward", "trailing")),
    Option("correction", True, FLAG, "forward windows: correct start and duration for the screenshot interval"),
    Option("guard_handshake", True, FLAG, "long-header packets never count"),
    Option("guard_bulk", True, FLAG, "flows in bulk transfer and a flow's own full size never count"),
    Option("pool", "flow", CHOICE, "candidates are counted per flow or per client address", ("flow", "client")),
)


def prepare(params):
    """Derive w_s and w_e where they are 0; ValueError where options contradict each other."""
    if params.w_s == 0:
        params.w_s = params.p * 3 // 2
    if params.w_e == 0:
        params.w_e = params.p * 4
    if not 2 <= params.n <= N_MAX:
        raise ValueError(f"iqn.n is {params.n}: choose 2 to {N_MAX}.")
    params.spacing = params.p // (BULK_RATE * params.n)
    params.burst = params.p * BULK_BURST // BULK_RATE
    if params.w_s > params.w_e:
        raise ValueError("iqn.w_s is longer than iqn.w_e: choose w_s <= w_e.")
    if params.size_low > params.size_high:
        raise ValueError("iqn.size_low is above iqn.size_high: choose size_low <= size_high.")


@njit
def candidate_size(pkt, params):
    """Whether the packet's length lies in the range, by the chosen basis."""
    size = np.int64(pkt.payload_len)
    if params.basis == FRAME:
        size += HEADERS_V6_BYTES if pkt.ip_version == 6 else HEADERS_V4_BYTES
    elif params.basis == FRAME_V4:
        size += HEADERS_V4_BYTES
    return params.size_low <= size <= params.size_high


@njit
def key(pkt, params):
    if pkt.proto != UDP or pkt.sport != HTTPS_PORT or not 0 <= pkt.ts < TIME_END_NS:
        return np.uint64(0)
    if pkt.payload_len < LARGE_BYTES and not candidate_size(pkt, params):
        return np.uint64(0)
    return pkt.quic_client if params.pool == PER_CLIENT else pkt.hash


@njit
def step(pkt, state, event, params):
    at = guard_index(pkt, state, params)
    code = 0
    if passes(pkt, state, state.guards[at], params):
        state.seq = pkt.seq
        if params.window == TRAILING:
            code = arrive_trailing(pkt, state, at, params)
        else:
            code = arrive_forward(pkt, state, at, params)
    elif state.guards[at].busy_until - pkt.clock > params.burst:
        purge(state, at)
    if code:
        report(state, BY_WINDOW, code, event, params)
    if state.phase == WATCHING:
        state.due = pkt.clock + IDLE_NS
    return code


@njit
def tick(state, clock, reason, event, params):
    if state.phase == WATCHING or (state.phase == PENDING and reason != DUE):
        state.due = FORGET
        return 0
    if state.phase == PENDING:
        confirm(state)
        return report(state, BY_WINDOW, START_EVENT, event, params)
    ended_by = BY_WINDOW if reason == DUE else BY_END if reason == END else BY_EMERGENCY
    code = report(state, ended_by, END_EVENT, event, params)
    state.due = clock + IDLE_NS
    return code


# --- guards


@njit
def guard_index(pkt, state, params):
    """Index of the flow's guard row. A new flow of a client takes the place of the one silent for longest."""
    oldest = 0
    if params.pool == PER_CLIENT:
        for i in range(FLOWS_MAX):
            if state.guards[i].flow == pkt.hash:
                oldest = i
                break
            if state.guards[i].seen < state.guards[oldest].seen:
                oldest = i
    guard = state.guards[oldest]
    if guard.flow != pkt.hash:
        guard.flow = pkt.hash
        guard.busy_until, guard.full_size, guard.common_size = 0, 0, 0
        guard.votes, guard.proven = 0, 0
    guard.seen = pkt.clock
    return oldest


@njit
def passes(pkt, state, guard, params):
    """Let the guard learn from the packet; whether it counts as a candidate."""
    size = np.int64(pkt.payload_len)
    if np.int64(pkt.first_byte) & LONG_HEADER:
        if LARGE_BYTES <= size <= 0xFFFF:
            guard.full_size = max(np.int64(guard.full_size), size)
        return candidate_size(pkt, params) and not params.guard_handshake
    if not params.guard_bulk:
        return candidate_size(pkt, params)
    if size >= LARGE_BYTES and learn_bulk(pkt.clock, guard, params):
        vote(guard, size)
    if guard.busy_until - pkt.clock > params.burst or size == guard.full_size or size == guard.common_size:
        return False
    return candidate_size(pkt, params)


@njit
def learn_bulk(clock, guard, params):
    """Generic cell rate algorithm (ITU-T I.371, virtual scheduling): whether this large packet is bulk transfer."""
    busy_until = max(guard.busy_until, clock) + params.spacing
    guard.busy_until = min(busy_until, clock + params.burst + BULK_MEMORY_NS)
    if busy_until - clock <= params.burst:
        return False
    guard.proven = 0
    return True


@njit
def vote(guard, size):
    """Majority vote (Boyer, Moore) on the size of a flow's bulk packets."""
    votes = np.int64(guard.votes)
    if votes == 0:
        guard.common_size = min(size, 0xFFFF)
    if guard.common_size == size:
        guard.votes = min(votes + 1, VOTES_MAX)
    else:
        guard.votes = max(votes - 1, 0)


@njit
def purge(state, at):
    """Flow `at` is in bulk transfer: what it gave to a stall that has not been reported is taken back."""
    if state.phase == STALLED:
        return
    kept = 0
    for i in range(np.int64(state.count)):
        if state.owners[i] != at:
            state.arrivals[kept], state.owners[kept] = state.arrivals[i], state.owners[i]
            kept += 1
    if state.phase == PENDING and (kept < state.count or state.starter == at):
        state.phase = WATCHING
    state.count = kept


# --- windows


@njit
def insert(pkt, state, at):
    """Put the packet among the arrivals, by ts."""
    i = np.int64(state.count)
    if i == 0 or pkt.ts >= state.arrivals[i - 1]:
        state.shift = pkt.clock - pkt.ts
    while i > 0 and state.arrivals[i - 1] > pkt.ts:
        state.arrivals[i], state.owners[i] = state.arrivals[i - 1], state.owners[i - 1]
        i -= 1
    state.arrivals[i], state.owners[i] = pkt.ts, at
    state.count = np.int64(state.count) + 1


@njit
def drop_first(state):
    state.count = np.int64(state.count) - 1
    for i in range(np.int64(state.count)):
        state.arrivals[i], state.owners[i] = state.arrivals[i + 1], state.owners[i + 1]


@njit
def forget_before(state, ts):
    while state.count > 0 and state.arrivals[0] < ts:
        drop_first(state)


@njit
def begin(pkt, state, at, start, params):
    """A window is full. START_EVENT, unless the flow has yet to show that it is not bulk."""
    state.start = state.last = start
    state.covered, state.total, state.starter = 0, 0, at
    state.phase = STALLED
    if params.guard_bulk and not state.guards[at].proven:
        state.phase = PENDING
    set_end(state, params)
    if state.phase == STALLED:
        return START_EVENT
    state.due = pkt.clock + max(np.int64(1), state.arrivals[0] + params.w_s - pkt.ts)
    return 0


@njit
def set_end(state, params):
    """Deadline of the window in hand: at that clock no further arrival can fill it."""
    first = 1 if params.window == TRAILING and state.count >= params.n else 0
    state.end_due = state.arrivals[first] + params.w_e + state.shift
    if state.phase == STALLED:
        state.due = state.end_due


@njit
def confirm(state):
    state.phase = STALLED
    state.guards[state.starter].proven = 1
    state.due = state.end_due


@njit
def arrive_forward(pkt, state, at, params):
    """The window [t, t + w] begins at arrivals[0]; code of the event that is due."""
    if state.count > 0 and pkt.ts < state.arrivals[0] - params.w_e:
        return time_went_back(pkt, state, at)
    if state.phase == WATCHING:
        insert(pkt, state, at)
        forget_before(state, state.arrivals[np.int64(state.count) - 1] - params.w_s)
        if state.count < params.n:
            return 0
        code = begin(pkt, state, at, state.arrivals[0], params)
        slide(state, params)
        return code
    if pkt.ts < state.arrivals[0]:
        state.total += 1
        return 0
    if state.phase == PENDING and pkt.ts > state.arrivals[0] + params.w_e:
        confirm(state)  # w_e is so short that the stall is over before its flow is known; its end follows by deadline
        return START_EVENT
    insert(pkt, state, at)
    slide(state, params)
    newest = state.arrivals[np.int64(state.count) - 1]
    return END_EVENT if newest > state.arrivals[0] + params.w_e else 0


@njit
def slide(state, params):
    """Move the end window on while it is full."""
    while state.count >= params.n and state.arrivals[params.n - 1] <= state.arrivals[0] + params.w_e:
        state.covered += min(state.arrivals[1] - state.arrivals[0], params.w_s)
        state.total += 1
        drop_first(state)
    set_end(state, params)


@njit
def arrive_trailing(pkt, state, at, params):
    """The window [t - w, t] ends at the newest arrival; code of the event that is due."""
    if state.count > 0 and pkt.ts < state.arrivals[0] - params.w_e:
        return time_went_back(pkt, state, at)
    insert(pkt, state, at)
    if state.count > params.n:
        drop_first(state)
    newest = state.arrivals[np.int64(state.count) - 1]
    width = params.w_s if state.phase == WATCHING else params.w_e
    full = state.count == params.n and newest - state.arrivals[0] <= width
    if state.phase == WATCHING:
        return begin(pkt, state, at, newest, params) if full else 0
    if not full:
        if state.phase == STALLED:
            return END_EVENT
        confirm(state)
        return START_EVENT
    state.last = newest
    state.total += 1
    set_end(state, params)
    return 0


@njit
def time_went_back(pkt, state, at):
    """The capture's time base has changed: what was seen is past, a stall is over."""
    if state.phase == STALLED:
        return END_EVENT
    state.phase, state.count = WATCHING, 0
    insert(pkt, state, at)
    return 0


# --- events


@njit
def report(state, ended_by, code, event, params):
    """Fill the event; after an end the state watches again."""
    forward = params.window == FORWARD
    early = params.p // 2 if forward and params.correction else 0
    event.seq = state.seq
    event.start_ns = state.start - early
    event.candidates = state.total + (in_hand(state, params) if forward else params.n)
    if code == START_EVENT:
        return code
    end = state.arrivals[0] if forward else state.last
    event.duration_ns = state.covered + params.p if early else end - state.start
    event.end_ns = event.start_ns + event.duration_ns
    event.ended_by = ended_by
    settle(state, params)
    return code


@njit
def in_hand(state, params):
    """Arrivals in the window that begins at arrivals[0]."""
    count = 0
    while count < state.count and state.arrivals[count] <= state.arrivals[0] + params.w_e:
        count += 1
    return count


@njit
def settle(state, params):
    """Out of stall: what may still take part in a next start stays."""
    state.phase = WATCHING
    if params.window == FORWARD:
        drop_first(state)
        if state.count > 0:
            forget_before(state, state.arrivals[np.int64(state.count) - 1] - params.w_s)


DETECTOR = Detector(
    name="iqn",
    kind=QUIC,
    state=STATE,
    event=event_row(*EVENTS),
    events=EVENTS,
    options=OPTIONS,
    key=key,
    step=step,
    tick=tick,
    capacity=16384,
    usual_bytes=LINE_BYTES,
    prepare=prepare,
    derived=(
        "spacing",  # ns between large packets at BULK_RATE
        "burst",  # ns by which a flow's large packets may be ahead of BULK_RATE: n * BULK_BURST of them
    ),
)

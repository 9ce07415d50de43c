"""Probe stream: loss, duplicates, reordering, jitter and one-way delay of our probe streams and of RTP found passively.

A stream is one direction of a flow and one source (RTP: SSRC; probes: session). A report is made for every `interval`
in which something came, counted from the stream's first packet, GRACE_NS after its end; the last one, when the stream
has been silent for `idle` or the input ends, has `final` set. Each report carries the interval's numbers and, under
`total_`, the stream's so far; the intervals add up to the total.

* loss = 1 - received / expected. `received` counts a sequence number once, `expected` is their span (RFC 3550, A.3). A
  packet out of order belongs to the interval of its number while that can still be reported.
* jitter J (RFC 3550, 6.4.1) over all packets in order of arrival: D = (R_i - R_i-1) - (S_i - S_i-1),
  J += (|D| - J)/16, J_0 = 0. RTP timestamps become ns by the clock of the payload type. For types of unknown clock the
  arrival counts as R_i-1, the timestamp, which stands still in telephone events (RFC 4733), does not.
* mean and maximum of J leave out packets with the marker bit, of comfort noise or right after it: there the talker
  paused. In the mean such a packet stands for the mean so far. A leap of the sender's clock ends both. So in tshark.

RTP is told by its header alone, so a stream counts only once two packets came in sequence (RFC 3550, A.1,
MIN_SEQUENTIAL); then all its packets count, from the first. docs/probe-stream.md says more.
"""

import numpy as np
from numba import njit

from dataplane.records import NO_TIME, REVERSE, RTP, STREAM
from detectors.base import COUNT, DUE, DURATION, FORGET, Detector, EventType, Field, Option, event_row, mix, state_row

KIND_RTP, KIND_PROBE = 0, 1
KINDS = ("rtp", "probe")

# RFC 3550, A.1
MAX_DROPOUT_PACKETS = 3000  # a jump by so many is not loss, but another source or a restart
WINDOW_PACKETS = 64  # how far behind the newest a packet is still told from a duplicate: bits of `seen`
NO_SEQUENCE = -1  # `bad`: no jump before

GRACE_NS = 1_000_000_000  # a packet later than this after its interval's end is lost
PROBATION_NS = 2_000_000_000  # silence after which a source that showed no sequence is forgotten
TIME_END_NS = 1 << 62  # times from 0 up to here: their differences fit int64
LEAP_NS = 10_000_000_000  # a sender's clock that steps back so far, or ahead of the arrivals, was set anew
JITTER_GAIN = 1 / 16  # RFC 3550, 6.4.1
UNKNOWN = -1.0  # a jitter that is not known
COMFORT_NOISE = (13, 19)  # payload types (RFC 3389; an older draft)
FIRST_DYNAMIC_TYPE = 96

# RTP clock by payload type in Hz (RFC 3551, tables 4 and 5; 13: RFC 3389), 0 where unknown
CLOCK_HZ = np.zeros(128, np.int64)
CLOCK_HZ[[0, 3, 4, 5, 7, 8, 9, 12, 13, 15, 18]] = 8_000
CLOCK_HZ[[6, 10, 11, 16, 17]] = 16_000, 44_100, 44_100, 11_025, 22_050
CLOCK_HZ[[14, 25, 26, 28, 31, 32, 33, 34]] = 90_000

# What a packet is to its stream
IN_ORDER, FILLED, DUPLICATE, DISCARDED, STRAY = range(5)

WINDOW = np.dtype(
    [
        ("arrivals", np.int64),  # packets that came in it, even if they count for the one before
        *((name, np.int64) for name in ("packets", "received", "expected", "duplicates", "reordered")),
        *((name, np.int64) for name in ("discarded", "restarts")),
        *((name, np.int64) for name in ("first", "last")),  # ts
        ("delays", np.int64),  # packets in the three fields below; delays are relative to `state.delay0`
        *((name, np.int64) for name in ("delay_min", "delay_max")),
        ("delay_sum", np.float64),
        ("jitter_max", np.float64),  # ns
        ("jitter_end", np.float64),  # J after the last packet that came in it, UNKNOWN before there is one
        *((name, np.float64) for name in ("life_mean", "life_max")),  # of J over the stream so far, at that time
    ],
    align=True,
)
STATE = state_row(
    ("session", np.uint64),
    ("opened", np.int64),  # clock of the first packet: intervals are counted from here
    ("heard", np.int64),  # clock of the newest packet
    ("ends", np.int64),  # clock at which the interval `open` ends
    ("report_at", np.int64),  # clock at which `closed` is reported
    *((name, np.int64) for name in ("number", "closed_number")),  # of the intervals `open` and `closed`
    *((name, np.int64) for name in ("newest", "base")),  # highest and lowest sequence number, extended by its cycles
    ("boundary", np.int64),  # newest when the interval before `open` ended
    ("bad", np.int64),  # the number that would confirm a jump, or NO_SEQUENCE
    ("seen", np.uint64),  # bit i: newest - i came
    ("packets", np.int64),  # all but strays
    ("last_ts", np.int64),  # R_i-1
    ("last_sent", np.int64),  # S_i-1: RTP units or ns
    ("jitters", np.int64),  # packets that moved J
    *((name, np.float64) for name in ("jitter", "jitter_mean", "jitter_max")),  # J in ns
    ("delay0", np.int64),  # first one-way delay
    ("ssrc", np.uint32),
    *((name, np.uint8) for name in ("kind", "accepted", "payload_type", "last_type")),
    *((name, np.uint8) for name in ("clocked", "delayed", "leapt")),  # last_sent is set, delay0 is set, clock leapt
    ("open", WINDOW),
    ("closed", WINDOW),  # ended, not reported yet, for late packets
    ("total", WINDOW),  # all that was reported
)

REPORT = 1
COUNTS = (
    ("packets", "packets that came: received + duplicates + discarded"),
    ("received", "sequence numbers that came, each counted once"),
    ("expected", "sequence numbers from the newest before to the newest now"),
    ("lost", "expected - received"),
    ("duplicates", "packets whose sequence number had come before"),
    ("reordered", "received packets that came after one with a higher number"),
    ("discarded", "packets over 1 s late for their interval, 64 or more behind the newest, or 3000 or more away"),
    ("restarts", "jumps confirmed by a second packet: the sequence began anew"),
)
DELAYS = (
    ("owd_min_ns", "least one-way delay; sender's and tap's clock must agree for it to be true"),
    ("owd_mean_ns", "its mean"),
    ("owd_max_ns", "its maximum"),
)
EVENTS = (
    EventType(
        "probe.report",
        (
            Field("stream", np.uint8, "what it is", KINDS),
            Field("ssrc", np.uint32, "RTP source, 0 for probes"),
            Field("session", np.uint64, "probe session, 0 for RTP", "hex"),
            Field("payload_type", np.uint8, "RTP payload type of the stream's first packet, 0 for probes"),
            Field("interval", np.int64, "number of the interval, from 0"),
            Field("final", np.uint8, "the stream has ended", "bool"),
            Field("first_ns", np.int64, "time of the interval's first packet, null if none came"),
            Field("last_ns", np.int64, "time of its last packet"),
            *(Field(name, np.int64, help) for name, help in COUNTS),
            Field("loss", np.float64, "lost / expected, 0 where nothing is expected", "float"),
            Field("jitter_ns", np.int64, "RFC 3550 jitter at the end of the interval, null where unknown"),
            Field("jitter_max_ns", np.int64, "its maximum in the interval"),
            *(Field(name, np.int64, help + ", null where unknown") for name, help in DELAYS),
            Field("total_first_ns", np.int64, "time of the stream's first packet"),
            *(Field(f"total_{name}", np.int64, help) for name, help in COUNTS),
            Field("total_loss", np.float64, "total_lost / total_expected", "float"),
            Field("total_jitter_mean_ns", np.int64, "mean of the jitter after each packet, null where unknown"),
            Field("total_jitter_max_ns", np.int64, "its maximum"),
            *(Field(f"total_{name}", np.int64, help + ", null where unknown") for name, help in DELAYS),
        ),
        "quality of a probe or RTP stream in one interval and so far",
    ),
)

OPTIONS = (
    Option("interval", "10s", DURATION, "length of an interval", low=2 * GRACE_NS),
    Option("idle", "60s", DURATION, "silence after which a stream has ended", low=PROBATION_NS),
    Option("dynamic_clock_hz", 0, COUNT, "RTP clock of payload types from 96, such as 48000 for Opus; 0: no jitter"),
)


@njit
def key(pkt, params):
    h = mix(pkt.hash, np.uint64(1) + np.uint64(pkt.flags & REVERSE))
    return mix(h, np.uint64(pkt.rtp_ssrc)) if pkt.flags & RTP else mix(h, pkt.probe_session)


@njit
def step(pkt, state, event, params):
    sequence = np.int64(pkt.rtp_seq) if pkt.flags & RTP else np.int64(pkt.probe_seq)
    state.heard = pkt.clock
    if state.packets == 0:
        place = begin(pkt, state, sequence, params)
    else:
        turn(state, pkt.clock, params)
        place = locate(state, sequence)
        if place == STRAY and not state.accepted:
            forget(state)
            place = begin(pkt, state, sequence, params)
    count(pkt, state, place, sequence)
    if place != STRAY:
        state.packets += 1
        jitter(pkt, state, params)
    state.open.jitter_end = state.jitter if state.jitters else UNKNOWN
    state.open.life_mean, state.open.life_max = state.jitter_mean, state.jitter_max
    state.due = deadline(state, params)
    return 0


@njit
def begin(pkt, state, sequence, params):
    state.kind = KIND_RTP if pkt.flags & RTP else KIND_PROBE
    state.accepted = state.kind == KIND_PROBE
    if state.kind == KIND_RTP:
        state.ssrc = pkt.rtp_ssrc
        state.payload_type = pkt.rtp_type
    else:
        state.session = pkt.probe_session
    state.opened, state.ends = pkt.clock, pkt.clock + params.interval
    state.base = state.newest = sequence
    state.boundary = state.newest - MAX_DROPOUT_PACKETS
    state.bad = NO_SEQUENCE
    state.seen = np.uint64(1)
    state.open.expected = 1
    return IN_ORDER


@njit
def forget(state):
    """A source that never showed a sequence and jumps: what came before was none of this stream."""
    clear(state.open)
    clear(state.closed)
    clear(state.total)
    state.packets = state.jitters = state.number = 0
    state.jitter = state.jitter_mean = state.jitter_max = 0.0
    state.clocked = state.delayed = state.leapt = 0


# --- sequence numbers (RFC 3550, A.1)


@njit
def ahead(state, sequence):
    """How far `sequence` is ahead of the newest, modulo 2**16 (RTP) or 2**32 (probes)."""
    half = np.int64(1) << (15 if state.kind == KIND_RTP else 31)
    return ((sequence - state.newest + half) & (2 * half - 1)) - half


@njit
def locate(state, sequence):
    """What the packet is to the stream. The extended numbers, `seen` and what is expected are kept here."""
    step = ahead(state, sequence)
    if step >= MAX_DROPOUT_PACKETS or step <= -MAX_DROPOUT_PACKETS:
        return jump(state, sequence)
    if step > 0:
        if step == 1:
            state.accepted = 1
        state.newest += step
        state.seen = (state.seen << np.uint64(step) if step < WINDOW_PACKETS else np.uint64(0)) | np.uint64(1)
        state.open.expected += step
        return IN_ORDER
    if step <= -WINDOW_PACKETS:
        return DISCARDED
    bit, number = np.uint64(1) << np.uint64(-step), state.newest + step
    if state.seen & bit:
        return DUPLICATE
    if is_late(state, number):
        return DISCARDED
    state.seen = state.seen | bit
    if number < state.base:  # it was sent before the first one that came
        window(state, number).expected += state.base - number
        state.base = number
    return FILLED


@njit
def jump(state, sequence):
    """Two packets in sequence after a jump restart the stream; one alone is a stray."""
    if sequence != state.bad:
        state.bad = (sequence + 1) & (0xFFFF if state.kind == KIND_RTP else 0xFFFFFFFF)
        return STRAY
    state.bad, state.clocked = NO_SEQUENCE, 0
    state.newest += ahead(state, sequence)
    state.base = state.newest
    state.boundary = state.newest - MAX_DROPOUT_PACKETS
    state.seen = np.uint64(1)
    state.open.expected += 1
    state.open.restarts += 1
    return IN_ORDER


@njit
def is_late(state, number):
    """Its interval is over and reported, or about to be."""
    return number <= state.boundary and (state.closed.arrivals == 0 or state.heard >= state.report_at)


@njit
def window(state, number):
    """The interval that a sequence number belongs to."""
    return state.closed if number <= state.boundary else state.open


# --- counts and times


@njit
def count(pkt, state, place, sequence):
    """Add the packet to its interval: where its number belongs if it is new, else where it came."""
    state.open.arrivals += 1
    w = window(state, state.newest + ahead(state, sequence)) if place == FILLED else state.open
    w.first, w.last = w.first if w.packets else pkt.ts, pkt.ts
    w.packets += 1
    if place == DUPLICATE:
        w.duplicates += 1
    elif place == DISCARDED or place == STRAY:
        w.discarded += 1
    else:
        w.received += 1
        w.reordered += place == FILLED
        if state.kind == KIND_PROBE:
            delay(pkt, state, w)


@njit
def usable(time):
    return 0 <= time < TIME_END_NS


@njit
def delay(pkt, state, w):
    """One-way delay of a probe, relative to the stream's first so that unequal clocks cost no precision."""
    if not usable(pkt.ts) or not usable(pkt.probe_sent):
        return
    if not state.delayed:
        state.delay0, state.delayed = pkt.ts - pkt.probe_sent, 1
    x = (pkt.ts - pkt.probe_sent) - state.delay0
    w.delay_min = x if w.delays == 0 else min(w.delay_min, x)
    w.delay_max = x if w.delays == 0 else max(w.delay_max, x)
    w.delay_sum += float(x)
    w.delays += 1


@njit
def jitter(pkt, state, params):
    """Move J by one packet (RFC 3550, 6.4.1 and A.8)."""
    moved = False
    if usable(pkt.ts):
        moved = rtp_jitter(pkt, state, params) if state.kind == KIND_RTP else probe_jitter(pkt, state)
    if moved and is_talk(pkt, state):
        state.open.jitter_max = max(state.open.jitter_max, state.jitter)
        if not state.leapt:
            state.jitter_mean += (state.jitter - state.jitter_mean) / (state.packets - 1)
            state.jitter_max = max(state.jitter_max, state.jitter)
    state.last_type = pkt.rtp_type if state.kind == KIND_RTP else 0


@njit
def rtp_jitter(pkt, state, params):
    """True if J moved. `last_sent` is left alone by types without a clock, `last_ts` is not."""
    hz = CLOCK_HZ[pkt.rtp_type] if pkt.rtp_type < FIRST_DYNAMIC_TYPE else params.dynamic_clock_hz
    moved = False
    if hz > 0:
        if state.clocked:
            half = np.int64(1) << 31
            units = ((np.int64(pkt.rtp_time) - state.last_sent + half) & (2 * half - 1)) - half
            moved = drift(state, float(pkt.ts - state.last_ts), float(units) * 1e9 / float(hz))
        state.last_sent, state.clocked = np.int64(pkt.rtp_time), 1
    state.last_ts = pkt.ts
    return moved


@njit
def probe_jitter(pkt, state):
    """True if J moved."""
    if not usable(pkt.probe_sent):
        return False
    moved = False
    if state.clocked:
        moved = drift(state, float(pkt.ts - state.last_ts), float(pkt.probe_sent - state.last_sent))
    state.last_ts, state.last_sent, state.clocked = pkt.ts, pkt.probe_sent, 1
    return moved


@njit
def drift(state, received_ns, sent_ns):
    """J += (|D| - J)/16 with D the difference of the steps; False where the sender's clock leapt."""
    if sent_ns < -LEAP_NS or sent_ns > received_ns + LEAP_NS:
        state.leapt = 1
        return False
    state.jitter += (abs(received_ns - sent_ns) - state.jitter) * JITTER_GAIN
    state.jitters += 1
    return True


@njit
def is_talk(pkt, state):
    """Neither the start of a talkspurt (marker bit, or after comfort noise) nor comfort noise."""
    return state.kind == KIND_PROBE or not (
        pkt.rtp_marker or pkt.rtp_type in COMFORT_NOISE or state.last_type in COMFORT_NOISE
    )


# --- intervals


@njit
def turn(state, clock, params):
    """Close the interval that is over at `clock`. The one before was reported: `interval` is longer than GRACE_NS."""
    if clock < state.ends:
        return
    if state.open.arrivals:
        merge(state.closed, state.open)
        clear(state.open)
        state.closed_number = state.number
        state.report_at = state.ends + GRACE_NS
        state.boundary = state.newest
    state.number = (clock - state.opened) // params.interval
    state.ends = state.opened + (state.number + 1) * params.interval


@njit
def deadline(state, params):
    """Clock at which something is to be done next."""
    due = state.heard + (params.idle if state.accepted else PROBATION_NS)
    if state.closed.arrivals:
        due = min(due, state.report_at)
    if state.open.arrivals:
        due = min(due, state.ends)
    return due


@njit
def tick(state, clock, reason, event, params):
    if reason == DUE:
        now = state.due
        if state.closed.arrivals and state.report_at <= now:
            event.final = 0
            code = report(state, event)
            state.due = deadline(state, params)
            return code
        if state.open.arrivals and state.ends <= now:
            turn(state, now, params)
            state.due = deadline(state, params)
            return 0
    state.due = FORGET
    if state.closed.arrivals == 0:
        state.closed_number = state.number
    merge(state.closed, state.open)
    event.final = 1
    return report(state, event)


@njit
def report(state, event):
    """Report the interval `closed`, add it to the total and empty it."""
    merge(state.total, state.closed)
    event.stream, event.ssrc, event.session = state.kind, state.ssrc, state.session
    event.payload_type, event.interval = state.payload_type, state.closed_number
    fill_interval(state.closed, event, state.delay0)
    fill_total(state.total, event, state.delay0)
    clear(state.closed)
    return REPORT if state.accepted else 0


@njit
def fill_interval(w, event, delay0):
    event.first_ns, event.last_ns = (w.first, w.last) if w.packets else (NO_TIME, NO_TIME)
    event.packets, event.received, event.expected = w.packets, w.received, w.expected
    event.lost, event.loss = w.expected - w.received, loss(w)
    event.duplicates, event.reordered = w.duplicates, w.reordered
    event.discarded, event.restarts = w.discarded, w.restarts
    known = w.arrivals > 0 and w.jitter_end != UNKNOWN
    event.jitter_ns = np.int64(w.jitter_end + 0.5) if known else NO_TIME
    event.jitter_max_ns = np.int64(w.jitter_max + 0.5) if known else NO_TIME
    event.owd_min_ns = delay0 + w.delay_min if w.delays else NO_TIME
    event.owd_mean_ns = delay0 + mean_delay(w) if w.delays else NO_TIME
    event.owd_max_ns = delay0 + w.delay_max if w.delays else NO_TIME


@njit
def fill_total(w, event, delay0):
    event.total_first_ns = w.first
    event.total_packets, event.total_received, event.total_expected = w.packets, w.received, w.expected
    event.total_lost, event.total_loss = w.expected - w.received, loss(w)
    event.total_duplicates, event.total_reordered = w.duplicates, w.reordered
    event.total_discarded, event.total_restarts = w.discarded, w.restarts
    known = w.jitter_end != UNKNOWN
    event.total_jitter_mean_ns = np.int64(w.life_mean + 0.5) if known else NO_TIME
    event.total_jitter_max_ns = np.int64(w.life_max + 0.5) if known else NO_TIME
    event.total_owd_min_ns = delay0 + w.delay_min if w.delays else NO_TIME
    event.total_owd_mean_ns = delay0 + mean_delay(w) if w.delays else NO_TIME
    event.total_owd_max_ns = delay0 + w.delay_max if w.delays else NO_TIME


@njit
def loss(w):
    return float(w.expected - w.received) / float(w.expected) if w.expected else 0.0


@njit
def mean_delay(w):
    return np.int64(np.floor(w.delay_sum / float(w.delays) + 0.5)) if w.delays else np.int64(0)


@njit
def merge(into, w):
    """Add interval `w`, the later one, to `into`."""
    if w.arrivals == 0:
        return
    if w.packets:
        into.first, into.last = into.first if into.packets else w.first, w.last
    if w.delays:
        into.delay_min = w.delay_min if into.delays == 0 else min(into.delay_min, w.delay_min)
        into.delay_max = w.delay_max if into.delays == 0 else max(into.delay_max, w.delay_max)
    into.arrivals += w.arrivals
    into.packets += w.packets
    into.received += w.received
    into.expected += w.expected
    into.duplicates += w.duplicates
    into.reordered += w.reordered
    into.discarded += w.discarded
    into.restarts += w.restarts
    into.delays += w.delays
    into.delay_sum += w.delay_sum
    into.jitter_max = max(into.jitter_max, w.jitter_max)
    into.jitter_end = w.jitter_end
    into.life_mean, into.life_max = w.life_mean, w.life_max


@njit
def clear(w):
    w.arrivals = w.packets = w.received = w.expected = w.duplicates = w.reordered = w.discarded = w.restarts = 0
    w.first = w.last = w.delays = w.delay_min = w.delay_max = 0
    w.delay_sum = w.jitter_max = w.jitter_end = w.life_mean = w.life_max = 0.0


DETECTOR = Detector("probe_stream", STREAM, STATE, event_row(*EVENTS), EVENTS, OPTIONS, key, step, tick, capacity=8192)
DETECTOR = DETECTOR._replace(usual_bytes=STATE.fields["closed"][1])

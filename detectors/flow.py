"""Bidirectional flow records: what NetFlow exporters, nfstream and Zeek's conn.log count.

A flow is its addresses, protocol and ports (ICMP: without type and code), in both directions. "toserver" is the
direction of its first packet. A record ends when nothing came for `idle`, after `active` (a longer flow gives several
records), or `tcp_close` after a RST or FINs both ways.
"""

import numpy as np
from numba import njit

from dataplane.records import IP, REVERSE
from detectors.base import DURATION, EMERGENCY, END, FORGET, Detector, EventType, Field, Option, event_row, state_row

FIN, RST = 0x01, 0x04  # RFC 9293, 3.1
IDLE, ACTIVE, TCP_END, GIVEN_UP, INPUT_END = range(5)
REASONS = ("idle", "active", "tcp_end", "emergency", "end_of_input")

TOSERVER, TOCLIENT = 0, 1  # index into the counters of a state

STATE = state_row(
    ("pkts", np.uint32, 2),
    ("tcp_flags", np.uint8, 2),
    ("reversed", np.uint8),  # the first packet had flag REVERSE
    ("why", np.uint8),  # what its deadline means, an index into REASONS
    ("first_ts", np.int64),
    ("last_ts", np.int64),
    ("bytes", np.int64, 2),
)

FLOW_END = EventType(
    "flow.end",
    (
        Field("start_ns", np.int64, "timestamp of the first packet, ns since 1970"),
        Field("end_ns", np.int64, "timestamp of the last packet, ns since 1970"),
        Field("duration_ns", np.int64, "end_ns - start_ns"),
        Field("pkts_toserver", np.int64, "packets in the direction of the first one"),
        Field("pkts_toclient", np.int64, "packets in the other direction"),
        Field("bytes_toserver", np.int64, "bytes of whole frames on the wire, in the direction of the first packet"),
        Field("bytes_toclient", np.int64, "bytes of whole frames on the wire, in the other direction"),
        Field("tcp_flags_toserver", np.uint8, "TCP flags seen, or-ed (RFC 9293, 3.1)"),
        Field("tcp_flags_toclient", np.uint8, "TCP flags seen in the other direction, or-ed"),
        Field("reason", np.uint8, "why the record ended", REASONS),
    ),
    "a flow has ended, or has lasted for the active timeout",
)

OPTIONS = (
    Option("idle", "120s", DURATION, "end a record when its flow is silent for this long", low=1),
    Option("active", "30m", DURATION, "end a record after this long, however busy its flow", low=1),
    Option("tcp_close", "5s", DURATION, "wait this long for stragglers after a RST or the second FIN", low=1),
)


def prepare(params):
    params.calm = params.active - params.idle


@njit
def key(pkt, params):
    return pkt.hash


@njit
def step(pkt, flow, event, params):
    """Count the packet; records end by deadline only."""
    backward = np.int64(pkt.flags & REVERSE)
    if flow.pkts[TOSERVER] == 0:
        flow.first_ts = flow.last_ts = pkt.ts
        flow.reversed = backward
    flow.last_ts = max(flow.last_ts, pkt.ts)
    side = backward ^ np.int64(flow.reversed)
    flow.pkts[side] += np.uint32(1)
    flow.bytes[side] += pkt.len
    flow.tcp_flags[side] |= pkt.tcp_flags
    if flow.why == IDLE and pkt.ts - flow.first_ts <= params.calm and not pkt.tcp_flags & (FIN | RST):
        flow.due = pkt.clock + params.idle
    elif flow.why != TCP_END:
        deadline(pkt, flow, params)
    return 0


@njit
def deadline(pkt, flow, params):
    left = params.active - (pkt.ts - flow.first_ts)
    flow.why = IDLE if params.idle <= left else ACTIVE
    flow.due = pkt.clock + min(params.idle, left)
    if closed(flow):
        flow.why = TCP_END
        flow.due = pkt.clock + params.tcp_close


@njit
def closed(flow):
    """A RST was seen, or a FIN both ways."""
    to, back = np.int64(flow.tcp_flags[TOSERVER]), np.int64(flow.tcp_flags[TOCLIENT])
    return ((to | back) & RST) | (to & back & FIN) != 0


@njit
def tick(flow, clock, reason, event, params):
    """The record, and the end of it."""
    event.start_ns, event.end_ns = flow.first_ts, flow.last_ts
    event.duration_ns = flow.last_ts - flow.first_ts
    event.pkts_toserver, event.pkts_toclient = flow.pkts[TOSERVER], flow.pkts[TOCLIENT]
    event.bytes_toserver, event.bytes_toclient = flow.bytes[TOSERVER], flow.bytes[TOCLIENT]
    event.tcp_flags_toserver, event.tcp_flags_toclient = flow.tcp_flags[TOSERVER], flow.tcp_flags[TOCLIENT]
    event.reason = GIVEN_UP if reason == EMERGENCY else INPUT_END if reason == END else flow.why
    flow.due = FORGET
    return 1


DETECTOR = Detector(
    name="flow",
    kind=IP,
    state=STATE,
    event=event_row(FLOW_END),
    events=(FLOW_END,),
    options=OPTIONS,
    key=key,
    step=step,
    tick=tick,
    capacity=262144,
    silent=True,
    prepare=prepare,
    derived=("calm",),  # ns since a flow's first packet for which its deadline is the idle timeout
)

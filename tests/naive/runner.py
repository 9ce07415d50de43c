"""The slow twin of the real runner: one detector over PACKET rows, from the definition. Knows no table, wheel or batch.

States live in a dict. Before a packet is stepped, every state whose deadline, rounded up to a multiple of `WHEEL_NS`,
is not after the packet's clock is ticked, earliest multiple first, then in the order in which the states were born. At
the end of the input each state left is ticked once with END, in order of birth.

    events = drive(DETECTOR, params(DETECTOR, n=4), packets(dict(ts=0, hash=7, proto=17, sport=443)))
"""

import re

import numpy as np
from numba import njit

from dataplane.records import ENDS, NEVER, PACKET, rows
from detectors.base import CHOICE, DUE, DURATION, END, FLAG, FORGET, NUMBER

WHEEL_NS = 1 << 24  # deadlines are rounded up to a multiple of this
UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60 * 1_000_000_000}
SECRET = 0x243F6A8885A308D3  # params.secret, from the run's seed in the real runner
TYPES = {DURATION: np.int64, FLAG: np.uint8, CHOICE: np.int64, NUMBER: np.float64}
PORTS_AND_LABELS = [name for name, *_ in ENDS if name not in ("src", "dst")]


def duration_ns(text):
    """Text with a unit ("200ms") to int ns; a number is taken as ns."""
    if not isinstance(text, str):
        return int(text)
    number, unit = re.fullmatch(r"([0-9.]+) *([a-z]*)", text).groups()
    return round(float(number) * UNITS_NS[unit or "ns"])


def params(detector, **given):
    """Params row of `detector`: its defaults, `given` over them, then its own prepare()."""
    return params_rows(detector, **given)[0]


def params_rows(detector, **given):
    """The same as an array of one row, as the engine takes it."""
    unknown = set(given) - {option.name for option in detector.options}
    assert not unknown, f"{detector.name} has no option {unknown}"
    fields = [(option.name, TYPES.get(option.kind, np.int64)) for option in detector.options]
    fields += [("secret", np.uint64), *((name, np.int64) for name in detector.derived)]
    made = rows(np.dtype(fields, align=True), 1)
    row = made[0]
    row.secret = SECRET
    for option in detector.options:
        value = given.get(option.name, option.default)
        if option.kind == DURATION:
            value = duration_ns(value)
        elif option.kind == CHOICE:
            value = option.choices.index(value)
        row[option.name] = value
    if detector.prepare is not None:
        detector.prepare(row)
    return made


def packets(*fields):
    """PACKET rows from dicts. `seq` counts from 0, `clock` is the running maximum of `ts`, unless given."""
    made = rows(PACKET, len(fields))
    clock = None
    for i, given in enumerate(fields):
        clock = max(given["ts"], given["ts"] if clock is None else clock)
        for name, value in {"clock": clock, "seq": i, "ip_version": 4, **given}.items():
            made[i][name] = value
    return made


def drive(detector, params, packets):
    """Events (rows of `detector.event`, without addresses) in the order of delivery, the input's end included.

    `packets` are PACKET rows of the detector's kind.
    """
    run = Run(detector, params, packets)
    for i, clock in enumerate(packets.clock):
        run.expire(int(clock))
        run.packet(i)
    if len(packets):
        run.finish(int(packets.clock[-1]))
    return sorted(run.events, key=delivery)


def delivery(event):
    """Sort key: when it became known; deadlines before packets, by the packet that made the state."""
    return int(event.order), int(event.by_packet), int(event.cause)


# Compiled, a PACKET row cannot be handed over alone (its fields overlap): jitted code takes rows out of arrays.
@njit
def call_key(key, pkts, i, params):
    return key(pkts[i], params)


@njit
def call_step(step, pkts, i, states, events, params):
    return step(pkts[i], states[0], events[0], params)


@njit
def call_tick(tick, states, clock, reason, events, params):
    return tick(states[0], clock, reason, events[0], params)


class Run:
    """States of one detector: key -> (array of one state row, row of ends)."""

    def __init__(self, detector, params, packets):
        self.detector, self.params, self.packets = detector, params, packets
        self.states, self.events = {}, []

    def packet(self, i):
        pkt = self.packets[i]
        key = int(call_key(self.detector.key, self.packets, i, self.params))
        if key == 0:
            return
        if key not in self.states:
            self.states[key] = self.fresh(pkt), ends_of(pkt)
        states, ends = self.states[key]
        events = self.event(ends, ts=pkt.ts, order=pkt.clock, seq=pkt.seq, cause=pkt.seq, by_packet=1)
        code = call_step(self.detector.step, self.packets, i, states, events, self.params)
        self.deliver(events[0], code)
        self.settle(key, int(pkt.clock))

    def expire(self, clock):
        """Tick what is due before a packet at `clock`."""
        while True:
            ready = [(wheel_ns(s[0].due), int(s[0].born), key) for key, (s, _) in self.states.items()]
            ready = [entry for entry in ready if entry[0] <= clock]
            if not ready:
                return
            fires, _, key = min(ready)
            due = int(self.states[key][0][0].due)
            self.tick(key, due, DUE, fires)
            self.settle(key, fires)

    def finish(self, clock):
        for key in sorted(self.states, key=lambda k: int(self.states[k][0][0].born)):
            self.tick(key, clock, END, NEVER)

    def tick(self, key, clock, reason, order):
        states, ends = self.states[key]
        born = states[0].born
        events = self.event(ends, ts=clock, order=order, seq=born, cause=born, by_packet=0)
        self.deliver(events[0], call_tick(self.detector.tick, states, np.int64(clock), reason, events, self.params))

    def settle(self, key, now):
        """Forget the state if it says so; what stays has a deadline after `now`."""
        state = self.states[key][0][0]
        if state.due == FORGET:
            del self.states[key]
            return
        assert state.due < NEVER, f"{self.detector.name}: a state without a deadline"
        state.due = max(int(state.due), now + 1)

    def fresh(self, pkt):
        states = rows(self.detector.state, 1)
        states[0].born, states[0].due = pkt.seq, NEVER
        return states

    def event(self, ends, **head):
        events = rows(self.detector.event, 1)
        for name, value in {**ends, **head}.items():
            events[0][name] = value
        return events

    def deliver(self, event, code):
        if code:
            event.code = code
            self.events.append(event)


def wheel_ns(due):
    """The multiple of WHEEL_NS at which a deadline fires."""
    return -(-int(due) // WHEEL_NS) * WHEEL_NS


def ends_of(pkt):
    """Both ends as `pkt` has them, without addresses: {name of ENDS: value}."""
    return {name: pkt[name] for name in PORTS_AND_LABELS}

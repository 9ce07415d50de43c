"""What a detector is: rows, options and three small jitted functions. This file knows no detector and no engine.

A detector never sees bytes, tables or clocks. The runner finds the packet's state row and calls

    key(pkt, params) -> uint64                        0: not for me
    step(pkt, state, event, params) -> int            code of the event filled, 0 none
    tick(state, clock, reason, event, params) -> int  the same, when `state.due` has come or the state must go

`step` and `tick` set `state.due`, the capture-clock time of the next tick; FORGET ends the state. A fresh state has all
its own fields zero and `due` NEVER, so its first `step` must set it. `step` becomes a part of the runner's loop, so its
own jit options do not count.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.records import EVENT, LINE_BYTES

FORGET = np.iinfo(np.int64).min  # state.due: this state is done

# Why tick is called. After any but DUE the state is freed, whatever tick says.
DUE, EMERGENCY, END = range(3)

# Kinds of option
DURATION, COUNT, FLAG, CHOICE, NUMBER = "duration", "count", "flag", "choice", "number"


class Option(NamedTuple):
    """One parameter: becomes a YAML key and a field of the params row (durations: int64 ns; choices: their index)."""

    name: str
    default: object  # durations as text with a unit: "200ms"
    kind: str
    help: str
    choices: tuple = ()
    low: float = 0  # durations: ns


class Field(NamedTuple):
    """One field of an event. `form` says how it is written: int, float, bool, hex (16 digits), or a tuple of names."""

    name: str
    type: object
    help: str  # with the unit
    form: object = "int"


class EventType(NamedTuple):
    """A kind of event: "<detector>.<what>", its fields in the order in which they are written."""

    name: str
    fields: tuple
    help: str


class Detector(NamedTuple):
    name: str  # also the name of the object in an event
    kind: int  # the index list of the batch that it reads; IP: of its rows those with a hash
    state: np.dtype
    event: np.dtype
    events: tuple
    options: tuple
    key: object
    step: object
    tick: object
    capacity: int = 65536  # states, default; a power of two
    packet_ends: bool = False  # an event made by a packet carries that packet's ends; one made by a tick has none
    silent: bool = False  # step never makes an event
    usual_bytes: int = 2 * LINE_BYTES  # of a state, from its beginning: what most packets touch
    prepare: object = None  # params row -> None: derive and check once at start, ValueError says what is wrong
    derived: tuple = ()  # further int64 fields of the params row, for `prepare` to fill


def state_row(*fields):
    """Dtype of a state: the runner's fields first (packet that made it, next deadline, wheel tick), then `fields`.

    Its size is a whole number of cache lines. Fields that every packet touches belong at the beginning.
    """
    own = np.dtype([("born", np.int64), ("due", np.int64), ("scheduled", np.int32), *fields], align=True)
    names, size = list(own.names), -(-own.itemsize // LINE_BYTES) * LINE_BYTES
    formats, offsets = zip(*(own.fields[name][:2] for name in names), strict=True)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size, "aligned": True})


def event_row(*types):
    """Dtype of an event: the common head, then each field of `types` once."""
    own = {f.name: f.type for t in types for f in t.fields}
    return np.dtype([*EVENT, *own.items()], align=True)


@njit
def mix(h, x):
    """64-bit hash of a keyed hash and one more word (finaliser of MurmurHash3); never 0.

    `h` must come from PACKET.hash, which holds the secret.
    """
    z = np.uint64(h) ^ (np.uint64(x) * np.uint64(0x9E3779B97F4A7C15))
    z = (z ^ (z >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    z = (z ^ (z >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    z = z ^ (z >> np.uint64(33))
    return z if z != np.uint64(0) else np.uint64(1)

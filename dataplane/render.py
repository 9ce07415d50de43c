"""Event rows to text by a compiled template: one jitted call for a batch of events of all detectors.

Knows event rows as little-endian 64-bit words and templates as rows of numbers (OP), no detector and no sink.
"""

import numpy as np
from numba import njit
from numba.extending import intrinsic

from dataplane.flowid import (
    ICMP,
    ICMPV6,
    IP_VERSION,
    PROTO,
    READY,
    SCRATCH,
    has_ports,
    put_community_id,
    put_flow_id,
)
from dataplane.records import EVENT, JIT, NO_TIME
from dataplane.text import (
    as_float,
    byte,
    put_bool,
    put_float,
    put_hex,
    put_int,
    put_ipv4,
    put_ipv6,
    put_text,
    put_time,
    put_uint,
    read,
)

# OP.form: how a value is written
END, TEXT, INT, FLOAT, BOOL, HEX, NAME, TIME, ADDRESS, FLOW_ID, COMMUNITY_ID, AGENT, FILE, COUNT = range(14)
# OP.need: what a row must have for the value to exist
ALWAYS, IP, PORTS, ICMP_MESSAGE, NONZERO = range(5)

# Columns of an OP, one step of a template. Plain int64: a jitted loop over records counts references at every step.
(
    FORM,
    NEED,
    AT,  # offset of the field in the event row
    WIDTH,  # of the field in bytes; negative: signed
    KEY,  # text written before the value: position and length
    KEY_LEN,
    TAIL,  # text written after the value
    TAIL_LEN,
    NULL,  # text written instead of key, value and tail where there is no value
    NULL_LEN,
    NAMES,  # NAME: position of the first name; each has STRIDE bytes, its length in the first two
    STRIDE,
    NAMES_LEN,
) = range(13)
OP_COLUMNS = 13

# Columns of a line: offset of the event row, index of its first OP; out: end of its text in the buffer
ROW, START, STOP, LINE_COLUMNS = range(4)
# Columns of an origin: seq of a file's first packet, position of its path in the text
FIRST, PATH, ORIGIN_COLUMNS = range(3)

PREFIX_BYTES = 2  # length of a name, before it
LONGEST = {INT: 20, FLOAT: 32, BOOL: 5, HEX: 16, TIME: 30, ADDRESS: 45, FLOW_ID: 16, COMMUNITY_ID: 30, COUNT: 20}

SEQ = np.dtype(EVENT, align=True).fields["seq"][1]


@njit
def origin_of(origins, seq):
    """Index of the file that holds packet `seq`; 0, the agent's entry, if none does."""
    low, high = 0, len(origins) - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if origins[middle, FIRST] <= seq:
            low = middle
        else:
            high = middle - 1
    return low


@njit
def has(words, row, need):
    """Whether the row has what every value of this need asks for (NONZERO is asked of the value itself)."""
    if need == ALWAYS or need == NONZERO:
        return True
    if byte(words, row + IP_VERSION) == 0:
        return False
    proto = byte(words, row + PROTO)
    if need == PORTS:
        return has_ports(words, row, proto)
    return need == IP or proto == ICMP or proto == ICMPV6


@njit
def fetch_origin(words, row, form, origins):
    """Position of the agent's name or the file's path in the text, or the packet's number in its file."""
    seq, k = read(words, row + SEQ, np.int64(-8)), 0
    if form != AGENT:
        k = origin_of(origins, seq)
    return (seq - origins[k, FIRST] + 1 if form == COUNT else origins[k, PATH]), form == AGENT or k > 0


@njit
def fetch(words, row, ops, pc, origins):
    """Value of one OP: (number, or position of a name in the text; whether there is one)."""
    form, width = ops[pc, FORM], ops[pc, WIDTH]
    if not has(words, row, ops[pc, NEED]):
        return np.int64(0), False
    if width == 0:
        return fetch_origin(words, row, form, origins) if form >= AGENT else (np.int64(0), True)
    value = read(words, row + ops[pc, AT], width)
    if form == NAME:
        return ops[pc, NAMES] + value * ops[pc, STRIDE], 0 <= value < ops[pc, NAMES_LEN]
    if form == FLOAT:
        return value, bool(np.isfinite(as_float(value, width)))
    if ops[pc, NEED] == NONZERO:
        return value, value != 0
    return value, width != -8 or value != NO_TIME


@njit
def put_number(out, at, form, width, value):
    if form == INT or form == COUNT:
        return put_uint(out, at, value) if width == 8 else put_int(out, at, value)
    if form == FLOAT:
        return put_float(out, at, as_float(value, width))
    if form == BOOL:
        return put_bool(out, at, value)
    if form == HEX:
        return put_hex(out, at, value, np.int64(16))
    return put_time(out, at, value)


@njit
def put_address(out, at, words, row, src):
    return put_ipv4(out, at, words, src) if byte(words, row + IP_VERSION) == 4 else put_ipv6(out, at, words, src)


def _borrow(_typing, array):
    """View that does not own its memory: handing it on counts no references, which halves the time of `render`."""

    def make(context, builder, signature, args):
        view = context.make_array(array)(context, builder, args[0])
        view.meminfo = view.meminfo.type(None)
        return view._getvalue()

    return array(array), make


borrow = intrinsic(_borrow) if JIT else np.asarray


@njit(nogil=True, cache=True)
def render(words, lines, ops, origins, text, out):
    """Write every line's event by its template: bytes written.

    words: int64 (n,), the event rows one after another; lines: int64 (n, LINE_COLUMNS), STOP is filled in; ops: int64
    (n, OP_COLUMNS), a template goes on to its END; origins: int64 (n, ORIGIN_COLUMNS), the agent, then files by seq;
    text, out: uint8. `out` must have room for all lines.
    """
    memory = np.zeros(SCRATCH, np.int64)
    scratch, words, lines, ops = borrow(memory), borrow(words), borrow(lines), borrow(ops)
    origins, text, out = borrow(origins), borrow(text), borrow(out)
    at = 0
    for i in range(len(lines)):
        row, pc, form = lines[i, ROW], lines[i, START], np.int64(TEXT)
        scratch[READY] = 0
        while form != END:
            form = ops[pc, FORM]
            value, present = fetch(words, row, ops, pc, origins)
            if not present:
                at = put_text(out, at, text, ops[pc, NULL], ops[pc, NULL_LEN])
                pc += 1
                continue
            at = put_text(out, at, text, ops[pc, KEY], ops[pc, KEY_LEN])
            if form == NAME or form == AGENT or form == FILE:
                size = np.int64(text[value]) | np.int64(text[value + 1]) << 8
                at = put_text(out, at, text, value + PREFIX_BYTES, size)
            elif form == ADDRESS:
                at = put_address(out, at, words, row, row + ops[pc, AT])
            elif form == FLOW_ID:
                at = put_flow_id(out, at, words, row, scratch)
            elif form == COMMUNITY_ID:
                at = put_community_id(out, at, words, row, scratch)
            elif form > TEXT:
                at = put_number(out, at, form, ops[pc, WIDTH], value)
            at = put_text(out, at, text, ops[pc, TAIL], ops[pc, TAIL_LEN])
            pc += 1
        lines[i, STOP] = at
    memory[READY] = 0  # its last use: numba frees an array there, and `scratch` only borrowed it
    return at

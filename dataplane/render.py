"""Numbers, times, addresses and flow identifiers as text, written into a byte buffer by jitted code.

Knows event rows as little-endian 64-bit words and a compiled template (OP rows), no detector and no sink. Each `put_`
writes at `at` and returns the position after what it wrote; the caller has made sure that there is room.
"""

import numpy as np
from numba import njit
from numba.extending import intrinsic

from dataplane.records import EVENT, JIT, NO_TIME

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

_HEAD = np.dtype(EVENT, align=True).fields
SRC, DST, SPORT, DPORT = (_HEAD[name][1] for name in ("src", "dst", "sport", "dport"))
PROTO, IP_VERSION, SEQ = (_HEAD[name][1] for name in ("proto", "ip_version", "seq"))

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132

# Scratch words: the SHA-1 message in units of 16 bits, its schedule, the digest, 1 once the digest is made
SCHEDULE, DIGEST, READY, SCRATCH = 32, 112, 117, 118
WORD = 0xFFFFFFFF

POWERS = 10 ** np.arange(19, dtype=np.int64)
PAIRS = np.frombuffer(b"".join(b"%02d" % n for n in range(100)), np.uint8).copy()
BASE64 = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8).astype(np.int64)
NS_PER_SECOND, SECONDS_PER_DAY = 1_000_000_000, 86_400


def _answers(*pairs):
    """ICMP type -> type of its answer or question, -1 where it has none."""
    table = np.full(256, -1, np.int64)
    for a, b in pairs:
        table[a], table[b] = b, a
    return table


# Community ID v1: types that answer each other stand in for the ports (pycommunityid icmp.py, icmp6.py, as in Zeek)
ANSWERS = _answers((8, 0), (13, 14), (15, 16), (10, 9), (17, 18))
ANSWERS_V6 = _answers((128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145))


@njit
def byte(words, at):
    return (words[at >> 3] >> ((at & 7) << 3)) & 255


@njit
def read(words, at, width):
    """Field of |width| bytes, sign-extended if width < 0. Rows are aligned, so it lies within one word."""
    word, bits = words[at >> 3], 8 * abs(width)
    if bits == 64:
        return word
    high = (word << (64 - bits - ((at & 7) << 3))) >> (64 - bits)
    return high if width < 0 else high & ((1 << bits) - 1)


@njit
def put_text(out, at, text, start, count):
    for k in range(count):
        out[at + k] = text[start + k]
    return at + count


@njit
def put_pair(out, at, value):
    out[at], out[at + 1] = PAIRS[2 * value], PAIRS[2 * value + 1]


@njit
def put_padded(out, at, value, digits):
    """`digits` digits of a number that is not negative, two at a time."""
    k = at + digits
    while k >= at + 2:
        rest = value // 100
        k -= 2
        put_pair(out, k, value - 100 * rest)
        value = rest
    if k > at:
        out[at] = 48 + value
    return at + digits


@njit
def put_int(out, at, value):
    """Decimal number; `value` is above the int64 minimum."""
    if value < 0:
        out[at] = 45  # -
        at, value = at + 1, -value
    digits = np.int64(1)
    while digits < 19 and value >= POWERS[digits]:
        digits += 1
    return put_padded(out, at, value, digits)


@njit
def put_uint(out, at, value):
    """Decimal number of 64 unsigned bits."""
    if value >= 0:
        return put_int(out, at, value)
    half = (value >> 1) & 0x7FFFFFFFFFFFFFFF
    tenth = half // 5
    at = put_int(out, at, tenth)
    out[at] = 48 + 2 * (half - 5 * tenth) + (value & 1)
    return at + 1


@njit
def put_nibble(out, at, value):
    out[at] = 48 + value if value < 10 else 87 + value  # 0-9, a-f
    return at + 1


@njit
def put_hex(out, at, value, digits):
    for k in range(digits - 1, -1, -1):
        at = put_nibble(out, at, (value >> (4 * k)) & 15)
    return at


@njit
def put_bool(out, at, value):
    word = 0x65757274 if value else 0x65736C6166  # "true", "false", first letter lowest
    while word:
        out[at] = word & 255
        at, word = at + 1, word >> 8
    return at


@njit
def as_float(value, width):
    if width == 4:
        return np.float64(np.int32(value).view(np.float32))
    return np.int64(value).view(np.float64)


@njit
def put_float(out, at, value):
    """Six decimals without trailing zeros but one: 1.5, 2.0; from 9e18 with an exponent. `value` is finite."""
    size, exponent = abs(value), 0
    if size >= 9e18:
        while size >= 10.0:
            size, exponent = size / 10.0, exponent + 1
    whole = np.int64(size)
    micro = np.int64(np.rint((size - whole) * 1e6))
    if micro == 1_000_000:
        whole, micro = whole + 1, np.int64(0)
    if value < 0 and (whole > 0 or micro > 0):
        out[at] = 45  # -
        at += 1
    at = put_int(out, at, whole)
    out[at] = 46  # .
    at = put_padded(out, at + 1, micro, np.int64(6))
    while out[at - 1] == 48 and out[at - 2] != 46:
        at -= 1
    if exponent > 0:
        out[at] = 101  # e
        at = put_int(out, at + 1, np.int64(exponent))
    return at


@njit
def civil(days):
    """Year, month and day of a count of days since 1970-01-01 (H. Hinnant, chrono-compatible date algorithms)."""
    z = days + 719_468
    era = z // 146_097
    doe = z - era * 146_097
    yoe = (doe - doe // 1_460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    day = doy - (153 * mp + 2) // 5 + 1
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (1 if month <= 2 else 0), month, day


@njit
def put_time(out, at, ts):
    """RFC 3339 with nine decimals, UTC: 2024-02-29T23:59:59.123456789Z."""
    seconds = ts // NS_PER_SECOND
    days = seconds // SECONDS_PER_DAY
    rest = seconds - days * SECONDS_PER_DAY
    year, month, day = civil(days)
    put_pair(out, at, year // 100)
    put_pair(out, at + 2, year % 100)
    put_pair(out, at + 5, month)
    put_pair(out, at + 8, day)
    put_pair(out, at + 11, rest // 3600)
    put_pair(out, at + 14, rest // 60 % 60)
    put_pair(out, at + 17, rest % 60)
    put_padded(out, at + 20, ts - seconds * NS_PER_SECOND, np.int64(9))
    out[at + 4] = out[at + 7] = 45  # -
    out[at + 10], out[at + 13], out[at + 16], out[at + 19], out[at + 29] = 84, 58, 58, 46, 90  # T : : . Z
    return at + 30


@njit
def put_ipv4(out, at, words, src):
    """Dotted form of the four bytes at `src`."""
    for k in range(4):
        at = put_int(out, at, byte(words, src + k))
        out[at] = 46  # .
        at += 1
    return at - 1


@njit
def unit(words, at):
    """16 bits in network byte order."""
    low = read(words, at, np.int64(2))
    return (low & 255) << 8 | low >> 8


@njit
def longest_zeros(words, src):
    """First longest run of two or more zero groups of an IPv6 address: (first group, groups)."""
    best, best_len, run = 0, 1, 0
    for g in range(8):
        run = run + 1 if unit(words, src + 2 * g) == 0 else 0
        if run > best_len:
            best, best_len = g - run + 1, run
    return best, best_len if best_len > 1 else 0


@njit
def put_ipv6(out, at, words, src):
    """RFC 5952, section 4; IPv4-mapped addresses end in dotted form (section 5)."""
    start, count = longest_zeros(words, src)
    mapped = start == 0 and count == 5 and unit(words, src + 10) == 0xFFFF
    g = 0
    while g < (6 if mapped else 8):
        if count > 0 and g == start:
            out[at] = out[at + 1] = 58  # ::
            at, g = at + 2, g + count
            continue
        group = unit(words, src + 2 * g)
        digits = np.int64(1)
        while group >> (4 * digits):
            digits += 1
        at = put_hex(out, at, group, digits)
        g += 1
        if g < 8 and not (count > 0 and g == start):
            out[at] = 58  # :
            at += 1
    return put_ipv4(out, at, words, src + 12) if mapped else at


@njit
def sha1(scratch):
    """SHA-1 (FIPS 180-4, 6.1.2) of the one padded block in scratch; the five words go to DIGEST."""
    for t in range(16):
        scratch[SCHEDULE + t] = scratch[2 * t] << 16 | scratch[2 * t + 1]
    for t in range(SCHEDULE + 16, DIGEST):
        x = scratch[t - 3] ^ scratch[t - 8] ^ scratch[t - 14] ^ scratch[t - 16]
        scratch[t] = (x << 1 | x >> 31) & WORD
    a, b, c, d, e = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0
    for t in range(SCHEDULE, SCHEDULE + 20):
        x = ((a << 5 | a >> 27) + (d ^ (b & (c ^ d))) + e + 0x5A827999 + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    for t in range(SCHEDULE + 20, SCHEDULE + 40):
        x = ((a << 5 | a >> 27) + (b ^ c ^ d) + e + 0x6ED9EBA1 + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    for t in range(SCHEDULE + 40, SCHEDULE + 60):
        x = ((a << 5 | a >> 27) + ((b & c) | (d & (b | c))) + e + 0x8F1BBCDC + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    for t in range(SCHEDULE + 60, SCHEDULE + 80):
        x = ((a << 5 | a >> 27) + (b ^ c ^ d) + e + 0xCA62C1D6 + scratch[t]) & WORD
        a, b, c, d, e = x, a, (b << 30 | b >> 2) & WORD, c, d
    scratch[DIGEST] = (a + 0x67452301) & WORD
    scratch[DIGEST + 1] = (b + 0xEFCDAB89) & WORD
    scratch[DIGEST + 2] = (c + 0x98BADCFE) & WORD
    scratch[DIGEST + 3] = (d + 0x10325476) & WORD
    scratch[DIGEST + 4] = (e + 0xC3D2E1F0) & WORD


@njit
def has_ports(words, row, proto):
    """Whether the protocol has ports and they are known: a later fragment's are both zero."""
    return (proto == TCP or proto == UDP or proto == SCTP) and read(words, row + SPORT, np.int64(-4)) != 0


@njit
def ports_of(words, row):
    """Community ID's ports: (source, destination, has ports, may be swapped)."""
    proto = byte(words, row + PROTO)
    sport, dport = read(words, row + SPORT, np.int64(2)), read(words, row + DPORT, np.int64(2))
    if proto == ICMP or proto == ICMPV6:
        answer = ANSWERS[sport & 255] if proto == ICMP else ANSWERS_V6[sport & 255]
        return sport, dport if answer < 0 else answer, True, answer >= 0
    return sport, dport, has_ports(words, row, proto), True


@njit
def swapped(words, row, sport, dport):
    """Whether the source is the greater end: by address, then by port."""
    for k in range(0, 16, 2):
        a, b = unit(words, row + SRC + k), unit(words, row + DST + k)
        if a != b:
            return a > b
    return sport > dport


@njit
def digest(words, row, scratch):
    """SHA-1 of the row's flow: Community ID v1, seed 0 (github.com/corelight/community-id-spec)."""
    sport, dport, ported, both_ways = ports_of(words, row)
    first, second = row + SRC, row + DST
    if both_ways and swapped(words, row, sport, dport):
        first, second, sport, dport = second, first, dport, sport
    units = 2 if byte(words, row + IP_VERSION) == 4 else 8
    scratch[:SCHEDULE] = 0  # the first unit is the seed
    for k in range(units):
        scratch[1 + k] = unit(words, first + 2 * k)
        scratch[1 + units + k] = unit(words, second + 2 * k)
    end = 2 * units + 1
    scratch[end] = byte(words, row + PROTO) << 8
    if ported:
        scratch[end + 1], scratch[end + 2] = sport, dport
        end += 2
    scratch[end + 1] = 0x8000
    scratch[SCHEDULE - 1] = 16 * (end + 1)  # bits
    sha1(scratch)


@njit
def digest_byte(scratch, k):
    return (scratch[DIGEST + (k >> 2)] >> (24 - 8 * (k & 3))) & 255


@njit
def put_community_id(out, at, scratch):
    """"1:" and the digest's 20 bytes in base64 (RFC 4648, section 4)."""
    out[at], out[at + 1] = 49, 58  # 1:
    at += 2
    for k in range(0, 21, 3):
        last = digest_byte(scratch, k + 2) if k < 18 else 0
        word = digest_byte(scratch, k) << 16 | digest_byte(scratch, k + 1) << 8 | last
        for shift in range(18, -1, -6):
            out[at] = BASE64[(word >> shift) & 63]
            at += 1
    out[at - 1] = 61  # =
    return at


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
def put_flow(out, at, form, words, row, scratch):
    """Flow or community id; the digest of a row is made once."""
    if scratch[READY] == 0:
        digest(words, row, scratch)
        scratch[READY] = 1
    if form == FLOW_ID:
        return put_hex(out, at, scratch[DIGEST] << 32 | scratch[DIGEST + 1], np.int64(16))
    return put_community_id(out, at, scratch)


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
            elif form == FLOW_ID or form == COMMUNITY_ID:
                at = put_flow(out, at, form, words, row, scratch)
            elif form > TEXT:
                at = put_number(out, at, form, ops[pc, WIDTH], value)
            at = put_text(out, at, text, ops[pc, TAIL], ops[pc, TAIL_LEN])
            pc += 1
        lines[i, STOP] = at
    return at

"""Numbers, times and addresses as text, written into a byte buffer by jitted code.

Knows no event: values come as numbers, or as 64-bit little-endian words that hold rows. Each `put_` writes at `at` and
returns the position after what it wrote; the caller has made sure that there is room.
"""

import numpy as np
from numba import njit

POWERS = 10 ** np.arange(19, dtype=np.int64)
PAIRS = np.frombuffer(b"".join(b"%02d" % n for n in range(100)), np.uint8).copy()
NS_PER_SECOND, SECONDS_PER_DAY = 1_000_000_000, 86_400


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
def unit(words, at):
    """16 bits in network byte order."""
    low = read(words, at, np.int64(2))
    return (low & 255) << 8 | low >> 8


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

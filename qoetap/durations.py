"""Lengths of time as people write them: "200ms", "3s", "1h" or a number of seconds; int64 nanoseconds inside."""

import re
from decimal import Decimal

UNITS_NS = {
    "d": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
LONGEST_NS = 3_650 * UNITS_NS["d"]  # so that a deadline fits int64


def parse_duration(value):
    """Nanoseconds of a text with a unit or a number of seconds. ValueError says what is wrong."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number, unit = str(value), "s"
    else:
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", str(value))
        if not found or found[2] not in UNITS_NS:
            raise ValueError("write a duration as a number and a unit (200ms, 3s, 2m, 1h) or as seconds")
        number, unit = found.groups()
    ns = Decimal(number) * UNITS_NS[unit]
    if not ns.is_finite() or not 0 <= ns <= LONGEST_NS:
        raise ValueError("a duration is at least 0s and at most 3650d")
    return int(ns)


def duration_text(ns):
    """The shortest text that parse_duration reads as `ns`."""
    unit = next(unit for unit, size in UNITS_NS.items() if ns % size == 0 and (ns or unit == "s"))
    return f"{ns // UNITS_NS[unit]}{unit}"

"""Rates as people write them: "2Mbit", "500kbit", "1.5Gbit" or a number of bit/s; whole bit/s inside.

Units are decimal, as in tc(8). Its bps, which are bytes a second there and bits elsewhere, are not taken.
"""

import re
from decimal import Decimal

UNITS = {"Gbit": 10**9, "Mbit": 10**6, "kbit": 10**3, "bit": 1}  # bit/s
LARGEST = 10**12  # bit/s, so that the time of 64 KiB in ns, and of all that may be held, fits int64


def parse_rate(value):
    """Bit/s of a text with a unit or a number of bit/s. ValueError says what is wrong."""
    found = None
    if not isinstance(value, bool):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(value), re.ASCII)
    if not found or found[2] not in ("", *UNITS):
        raise ValueError("write a rate above 0 as a number and a unit (500kbit, 2Mbit, 1Gbit) or as bit/s")
    rate = int(Decimal(found[1]) * UNITS.get(found[2], 1))
    if not 1 <= rate <= LARGEST:
        raise ValueError(f"a rate is at least 1bit and at most {rate_text(LARGEST)}; no rate: leave it out")
    return rate


def rate_text(rate):
    """The shortest text that parse_rate reads as `rate`."""
    unit = next(unit for unit, size in UNITS.items() if rate % size == 0)
    return f"{rate // UNITS[unit]}{unit}"

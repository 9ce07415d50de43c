"""Amounts of memory as people write them: "64MiB", "1GB" or a number of bytes."""

import re

UNITS_bytes = {
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}
LARGEST_bytes = 1 << 50


def parse_size(value):
    """Bytes of a text with a unit or a number of bytes. ValueError says what is wrong."""
    found = re.fullmatch(r"\s*([0-9]+)\s*([a-zA-Z]*)\s*", str(value)) if not isinstance(value, bool) else None
    if not found or found[2] not in ("", *UNITS_bytes):
        raise ValueError("write a size as a whole number and a unit (256KiB, 64MiB, 1GiB) or as bytes")
    size = int(found[1]) * UNITS_bytes.get(found[2], 1)
    if size > LARGEST_bytes:
        raise ValueError(f"a size is at most {size_text(LARGEST_bytes)}")
    return size


def size_text(size):
    """The shortest text that parse_size reads as `size`."""
    unit = next(unit for unit, count in UNITS_bytes.items() if size % count == 0 and (size or unit == "B"))
    return f"{size // UNITS_bytes[unit]}{unit}"

"""Slow twin of the capture clock (dataplane.batch), from its definition, with Python's integers."""

MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS
END_NS = 2**63 - 2**58


def signed(n):
    """Modulo 2**64, from -2**63."""
    return (n + 2**63) % 2**64 - 2**63


def clocks(times):
    """(the clock of each frame, counts); the time None is that of a frame without one.

    It follows the timestamps of a time base, never backwards. A step of more than an hour ahead counts as an hour, one
    of more than a minute behind the clock as none: both begin a new time base.
    """
    now = base = last = None
    found, counts = [], dict(backwards=0, jumps=0, timeless=0)
    for ts in times:
        if ts is None:
            counts["timeless"] += 1
            found.append(0 if now is None else now)
            continue
        if now is None:
            now = min(ts, END_NS)
            base = now - ts
        elif ts < last:
            counts["backwards"] += 1
        last = ts
        step = signed(ts + base - now)
        if step > HOUR_NS or step < -MINUTE_NS:
            counts["jumps"] += 1
            step = HOUR_NS if step > 0 else 0
            base = now + step - ts
        now = min(now + max(step, 0), END_NS)
        found.append(now)
    return found, counts

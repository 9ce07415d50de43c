"""Lines in, samples out: what of qoetap's events says the delay of a path, and why a line does not. Pure.

A line that is no event is rejected with a reason; an event that tells no path delay (`ptp.delay` does) is ignored.
"""

import io
import json
import sys
from collections import Counter
from typing import NamedTuple

LINE_MAX_bytes = 65_536
AGENT_MAX_chars = 128
DELAY_MAX_ns = 60 * 10**9
FUTURE_MAX_ns = 60 * 10**9  # clocks may differ by so much
EVENT, OBJECT = "ptp.delay", "ptp"
HEX = frozenset("0123456789abcdef")
CLOCK_chars = 16
INT64_MAX = 2**63 - 1
GIVEN = -1  # request_id of a delay that no PTP message told
REASONS = (  # why a line is rejected
    "too_long", "bad_json", "missing_field", "wrong_type", "no_delay", "negative_delay", "absurd_delay", "absurd_time",
    "unknown_path", "too_many_paths",
)  # fmt: skip


class Sample(NamedTuple):
    """One path delay. Its identity is the path, ts_ns, request_id and slave_clock."""

    agent_id: str
    master_clock: str  # clockIdentity, 16 hexadecimal digits
    domain: int  # domainNumber
    ts_ns: int
    request_id: int  # sequenceId of the Delay_Req; GIVEN: slave_clock is an id that somebody gave
    slave_clock: str
    delay_ns: int
    path: str | None = None  # its name, where that was told


class Parsed(NamedTuple):
    """What lines say."""

    samples: list  # of Sample
    ignored: int
    rejected: Counter  # by reason


class Rejected(ValueError):
    """str() is one of REASONS."""


def parse(data, now_ns):
    """Parsed of JSON lines (bytes). now_ns: an event that is later by more than FUTURE_MAX_ns is absurd."""
    samples, ignored, rejected = [], 0, Counter()
    for line in io.BytesIO(data):  # one at a time: a large body may have millions
        if line.isspace():
            continue
        try:
            sample = sample_of(line.removesuffix(b"\n"), now_ns)
        except Rejected as error:
            rejected[str(error)] += 1
        else:
            if sample is None:
                ignored += 1
            else:
                samples.append(sample)
    return Parsed(samples, ignored, rejected)


def sample_of(line, now_ns):
    """Sample of one line; None if it tells no path delay. Rejected if it is no event, or absurd."""
    if len(line) > LINE_MAX_bytes:
        raise Rejected("too_long")
    try:
        event = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise Rejected("bad_json") from None
    if type(event) is not dict:
        raise Rejected("wrong_type")
    if _text(event, "event_type", AGENT_MAX_chars) != EVENT:
        return None
    ptp = _of(event, OBJECT, dict)
    return checked(
        Sample(
            _text(event, "agent_id", AGENT_MAX_chars),
            _clock(ptp, "master_clock"),
            _number(ptp, "domain", 0, 255),
            _number(event, "ts_ns", -INT64_MAX, INT64_MAX),
            _number(ptp, "request_id", 0, 65535),
            _clock(ptp, "slave_clock"),
            _delay(ptp),
        ),
        now_ns,
    )


def given(delays, now_ns):
    """Parsed of delays that were given as such: dicts of a `path`, or agent_id, master_clock and domain, and so on."""
    samples, rejected = [], Counter()
    for delay in delays:
        try:
            samples.append(checked(_given(delay), now_ns))
        except Rejected as error:
            rejected[str(error)] += 1
    return Parsed(samples, 0, rejected)


def _given(delay):
    path = delay.get("path")
    if path is None and not {"agent_id", "master_clock", "domain"} <= delay.keys():
        raise Rejected("missing_field")
    whose = ("", "", 0) if path is not None else (delay["agent_id"], delay["master_clock"], delay["domain"])
    return Sample(*whose, delay["ts_ns"], GIVEN, delay.get("id", ""), delay["delay_ns"], path)


def checked(sample, now_ns):
    """The same. Rejected if its delay or its time is absurd."""
    if sample.delay_ns < 0:
        raise Rejected("negative_delay")
    if sample.delay_ns > DELAY_MAX_ns:
        raise Rejected("absurd_delay")
    if not 0 < sample.ts_ns <= now_ns + FUTURE_MAX_ns:
        raise Rejected("absurd_time")
    return sample


def _of(where, name, kind):
    value = where.get(name)
    if value is None:
        raise Rejected("missing_field")
    if type(value) is not kind:
        raise Rejected("wrong_type")
    return value


def _number(where, name, low, high):
    value = _of(where, name, int)
    if not low <= value <= high:
        raise Rejected("wrong_type")
    return value


def _text(where, name, most):
    """Text of a field, of `most` characters and such that UTF-8 has."""
    value = _of(where, name, str)
    if len(value) > most or not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise Rejected("wrong_type")
    return value


def _clock(where, name):
    value = _of(where, name, str)
    if len(value) != CLOCK_chars or not HEX.issuperset(value):
        raise Rejected("wrong_type")
    return sys.intern(value)  # there are few, in many samples


def _delay(ptp):
    if ptp.get("mean_path_delay_ns") is None:
        raise Rejected("no_delay")
    return _number(ptp, "mean_path_delay_ns", -INT64_MAX, INT64_MAX)

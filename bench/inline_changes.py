"""Rates that change 100 times a second under load: is a packet lost, does a class send more than its rates allow?

Half of the classes have the low rate and half the high one, and with each table they swap. The load is the mean of
both, so that classes hold packets and let them go again. Of every class and every time from one departure to another,
both included, the bytes that left may be at most

    integral of the rate in force over that time + rate * 5 ms + two packets

where `rate` is the one in force if it did not change in that time, else the high one. What was in force follows from
the events pace.rate_changed, which say when each change was made; departures are those of the capture behind the
router. Both tell the machine's real time. `delay_bound` is off: that lets go at once what is held, whatever the rates.
"""

import json
import tempfile
import time
from itertools import pairwise

import numpy as np

from bench.inline_parts import (
    BITS,
    Capture,
    Inline,
    LENGTH_bytes,
    Load,
    by_class,
    classes,
    router,
    times_of,
    under_load,
)
from bench.live_report import say
from bench.report import median

CLASSES = 10
LOW, HIGH = 500 * BITS, 1500 * BITS  # bit/s
LOAD_pps = CLASSES * (LOW + HIGH) // 2 // BITS
EVERY_seconds = 0.01
ROOM_seconds = 5  # limit_time: no packet has to be dropped
ALLOWED_ns, ALLOWED_packets = 5_000_000, 2


def table(number):
    """The table with this version, as JSON."""
    rates = {f"c{i}": HIGH if (i + number) % 2 else LOW for i in range(CLASSES)}
    return json.dumps({"version": number, "lease_s": None, "rates": rates})


def change(looking, seconds):
    """Send tables for so long; the seconds that each took."""
    took, start = [], time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        looking.put("/v1/rates", table(len(took) + 1))
        took.append(time.perf_counter() - now)
        time.sleep(max(0.0, start + len(took) * EVERY_seconds - time.perf_counter()))
    return took


def changes(path):
    """{number of the class: (times in ns, rates from then on in bit/s)} of the events in a file."""
    found = {i: ([0], [LOW]) for i in range(CLASSES)}
    for line in path.read_text().splitlines():
        event = json.loads(line)
        if event["event_type"] == "pace.rate_changed":
            times, rates = found[int(event["pace"]["class"].removeprefix("c"))]
            times.append(event["ts_ns"])
            rates.append(event["pace"]["new_bps"])
    return {i: (np.array(times), np.array(rates)) for i, (times, rates) in found.items()}


def most_beyond(sent, allowed):
    """The most that `sent` exceeds `allowed` by from one departure to another, both included.

    sent: running sum up to and with each departure, allowed: running sum up to its time; both in bytes.
    """
    before = np.concatenate([[0.0], sent[:-1]]) - allowed
    return float((sent - allowed - np.minimum.accumulate(before)).max())


def bursts(times, changed, rates):
    """What left beyond the integral over what may leave beyond it: the largest (with a change, without one).

    times: of departures, ns; changed, rates: when the rate changed and to what, the first before all departures.
    """
    since = times[0]
    begins = np.concatenate([[since], changed[1:]])
    totals = np.concatenate([[0.0], np.cumsum(np.diff(begins) * rates[:-1] / 8e9)])
    regime = np.searchsorted(begins[1:], times, side="right")
    allowed = totals[regime] + (times - begins[regime]) * rates[regime] / 8e9
    sent = np.arange(1, len(times) + 1) * float(LENGTH_bytes)
    across = most_beyond(sent, allowed) / room(HIGH)
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(regime)) + 1, [len(times)]])
    pieces = [slice(*ends) for ends in pairwise(firsts)]
    within = max(most_beyond(sent[: p.stop - p.start], allowed[p]) / room(rates[regime[p.start]]) for p in pieces)
    return across, within


def room(rate):
    """Bytes that may leave beyond the integral."""
    return rate * ALLOWED_ns / 8e9 + ALLOWED_packets * LENGTH_bytes


def run(seconds):
    """One measurement, as a dict."""
    limits = {"limit_time": f"{ROOM_seconds}s", "limit_bytes": "16MiB"}
    with tempfile.TemporaryDirectory() as folder, router() as street:
        looking = Inline(street, folder, classes(CLASSES, LOW, **limits), events=True, delay_bound="0s")
        load = Load(street, CLASSES, seconds, LOAD_pps)
        with looking, load, Capture(street, folder) as capture:
            capture.ready()
            under_load(looking, load, settle=0)
            took = change(looking, seconds)
            told = load.finish()
            rows = capture.finish()
            looking.stop()
            changed, dropped, counts = changes(looking.events), looking.dropped(), looking.told()["classes"]
    shares = [bursts(times_of(rows), *changed[i]) for i, rows in by_class(rows).items()]
    return {
        "sent": told["sent"],
        "arrived": len(rows),
        "dropped": dropped,
        "held": sum(row["released"] for row in counts.values()),
        "tables": len(took),
        "changes": sum(len(times) - 1 for times, _ in changed.values()),
        "tables_a_second": len(took) / seconds,
        "took_ms": median(took) * 1e3,
        "across": float(max(across for across, _ in shares)),
        "within": float(max(within for _, within in shares)),
    }


def measure(args):
    """[what `run` found in each round]."""
    found = []
    for _ in range(args.rounds):
        found.append(run(args.seconds))
        say("  {tables} tables, burst {across:.0%} and {within:.0%} of what is allowed".format(**found[-1]))
    return found


def lines(found):
    """The table."""
    told = ["| tables | a second | median ms | changes | sent | held | arrived | dropped | missing |"]
    told[0] += " burst across a change | within one rate |"
    told += ["|" + "---|" * 11]
    for run in found:
        counts = " | ".join(f"{run[name]:,}" for name in ("changes", "sent", "held", "arrived", "dropped"))
        tables = f"{run['tables']:,} | {run['tables_a_second']:.1f} | {run['took_ms']:.2f}"
        burst = f"{run['across']:.0%} | {run['within']:.0%}"
        told.append(f"| {tables} | {counts} | {missing([run]):,} | {burst} |")
    return told


def verdict(found):
    """[(what is asked, what was found, whether it is good)]."""
    lost = missing(found) + sum(run["dropped"] for run in found)
    burst = max(max(run["across"], run["within"]) for run in found)
    return [
        ("100 changes a second: no packet lost", f"{lost} lost", lost == 0),
        ("100 changes a second: no burst above rate * 5 ms + 2 packets", f"{burst:.0%} of that", burst <= 1),
    ]


def missing(found):
    """Packets that nobody accounts for."""
    return sum(run["sent"] - run["arrived"] - run["dropped"] for run in found)

"""A table of 1000 rates set at once while 50 thousand packets a second pass: how long, and is a packet lost?"""

import json
import tempfile
import time

from bench.inline_parts import BITS, Inline, Load, arrived, classes, router, under_load
from bench.live_report import say
from bench.report import median
from bench.udp_sender import FIRST_PORT

CLASSES = 1000
TABLES, QUICK_TABLES = 20, 3  # in each round
EVERY_seconds = 0.25
LOAD_pps = 50_000
LOAD_PORTS = 100  # of no class: they begin where those of the classes end
RATES = 100 * BITS, 200 * BITS  # in turns, so that each table changes all
BAR_ms = 50
REACHED = 0.95  # of the load, or a round says nothing


def table(number):
    """The table with this version, as JSON."""
    rates = {f"c{i}": RATES[number % 2] for i in range(CLASSES)}
    return json.dumps({"version": number, "lease_s": None, "rates": rates})


def put(looking, number):
    """Set it; ms from the request's beginning to the answer's end. RuntimeError: not all rates were changed."""
    body, since = table(number), time.perf_counter()
    answer = looking.put("/v1/rates", body)
    took = (time.perf_counter() - since) * 1e3
    if answer["changed"] != CLASSES:
        raise RuntimeError(f"{answer['changed']} of {CLASSES} rates were changed")
    return took


def run(tables):
    """One measurement, as a dict."""
    with tempfile.TemporaryDirectory() as folder, router() as street:
        before = arrived(street)
        looking = Inline(street, folder, classes(CLASSES, RATES[0], first=FIRST_PORT + LOAD_PORTS))
        load = Load(street, LOAD_PORTS, tables * EVERY_seconds + 2, LOAD_pps)
        with looking, load:
            under_load(looking, load)
            took = []
            for number in range(1, tables + 1):
                took.append(put(looking, number))
                time.sleep(EVERY_seconds)
            told = load.finish()
            looking.drained()
            looking.stop()
            counts = looking.told()["classes"]["default"]
        found = arrived(street) - before
    return {
        "took_ms": took,
        "sent": told["sent"],
        "arrived": found,
        "judged": counts["passed"],
        "load_pps": told["sent"] / told["seconds"],
    }


def measure(args):
    """[what `run` found in each round]."""
    found = []
    for _ in range(args.rounds):
        found.append(run(QUICK_TABLES if args.quick else TABLES))
        took = found[-1]["took_ms"]
        say(f"  {len(took)} tables: {median(took):.1f} ms, {max(took):.1f} at most")
    return found


def lines(found):
    """The table."""
    told = ["| tables | median ms | longest ms | packets/s | sent | judged | arrived | missing |"]
    told += ["|---|---|---|---|---|---|---|---|"]
    for run in found:
        times = f"{len(run['took_ms'])} | {median(run['took_ms']):.1f} | {max(run['took_ms']):.1f}"
        counts = " | ".join(f"{run[name]:,}" for name in ("sent", "judged", "arrived"))
        told.append(f"| {times} | {run['load_pps']:,.0f} | {counts} | {missing([run]):,} |")
    return told


def verdict(found):
    """[(what is asked, what was found, whether it is good)]."""
    longest, load = max(max(run["took_ms"]) for run in found), min(run["load_pps"] for run in found)
    return [
        (f"{CLASSES} rates set within {BAR_ms} ms", f"{longest:.1f} ms at most", longest < BAR_ms),
        (f"while {LOAD_pps:,} packets a second pass", f"{load:,.0f}", load >= REACHED * LOAD_pps),
        ("and none is lost", f"{missing(found)} lost", missing(found) == 0),
    ]


def missing(found):
    """Packets that did not arrive."""
    return sum(run["sent"] - run["arrived"] for run in found)

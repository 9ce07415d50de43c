"""How exactly `qoetap inline` paces: UDP at more than the rate of 1 to 1000 classes, captured behind the router."""

import tempfile

import numpy as np

from bench.inline_parts import BITS, Capture, Inline, Load, by_class, classes, router, times_of, under_load
from bench.live_report import say
from bench.report import median
from bench.udp_sender import FIRST_PORT

COUNTS, QUICK_COUNTS = (1, 10, 100, 1000), (10,)  # of classes
RATE_pps, ALONE_pps = 10_000, 1_000  # over all classes; of one that is alone
OVERLOAD = 1.3
BEFORE_seconds = 0.5  # of packets of no class: classes that begin in one burst would leave in step for ever
SKIPPED_ns = 500_000_000  # at the beginning: before anything is held, packets do not leave evenly
RATE_BAR = 0.005
GAP_BAR_us, MANY, MANY_GAP_BAR_us = 15, 1000, 20


def rate_pps(count):
    """Packets a second of all classes together."""
    return ALONE_pps if count == 1 else RATE_pps


def errors(rows, rate, seconds):
    """(rate's relative error, gaps' errors in ns) of one class from RECORD rows, over `seconds` of them.

    The rate is that between the first and the last packet of that time; a gap should last as long as the packet before
    it takes at the rate, and all are of the same length.
    """
    times = times_of(rows)
    since = times[0] + SKIPPED_ns
    times = times[(times >= since) & (times < since + seconds * 1e9)]
    if len(times) < 3:
        raise RuntimeError("fewer than three packets of a class arrived")
    gap = BITS / rate * 1e9
    return (len(times) - 1) * gap / (times[-1] - times[0]) - 1, np.abs(np.diff(times) - gap)


def run(count, seconds):
    """One measurement, as a dict; RuntimeError: it was none."""
    pps = rate_pps(count)
    rate = pps // count * BITS
    with tempfile.TemporaryDirectory() as folder, router() as street:
        looking = Inline(street, folder, classes(count, rate))
        load = Load(street, count, seconds + 2, pps * OVERLOAD, before=BEFORE_seconds)
        with looking, load, Capture(street, folder) as capture:
            capture.ready()
            under_load(looking, load)
            told = load.finish()
            rows = capture.finish()
            rows = rows[rows["dport"] >= FIRST_PORT]
            looking.stop()
            dropped, passes, inline = looking.dropped(), looking.passes(), looking.told()
    found = by_class(rows)
    if len(found) < count:
        raise RuntimeError(f"packets of {len(found)} of {count} classes arrived")
    rates, gaps = zip(*(errors(rows, rate, seconds) for rows in found.values()), strict=True)
    return {
        "rate_error": float(np.abs(rates).max()),
        "gap_error_us": float(np.median(np.concatenate(gaps))) / 1e3,
        "gaps": sum(map(len, gaps)),
        "sent": told["sent"],
        "arrived": len(rows),
        "dropped": dropped,
        "passes": passes,
        "seconds_of_stages": inline["seconds"],
    }


def measure(args):
    """{classes: [what `run` found in each round]}."""
    found = {str(count): [] for count in (QUICK_COUNTS if args.quick else COUNTS)}
    for _ in range(args.rounds):
        for count, runs in found.items():
            runs.append(run(int(count), args.seconds))
            say(
                "  {:>4} classes: rate within {rate_error:.3%}, gaps {gap_error_us:.1f} us, late {passes} times".format(
                    count, **runs[-1]
                )
            )
    return found


def summary(runs):
    """The worst rate error, the median of the median gap errors, packets that nobody accounts for."""
    return {
        "rate_error": max(run["rate_error"] for run in runs),
        "gap_error_us": median([run["gap_error_us"] for run in runs]),
        "passes": sum(run["passes"] for run in runs),
        "missing": sum(run["sent"] - run["arrived"] - run["dropped"] for run in runs),
    }


def gap_bar(count):
    return MANY_GAP_BAR_us if int(count) >= MANY else GAP_BAR_us


def lines(found):
    """The table."""
    told = ["| classes | packets/s of each | rate error | median gap error, us | late | sent | arrived | dropped |"]
    told[0] += " missing |"
    told += ["|" + "---|" * 9]
    for count, runs in found.items():
        s, each = summary(runs), rate_pps(int(count)) // int(count)
        exact = f"{s['rate_error']:.3%} | {s['gap_error_us']:.1f} | {s['passes']}"
        counts = " | ".join(f"{sum(run[name] for run in runs):,}" for name in ("sent", "arrived", "dropped"))
        told.append(f"| {count} | {each:,} | {exact} | {counts} | {s['missing']:,} |")
    return told


def verdict(found):
    """[(what is asked, what was found, whether it is good)]."""
    told = []
    for count, runs in found.items():
        s, bar = summary(runs), gap_bar(count)
        told += [
            (f"{count} classes: rate error of each at most {RATE_BAR:.1%}", f"{s['rate_error']:.3%}",
             s["rate_error"] <= RATE_BAR),
            (f"{count} classes: median gap error at most {bar} us", f"{s['gap_error_us']:.1f} us",
             s["gap_error_us"] <= bar),
        ]  # fmt: skip
    return told


def missing(found):
    """Packets that nobody accounts for."""
    return sum(summary(runs)["missing"] for runs in found.values())

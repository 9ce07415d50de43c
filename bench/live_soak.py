"""Soak: a long load of flows that come and go. Is memory flat, every packet accounted for, nothing leaked?"""

import csv
import tempfile
import time
from pathlib import Path

from bench.live_parts import Reader, Senders
from bench.live_readers import BEGINS, ledger, qoetap
from bench.live_report import say
from qoetap.lab import Link

FLOWS = 100_000
RATE_pps = 200_000
LIFE_seconds = 100  # of a flow
EVERY_seconds = 10
JUDGED = 2 / 3  # the last part of the soak: 20 of 30 minutes
FLAT = 0.02  # of the memory, from its least to its most
NOWHERE = "jsonl:/dev/null"  # lines are made and written, but do not fill the disk: 4 GB in half an hour
COLUMNS = ("seconds", "rss_bytes", "threads", "descriptors")


def watch(reader, senders, seconds):
    """A sample every ten seconds, as dicts, until the senders are about to end."""
    senders.go()
    start, samples = time.monotonic(), []
    while (now := time.monotonic() - start) < seconds:
        samples.append({"seconds": round(now, 1)} | reader.usage())
        time.sleep(max(0.0, min(EVERY_seconds * len(samples), seconds) - now))
    return samples


def spread(values):
    """How far the values lie apart, as a share of the least."""
    return (max(values) - min(values)) / min(values)


def verdict(samples, told, counted):
    """The questions and their answers, as a dict of (answer, whether it is good)."""
    judged = samples[-max(1, round(len(samples) * JUDGED)) :]
    rss = spread([sample["rss_bytes"] for sample in judged])
    found = {f"memory within {FLAT:.0%}": (f"{rss:.2%}", rss <= FLAT)}
    for name in ("threads", "descriptors"):
        first, most = judged[0][name], max(sample[name] for sample in judged)
        found[f"no {name} leaked"] = (f"{first} at first, {most} at most", most <= first)
    missing = told["sent"] - counted.captured - counted.dropped
    found["ledger balanced"] = (f"{missing} packets missing of {told['sent']:,}", counted.exact and missing == 0)
    return found


def soak(args):
    """(samples, what was sent, what qoetap counted)."""
    load = ("--size", "mixed", "--flows", args.flows, "--churn", args.flows / LIFE_seconds)
    with tempfile.TemporaryDirectory() as folder, Link() as link:
        stats = Path(folder) / "stats.json"
        argv = qoetap(link.receiver.interface, None, stats, "-o", NOWHERE)
        with (
            Reader(link.receiver, argv) as reader,
            Senders(link, 1, *load, "--rate", RATE_pps, "--seconds", args.soak) as senders,
        ):
            senders.ready()
            reader.ready(BEGINS)
            samples = watch(reader, senders, args.soak)
            told = senders.finish()
            reader.drained()
            reader.stop()
            return samples, told, ledger(reader.text, stats)


def write(samples, folder):
    """memory.csv and memory.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "memory.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(samples)
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.plot([s["seconds"] / 60 for s in samples], [s["rss_bytes"] / 1e6 for s in samples])
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.grid(alpha=0.4)
    figure.tight_layout()
    figure.savefig(folder / "memory.png", dpi=120)
    pyplot.close(figure)


def measure(results, args):
    """The soak, its samples and its verdict."""
    say(f"  {args.soak:,.0f} s with {args.flows:,} flows, {RATE_pps:,} packets a second")
    try:
        samples, told, counted = soak(args)
    except RuntimeError as error:
        results["failed"]["soak"] = str(error)
        return
    write(samples, args.out)
    answers = {name: {"found": text, "good": good} for name, (text, good) in verdict(samples, told, counted).items()}
    results["soak"] = {"flows": args.flows, "rate_pps": RATE_pps, "sent": told, "counted": counted._asdict()}
    results["soak"] |= {"verdict": answers, "samples": samples}

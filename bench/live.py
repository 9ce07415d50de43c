"""`python -m bench.live`: qoetap and its peers on an interface under load, in turns. Needs root; two cores or more.

Without --latency or --soak: two senders at full rate, one reader at a time, packets lost and CPU time of each.
Exit 0; 1 if a reader failed, a packet is unaccounted for, or the soak's verdict is bad.
"""

import argparse
import contextlib
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from bench import live_latency, live_report, live_soak
from bench.live_parts import Reader, Senders
from bench.live_readers import READERS
from bench.peers import Missing
from bench.senders import length_of
from qoetap.exits import Exit
from qoetap.lab import Link

SENDERS = 2
WARM_seconds = 1.0
RESULTS = Path("bench/results")


def sizes(text):
    """The names in `text`, by commas, each checked as bench.senders does."""
    names = text.split(",")
    for name in names:
        length_of(name)
    return names


def readers(text):
    names = text.split(",")
    unknown = set(names) - set(READERS)
    if unknown:
        known = ", ".join(READERS)
        raise argparse.ArgumentTypeError(f"unknown reader {', '.join(sorted(unknown))}; known are {known}")
    return names


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--latency", action="store_true", help="from the packet on the wire to the line in the file")
    what.add_argument("--soak", type=float, metavar="SECONDS", help="memory, threads, descriptors, ledger of qoetap")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load in each run (default 60)")
    parser.add_argument("--sizes", type=sizes, default="64,1500", help="bytes, imix, mixed (default 64,1500)")
    parser.add_argument("--readers", type=readers, default=",".join(READERS), help="names, by commas (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each reader (default 3)")
    parser.add_argument("--ring", type=int, default=256, metavar="MIB", help="ring or buffer of each (default 256)")
    parser.add_argument("--flows", type=int, help="that live at a time (default 10000; of a soak 100000)")
    parser.add_argument("--out", type=Path, help="folder of the report (default bench/results/live, -latency, -soak)")
    args = parser.parse_args(argv)
    kind = "live-latency" if args.latency else "live-soak" if args.soak else "live"
    args.out = args.out or RESULTS / kind
    args.flows = args.flows or (live_soak.FLOWS if args.soak else 10_000)
    return args


def run(name, size, seconds, args):
    """One reader under the load of all senders, as a dict."""
    contender = READERS[name]
    options = ("--size", size, "--flows", args.flows, "--seconds", seconds)
    with tempfile.TemporaryDirectory() as folder, Link() as link:
        stats = Path(folder) / "stats.json"
        argv = contender.argv(link.receiver.interface, args.ring, stats)
        with Reader(link.receiver, argv) as reader, Senders(link, SENDERS, *options) as senders:
            senders.ready()
            reader.ready(contender.begins)
            before = reader.cpu_seconds()
            senders.go()
            told = senders.finish()
            reader.drained()
            loaded = reader.cpu_seconds() - before
            whole, peak = reader.stop()
            counted = contender.counted(reader.text, stats)
    return told | counted._asdict() | {"cpu_s": loaded, "whole_cpu_s": whole, "peak_bytes": peak}


def versions(results, names):
    """What each reader calls itself; the absent are noted."""
    told = {}
    for name in names:
        try:
            told[name] = READERS[name].version()
        except Missing as error:
            results["missing"][name] = str(error)
    return told


def turn(results, name, size, args):
    """One run, as a list; empty, and a note, where it failed."""
    try:
        done = run(name, size, args.seconds, args)
    except RuntimeError as error:
        results["failed"][f"{name}, {size}"] = str(error)
        return []
    live_report.say(f"  {size:>5} {name:<12} {live_report.in_short(done)}")
    return [done]


def warm(names, args):
    """A short turn for qoetap that does not count: kernels that are not compiled yet are compiled now."""
    if "qoetap" in names:
        with contextlib.suppress(RuntimeError):  # it is told of when it counts
            run("qoetap", args.sizes[0], WARM_seconds, args)


def measure(results, args):
    """Every size, in each round every reader once."""
    results["versions"] = versions(results, args.readers)
    warm(results["versions"], args)
    for size in args.sizes:
        case = {name: [] for name in results["versions"]}
        for _ in range(args.rounds):
            for name, runs in case.items():
                runs += turn(results, name, size, args)
        results["sizes"][size] = {name: runs for name, runs in case.items() if runs}


def main(argv=None):
    args = arguments(argv)
    command = shlex.join(["python", "-m", "bench.live", *(sys.argv[1:] if argv is None else argv)])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what it has started
    results = live_report.begin(command, args)
    try:
        if args.latency:
            live_latency.measure(results, args)
        elif args.soak:
            live_soak.measure(results, args)
        else:
            measure(results, args)
    except Exit as error:
        print(f"bench.live: {error}", file=sys.stderr)
        return error.status
    live_report.write(results, args.out)
    live_report.say(f"report: {args.out}/results.md")
    return 1 if live_report.complaints(results) else 0


if __name__ == "__main__":
    sys.exit(main())

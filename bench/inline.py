"""`python -m bench.inline`: `qoetap inline` on a router under load. Needs root; two cores or more.

Exit 0, also where a bar is missed or the peer NetfilterQueue is not installed (the report says so); 1 if a part failed
or a packet is unaccounted for.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from bench import inline_accuracy, inline_changes, inline_cost, inline_report, inline_table, inline_tcp
from bench.limits import Limits
from bench.live_report import say
from bench.peers import Missing
from qoetap.exits import Exit

PARTS = {
    "accuracy": inline_accuracy,
    "tcp": inline_tcp,
    "cost": inline_cost,
    "changes": inline_changes,
    "table": inline_table,
}


def parts(text):
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        known = ", ".join(PARTS)
        raise argparse.ArgumentTypeError(f"unknown part {', '.join(sorted(unknown))}; known are {known}")
    return names


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.inline", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few classes, one round of a second: does it run?")
    parser.add_argument("--parts", type=parts, default=list(PARTS), help=f"by commas (default {','.join(PARTS)})")
    parser.add_argument("--seconds", type=float, help="of each measurement (default 10; quick 1)")
    parser.add_argument("--rounds", type=int, help="of each part (default 3; quick 1)")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench/results/inline"), help="folder of the report")
    args = parser.parse_args(argv)
    seconds, rounds = (1.0, 1) if args.quick else (10.0, 3)
    args.seconds = seconds if args.seconds is None else args.seconds
    args.rounds = rounds if args.rounds is None else args.rounds
    if args.seconds <= 0 or args.rounds < 1:
        parser.error("--seconds must be more than 0, --rounds at least 1")
    return args


def measure(results, args):
    """Every part that was asked for; what fails is noted, and the next begins."""
    limits = Limits()
    for name in args.parts:
        say(name)
        results["limits"][name] = limits.now()
        try:
            results["parts"][name] = PARTS[name].measure(args)
        except Missing as error:
            results["missing"][name] = str(error)
        except RuntimeError as error:
            results["failed"][name] = str(error)


def main(argv=None):
    args = arguments(argv)
    command = shlex.join(["python", "-m", "bench.inline", *(sys.argv[1:] if argv is None else argv)])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what it has started
    results = inline_report.begin(command, args)
    try:
        measure(results, args)
    except Exit as error:
        print(f"bench.inline: {error}", file=sys.stderr)
        return error.status
    inline_report.write(results, PARTS, args.out)
    say(f"report: {args.out}/results.md")
    return 1 if inline_report.complaints(results, PARTS) else 0


if __name__ == "__main__":
    sys.exit(main())

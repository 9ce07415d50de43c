"""`python -m bench`: make the traffic, run qoetap and its peers over it in turns, write the report.

Exit 0 also if a contender is missing; 1 if one failed.
"""

import argparse
import functools
import os
import shlex
import sys
from pathlib import Path

from bench import ours, peers, report, traffic
from bench.limits import Limits
from bench.peers import Missing

FAST = [name for name, peer in peers.PEERS.items() if peer.most_packets == peers.ALL]
FULL, SNAP = traffic.FULL_BYTES, traffic.SNAP_BYTES
PACKETS, MANY_PACKETS, QUICK_PACKETS = 4_000_000, 20_000_000, 20_000
SCALING_ROUNDS = 7
MATRIX = [  # flows, order, snap; the first is the headline, on which the slow peers run too
    (10_000, "mixed", SNAP),
    *[(flows, order, SNAP) for order in ("mixed", "trains") for flows in (1_000, 100_000, 1_000_000)],
    *[(flows, "mixed", FULL) for flows in (1_000, 10_000, 100_000, 1_000_000)],
    (100_000, "trains", FULL),
]


def arguments():
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 packets, one round, half a minute: does it run?")
    parser.add_argument("--flood", action="store_true", help="only 20 million packets of as many flows, qoetap alone")
    parser.add_argument("--headline", action="store_true", help="only 10,000 flows in snapshots, and IMIX")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="names, by commas (default: all)")
    parser.add_argument("--rounds", type=int, help="turns of each pair (default 3; quick 1)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/latest"), help="folder of the report")
    args = parser.parse_args()
    unknown = set(args.peers.split(",")) - set(peers.PEERS)
    if unknown:
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; known are {', '.join(peers.PEERS)}")
    args.rounds = args.rounds or (1 if args.quick else 3)
    return args


def say(text):
    print(text, file=sys.stderr, flush=True)


def warm(path):
    """Read the file once from the disk, so that everybody finds it in the page cache as any reading leaves it.

    Left there by who wrote it, in small pieces, its bytes may take twice as long to copy.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass


def attempt(results, name, call):
    """What `call` returns, or None and a note under "missing" or "failed"."""
    try:
        return call()
    except Missing as error:
        results["missing"][name] = str(error)
    except RuntimeError as error:
        results["failed"][name] = str(error)
    return None


def whole(path, packets):
    """qoetap's command over all packets of a file; RuntimeError if it did not count them all."""
    run = ours.command(path)
    if run.packets != packets:
        raise RuntimeError(f"qoetap counted {run.packets} packets of {packets}")
    return run


def most_packets(name, case, quick):
    """How many packets of the case a peer gets."""
    most = peers.PEERS[name].most_packets
    return min(most // 20 if quick and most != peers.ALL else most, case.packets)


def capacity_for(case):
    """What tables must be made for: some of their blocks are fuller than others."""
    return case.flows * 5 // 4


def paired(results, name, case, path, quick):
    """One round of one peer: qoetap's command, its kernels, the peer. None if the peer is missing."""
    given = most_packets(name, case, quick)
    source = path if given == case.packets else traffic.head(path, given)
    capacity = capacity_for(case)
    command = attempt(results, "qoetap command", lambda: whole(path, case.packets))
    kernel = attempt(results, "qoetap kernel", lambda: ours.kernel(path, capacity=capacity))
    peer = attempt(results, name, lambda: peers.PEERS[name].run(source, given))
    if peer is None:
        return None
    return {
        "given": given,
        "peer": peer._asdict(),
        "command": command and command._asdict(),
        "kernel_pps": kernel,
        "command_ratio": command and (case.packets / command.wall_s) / (given / peer.loop_s),
        "kernel_ratio": kernel and kernel / (given / peer.loop_s),
    }


def measure(results, case, names, args):
    """One case: every peer, `rounds` times, in turns with qoetap."""
    path = traffic.make(case)
    warm(path)
    rows = {}
    for name in names:
        rounds = [r for _ in range(args.rounds) if (r := paired(results, name, case, path, args.quick))]
        if rounds:
            rows[name] = rounds
            say(f"  {name:<12} {report.mpps(report.summary(rounds)['rate_pps']):>8} Mpps")
    every = [r for rounds in rows.values() for r in rounds]
    mine = {
        "qoetap command": report.median([case.packets / r["command"]["wall_s"] for r in every if r["command"]]),
        "qoetap kernel": report.median([r["kernel_pps"] for r in every]),
    }
    shape = "full IMIX frames" if case.snap == FULL else f"{case.snap}-byte snapshots"
    title = f"{case.packets:,} packets, {case.flows:,} flows, {case.order}, {shape}"
    size = path.stat().st_size
    results["cases"].append({"title": title, **case._asdict(), "bytes": size, "ours": mine, "peers": rows})


def kernels(results, path, capacity, alone=ours.DETECTORS):
    """Decode alone, each detector of `alone`, all detectors: packets per second."""
    sets = {"decode": (), **{name: (name,) for name in alone}, "all": ours.DETECTORS}
    rates = {}
    for name, chosen in sets.items():
        rates[name] = attempt(results, "qoetap kernel", lambda c=chosen: ours.kernel(path, c, 1, capacity))
    return {name: rate for name, rate in rates.items() if rate}


def scaling(results, case, rounds):
    """Rounds of: what the machine gives, and packets per second of one worker, of two, of one with many more flows, in
    the fastest pass of each.
    """
    many = case._replace(flows=case.flows * 100)
    for each in (case, many):
        warm(traffic.make(each))
    limits = Limits()
    runs = {"one": (case, 1), "two": (case, 2), "many": (many, 1)}
    return [limits.now() | {name: kernel_rate(results, *run) for name, run in runs.items()} for _ in range(rounds)]


def kernel_rate(results, case, workers):
    path = traffic.make(case)
    call = functools.partial(ours.kernel, path, workers=workers, capacity=capacity_for(case), of=max)
    return attempt(results, "qoetap kernel", call)


def flood(results):
    """Every packet a new flow: rate, peak memory and ledger of the whole command."""
    path = traffic.make(traffic.Traffic(MANY_PACKETS, MANY_PACKETS, "flood"))
    warm(path)
    stats = {}
    run = attempt(results, "qoetap flood", lambda: ours.command(path, stats=stats))
    if run:
        results["flood"] = {**run._asdict(), "rate_pps": run.packets / run.wall_s, "ledger": stats.get("ledger")}


def cases(args):
    """The traffic cases and the peers of each."""
    names = args.peers.split(",")
    fast = [n for n in names if n in FAST]
    if args.quick:
        small = traffic.Traffic(QUICK_PACKETS, 1_000)
        return [(small, names), (small._replace(snap=FULL), [n for n in names if n in ("tcpdump", "softflowd")])]
    matrix = [spec for spec in MATRIX if not args.headline or spec[:2] == (10_000, "mixed")]
    runs = [(traffic.Traffic(PACKETS, *spec), fast if i else names) for i, spec in enumerate(matrix)]
    many = [n for n in fast if n in ("softflowd", "nfpcapd", "tcpdump")]
    return [*runs, (traffic.Traffic(MANY_PACKETS), many)]


def versions(results, names):
    """What each peer calls itself; the absent are noted."""
    told = {name: attempt(results, name, peers.PEERS[name].version) for name in names}
    return {name: text for name, text in told.items() if text}


def main():
    args = arguments()
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    results = {"command": command, "machine": report.machine(), "mix": report.mix(), "rounds": args.rounds}
    results |= {"missing": {}, "failed": {}, "cases": []}
    results["versions"] = versions(results, args.peers.split(","))
    if args.flood:
        flood(results)
    else:
        for case, names in cases(args):
            say(f"{case.name}")
            measure(results, case, [n for n in names if n in results["versions"]], args)
        first = cases(args)[0][0]
        alone = ours.DETECTORS[:1] if args.quick else ours.DETECTORS  # each takes seconds to start
        results["kernels"] = kernels(results, traffic.make(first), capacity_for(first), alone)
        results["scaling"] = scaling(results, first, 1 if args.quick else SCALING_ROUNDS)
        tiny = traffic.make(traffic.Traffic(10, 10))
        one = ["--detectors", "flow"] if args.quick else []  # to compile all takes a minute
        results["start"] = attempt(results, "qoetap start", lambda: ours.start_up(tiny, args.rounds, *one))
    report.write(results, args.out)
    say(f"report: {args.out}/results.md")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

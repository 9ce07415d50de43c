"""What live measurements write: results.json (all), results.md (tables). Measures nothing."""

import json
import sys

from bench.report import machine, median

HOW = """Two senders at full rate on one side of a veth pair, one reader on the other; {rounds} rounds of {seconds:g} s
in turns, medians. Ring or buffer: {ring} MiB for everybody. "CPU" is user and system time of the reader, from the first
packet until the buffer was empty, for each packet that it took; "whole" has start and end of the program in it.
"missing" are packets that were sent, but neither taken nor counted as dropped. qoetap lets the kernel copy 256 bytes of
a packet (live.snaplen), tcpdump-s256 too, the others take all."""
LATENCY = """From just before an echo reply is sent to its `icmp.rtt` line in the output file. Medians of {rounds}
rounds of {seconds:g} s."""
SOAK = """Conversations of bench/frames.py, {flows:,} at a time, each for 100 s, {rate:,} packets a second for
{seconds:,.0f} s. The verdict is on the last two thirds. Samples: memory.csv, memory.png."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def begin(command, args):
    """The results, still empty."""
    names = ("seconds", "rounds", "ring", "flows", "soak")
    asked = {name: getattr(args, name) for name in names}
    return {
        "command": command,
        "machine": machine(),
        "asked": asked,
        "missing": {},
        "failed": {},
        "sizes": {},
        "versions": {},
    }


def nanoseconds(run, of="cpu_s"):
    """CPU time for each packet taken, None where none was."""
    return run[of] / run["captured"] * 1e9 if run["captured"] else None


def missing(run):
    """Packets that nobody accounts for."""
    return run["sent"] - run["captured"] - run["dropped"]


def in_short(run):
    rate = run["sent"] / run["seconds"] / 1e6
    each = nanoseconds(run)
    cost = f"{each:.0f} ns" if each else "-"
    return f"{rate:.2f} Mpps, dropped {run['dropped']:,}, missing {missing(run):,}, {cost} a packet"


def summary(runs):
    """Medians of one reader at one size."""
    return {
        "rate_pps": median([run["sent"] / run["seconds"] for run in runs]),
        "sent": sum(run["sent"] for run in runs),
        "captured": sum(run["captured"] for run in runs),
        "dropped": sum(run["dropped"] for run in runs),
        "missing": sum(missing(run) for run in runs),
        "exact": all(run["exact"] for run in runs),
        "cpu_ns": median([nanoseconds(run) for run in runs]),
        "whole_ns": median([nanoseconds(run, "whole_cpu_s") for run in runs]),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def table(case):
    """Markdown rows of the readers at one size; the last column is qoetap's CPU time over the reader's."""
    lines = [
        "| | Mpps sent | sent | taken | dropped | missing | CPU ns | whole ns | peak MB | qoetap's CPU / this |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    told = {name: summary(runs) for name, runs in case.items()}
    mine = told.get("qoetap", {}).get("cpu_ns")
    for name, s in told.items():
        ratio = f"{mine / s['cpu_ns']:.3g}" if mine and s["cpu_ns"] else "-"
        counts = (
            f"{s['sent']:,} | {s['captured']:,} | {s['dropped']:,} ({s['dropped'] / s['sent']:.2%}) | {s['missing']:,}"
        )
        costs = " | ".join(f"{value:.0f}" if value else "-" for value in (s["cpu_ns"], s["whole_ns"]))
        peak = s["peak_bytes"] / 1e6
        lines.append(f"| {name} | {s['rate_pps'] / 1e6:.2f} | {counts} | {costs} | {peak:.0f} | {ratio} |")
    return lines


def latency_table(rows):
    lines = ["| live.retire | load | replies | events | median ms | 90 % | 99 % |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if not row["rounds"]:
            continue
        sums = [sum(r[name] for r in row["rounds"]) for name in ("replies", "arrived")]
        waits = [median([r[name] for r in row["rounds"]]) for name in ("p50_ms", "p90_ms", "p99_ms")]
        counts, waits = " | ".join(f"{n:,}" for n in sums), " | ".join(f"{value:.2f}" for value in waits)
        lines.append(f"| {row['retire']} | {row['load_pps']:,} pps | {counts} | {waits} |")
    return lines


def soak_table(soak):
    lines = ["| | found | |", "|---|---|---|"]
    for name, answer in soak["verdict"].items():
        lines.append(f"| {name} | {answer['found']} | {'yes' if answer['good'] else '**no**'} |")
    return lines


def complaints(results):
    """What makes the exit status 1, as sentences."""
    found = [f"{name}: {why}" for name, why in results["failed"].items()]
    for size, case in results["sizes"].items():
        for name, s in ((name, summary(runs)) for name, runs in case.items()):
            if s["missing"] or not s["exact"]:
                found.append(
                    f"{name}, {size}: {s['missing']:,} packets are unaccounted for, or its ledger is not exact"
                )
    answers = results.get("soak", {}).get("verdict", {})
    return found + [f"soak: not {name} ({answer['found']})" for name, answer in answers.items() if not answer["good"]]


def body(results):
    """The lines below the head, whichever was measured."""
    asked = results["asked"]
    if "latency" in results:
        return [LATENCY.format(**asked), "", *latency_table(results["latency"])]
    if "soak" in results:
        soak = results["soak"]
        how = SOAK.format(flows=soak["flows"], rate=soak["rate_pps"], seconds=asked["soak"])
        return [how, "", *soak_table(soak)]
    lines = [", ".join(dict.fromkeys(results["versions"].values())) + ".", "", HOW.format(**asked)]
    for size, case in results["sizes"].items():
        lines += ["", f"## {size}" + (" bytes" if size.isdecimal() else ""), "", *table(case)]
    return lines


def markdown(results):
    """The whole report."""
    m = results["machine"]
    size = f"{m['cores']} cores, {m['memory_bytes'] / 1e9:.0f} GB"
    lines = ["# On an interface", "", f"`{results['command']}`", ""]
    lines += [f"{m['cpu']}, {size}, {m['system']}, Python {m['python']}", "", *body(results)]
    for title, found in (("missing", results["missing"].items()), ("complaints", complaints(results))):
        if found:
            entries = [entry if isinstance(entry, str) else ": ".join(entry) for entry in found]
            lines += ["", f"## {title}", "", *(f"* {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def write(results, folder):
    """Write both files to `folder`, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))

"""What was measured, written down: results.json (all), results.md (tables), rates.png (bars). Measures nothing."""

import json
import os
import platform
import statistics
from pathlib import Path

from bench import frames

HOW = """Medians of {rounds} rounds; in each, qoetap and the peer run one after the other on the same file.
"counted" is what the contender says it processed. The last two columns say how many times faster qoetap was:
its whole command (start included), and its kernels (compiled, the median of three passes),
against the peer's loop."""

SCALING = """Each round: two loops of arithmetic at once against one (what this machine's two cores are worth just then:
2 where each is a core of its own, about 1.3 where both are threads of one), then two workers, and a hundred times as
many flows, both against one worker on the first case. The fastest of three passes counts: a virtual machine's host may
have to find the memory that a pass asks for, and takes longer for it than the pass."""


def machine():
    """CPU, cores, memory and kernel of this machine."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = {"system": platform.platform(), "python": platform.python_version()}
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory, **system}


def mix():
    """The traffic in words."""
    shares = ", ".join(f"{n / 10:g} % {name}" for name, n in zip(frames.NAMES, frames.PER_THOUSAND, strict=True))
    tags = f"one in {frames.IPV6_ONE_IN} IPv6, one in {frames.VLAN_ONE_IN} with an 802.1Q tag"
    sizes = "/".join(str(n) for n in frames.IMIX_BYTES)
    return f"{shares}; {tags}; TCP frames of {sizes} bytes 7:4:1"


def median(values):
    """Median, or None of nothing."""
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def summary(rounds):
    """Medians of one contender's rounds in one case; `rounds` are dicts made by __main__.paired."""
    return {
        "rate_pps": median([r["given"] / r["peer"]["loop_s"] for r in rounds]),
        "cpu_pps": median([r["given"] / r["peer"]["cpu_s"] for r in rounds]),
        "whole_pps": median([r["given"] / r["peer"]["wall_s"] for r in rounds]),
        "rss_bytes": max(r["peer"]["rss_bytes"] for r in rounds),
        "counted": rounds[0]["peer"]["packets"] / rounds[0]["given"],
        "command_ratio": median([r["command_ratio"] for r in rounds]),
        "kernel_ratio": median([r["kernel_ratio"] for r in rounds]),
    }


def mpps(value):
    return "-" if value is None else f"{value / 1e6:.3g}"


def times(value):
    return "-" if value is None else f"{value:.3g}"


def case_table(case):
    """Markdown table of one traffic case."""
    lines = [
        "| | Mpps | per CPU second | whole run | counted | peak MB | qoetap command | qoetap kernel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in case["ours"].items():
        lines.append(f"| **{name}** | {mpps(row)} | | | | | | |")
    for name, rounds in case["peers"].items():
        s = summary(rounds)
        part = "" if rounds[0]["given"] == case["packets"] else f" (first {rounds[0]['given']:,})"
        rates = " | ".join(mpps(s[k]) for k in ("rate_pps", "cpu_pps", "whole_pps"))
        ratios = f"{times(s['command_ratio'])} | {times(s['kernel_ratio'])}"
        lines.append(f"| {name}{part} | {rates} | {s['counted']:.1%} | {s['rss_bytes'] / 1e6:.0f} | {ratios} |")
    return lines


def scaling_table(rounds):
    """Markdown table of what __main__.scaling found, ratios to the one worker of the same round."""
    head = "| | 2 arithmetic loops | 2 workers | 100 x flows | one worker, Mpps | random load, ns |"
    lines = ["", "## More workers, more flows", "", SCALING, "", head, "|---|---|---|---|---|---|"]
    rows = [scaling_row(r) for r in rounds if all(r.values())]
    for i, row in enumerate(rows, 1):
        lines.append(f"| {i} | " + " | ".join(f"{x:.2f}" for x in row) + " |")
    if rows:
        middle = [median(column) for column in zip(*rows, strict=True)]
        lines.append("| **median** | " + " | ".join(f"{x:.2f}" for x in middle) + " |")
    return lines


def scaling_row(r):
    return r["two_cores"], r["two"] / r["one"], r["many"] / r["one"], r["one"] / 1e6, r["load_ns"]


def markdown(results):
    """The whole report as Markdown text."""
    m = results["machine"]
    lines = ["# Packets per second", "", f"`{results['command']}`", ""]
    size = f"{m['cores']} cores, {m['memory_bytes'] / 1e9:.0f} GB"
    lines += [f"{m['cpu']}, {size}, {m['system']}, Python {m['python']}", ""]
    lines += [", ".join(results["versions"].values()) + ".", "", f"Traffic: {results['mix']}.", ""]
    lines += [HOW.format(rounds=results["rounds"])]
    for case in results["cases"]:
        lines += ["", f"## {case['title']}", "", f"{case['bytes'] / 1e6:.0f} MB.", ""]
        lines += case_table(case)
    if results.get("scaling"):
        lines += scaling_table(results["scaling"])
    for title in ("kernels", "start", "flood"):
        if results.get(title):
            lines += ["", f"## {title}", "", "```json", json.dumps(results[title], indent=1), "```"]
    for title in ("missing", "failed"):
        if results[title]:
            lines += ["", f"## {title}", "", *(f"* {name}: {why}" for name, why in results[title].items())]
    return "\n".join(lines) + "\n"


def plot(results, path):
    """Bars on a logarithmic axis: each contender in each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for case in results["cases"] if case["peers"]]
    names = list(dict.fromkeys(n for c in cases for n in [*c["ours"], *c["peers"]]))
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.35 * len(names) * max(1, len(cases) / 4)))
    for i, case in enumerate(cases):
        rates = {**case["ours"], **{n: summary(r)["rate_pps"] for n, r in case["peers"].items()}}
        known = [n for n in names if rates.get(n)]
        places = [names.index(n) + (i - len(cases) / 2) * 0.8 / len(cases) for n in known]
        axes.barh(places, [rates[n] for n in known], 0.8 / len(cases), label=case["title"])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("packets per second")
    axes.grid(axis="x", alpha=0.4)
    axes.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write(results, folder):
    """Write the three files to `folder`, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))
    if results["cases"]:
        plot(results, folder / "rates.png")

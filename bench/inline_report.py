"""What the measurements of `qoetap inline` write: results.json (all), results.md (tables). Measures nothing."""

import json

from bench.report import machine

HOW = """Sender, router and receiver are network namespaces on the same cores; the firewall hands what the router
forwards to one queue. Rounds of {seconds:g} s: {rounds}. UDP packets have 500 bytes. `missing` are packets that were
sent, but neither arrived nor were counted as dropped. "Two cores" is how many times the work of one two threads did
just before each part (bench/limits.py)."""


def begin(command, args):
    """The results, still empty."""
    asked = {name: getattr(args, name) for name in ("seconds", "rounds", "quick")}
    empty = {name: {} for name in ("limits", "parts", "missing", "failed")}
    return {"command": command, "machine": machine(), "asked": asked, **empty}


def complaints(results, parts):
    """What makes the exit status 1, as sentences."""
    lost = {name: parts[name].missing(found) for name, found in results["parts"].items()}
    told = [f"{name}: {why}" for name, why in results["failed"].items()]
    return told + [f"{name}: {count:,} packets are unaccounted for" for name, count in lost.items() if count]


def section(name, part, found):
    """The lines of one part: its title, its table, what was asked."""
    title = part.__doc__.splitlines()[0]
    told = ["", f"## {name}", "", title, "", *part.lines(found), "", "| asked | found | |", "|---|---|---|"]
    return told + [f"| {asked} | {text} | {'yes' if good else '**no**'} |" for asked, text, good in part.verdict(found)]


def markdown(results, parts):
    """The whole report. parts: modules by name."""
    m = results["machine"]
    size = f"{m['cores']} cores, {m['memory_bytes'] / 1e9:.0f} GB"
    lines = ["# On the path", "", f"`{results['command']}`", ""]
    lines += [f"{m['cpu']}, {size}, {m['system']}, Python {m['python']}", "", HOW.format(**results["asked"])]
    lines += [
        "",
        "Two cores: "
        + ", ".join(f"{name} {found['two_cores']:.2f}" for name, found in results["limits"].items())
        + ".",
    ]
    for name, found in results["parts"].items():
        lines += section(name, parts[name], found)
    absent = [f"{name}: {why}" for name, why in results["missing"].items()]
    for title, entries in (("missing", absent), ("complaints", complaints(results, parts))):
        if entries:
            lines += ["", f"## {title}", "", *(f"* {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def write(results, parts, folder):
    """Write both files to `folder`, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results, parts))

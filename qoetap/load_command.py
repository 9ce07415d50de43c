"""`qoetap load learn`: a labelled file in, a load model out. Options, files and what is printed."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from controlplane import load as loads
from qoetap.exits import DONE, INPUT, RUN_ERROR, USAGE, Exit
from qoetap.say import say

TIME_MAX_ns = 2**63 - 1
HELD_MAX_seconds = 86400
OF_CALIBRATE = ("rate", "levels", "seconds", "random", "seed", "samples", "folder")  # options
HEAD = f"{'load':>6} {'samples':>8} {'median us':>12} {'fitted us':>12}  class"


class Labelled(NamedTuple):
    """Samples of a labelled file: columns, and the line that each is from. ts_ns is None where no line tells it."""

    name: str
    line: list
    delay_ns: list
    load: list
    ts_ns: list | None


def load(args):
    """The command; its exit status."""
    if not 0 < args.held <= HELD_MAX_seconds:
        raise Exit(USAGE, f"--held {args.held:g}: choose more than 0, {HELD_MAX_seconds} at most")
    if args.what == "calibrate":
        from qoetap import calibrate

        return calibrate.calibrate(args)
    return learn(args)


def learn(args):
    for name in OF_CALIBRATE:
        if getattr(args, name) is not None:
            raise Exit(USAGE, f"--{name} is for calibrate: learn takes the samples of FILE as they are")
    if args.file is None:
        raise Exit(USAGE, "learn needs a labelled file: qoetap load learn FILE -o model.json")
    if args.plot:
        from qoetap.lab_plot import check_plot

        check_plot(Path(args.plot))
    samples = read(args.file, args.path)
    trace = read(args.trace, args.path) if args.trace else None
    fit = fitted(samples, trace, args.kind, args.held)
    finish(args, fit, samples)
    return DONE


def finish(args, fit, samples):
    """What is shown, said, written and drawn of a fit."""
    for line in [json.dumps(as_json(fit), indent=1)] if args.json else lines_of(fit):
        print(line)
    for sentence in remarks(fit):
        say(sentence)
    if args.output:
        write(fit.model, args.output)
    if args.plot:
        from qoetap import load_plot

        load_plot.plot(fit, samples.delay_ns, samples.load, Path(args.plot))


def fitted(samples, trace, kind, held_s):
    """The Fit of Labelled samples. Exit: one sentence that names the file, and the line where there is one."""
    parts = (samples, trace) if trace else (samples,)
    for part in parts:
        try:
            loads.check_samples(part.delay_ns, part.load)
        except loads.BadSample as error:
            raise Exit(INPUT, f"{part.name}, line {part.line[error.at]}: {error.sentence}") from error
    if trace and trace.ts_ns is None:
        raise Exit(INPUT, f"{trace.name}: a trace needs ts_ns")
    steps = (trace.delay_ns, trace.load, trace.ts_ns) if trace else None
    try:
        fit = loads.learn(samples.delay_ns, samples.load, samples.ts_ns, kind=kind, trace=steps, held_s=held_s)
    except ValueError as error:
        raise Exit(RUN_ERROR, f"{samples.name}: {error}") from error
    return replace(fit, model=replace(fit.model, made=f"qoetap load learn {Path(samples.name).name[:200]}"))


def as_labelled(name, samples):
    """Labelled samples, dicts as they stand in a file, one a line, without the file."""
    columns_ = [[sample[key] for sample in samples] for key in ("delay_ns", "load", "ts_ns")]
    return Labelled(name, list(range(1, len(samples) + 1)), *columns_)


def read(name, path=None):
    """Labelled samples of a file (-: stdin), JSON lines or CSV with a header; of one path only. Exit: what is wrong."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except OSError as error:
        raise Exit(INPUT, f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Exit(INPUT, f"{name}: this is no text, but JSON lines or CSV is needed") from error
    rows = json_rows(name, text) if text.lstrip()[:1] == "{" else csv_rows(name, text)
    kept = [(line, row) for line, row in rows if path is None or row.get("path") == path]
    if not kept:
        raise Exit(INPUT, f"{name}: there are no samples in it" + (f" of the path {path}" if path else ""))
    one_path(name, kept)
    return columns(name, kept)


def one_path(name, rows):
    found = sorted({str(row["path"]) for _, row in rows if row.get("path")})
    if len(found) > 1:
        raise Exit(USAGE, f"{name}: samples of several paths: choose one with --path, such as {found[0]}")


def json_rows(name, text):
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Exit(INPUT, f"{name}, line {number}: this is no JSON") from error
        if not isinstance(row, dict):
            raise Exit(INPUT, f"{name}, line {number}: this is no JSON object")
        yield number, row


def csv_rows(name, text):
    reader = csv.DictReader(text.splitlines())
    if not {"delay_ns", "load"} <= header_of(reader):
        raise Exit(INPUT, f"{name}, line 1: JSON lines or a CSV header with delay_ns and load is needed")
    try:
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key and value}
    except csv.Error as error:
        raise Exit(INPUT, f"{name}, line {reader.line_num}: {error}") from error


def header_of(reader):
    """Names of the columns, none if the first line is no CSV: a JSON array, say, is too long for a field."""
    try:
        return set(reader.fieldnames or ())
    except csv.Error:
        return set()


def columns(name, rows):
    has_times = any("ts_ns" in row for _, row in rows)
    ts_ns = [whole(name, line, row, "ts_ns") for line, row in rows] if has_times else None
    delay_ns = [number(name, line, row, "delay_ns") for line, row in rows]
    load = [number(name, line, row, "load") for line, row in rows]
    return Labelled(name, [line for line, _ in rows], delay_ns, load, ts_ns)


def number(name, line, row, field):
    try:
        value = row[field]
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except KeyError as error:
        raise Exit(INPUT, f"{name}, line {line}: there is no {field}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise Exit(INPUT, f"{name}, line {line}: {field} is no number") from error


def whole(name, line, row, field):
    number(name, line, row, field)
    value = row[field]
    try:
        if isinstance(value, float) or not -TIME_MAX_ns <= int(value) <= TIME_MAX_ns:
            raise ValueError
        return int(value)
    except ValueError as error:
        raise Exit(INPUT, f"{name}, line {line}: {field} is no whole number of ns") from error


def write(model, output):
    try:
        Path(output).write_text(json.dumps(loads.to_document(model), indent=1) + "\n")
    except OSError as error:
        raise Exit(USAGE, f"-o {output}: {error.strerror}") from error
    say(f"the model is in {output}")


def as_json(fit):
    """The fit as a dict that json.dumps takes."""
    return {
        "model": loads.to_document(fit.model),
        "levels": [level._asdict() for level in fit.levels],
        "cross_validation": fit.scores,
        "r2_medians": fit.r2_medians,
        "left_out": fit.left_out,
        "rmse": fit.rmse,
    }


def lines_of(fit):
    """The fit for a person: a line a level, then the result."""
    yield HEAD
    for row in fit.levels:
        mark = "" if row.in_fit else "  not in the fit"
        times = f"{row.delay_ns / 1e3:12.1f} {row.fitted_ns / 1e3:12.1f}"
        yield f"{row.load:6.3f} {row.samples:8d} {times}  {row.class_}{mark}"
    model = fit.model
    yield ""
    yield f"kind       {model.kind}" + (f", {model.curve.shape}" if model.curve else "")
    yield f"fit        a {model.a_ns:.6g} ns, b {model.b:.4f}"
    yield f"R2         {model.r2:.3f} of the delays, {fit.r2_medians:.3f} of the medians"
    yield f"low        {model.low:.3f}"
    jump = "" if model.congestion_found else ", half way to full load, as no level's delay jumps"
    yield f"congested  {model.congested:.3f}{jump}"
    yield f"filter     {filter_text(model)}"
    yield f"w          {model.w:.2f} for samples {model.interval_s:.3g} s apart"
    yield "left-out levels, RMSE of the load: " + ", ".join(f"{name} {score:.4f}" for name, score in fit.scores.items())
    if fit.rmse:
        told = ", ".join(f"{name} {score:.3f}" for name, score in fit.rmse.items() if score is not None)
        yield f"smoothed, RMSE of the load: {told}"


def filter_text(model):
    """What is taken of the last delays."""
    if model.samples == 1:
        return "none, each delay counts"
    return f"{model.percentile:g} % percentile of {model.samples} delays"


def remarks(fit):
    """Sentences about what the file does not tell."""
    if fit.left_out:
        yield f"{fit.left_out} samples are at loads with too few of them, or in stretches shorter than the filter"
    if fit.rmse is None:
        yield (
            f"w {fit.model.w:g} and no filter are taken unseen: to choose them the samples need ts_ns and a load that "
            "changes, in FILE or in that of --trace"
        )

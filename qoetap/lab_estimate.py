"""`qoetap lab load`: how well load is told from PTP delay.

A model is learned on one run of ptp4l over a bottleneck; then, in another one with random loads, `qoetap live` at the
slave posts to `qoetap serve`, and its answers are held against what was really sent.
"""

import json
import random
import time
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from controlplane import load as loads
from qoetap import lab_load, load_command
from qoetap.bitrates import rate_text
from qoetap.lab_ptp import OnePath
from qoetap.lab_serve import Service
from qoetap.lab_site import begin_ns, tried
from qoetap.say import say

LEARN_SEED, KIND = 1, "monotone"
ASK_seconds = 0.5
CONCERNED = 0.3  # loads from there on count in the target
STEADY_seconds = 5.0  # after a change of load


class Point(NamedTuple):
    """An answer of GET /v1/load, and what was true at its last sample."""

    asked_s: float  # since the load began
    at_s: float  # its last sample, the same
    since_s: float  # the load had been held so long then
    sent: float
    load: float | None
    low: float | None
    high: float | None
    class_: str


class Score(NamedTuple):
    """How good the answers are. Loads above 1 count as 1; rmse: of the load."""

    answers: int
    unknown: int  # answers without a load
    rmse: float
    rmse_concerned: float  # of loads from CONCERNED on
    rmse_by_class: dict  # by the class of the load that was sent
    right: float  # share of answers with the right class
    steady: float  # the same, of answers STEADY_seconds and more after a change
    rmse_steady: float  # of loads from CONCERNED on, the same
    covered: float  # share of answers whose interval holds the load
    lag_s: float  # median age of the last sample in an answer


class Run(NamedTuple):
    """One rate: the Fit it was learned in, the answers, (since, until, load) of each step, what the bottleneck did."""

    rate_bps: int
    fit: object
    points: list
    steps: list
    said: str


def learn(folder, rate_bps, kind, seconds=lab_load.LEVEL_seconds):
    """The Fit of a run with lab_load.LEVELS, each held for `seconds`, in an order drawn by LEARN_SEED."""
    levels = list(lab_load.LEVELS)
    random.Random(LEARN_SEED).shuffle(levels)
    say(f"{rate_text(rate_bps)}: learning from {len(levels)} loads, {len(levels) * seconds:g} s")
    run = lab_load.record(folder, rate_bps, [(level, seconds) for level in levels], LEARN_SEED)
    samples = load_command.as_labelled("the lab", list(lab_load.labelled(run)))
    return load_command.fitted(samples, None, kind, lab_load.HELD_seconds)


def write_model(folder, fit):
    """The file of the model, in the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.json"
    path.write_text(json.dumps(loads.to_document(fit.model), indent=1) + "\n")
    return path


def watch(path, service, begin, seconds):
    """[(asked_ns, Reading)] of the only path, every ASK_seconds until so long after `begin`."""
    name, found = service.path_names(1)[0], []
    for number in range(round(seconds / ASK_seconds)):
        time.sleep(max(0.0, begin / 1e9 + number * ASK_seconds - time.time()))
        asked = time.time_ns()
        found.append((asked, service.get("/v1/load", path=name)))
    return found


def run_once(folder, rate_bps, fit, seconds, seed):
    """The Run of random loads with the model of `fit`."""
    model = write_model(folder, fit)
    steps = lab_load.random_steps(seed, seconds)
    say(f"{rate_text(rate_bps)}: {len(steps)} random loads, {seconds:g} s")
    with OnePath(folder, rate_bps) as path:
        service = Service(path, ["--model", model])
        path.tap(output=service.url("/v1/events"))
        service.await_samples()
        begin, before = begin_ns(), path.passed()
        sender = path.load(steps, begin, seed)
        answers = watch(path, service, begin, seconds)
        sender.finish(60)
        counted = path.passed_since(before)
    lines = lab_load.told_slots(sender, steps)
    held = lab_load.held(steps, lines, begin, rate_bps)
    said = lab_load.traffic(sum(line["bytes"] for line in lines), counted)
    return Run(rate_bps, fit, points_of(answers, held), relative(held), said)


def relative(held):
    begin = held[0].begin_ns
    return [((step.begin_ns - begin) / 1e9, (step.end_ns - begin) / 1e9, min(step.sent, 1.0)) for step in held]


def points_of(answers, held):
    """Points of (asked_ns, Reading), those whose last sample is from before the load began left out."""
    begins, found = [step.begin_ns for step in held], []
    for asked, reading in answers:
        at_ns = reading["last_ns"] or 0
        number = bisect_right(begins, at_ns) - 1
        if number < 0 or at_ns >= held[-1].end_ns:
            continue
        times = [(t - begins[0]) / 1e9 for t in (asked, at_ns)]
        told = [reading[name] for name in ("load", "load_low", "load_high", "class")]
        found.append(Point(*times, (at_ns - begins[number]) / 1e9, min(held[number].sent, 1.0), *told))
    return found


def score(run):
    """The Score of a Run."""
    told = [point for point in run.points if point.load is not None]
    sent, load = (np.array([getattr(point, name) for point in told], float) for name in ("sent", "load"))
    steady = np.array([point.since_s >= STEADY_seconds for point in told])
    right = np.array([point.class_ == loads.class_of(run.fit.model, point.sent) for point in told])
    concerned, unknown = sent >= CONCERNED, len(run.points) - len(told)
    return Score(
        answers=len(run.points),
        unknown=unknown,
        rmse=rmse(sent, load),
        rmse_concerned=rmse(sent[concerned], load[concerned]),
        rmse_by_class=loads.rmse_by_class(sent, load, run.fit.model),
        right=float(right.sum() / len(run.points)),
        steady=float(right[steady].mean()),
        rmse_steady=rmse(sent[concerned & steady], load[concerned & steady]),
        covered=float(np.mean([point.low <= point.sent <= point.high for point in told])),
        lag_s=float(np.median([point.asked_s - point.at_s for point in told])),
    )


def rmse(sent, load):
    return float(np.sqrt(np.mean((sent - load) ** 2)))


def run_all(folder, rates_bps, seconds, seed, kind):
    """A Run of each rate."""
    return at_each_rate(folder, rates_bps, kind, "test", run_once, seconds, seed)


def at_each_rate(folder, rates_bps, kind, name, experiment, *args):
    """What experiment(folder, rate_bps, Fit, *args) returns at each rate; the Fit is learned there just before."""
    found = []
    for rate_bps in rates_bps:
        place = folder / rate_text(rate_bps)
        fit = tried(learn, place / "learn", rate_bps, kind)
        found.append(tried(experiment, place / name, rate_bps, fit, *args))
    return found


def lines_of(runs):
    """The table, for a person."""
    for run in runs:
        found, model = score(run), run.fit.model
        yield f"{rate_text(run.rate_bps)}: {found.answers} answers over {run.steps[-1][1]:g} s, {len(run.steps)} loads"
        yield from (f"  {line}" for line in load_command.lines_of(run.fit))
        by_class = ", ".join(f"{name} {value:.3f}" for name, value in found.rmse_by_class.items() if value is not None)
        yield f"  congestion point {model.congested:.2f}, low below {model.low:.2f}"
        yield f"  RMSE of the load: {by_class}; of loads from {CONCERNED:g} on {found.rmse_concerned:.3f}"
        yield f"  class right: {100 * found.right:.1f} %"
        yield (
            f"  {STEADY_seconds:g} s and more after a change: RMSE from {CONCERNED:g} on {found.rmse_steady:.3f}, "
            f"class right {100 * found.steady:.1f} %"
        )
        yield f"  the interval holds the load in {100 * found.covered:.1f} % of answers; {found.unknown} had no load"
        yield f"  an answer's last sample is {found.lag_s:.1f} s old (median)"
        yield f"  {run.said}"


def as_json(runs):
    """The same for a program."""
    return {
        "runs": [
            {
                "rate_bps": run.rate_bps, **score(run)._asdict(), "fit": load_command.as_json(run.fit),
                "steps": run.steps, "points": [point._asdict() for point in run.points],
            }
            for run in runs
        ]
    }  # fmt: skip

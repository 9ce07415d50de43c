"""`qoetap lab pages`: page load time against estimated load, for a page with its objects and for a large file.

Per load, in an order drawn by the seed: it is sent until it is told apart from the one before, the estimate is asked
for, and then the page, or the file, is loaded beside it. The load is UDP and does not yield; TCP gets what is left.
"""

import random
import time
from typing import NamedTuple

import numpy as np

from endhost.webpages import PORT
from qoetap.bitrates import rate_text
from qoetap.exits import RUN_ERROR, Exit
from qoetap.lab_estimate import at_each_rate, write_model
from qoetap.lab_ptp import OnePath
from qoetap.lab_serve import Service
from qoetap.lab_site import begin_ns
from qoetap.say import say

CONTENTS = {"page": "/", "file": "/file.bin"}
LOADS = tuple(round(0.05 * number, 2) for number in range(19))  # 0 to 0.9
SETTLE_seconds = 5.0  # from the beginning of a load until the estimate is asked for
ASKED, ASK_seconds = 8, 0.5  # the mean of so many answers, so far apart, is the estimate
LONGEST_seconds = 600  # 30 MB over what a load of 0.9 leaves of 10 Mbit/s take 250


class Point(NamedTuple):
    """A page, or a file, that was loaded."""

    content: str
    sent: float  # load that was asked for
    load: float  # estimated just before, for ASKED * ASK_seconds
    seconds: float


class Run(NamedTuple):
    """All of one rate."""

    rate_bps: int
    points: list


def probe(path, service, name, content, level, seed):
    """The Point of a content beside a load of `level`."""
    begin = begin_ns()
    sender = path.load([(level, LONGEST_seconds)], begin, seed)
    time.sleep(max(0.0, begin / 1e9 + SETTLE_seconds - time.time()))
    load = estimated(service, name)
    url = f"http://{path.sides[0].sender_place.ipv4}:{PORT}{CONTENTS[content]}"
    report = {"url": service.url("/v1/page-loads"), "path": name, "content": content}
    prober = path.agent(path.sides[0].receiver, "pages", url=url, begin_ns=0, every_s=0, count=1, report=report)
    prober.finish(LONGEST_seconds)
    sender.stop()
    return Point(content, level, load, prober.lines()[0]["seconds"])


def estimated(service, name):
    """Mean load in ASKED answers. Exit: one has none."""
    found = []
    for _ in range(ASKED):
        time.sleep(ASK_seconds)
        reading = service.get("/v1/load", path=name)
        if reading["load"] is None:
            raise Exit(RUN_ERROR, f"qoetap serve tells no load: {reading['reason']}")
        found.append(reading["load"])
    return sum(found) / ASKED


def run_once(folder, rate_bps, fit, seed):
    """The Run of all contents at all LOADS."""
    model = write_model(folder, fit)
    todo = [(content, level) for content in CONTENTS for level in LOADS]
    random.Random(seed).shuffle(todo)
    with OnePath(folder, rate_bps) as path:
        service = Service(path, ["--model", model])
        path.source("webpages")
        path.tap(output=service.url("/v1/events"))
        service.await_samples()
        (name,) = service.path_names(1)
        found = []
        for number, (content, level) in enumerate(todo, 1):
            found.append(probe(path, service, name, content, level, seed + number))
            say(f"{number} of {len(todo)}: {content} beside {level:g}: {found[-1].seconds:.1f} s")
    return Run(rate_bps, found)


def run_all(folder, rates_bps, seed, kind):
    """A Run of each rate."""
    return at_each_rate(folder, rates_bps, kind, "pages", run_once, seed)


def ranks(values):
    """Ranks from 0; equal values share the mean of theirs."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[group]


def rank_correlation(points):
    """Spearman's, of estimated load and seconds."""
    return float(np.corrcoef(ranks([p.load for p in points]), ranks([p.seconds for p in points]))[0, 1])


def of_content(run, content):
    return sorted((point for point in run.points if point.content == content), key=lambda point: point.sent)


def lines_of(runs):
    """The table, for a person."""
    for run in runs:
        yield f"{rate_text(run.rate_bps)}"
        for content in CONTENTS:
            points = of_content(run, content)
            yield f"  {content}: rank correlation of estimated load and seconds {rank_correlation(points):.3f}"
            yield f"  {'sent':>6} {'estimated':>10} {'seconds':>8}"
            for point in points:
                yield f"  {point.sent:6.2f} {point.load:10.3f} {point.seconds:8.2f}"


def as_json(runs):
    """The same for a program."""
    return {
        "runs": [
            {
                "rate_bps": run.rate_bps,
                "rank_correlation": {content: rank_correlation(of_content(run, content)) for content in CONTENTS},
                "points": [point._asdict() for point in run.points],
            }
            for run in runs
        ]
    }

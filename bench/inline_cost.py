"""What a verdict costs: `qoetap inline` in turns with a Python callback of NetfilterQueue, on the same queue."""

import functools
import json
import sys
import tempfile
import time

from bench.inline_accuracy import OVERLOAD, RATE_pps
from bench.inline_parts import (
    BITS,
    MOST,
    QUEUE,
    Inline,
    Load,
    Looking,
    arrived,
    classes,
    queue_counts,
    router,
    under_load,
)
from bench.live_parts import ROOT
from bench.live_report import say
from bench.peers import package
from bench.report import median

OURS, PEER = "qoetap", "NetfilterQueue"
ACCEPT = "accept"
FLOOD_PORTS, FLOODERS = 1000, 2  # one alone can be slower than who looks after the queue, which then is empty
COUNTS, QUICK_COUNTS = (10, 100), (10,)  # of paced classes
RATE_BAR, CPU_BAR = 0.8, 1.2


class Peer(Looking):
    """The loop around NetfilterQueue; with a rate it retains packets."""

    def __init__(self, street, rate=None):
        options = [QUEUE, MOST, *([rate] if rate else [])]
        super().__init__(street, [sys.executable, "-I", ROOT / "bench" / "nfqueue_loop.py", *options], "ready")

    def seen(self):
        """Packets that it got, as it says at the end."""
        return json.loads(self.text.splitlines()[-1])["packets"]


class Now:
    """What has been until now: seconds, packets that got a verdict, packets behind the router, CPU seconds."""

    def __init__(self, street, looking):
        counts = queue_counts(street)
        self.at, self.arrived, self.cpu_s = time.perf_counter(), arrived(street), looking.cpu_seconds()
        self.queued = counts.last_id - counts.lost  # ids are given to what is put into the queue
        self.judged, self.waiting = self.queued - counts.waiting, counts.waiting

    def since(self, before):
        """Differences to an earlier Now, as a dict; `waiting`: packets in the queue, at first and now, at least."""
        found = {name: getattr(self, name) - getattr(before, name) for name in ("arrived", "cpu_s", "judged")}
        return {"seconds": self.at - before.at, "waiting": min(self.waiting, before.waiting), **found}


def run(street, start, ports, seconds, rate=None):
    """One turn of who `start(folder)` makes look after the queue; rate: packets a second, None: a flood."""
    with tempfile.TemporaryDirectory() as folder:
        load = Load(street, ports, seconds + 2, rate, 1 if rate else FLOODERS)
        with start(folder) as looking, load:
            under_load(looking, load)
            before = Now(street, looking)
            time.sleep(seconds)
            found = Now(street, looking).since(before)
            told = load.finish()
            looking.drained()
            queued = Now(street, looking).queued
            looking.stop()
            if (seen := looking.seen()) != queued:
                raise RuntimeError(f"{seen:,} of {queued:,} packets were seen that were in the queue")
    return found | {"sent_pps": told["sent"] / told["seconds"]}


def turns(args, case):
    """{who: [what `run` found in each round]} of ACCEPT or of so many classes."""
    found = {PEER: [], OURS: []}
    with router() as street:
        for _ in range(args.rounds):
            for who, runs in found.items():
                runs.append(turn(street, who, case, args.seconds))
                say(f"  {case:>6} {who:<15} {in_short(case, runs[-1])}")
    return found


def turn(street, who, case, seconds):
    """One turn of one of the two."""
    if case == ACCEPT:
        ports, load, rate, more = FLOOD_PORTS, None, None, {"held": MOST}
    else:
        ports, load, rate = int(case), RATE_pps * OVERLOAD, RATE_pps // int(case) * BITS
        more = {
            "classes": classes(ports, rate),
            "delay_bound": "0s",
        }  # nothing passes by, whatever else the machine does

    def start(folder):
        return Inline(street, folder, **more) if who == OURS else Peer(street, rate)

    return run(street, start, ports, seconds, load)


def measure(args):
    """{ACCEPT or number of classes: {who: [what `run` found in each round]}}. Missing: there is no peer."""
    package(PEER)()
    cases = [ACCEPT, *(QUICK_COUNTS if args.quick else COUNTS)]
    return {str(case): turns(args, str(case)) for case in cases}


def microseconds(case, found):
    """CPU time of a packet: of one with a verdict, or of one that was paced and arrived."""
    return found["cpu_s"] / found["judged" if case == ACCEPT else "arrived"] * 1e6


def in_short(case, found):
    sent = f"{found['sent_pps']:,.0f} sent, {found['waiting']:,} waiting"
    return f"{speed(found):,.0f} verdicts a second, {microseconds(case, found):.2f} us of CPU a packet ({sent})"


def ratios(runs, of):
    """qoetap's over the peer's in each round; of: a function of a run."""
    return [of(ours) / of(theirs) for ours, theirs in zip(runs[OURS], runs[PEER], strict=True)]


def sending(run):
    return run["sent_pps"]


def speed(run):
    return run["judged"] / run["seconds"]


def arriving(run):
    return run["arrived"] / run["seconds"]


def lines(found):
    """The table."""
    told = ["| classes | | sent a second | waiting at least | verdicts a second | arrived a second | CPU us a packet |"]
    told[0] += " verdicts a second, qoetap's / this | CPU a packet, qoetap's / this |"
    told += ["|" + "---|" * 9]
    for case, runs in found.items():
        cost = functools.partial(microseconds, case)
        for who, them in runs.items():
            rates = [f"{median(map(of, them)):,.0f}" for of in (sending, speed, arriving)]
            rates.insert(1, f"{min(run['waiting'] for run in them):,}")
            pair = {OURS: runs[OURS], PEER: them}
            compared = " | ".join(f"{median(ratios(pair, of)):.3g}" for of in (speed, cost))
            title = "none, all accepted" if case == ACCEPT else case
            told.append(f"| {title} | {who} | {' | '.join(rates)} | {median(map(cost, them)):.2f} | {compared} |")
    return told


def verdict(found):
    """[(what is asked, what was found, whether it is good)]."""
    told = []
    for case, runs in found.items():
        if case == ACCEPT:
            ratio = median(ratios(runs, speed))
            good = ratio >= RATE_BAR
            asked = f"verdicts a second at least {RATE_BAR} of NetfilterQueue's"
        else:
            ratio = median(ratios(runs, functools.partial(microseconds, case)))
            good = ratio <= CPU_BAR
            asked = f"{case} classes: CPU of a paced packet at most {CPU_BAR} of the loop's"
        told.append((asked, f"{ratio:.3g}", good))
    return told


def missing(found):
    """With the queue full packets pass by or are dropped by the kernel, and none is looked for."""
    return 0

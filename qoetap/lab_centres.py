"""`qoetap lab centres`: two data centres, one of which gets loaded, and where `qoetap dns` sends users meanwhile.

Both have some load all the time, so that there is noise; then the first gets much more, for a while. At last the
service is killed, and the DNS goes on alone. All this with many samples a second, and again with one in four seconds:
so few tell much less, so the load must be higher to be seen at once.
"""

from collections import Counter
from typing import NamedTuple

import yaml

from endhost.askers import NETWORK
from qoetap.bitrates import rate_text
from qoetap.lab_estimate import at_each_rate, write_model
from qoetap.lab_ptp import LOG_INTERVAL, TwoPaths
from qoetap.lab_serve import Service
from qoetap.lab_site import begin_ns
from qoetap.say import say
from qoetap.street import OTHER_SENDER, SENDER

NAME, FALLBACK = "video.example.com", "192.0.2.1"  # RFC 6761, RFC 5737
CENTRES = (SENDER.ipv4, OTHER_SENDER.ipv4)
LISTEN = ("127.0.0.1", 5300)
DNS_READY = "TERM or INT ends it"
QUIET = 0.3
BEFORE_seconds, LOADED_seconds, AFTER_seconds, ALONE_seconds = 60, 60, 120, 15
EVERY_seconds = 0.05
START_seconds = 10  # of the service; meanwhile near-equals find together
WINDOW_seconds = 1.0  # over which a share of users is taken
MOVED = 0.95


class Case(NamedTuple):
    """log_interval: log2 of the seconds between samples; loaded: load of the first data centre, for a while."""

    log_interval: int
    loaded: float

    @property
    def interval_s(self):
        return 2.0**self.log_interval

    @property
    def text(self):
        slow = self.interval_s > 1
        return f"a sample each {self.interval_s:g} s" if slow else f"{1 / self.interval_s:g} samples a second"


CASES = (Case(LOG_INTERVAL, 0.9), Case(2, 1.1))


class Answer(NamedTuple):
    """What a user was told."""

    at_s: float  # since the beginning
    user: tuple
    regular: bool
    address: str | None


class Run(NamedTuple):
    """What came of a run."""

    rate_bps: int
    case: Case
    answers: list
    killed_s: float


class Score(NamedTuple):
    """How users were sent. Seconds after the change of load; None: it did not happen."""

    moved_s: float | None  # from then on at least MOVED of new users go to the other one, until the load ends
    moved_share: float  # of new users, from then on until the load ends
    back_s: float | None  # the first new user who is sent to the first one again; None too if nobody left it
    back_share: float  # of new users sent to it, from then on
    flaps: dict  # phase: how often regular users were moved, but for once each after a change of load
    unanswered: int
    alone_answered: float  # share of queries answered once the service was killed


def configuration(clocks, interval_s):
    """The file that `qoetap serve` and `qoetap dns` share. clocks: clockIdentity of each side's master."""
    every = {"interval": f"{1000 * interval_s:g}ms"}
    paths = [
        {"name": f"edge-{number}", "agent": f"edge{number}", "master_clock": clock, "domain": number, **every}
        for number, clock in enumerate(clocks)
    ]
    centres = [
        {"name": f"centre-{number}", "addresses": [address], "paths": {"edge": f"edge-{number}"}}
        for number, address in enumerate(CENTRES)
    ]
    serve = {"paths": paths, "data_centres": centres}
    serve["aggregations"] = [{"name": "edge", "prefixes": [f"{NETWORK}.0.0.0/8"]}]
    names = [{"name": NAME, "content": "page", "fallback": [FALLBACK]}]
    return {"serve": serve, "dns": {"listen": [":".join(map(str, LISTEN))], "names": names}}


def clock_of(place):
    """clockIdentity that ptp4l makes of a link-layer address (IEEE 1588-2008, 7.5.2.2.2)."""
    digits = place.mac.replace(":", "")
    return f"{digits[:6]}fffe{digits[6:]}"


def run_once(folder, rate_bps, fit, seed, case):
    """The Run. Exit if something fails."""
    model, config = write_model(folder, fit), folder / "site.yaml"
    config.write_text(yaml.safe_dump(configuration([clock_of(SENDER), clock_of(OTHER_SENDER)], case.interval_s)))
    watched = BEFORE_seconds + LOADED_seconds + AFTER_seconds
    say(f"{rate_text(rate_bps)}: two data centres, {case.text}, {watched + ALONE_seconds} s")
    with TwoPaths(folder, rate_bps, case.log_interval) as paths:
        service = Service(paths, ["-c", config, "--model", model])
        for number in range(2):
            paths.tap(number, service.url("/v1/events"), f"edge{number}")
        service.await_samples(2)
        dns = paths.start(service.end, ["-m", "qoetap", "dns", "-c", config], "dns")
        dns.await_text(dns.err, DNS_READY)
        begin = begin_ns()
        for number, steps in enumerate(loads(case)):
            paths.load(steps, begin, seed + number, number)
        asked = {"server": LISTEN, "domain_name": NAME, "every_s": EVERY_seconds, "seed": seed}
        users = paths.agent(service.end, "askers", "users", begin_ns=begin, seconds=watched, **asked)
        users.finish(watched + 60)
        service.process.process.kill()
        alone = paths.agent(service.end, "askers", "alone", begin_ns=begin_ns(), seconds=ALONE_seconds, **asked)
        alone.finish(ALONE_seconds + 60)
    lines = users.lines() + alone.lines()
    answers = [Answer((x["ts_ns"] - begin) / 1e9, tuple(x["user"]), x["regular"], x["address"]) for x in lines]
    return Run(rate_bps, case, answers, answers[len(users.lines())].at_s)


def loads(case):
    """(load, seconds) of the steps of each data centre."""
    first = [(QUIET, BEFORE_seconds), (case.loaded, LOADED_seconds), (QUIET, AFTER_seconds)]
    return first, [(QUIET, BEFORE_seconds + LOADED_seconds + AFTER_seconds)]


def run_cases(folder, rate_bps, fit, seed):
    """A Run of each case, with the same model: that of many samples serves for few as well."""
    return [run_once(folder / f"case{number}", rate_bps, fit, seed, case) for number, case in enumerate(CASES, 1)]


def run_all(folder, rates_bps, seed, kind):
    """A Run of each rate and case."""
    return [run for runs in at_each_rate(folder, rates_bps, kind, "centres", run_cases, seed) for run in runs]


def score(run):
    """The Score of a Run."""
    loaded, over = BEFORE_seconds, BEFORE_seconds + LOADED_seconds
    new = [answer for answer in run.answers if not answer.regular]
    during, after = (between(new, *ends) for ends in ((loaded, over), (over, run.killed_s)))
    moved = moved_after(during, loaded)
    back = None if moved is None else next((a.at_s - over for a in after if a.address == CENTRES[0]), None)
    alone = [answer for answer in run.answers if answer.at_s >= run.killed_s]
    return Score(
        moved_s=moved,
        moved_share=share(during if moved is None else between(during, loaded + moved, over), CENTRES[1]),
        back_s=back,
        back_share=share(after if back is None else between(after, over + back, run.killed_s), CENTRES[0]),
        flaps=flaps(run),
        unanswered=sum(answer.address is None for answer in run.answers),
        alone_answered=sum(answer.address is not None for answer in alone) / len(alone),
    )


def between(answers, since, until):
    return [answer for answer in answers if since <= answer.at_s < until]


def share(answers, address):
    """Share of the answers that are the address; 0.0 of none."""
    return sum(answer.address == address for answer in answers) / max(1, len(answers))


def moved_after(answers, since):
    """Seconds until MOVED of the answers of WINDOW_seconds, and of all later ones, are the other data centre."""
    for number, first in enumerate(answers):
        rest = answers[number:]
        if rest[-1].at_s - first.at_s < WINDOW_seconds:
            break
        window = between(rest, first.at_s, first.at_s + WINDOW_seconds)
        if min(share(rest, CENTRES[1]), share(window, CENTRES[1])) >= MOVED:
            return first.at_s - since
    return None


def flaps(run):
    """{phase: how often regular users were told something else, but for once each after a change of load}"""
    over = BEFORE_seconds + LOADED_seconds
    phases = {"before": (START_seconds, BEFORE_seconds), "loaded": (BEFORE_seconds, over)}
    phases["after"] = (over, run.killed_s)
    found, last = {}, {}
    for phase, ends in phases.items():
        moves = Counter()
        for answer in between(run.answers, *ends):
            if answer.regular and answer.address is not None:
                moves[answer.user] += last.get(answer.user, answer.address) != answer.address
                last[answer.user] = answer.address
        found[phase] = sum(max(0, count - (phase != "before")) for count in moves.values())
    return found


def lines_of(runs):
    """The table, for a person."""
    for run in runs:
        found = score(run)
        steps = f"loads of {QUIET:g}, then {run.case.loaded:g} on the first data centre"
        yield f"{rate_text(run.rate_bps)}, {run.case.text}: {steps}"
        moved = seconds(found.moved_s)
        if found.moved_s is not None:
            moved += f" ({found.moved_s / run.case.interval_s:.1f} sample intervals)"
        yield f"  {100 * MOVED:g} % of new users are sent to the other {moved} after the load began"
        yield f"  from then on {100 * found.moved_share:.1f} % are"
        yield f"  the first user comes back {seconds(found.back_s)} after it ended; then {100 * found.back_share:.0f} %"
        told = ", ".join(f"{phase} {count}" for phase, count in found.flaps.items())
        yield f"  regular users moved without need: {told}"
        yield f"  queries without an answer: {found.unanswered}"
        yield f"  with the service killed, {100 * found.alone_answered:.1f} % of queries are answered"


def seconds(value):
    return "never" if value is None else f"{value:.1f} s"


def as_json(runs):
    """The same for a program."""
    return {
        "runs": [
            {"rate_bps": run.rate_bps, **run.case._asdict(), **score(run)._asdict(), "answers": run.answers}
            for run in runs
        ]
    }

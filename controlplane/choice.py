"""Which data centres users of an aggregation point are sent to. Pure: time is an argument.

Kept is not one data centre but the set of those that share the users. A user belongs to one of the set by the hash of
his prefix (rendezvous hashing, Thaler and Ravishankar 1998): he stays with it as long as it stays in the set, and when
one leaves, only its own users move.

    out    another one is better by `hysteresis` or more, or it is congested, or its path is stale or unknown
    in     it is as good as the best of the set, to within `near`: near-equals share
    anew   nobody is left in the set: the best one and its near-equals
    rest   who left comes back only after REST_intervals, unless nobody else is usable

Between `near` and `hysteresis` nothing changes: that is the room for noise. What noise still pushes out rests, so that
a user comes back once in REST_intervals at most. The same bounds herding: users that all go to the better data centre
make its load, and are sent back only then.
"""

import hashlib
from typing import NamedTuple

REST_intervals = 5  # of samples
SECOND_ns = 10**9

BEST, NEAR, KEPT, CONGESTED, UNKNOWN = "best", "near_equal", "kept", "all_congested", "all_unknown"
REASONS = {
    BEST: "it is expected to be the fastest",
    NEAR: "it is one of several about equal, picked by the user's prefix",
    KEPT: "it was chosen before, and none is better by the hysteresis",
    CONGESTED: "all are congested: the one chosen before stays, without one that of the least delay",
    UNKNOWN: "no load is known: the one chosen before stays, without one it is picked by the user's prefix",
}


class Candidate(NamedTuple):
    """A data centre and what its path tells now."""

    name: str
    expected_seconds: float | None  # None: the load is stale or unknown
    congested: bool = False
    delay_ns: int | None = None
    interval_seconds: float = 0.0  # between samples of its path


class Rules(NamedTuple):
    hysteresis: float  # share, 0 to 1
    near: float  # share, at most hysteresis


class State(NamedTuple):
    """What is kept from one decision to the next."""

    members: tuple = ()  # names, who share the users
    left_ns: dict = {}  # {name: when it left}, of those that rest

    def as_document(self):
        return {"members": list(self.members), "left_ns": self.left_ns}


class Decision(NamedTuple):
    members: tuple  # whom users are sent to
    best: str | None  # of all candidates
    cause: str  # CONGESTED, UNKNOWN, or BEST if loads decide


def state_of(document):
    """The State of its document."""
    return State(tuple(document["members"]), dict(document["left_ns"]))


def decide(candidates, state, rules, now_ns):
    """(State, Decision) of Candidates, at least one. A candidate that is no more takes its place in the State along."""
    names = {c.name for c in candidates}
    members = tuple(m for m in state.members if m in names)
    usable = {c.name: c for c in candidates if c.expected_seconds is not None}
    if not usable:
        return state, Decision(members or tuple(sorted(names)), None, UNKNOWN)
    costs = {name: c.expected_seconds for name, c in usable.items() if not c.congested}
    if not costs:
        return _all_congested(usable, members, state, now_ns)
    best = _least(costs, usable)
    rest_ns = REST_intervals * SECOND_ns * max(c.interval_seconds for c in usable.values())
    left = {name: since for name, since in state.left_ns.items() if name in names}
    resting = {name: since for name, since in left.items() if since <= now_ns < since + rest_ns}  # or the clock jumped
    chosen = _chosen(costs, usable, members, resting, rules)
    return _next(chosen, members, resting, now_ns), Decision(chosen, best, BEST)


def _least(costs, usable):
    """The name of the least cost; of equal ones that of the least delay."""
    return min(costs, key=lambda name: (costs[name], usable[name].delay_ns or 0, name))


def _chosen(costs, usable, members, resting, rules):
    """The set that follows on `members`."""
    open_to = {name: cost for name, cost in costs.items() if name not in resting}
    if not any(m in costs for m in members):
        open_to = open_to or costs  # nobody of the set is usable: rather one that rests than none
        members = ()
    rivals = open_to | {m: costs[m] for m in members if m in costs}
    least = min(rivals.values())
    stay = [m for m in members if m in costs and not _better(least, costs[m], rules.hysteresis)]
    base = min((costs[m] for m in stay), default=least)
    joined = [name for name, cost in open_to.items() if abs(cost - base) <= rules.near * base]
    if rules.near == 0:  # nothing is shared
        joined = [] if stay else [_least(open_to, usable)]
    return tuple(sorted({*stay, *joined}))


def _better(cost, than, hysteresis):
    return cost < than and cost <= (1 - hysteresis) * than


def _all_congested(usable, members, state, now_ns):
    """Loads tell nothing any more, and a move would help nobody."""
    delays = {name: c.delay_ns or 0 for name, c in usable.items()}
    chosen = tuple(m for m in members if m in usable) or (_least(delays, usable),)
    best = _least(delays, usable)
    return _next(chosen, members, state.left_ns, now_ns), Decision(chosen, best, CONGESTED)


def _next(chosen, members, resting, now_ns):
    left = {name: since for name, since in resting.items() if name not in chosen}
    return State(chosen, {**left, **{m: now_ns for m in members if m not in chosen}})


def pick(decision, prefix):
    """(name, reason) of whom a user is sent to. prefix: his, as text."""
    name = max(decision.members, key=lambda member: _weight(member, prefix))
    if decision.cause != BEST:
        return name, decision.cause
    if len(decision.members) > 1:
        return name, NEAR
    return name, BEST if name == decision.best else KEPT


def _weight(member, prefix):
    return hashlib.blake2b(f"{prefix} {member}".encode(), digest_size=8).digest()

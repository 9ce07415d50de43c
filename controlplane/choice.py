"""Which data centres users of an aggregation point are sent to. Pure: time is an argument.

Kept is not one data centre but the set of those that share the users. A user belongs to one of the set by the hash of
his prefix (rendezvous hashing, Thaler and Ravishankar 1998): he stays with it as long as it stays in the set, and when
one leaves, only its own users move.

    out    another one is better by `hysteresis` or more and by more than noise; or it is congested, or its path is
           stale or unknown
    in     it is as good as the best of the set, to within `near`, or better by `hysteresis`, but not by more than
           noise: they share. Who left, REST later at the least
    anew   all of the set are out: the best of those that drove them out and who shares with it take over
    held   they would, but that one left less than SOON ago: it shares with the set, and none is better for HOLD

Between `near` and `hysteresis` nothing changes. More than noise: the one would be better even at the upper end of its
load's interval, and the other at the lower end of its own, and it is so for a second: where samples are many, one
interval in ten that misses its load comes soon. How wide these are is learned with the model, so where few
samples tell little nobody is moved for little; where it is not known, REST bounds how often noise moves anybody. `held`
is against herding: where all users go to the better data centre, their own load makes the other one better a few
samples later, and back they would go. Times are counted in samples, since loads follow these, but no shorter than a
second: agents post once in so long.
"""

import hashlib
from typing import NamedTuple

REST_samples, SOON_samples, HOLD_samples = 20, 8, 20
SECOND_ns = 10**9
POST_seconds = 1.0  # agents post once in so long, so no load changes sooner

BEST, NEAR, KEPT, CONGESTED, UNKNOWN = "best", "near_equal", "kept", "all_congested", "all_unknown"
REASONS = {
    BEST: "it is expected to be the fastest",
    NEAR: "it is one of several that share users, picked by the user's prefix",
    KEPT: "it was chosen before, and none is better by the hysteresis and by more than noise",
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
    range_seconds: tuple | None = None  # expected at both ends of the load's interval; None: its noise is not known


class Rules(NamedTuple):
    hysteresis: float  # share, 0 to 1
    near: float  # share, at most hysteresis; 0: nothing is shared


class State(NamedTuple):
    """What is kept from one decision to the next."""

    members: tuple = ()  # names, who share the users
    left_ns: dict = {}  # {name: when it left}, of those that rest
    held_ns: int = 0  # when the set began to be held
    worse_ns: dict = {}  # {name: since when another is better than this one}, of members

    def as_document(self):
        """What is kept over a restart."""
        return {"members": list(self.members), "left_ns": self.left_ns, "held_ns": self.held_ns}


class Decision(NamedTuple):
    members: tuple  # whom users are sent to
    best: str | None  # of all candidates
    cause: str  # CONGESTED, UNKNOWN, or BEST if loads decide


class Times(NamedTuple):
    """How long ago things were, in samples."""

    now_ns: int
    sample_ns: float

    def within(self, since_ns, samples):
        """Whether something is no older than that; a time to come is another clock's."""
        return 0 <= self.now_ns - since_ns < samples * self.sample_ns


def state_of(document):
    """The State of its document."""
    return State(tuple(document["members"]), dict(document["left_ns"]), document["held_ns"])


def decide(candidates, state, rules, now_ns):
    """(State, Decision) of Candidates, at least one. Who is no candidate any more is forgotten."""
    known = {c.name: c for c in candidates}
    state = state._replace(members=tuple(m for m in state.members if m in known))
    usable = {c.name: c for c in candidates if c.expected_seconds is not None}
    if not usable:
        return state, Decision(state.members or tuple(sorted(known)), None, UNKNOWN)
    times = Times(now_ns, SECOND_ns * max(POST_seconds, *(c.interval_seconds for c in usable.values())))
    free = {name: c for name, c in usable.items() if not c.congested}
    if free:
        best = min(free, key=lambda name: _rank(free[name]))
        here = [m for m in state.members if m in free]
        better = {m: [n for n in free if _better(free[n], free[m], rules.hysteresis)] for m in here}
        state = state._replace(worse_ns={m: min(state.worse_ns.get(m, now_ns), now_ns) for m in better if better[m]})
        chosen, held = _chosen(free, better, state, rules, times)
        return _next(chosen, held, state, times), Decision(chosen, best, BEST)
    best = min(usable, key=lambda name: (usable[name].delay_ns or 0, name))
    chosen = tuple(m for m in state.members if m in usable) or (best,)  # to move would help nobody
    return _next(chosen, False, state._replace(worse_ns={}), times), Decision(chosen, best, CONGESTED)


def _chosen(free, better, state, rules, times):
    """(the set that follows, whether it begins to be held). free: {name: Candidate} of those that may be chosen.
    better: {member that may be chosen: names of those who are better}.
    """
    costs = {name: candidate.expected_seconds for name, candidate in free.items()}
    here, held = list(better), times.within(state.held_ns, HOLD_samples)
    stay = [m for m in here if held or not better[m] or _may_be_noise(free[m], state, times)]
    leader = min({n for names in better.values() for n in names} or costs, key=lambda n: _rank(free[n]))
    if here and not stay and times.within(state.left_ns.get(leader, 0), SOON_samples):
        return tuple(sorted({*here, leader})), True
    if rules.near == 0:
        return tuple(stay or [leader]), False
    rested = {n for n in costs if not stay or not times.within(state.left_ns.get(n, 0), REST_samples)}
    base = min((costs[m] for m in stay), default=costs[leader])
    joined = {n for n in rested if abs(costs[n] - base) <= rules.near * base}
    joined |= {n for n in rested if costs[n] <= (1 - rules.hysteresis) * base}
    return tuple(sorted({*stay, *joined})), False


def _may_be_noise(member, state, times):
    """Whether a member is worse only since less than a second."""
    return member.range_seconds is not None and times.now_ns - state.worse_ns[member.name] < POST_seconds * SECOND_ns


def _rank(candidate):
    return candidate.expected_seconds, candidate.delay_ns or 0, candidate.name


def _better(one, other, hysteresis):
    """Whether a Candidate is better than another by the hysteresis, and by more than noise."""
    cost, than = one.expected_seconds, other.expected_seconds
    if not (cost < than and cost <= (1 - hysteresis) * than):
        return False
    return (one.range_seconds or (cost, cost))[1] <= (other.range_seconds or (than, than))[0]


def _next(chosen, held, state, times):
    """The State that follows."""
    left = {n: ns for n, ns in state.left_ns.items() if n not in chosen and times.within(ns, REST_samples)}
    left |= {m: times.now_ns for m in state.members if m not in chosen}
    worse = {m: ns for m, ns in state.worse_ns.items() if m in chosen}
    return State(chosen, left, times.now_ns if held else state.held_ns, worse)


def pick(decision, prefix):
    """(name, reason) of whom a user is sent to. prefix: his, as text."""
    return max(decision.members, key=lambda member: _weight(member, prefix)), reason_of(decision)


def reason_of(decision):
    """Why users are sent to its members: a key of REASONS."""
    if decision.cause != BEST:
        return decision.cause
    if len(decision.members) > 1:
        return NEAR
    return BEST if decision.members == (decision.best,) else KEPT


def _weight(member, prefix):
    return hashlib.blake2b(f"{prefix} {member}".encode(), digest_size=8).digest()

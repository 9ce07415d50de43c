"""Mitigation: which flows are favoured, for how long, and when no more. Pure: events and `now` in, actions out.

A rule favours a flow when its event comes (`on`). Where it has an event that ends it (`until`), the favour lasts to
`hold` after that; else to `hold` after the last `on`. Afterwards the flow is not favoured again for `quiet`.

Signals may be false or hostile, so a favour is paid in advance from its client's budget: its whole length, up to its
end, is charged when it begins or is prolonged, and what is charged comes back `window` after that end. So

    in any time of length `window`, one client's flows are favoured by a rule for at most `budget`, all added up.

Proof: take any such time, the favours that touch it, and the last of their charges, made at `now`. Each of the others
ends after the beginning of that time, which is at most `window` before `now`, so none had come back: all were added
up, and what was charged was what the budget had left. Besides, at most `max_per_client` flows of a client and
`max_flows` flows of all are favoured by a rule at a time. A client that signals without end wins no more than that.

A client is an IPv4 address or an IPv6 /64, for a host chooses the rest of its address itself.
"""

from collections import Counter
from typing import NamedTuple

from dataplane.records import NEVER
from qoetap.inline_keys import DSCP, MARK, PACE_OTHERS, PRIORITY, RATE
from qoetap.rates import Bound

IPV6_CLIENT_bytes = 8  # /64, RFC 7421
ICMP, ICMPV6 = 1, 58  # IANA, protocol numbers
START, END = "start", "end"
BY_EVENT, BY_HOLD, BY_BUDGET, BY_STOP = REASONS = ("event", "hold", "budget", "stop")  # why a favour ended
REFUSALS = ("quiet", "max_flows", "max_per_client", "budget")  # why none began
START_SUFFIX, END_SUFFIX = "_start", "_end"


class Ends(NamedTuple):
    """Who an event speaks of. Addresses are 4 or 16 bytes."""

    src: bytes
    dst: bytes
    sport: int  # ICMP: type
    dport: int  # and code
    proto: int

    def flow(self):
        """The same for both directions. ICMP's type and code tell no flows apart, as in PACKET.hash."""
        sport, dport = (0, 0) if self.proto in (ICMP, ICMPV6) else (self.sport, self.dport)
        return min(
            Ends(self.src, self.dst, sport, dport, self.proto), Ends(self.dst, self.src, dport, sport, self.proto)
        )


class Rule(NamedTuple):
    """A rule of the configuration; times in ns."""

    number: int  # from 1
    on: str
    until: str  # "" none
    do: str
    classes: tuple
    rate: int | None
    mark: object  # matching.Mark or None
    dscp: int | None
    hold: int
    quiet: int
    max_flows: int
    max_per_client: int
    client: str  # src or dst
    budget: int
    window: int


class Action(NamedTuple):
    """A favour begins or is over."""

    what: str  # START or END
    rule: Rule
    ends: Ends  # as the first event had them
    since: int
    until: int  # START: when it will end at the latest; END: when it ended
    reason: str  # of END


class Override(NamedTuple):
    """What a flow's packets are given in place of what their class says; None: as it says."""

    class_name: str | None = None
    mark: object = None
    dscp: int | None = None


def ends_of(event):
    """Ends of an event row; None if it speaks of no flow."""
    version = int(event["ip_version"])
    if version not in (4, 6):
        return None
    size = 4 if version == 4 else 16
    src, dst = (bytes(event[name][:size]) for name in ("src", "dst"))
    return Ends(src, dst, int(event["sport"]), int(event["dport"]), int(event["proto"]))


def rules_of(inline, events):
    """Rules of the section `inline`. events: names of all types of event."""
    return [_rule(number, r, events) for number, r in enumerate(inline.mitigation, 1)]


def _rule(number, r, events):
    until = r.until or r.on.removesuffix(START_SUFFIX) + END_SUFFIX
    until = until if r.until or (r.on.endswith(START_SUFFIX) and until in events) else ""
    own = {name: getattr(r, name) for name in Rule._fields if name not in ("number", "until", "classes")}
    return Rule(number=number, until=until, classes=getattr(r, "class"), **own)


class Favour:
    """One flow under one rule."""

    __slots__ = ("ends", "since", "until", "bounded", "ending")

    def __init__(self, ends, since):
        self.ends, self.since, self.until = ends, since, since
        self.bounded = self.ending = False  # by the budget; the event that ends it has come


class Ruled:
    """The favours of one rule."""

    def __init__(self, rule):
        self.rule, self.favours, self.refused, self.begun = rule, {}, Counter(), 0
        self.charges = {}  # client: [Favour], those that have not come back
        self.quiet, self.swept = {}, 0  # flow: when it may be favoured again
        self.due = NEVER

    def begin(self, ends, now):
        """The event `on`: an Action, or None if the flow is favoured already or must not be."""
        flow, client = ends.flow(), self._client(ends)
        favour = self.favours.get(flow)
        if favour is not None:
            self._extend(favour, client, now)
            return None
        reason = self._refusal(flow, client, now)
        if reason:
            self.refused[reason] += 1
            return None
        favour = self.favours[flow] = Favour(ends, now)
        self.charges.setdefault(client, []).append(favour)
        self.begun += 1
        self._extend(favour, client, now)
        return Action(START, self.rule, ends, now, favour.until, "")

    def finish(self, ends, now):
        """The event `until`: the favour ends after `hold`; what is charged beyond comes back at once."""
        favour = self.favours.get(ends.flow())
        if favour is not None and now + self.rule.hold < favour.until:
            favour.until, favour.ending, favour.bounded = now + self.rule.hold, True, False
            self.due = min(self.due, favour.until)

    def over(self, now):
        """Actions for the favours that have ended."""
        if now < self.due:
            return []
        ended = [flow for flow, favour in self.favours.items() if favour.until <= now]
        actions = [self._end(flow, _reason(self.favours[flow])) for flow in ended]
        self.due = min((f.until for f in self.favours.values()), default=NEVER)
        self._sweep(now)
        return actions

    def stop(self, now):
        """Actions that end all favours."""
        for favour in self.favours.values():
            favour.until = min(favour.until, now)
        self.due = NEVER
        return [self._end(flow, BY_STOP) for flow in list(self.favours)]

    def _client(self, ends):
        address = getattr(ends, self.rule.client)
        return address if len(address) == 4 else address[:IPV6_CLIENT_bytes]

    def _refusal(self, flow, client, now):
        """Why the flow must not be favoured; "" if it may."""
        own = self._charged(client, now)
        if now < self.quiet.get(flow, now):
            return "quiet"
        if len(self.favours) >= self.rule.max_flows:
            return "max_flows"
        if sum(favour.until > now for favour in own) >= self.rule.max_per_client:
            return "max_per_client"
        return "budget" if self._left(own) < self.rule.hold else ""

    def _charged(self, client, now):
        """The client's favours whose charge has not come back."""
        own = [f for f in self.charges.get(client, ()) if f.until > now - self.rule.window]
        if own:
            self.charges[client] = own
        return own

    def _left(self, own):
        return self.rule.budget - sum(favour.until - favour.since for favour in own)

    def _extend(self, favour, client, now):
        """Prolong a favour as far as it is wanted and the budget lasts."""
        left = self._left(self._charged(client, now))
        wanted = NEVER if self.rule.until else now + self.rule.hold
        favour.bounded = wanted > favour.until + left
        favour.until = max(favour.until, min(wanted, favour.until + left))
        favour.ending = False
        self.due = min(self.due, favour.until)

    def _end(self, flow, reason):
        favour = self.favours.pop(flow)
        self.quiet[flow] = favour.until + self.rule.quiet
        return Action(END, self.rule, favour.ends, favour.since, favour.until, reason)

    def _sweep(self, now):
        """Forget clients and flows about which there is nothing left to know, now and then."""
        if now - self.swept < self.rule.window:
            return
        self.swept = now
        self.quiet = {flow: until for flow, until in self.quiet.items() if until > now}
        self.charges = {client: own for client in list(self.charges) if (own := self._charged(client, now))}


def _reason(favour):
    return BY_EVENT if favour.ending else BY_BUDGET if favour.bounded else BY_HOLD


class Mitigation:
    """All rules. dry_run: actions are told, but nothing is to be overridden or paced."""

    def __init__(self, rules, dry_run=False):
        self.ruled, self.dry_run = [Ruled(rule) for rule in rules], dry_run
        self.wanted = {name for rule in rules for name in (rule.on, rule.until) if name}  # events that matter

    def event(self, name, ends, now):
        """Actions by an event about a flow."""
        actions = self.time(now)
        for ruled in self.ruled:
            if name == ruled.rule.on and (action := ruled.begin(ends, now)):
                actions.append(action)
            elif name == ruled.rule.until:
                ruled.finish(ends, now)
        return actions

    def time(self, now):
        """Actions by the passing of time: to be asked at `due` or soon after."""
        return [action for ruled in self.ruled for action in ruled.over(now)]

    def due(self):
        """When the next favour ends, ns; NEVER while there is none."""
        return min((ruled.due for ruled in self.ruled), default=NEVER)

    def stop(self, now):
        return [action for ruled in self.ruled for action in ruled.stop(now)]

    def override(self, flow):
        """Override of an Ends.flow(); None: none. Of two rules the earlier one counts."""
        if self.dry_run:
            return None
        found = {}
        for ruled in self.ruled:
            if flow in ruled.favours:
                for key, value in _given(ruled.rule):
                    found.setdefault(key, value)
        return Override(**found) if found else None

    def bounds(self):
        """{class: Bound} of the classes that rules pace at present, as Rates.bound takes them."""
        if self.dry_run:
            return {}
        pacing = [r.rule for r in self.ruled if r.favours and r.rule.do in (RATE, PACE_OTHERS)]
        return {name: Bound(rule.rate, rule.do == PACE_OTHERS) for rule in pacing for name in rule.classes}

    def counts(self):
        """What each rule does and has refused, for GET /v1/status."""
        return [
            {
                "rule": r.rule.number, "on": r.rule.on, "do": r.rule.do, "favoured": len(r.favours), "begun": r.begun,
                "refused": {reason: r.refused[reason] for reason in REFUSALS},
            }
            for r in self.ruled
        ]  # fmt: skip


def _given(rule):
    """What a rule gives a flow: pairs of Override."""
    if rule.do == PRIORITY:
        return [("class_name", rule.classes[0])]
    return [(rule.do, getattr(rule, rule.do))] if rule.do in (MARK, DSCP) else []

"""A running `qoetap inline`: shim, rates, mitigation, control, outputs and signals together. Its loop is the only place
where any of them changes another.
"""

import contextlib
import ctypes
import signal
import time

import numpy as np

from dataplane.capture import CaptureError
from dataplane.capture.nfqueue import SLOTS, QueueOptions, Queues, WHOLE_bytes
from dataplane.classify import new_classifier
from dataplane.engine import Engine
from dataplane.pacing import new_pacer
from dataplane.shim import Shim
from qoetap import classes, config, firewall, inline_events, mitigation, overrides, steering
from qoetap.control import Control, Desk, read_token
from qoetap.exits import PRIVILEGE, USAGE, Exit
from qoetap.notify import Notifier
from qoetap.outputs import Outputs, rotation_of
from qoetap.rates import BY_LEASE, BY_MITIGATION, Rates
from qoetap.replay import engine_parts
from qoetap.say import say

ENDING = (signal.SIGTERM, signal.SIGINT)
WAYS = ("passed", "released", "flushed", "over_bytes", "over_time", "no_room")  # what became of a class's packets
PR_SET_TIMERSLACK = 29  # linux/prctl.h
PASS_ns = 1_000_000_000  # for so long everything passes by when we were late


def queues_of(inline, rewrite):
    """The queues, with room for all that may be held. Exit if they cannot be had."""
    options = QueueOptions(most=max(inline.held, QueueOptions().most))
    try:
        return Queues(inline.queues, options._replace(copy_bytes=WHOLE_bytes) if rewrite else options)
    except CaptureError as error:
        raise Exit(PRIVILEGE if "CAP_NET_ADMIN" in str(error) else USAGE, str(error)) from error


def wake_exactly():
    """This thread's waits end when they should, not up to 50 us later (PR_SET_TIMERSLACK of prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)


class Plane:
    """What control.py calls the plane, and the engine its sink."""

    def __init__(self, args, settings, known, stack):
        """stack: an ExitStack, which closes what was opened."""
        inline = settings.inline
        self.args, self.settings, self.inline, self.started = args, settings, inline, time.monotonic()
        self.running = list(config.chosen(settings, known).values())
        rules = mitigation.rules_of(inline, [kind.name for d in self.running for kind in d.events])
        self.names, self.rates = classes.names_of(inline), Rates(classes.rates_of(inline), inline.lease)
        self.numbers = inline_events.numbers_of(self.names)
        self.declared = inline_events.declared(self.names, rules)
        self.mitigation, self.hashes = mitigation.Mitigation(rules, inline.dry_run), {}
        self.late_max = self.failures = self.pardoned = self.passes = self.passing_until = 0
        self.reported, self.ended_by, self.installed = time.monotonic(), None, False
        parts, self.options = engine_parts(settings, known)
        paced, matched = classes.class_rows(inline), classes.rule_rows(inline)
        rewrite = any(c.ecn or c.set_dscp is not None for c in inline.classes) or any(r.dscp is not None for r in rules)
        self.outputs = Outputs(settings.outputs or ["-"], [*self.running, *self.declared], True, rotation_of(settings))
        stack.callback(self.outputs.close)
        self.engine = Engine(parts, self, self.options, 1, max(settings.batch_rows, SLOTS), settings.agent_id)
        self.engine.load()
        self.shim = Shim(new_pacer(paced, inline.held), new_classifier(matched), rewrite, inline.tick)
        self.queues = queues_of(inline, rewrite)
        stack.callback(self.queues.close)
        self.shim.attach(self.queues)
        self._turn()
        self.desk = Desk()
        if inline.control:
            stack.callback(Control(inline.control, self.desk, read_token()).close)
        self.notifier = Notifier()

    # --- the sink of the engine

    def write(self, events):
        """Events go out; those that rules wait for are looked at."""
        self.outputs.write(events)
        actions = []
        for detector, made in events.parts:
            wanted = [code for code, kind in enumerate(detector.events, 1) if kind.name in self.mitigation.wanted]
            for at in np.flatnonzero(np.isin(made["code"], wanted)) if wanted else ():
                row = made[at]
                if (ends := mitigation.ends_of(row)) is not None:
                    name = detector.events[int(row["code"]) - 1].name
                    actions += self.mitigation.event(name, ends, self.now())
        self._act(actions)

    # --- the plane of control

    def now(self):
        return time.monotonic_ns()

    def rows(self):
        return self.shim.pacer.classes.copy()

    def status(self):
        pacing, queues = self.shim.pacer.control[0], self.queues.counts()
        found = {
            "uptime_s": time.monotonic() - self.started,
            "packets": self.engine.seen,
            "held": int(pacing.held),
            "held_max": int(pacing.held_max),
            "late_max_ns": max(self.late_max, int(pacing.late_max)),
            "passing": bool(self.passing_until),
            "passes": self.passes,
            "failures": self.failures,
            "mitigation": self.mitigation.counts(),
            "dry_run": self.mitigation.dry_run,
        }
        numbered = zip(self.inline.queues, queues, strict=True)
        found["queues"] = [{"queue": number, **counts._asdict()} for number, counts in numbered]
        row, shim = self.queues.context[0], self.shim.context[0]
        found["netlink"] = {name: int(row[name]) for name in ("damaged", "foreign", "overruns", "gone", "refused")}
        found["netlink"] |= {name: int(shim[name]) for name in ("unanswered", "unwritten")}
        found["netlink"]["overflows"] = self.queues.overflows()
        return found

    def apply(self, changes, cause):
        """Give classes the rates that `changes` say, at one instant, and tell of it."""
        if not changes:
            return
        indices = np.array([self.numbers[change.name] for change in changes], np.int64)
        rates = np.array([change.new or 0 for change in changes], np.int64)
        told = [self.inline.classes[i - 1] for i in indices.tolist()]
        limits = [classes.limit_ns(c, change.new) for c, change in zip(told, changes, strict=True)]
        self.shim.change_rates(indices, rates, np.array(limits, np.int64), self.now())
        made = inline_events.changed_rows(self.declared.pace, changes, self.numbers, cause, time.time_ns())
        self._tell(self.declared.pace, made)

    def _tell(self, detector, made):
        self.outputs.write(inline_events.as_events(detector, made, self.settings.agent_id))

    # --- the loop

    def run(self, signals):
        """Until a signal ends it or nobody reads what it prints."""
        if self.args.install:
            self._install()
        wake_exactly()
        self.shim.begin()
        self.notifier.ready()
        say(f"queue {listed_numbers(self.inline.queues)}: {len(self.names)} classes; TERM or INT ends it")
        while not (self.ended_by or self.outputs.deserted):
            self._turn()
            self._hear(signals.next(0))
            self._look()

    def _install(self):
        """Meanwhile packets pass by, for nobody looks after them."""
        self.installed = True
        self.queues.pass_by()
        for note in firewall.install(steering.rules_of(self.inline)).notes:
            say(note)
        self.queues.pass_by(False)

    def _turn(self):
        """Some milliseconds in compiled code; a stage that fails costs no packet."""
        self.shim.turn()
        for step, *given in ((self.engine.go_on, self.shim.stretch), (self.engine.pass_time, time.time_ns())):
            try:
                step(*given)
            except RuntimeError as error:
                self._pardon(error)
            self.shim.leave_tile()
        self.engine.hand_on()

    def _pardon(self, error):
        self.pardoned += self.shim.pardon()
        self.engine.give_up(self.shim.tile_frames)
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:  # the first, the second, the fourth …
            say(f"{error}: its packets were let through ({self.failures} times so far)")

    def _hear(self, heard):
        if heard in ENDING:
            self.ended_by = heard
        elif heard == signal.SIGHUP:
            self.outputs.reopen()
            say("outputs are opened anew; what else the configuration says takes a restart")
        elif heard == signal.SIGUSR1:
            self.outputs.rotate()

    def _look(self):
        now = self.now()
        if (changes := self.rates.expire(now)) is not None:
            self.apply(changes, BY_LEASE)
            say("the lease of the table of rates has ended: the rates of the configuration count again")
        self.desk.serve(self)
        if now >= self.mitigation.due():
            self._act(self.mitigation.time(now))
        self._check_delay(now)
        every = self.inline.stats_every / 1e9
        if every and time.monotonic() - self.reported >= every:
            self.reported = time.monotonic()
            self._tell(self.declared.pace, inline_events.stats_rows(self.declared.pace, self.rows(), time.time_ns()))
        for sentence in self.outputs.troubles():
            say(sentence)
        self.notifier.feed(True)

    def _check_delay(self, now):
        """While we are too late, everything passes by in the kernel."""
        pacing, shim = self.shim.pacer.control[0], self.shim.context[0]
        late, pacing.late_max, shim.away_max = max(int(pacing.late_max), int(shim.away_max)), 0, 0
        self.late_max = max(self.late_max, late)
        if self.passing_until:
            if now >= self.passing_until:
                self.passing_until = 0
                self._pass_by(False)
        elif 0 < self.inline.delay_bound < late:
            self.passes += 1
            self.passing_until = now + PASS_ns
            self._pass_by()
            say(f"packets left {late / 1e6:.0f} ms late: everything passes by for {PASS_ns // 10**9} s")

    def _pass_by(self, passing=True):
        """Have new packets pass by in the kernel, and let go what is held; or no more."""
        with contextlib.suppress(OSError):
            self.queues.pass_by(passing)
        self.shim.flush()

    def _act(self, actions):
        """Flows are favoured, or no more."""
        if not actions:
            return
        made = inline_events.action_rows(self.declared.mitigation, actions, self.mitigation.dry_run, time.time_ns())
        self._tell(self.declared.mitigation, made)
        self.shim.set_overrides(overrides.rows_of(self.mitigation, self.hash_of, self.numbers))
        self.apply(self.rates.bound(self.mitigation.bounds()), BY_MITIGATION)

    def hash_of(self, flow):
        """PACKET.hash of a favoured flow."""
        if flow not in self.hashes:
            self.hashes = {known: key for known, key in self.hashes.items() if self.mitigation.override(known)}
            self.hashes[flow] = overrides.flow_hash(self.options, flow)
        return self.hashes[flow]

    def let_go(self):
        """Nothing more comes to us, what is held goes."""
        self._pass_by()
        with contextlib.suppress(OSError):
            self.queues.accept_all()

    def end(self):
        """What was seen is told. Sentences about what went wrong."""
        faults = []
        if self.installed:
            try:
                firewall.uninstall(self.inline.queues)
            except Exit as error:
                faults.append(f"the firewall's rules are still there ({error}): qoetap inline --uninstall")
        self.queues.close()
        self.notifier.stopping()
        self.outputs.drain()
        try:
            self.engine.end()
        except Exception as error:  # a detector's last tick: what others have to tell is told
            faults.append(f"at the end: {error}")
        self._act(self.mitigation.stop(self.now()))
        self._tell(self.declared.pace, inline_events.stats_rows(self.declared.pace, self.rows(), time.time_ns()))
        self.outputs.close()
        return faults + self.imbalance() + self.outputs.complaints()

    def imbalance(self):
        """Sentences, if packets are not accounted for."""
        paced = self.shim.pacer.classes
        offered, seen = int(paced["packets"].sum()) + self.pardoned, self.engine.seen
        ended = sum(int(paced[name].sum()) for name in (*WAYS, "held")) + self.pardoned
        if seen == offered == ended:
            return []
        return [f"{seen} packets came, {offered} were offered to classes, {ended} ended"]


def listed_numbers(numbers):
    return ", ".join(map(str, numbers))

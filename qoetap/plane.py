"""A running `qoetap inline`: shim, rates, mitigation, control, outputs and signals together. Its loop is the only place
where any of them changes another.
"""

import contextlib
import signal
import time

import numpy as np

from dataplane.capture import CaptureError
from dataplane.capture.nfqueue import SLOTS, QueueOptions, Queues, WHOLE_bytes
from dataplane.engine import Engine
from qoetap import (
    classes,
    config,
    firewall,
    inline_events,
    inline_numbers,
    metrics,
    mitigation,
    overrides,
    steering,
)
from qoetap.control import Control, Desk, read_token
from qoetap.exits import PRIVILEGE, USAGE, Exit
from qoetap.inline_reload import Reloading
from qoetap.notify import Notifier
from qoetap.outputs import Outputs, rotation_of
from qoetap.rates import BY_LEASE, BY_MITIGATION, Rates
from qoetap.replay import engine_parts
from qoetap.say import say
from qoetap.timerslack import wake_exactly

ENDING = (signal.SIGTERM, signal.SIGINT)
WAYS = ("passed", "released", "flushed", "over_bytes", "over_time", "no_room")  # what became of a class's packets
PASS_ns = 1_000_000_000  # for so long everything passes by when we were late


def queues_of(inline, rewrite):
    """The queues, with room for all that may be held. Exit if they cannot be had."""
    options = QueueOptions(most=max(inline.held, QueueOptions().most))
    try:
        return Queues(inline.queues, options._replace(copy_bytes=WHOLE_bytes) if rewrite else options)
    except CaptureError as error:
        raise Exit(PRIVILEGE if "CAP_NET_ADMIN" in str(error) else USAGE, str(error)) from error


class Plane:
    """What control.py calls the plane, and the engine its sink."""

    def __init__(self, settings, known, reread, stack):
        """reread() -> settings, when the configuration may have changed; stack: an ExitStack, which closes what was
        opened.
        """
        inline = settings.inline
        self.settings, self.known, self.inline, self.started = settings, known, inline, time.monotonic()
        self.root, self.rewrite = config.root_secret(settings.seed), classes.rewrites(inline)
        self.running = list(config.chosen(settings, known).values())
        self.told_names, self.told_events = [], []  # that events have spoken of, or may
        self.declare(classes.names_of(inline), mitigation.rules_of(inline, self.event_names()))
        self.rates = Rates(classes.rates_of(inline), inline.lease)
        self.mitigation, self.hashes = mitigation.Mitigation(self.rules, inline.dry_run), {}
        self.former = dict.fromkeys(("packets", *WAYS), 0)  # of classes that there are no more
        self.late_max = self.failures = self.pardoned = self.passes = self.passing_until = 0
        self.reported, self.ended_by, self.installed = time.monotonic(), None, False
        parts, self.options = engine_parts(settings, known, self.root)
        self.outputs = Outputs(settings.outputs or ["-"], [*self.running, *self.declared], True, rotation_of(settings))
        stack.callback(self.outputs.close)
        self.engine = Engine(parts, self, self.options, 1, max(settings.batch_rows, SLOTS), settings.agent_id)
        self.engine.load()
        self.shim, self.told_apart = classes.shim_of(inline, self.rewrite), classes.told_apart(inline)
        self.queues = queues_of(inline, self.rewrite)
        stack.callback(self.queues.close)
        self.shim.attach(self.queues)
        self._turn()
        self.desk = Desk()
        if inline.control:
            stack.callback(Control(inline.control, self.desk, read_token()).close)
        if settings.live.metrics:
            snapshot, token = lambda: self.desk.ask(inline_numbers.snapshot), metrics.read_token()
            stack.callback(metrics.Exporter(settings.live.metrics, snapshot, token, inline_numbers.FAMILIES).close)
        self.notifier, self.reloading = Notifier(), Reloading(reread)
        stack.callback(self.reloading.close)

    def event_names(self):
        """Of all events that detectors may make."""
        return [kind.name for d in self.running for kind in d.events]

    def declare(self, names, rules):
        """Classes by their numbers, and rules of mitigation, that there are from now on."""
        self.names, self.rules, self.numbers = names, rules, inline_events.numbers_of(names)
        self.told_names = list(dict.fromkeys([*self.told_names, *names]))
        self.told_events = list(dict.fromkeys([*self.told_events, *(rule.on for rule in rules)]))
        self.declared = inline_events.declared(self.told_names, self.told_events)

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
        self.act(actions)

    # --- the plane of control

    def now(self):
        return time.monotonic_ns()

    def rows(self):
        return self.shim.pacer.classes.copy()

    def status(self):
        return inline_numbers.status(self)

    def apply(self, changes, cause):
        """Give classes the rates that `changes` say, at one instant, and tell of it."""
        if not changes:
            return
        indices = np.array([self.numbers[change.name] for change in changes], np.int64)
        rates = np.array([change.new or 0 for change in changes], np.int64)
        told = [self.inline.classes[i - 1] for i in indices.tolist()]
        limits = [classes.limit_ns(c, change.new) for c, change in zip(told, changes, strict=True)]
        self.shim.change_rates(indices, rates, np.array(limits, np.int64), self.now())
        self._tell(self.declared.pace, inline_events.changed_rows(self.declared.pace, changes, cause, time.time_ns()))

    def retire(self, numbers):
        """The classes of these numbers end: their last counts are told, and kept for the sums."""
        rows = self.rows()[numbers]
        self._tell_stats([self.names[number] for number in numbers], rows)
        self.former = {name: count + int(rows[name].sum()) for name, count in self.former.items()}

    def _tell_stats(self, names, rows):
        pace = self.declared.pace
        self._tell(pace, inline_events.stats_rows(pace, names, rows, time.time_ns()))

    def _tell(self, detector, made):
        self.outputs.write(inline_events.as_events(detector, made, self.settings.agent_id))

    # --- the loop

    def run(self, signals, install):
        """Until a signal ends it or nobody reads what it prints. install: put in rules of the firewall first."""
        if install:
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
        for note in firewall.install(steering.rules_of(self.inline), self.inline.queues).notes:
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
            self.reloading.ask()
        elif heard == signal.SIGUSR1:
            self.outputs.rotate()

    def _look(self):
        now = self.now()
        if (changes := self.rates.expire(now)) is not None:
            self.apply(changes, BY_LEASE)
            say("the lease of the table of rates has ended: the rates of the configuration count again")
        self.desk.serve(self)
        self.reloading.look(self)
        if now >= self.mitigation.due():
            self.act(self.mitigation.time(now))
        self._check_delay(now)
        every = self.inline.stats_every / 1e9
        if every and time.monotonic() - self.reported >= every:
            self.reported = time.monotonic()
            self._tell_stats(self.names, self.rows())
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
            else:
                self.shim.flush()  # what had been queued before
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

    def act(self, actions):
        """Flows are favoured, or no more."""
        if not actions:
            return
        made = inline_events.action_rows(self.declared.mitigation, actions, self.mitigation.dry_run, time.time_ns())
        self._tell(self.declared.mitigation, made)
        self.override()
        self.apply(self.rates.bound(self.mitigation.bounds()), BY_MITIGATION)

    def override(self):
        """Treat the flows that are favoured apart, and no others."""
        self.shim.set_overrides(overrides.rows_of(self.mitigation, self.hash_of, self.numbers))

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
        self.reloading.close()
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
        self.act(self.mitigation.stop(self.now()))
        self._tell_stats(self.names, self.rows())
        self.outputs.close()
        return faults + self.imbalance() + self.outputs.complaints()

    def totals(self):
        """Packets of all classes, and what became of them, since the start."""
        rows = self.shim.pacer.classes
        return {name: count + int(rows[name].sum()) for name, count in self.former.items()}

    def imbalance(self):
        """Sentences, if packets are not accounted for."""
        totals, held = self.totals(), int(self.shim.pacer.classes["held"].sum())
        offered, seen = totals["packets"] + self.pardoned, self.engine.seen
        ended = sum(totals[name] for name in WAYS) + held + self.pardoned
        if seen == offered == ended:
            return []
        return [f"{seen} packets came, {offered} were offered to classes, {ended} ended"]


def listed_numbers(numbers):
    return ", ".join(map(str, numbers))

"""HUP at a running `qoetap inline`: a changed configuration is taken over, and no packet is lost.

What takes time, reading the file, making a shim, changing the firewall, is done in a thread while packets go on; the
main loop then changes over between two turns. Where classes have the names and matches that they had, their settings
change in place: what is held stays so, and a rate changes as by the API. Else what is held is let go, and a new shim
begins with what each class has counted, and what it owes or has earned.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from qoetap import classes, firewall, mitigation, steering
from qoetap.exits import USAGE, Exit
from qoetap.outputs import rotation_of
from qoetap.rates import BY_MITIGATION, BY_RELOAD
from qoetap.reload import changes, params_of
from qoetap.say import say

KEYS = ("credit", "tick", "delay_bound", "lease", "stats_every", "dry_run", "classes", "mitigation")
AT_ONCE = tuple(f"inline.{key}" for key in KEYS)  # and what reload.py says
SETTINGS = ("credit_ns", "limit_bytes", "mark_ns", "mark", "mark_mask", "dscp")  # of CLASS; rates and times go by Rates
CARRIED = ("away_max", "ahead", "unwritten", "unanswered")  # of SHIM


class Refit(NamedTuple):
    """A configuration that can be taken over."""

    settings: object
    fixed: list  # changed keys that take a restart
    rules: list  # mitigation.Rule
    shim: object  # None: that at hand goes on
    told_apart: list
    params: dict  # of detectors, by their names


class Reloading:
    """Reads the configuration anew when asked, `reread() -> settings`, one time after the other."""

    def __init__(self, reread):
        self.reread, self.asked, self.future = reread, False, None
        self.pool = ThreadPoolExecutor(1, "qoetap-reload")

    def ask(self):
        self.asked = True

    def look(self, plane):
        """For the main loop: begin what was asked for, or take over what has come of it."""
        if self.future and self.future.done():
            future, self.future = self.future, None
            self._finish(plane, future)
        if self.asked and not self.future:
            self.asked = False
            plane.notifier.reloading()
            self.future = self.pool.submit(prepare, plane, self.reread)

    def _finish(self, plane, future):
        try:
            refit = future.result()
        except Exit as error:
            say(f"reload: {error}; going on as before")
        except Exception as error:  # ours; the data plane goes on
            say(f"reload: {type(error).__name__}: {error}; going on as before")
        else:
            take_over(plane, refit)
            kept = f"; what takes a restart stays as it was: {', '.join(refit.fixed)}" if refit.fixed else ""
            say(f"reload: done{kept}")
        plane.outputs.reopen()
        plane.notifier.ready()

    def close(self):
        """Wait for what is under way, so that nothing is changed afterwards."""
        self.pool.shutdown()


# --- in the thread


def prepare(plane, reread):
    """A Refit; outputs and rules of the firewall are as it wants them. Exit: it cannot be; nothing was changed."""
    settings, fixed = changes(plane.settings, reread(), AT_ONCE)
    inline, events = settings.inline, plane.event_names()
    try:
        classes.check(inline, events)
    except ValueError as error:
        raise Exit(USAGE, f"inline.{error}") from error
    if classes.rewrites(inline) and not plane.rewrite:
        raise Exit(
            USAGE, "inline: nothing has set a DSCP or marked by ECN so far, and to begin with it takes a restart"
        )
    told = classes.told_apart(inline)
    shim = None if told == plane.told_apart else classes.shim_of(inline, plane.rewrite)
    params = params_of(settings, plane.known, plane.root)
    rewire(plane, settings, steered=shim is not None and plane.installed and len(inline.queues) > 1)
    return Refit(settings, fixed, mitigation.rules_of(inline, events), shim, told, params)


def rewire(plane, settings, steered):
    """Change the firewall's rules, if they tell classes apart, and the outputs. If one fails both are as they were."""
    if steered:
        firewall.install(steering.rules_of(settings.inline), plane.inline.queues)
    try:
        plane.outputs.replace(settings.outputs or ["-"], rotation_of(settings))
    except BaseException:
        if steered:
            firewall.install(steering.rules_of(plane.inline), plane.inline.queues)
        raise


# --- in the main loop


def take_over(plane, refit):
    """Go on as the Refit says."""
    inline = refit.settings.inline
    if refit.rules != plane.rules or inline.dry_run != plane.inline.dry_run:
        plane.act(plane.mitigation.stop(plane.now()))
        plane.mitigation = mitigation.Mitigation(refit.rules, inline.dry_run)
    if refit.shim is not None:
        change_over(plane, refit.shim, classes.names_of(inline))
        plane.told_apart = refit.told_apart
    plane.declare(classes.names_of(inline), refit.rules)
    plane.settings, plane.inline = refit.settings, inline
    changed = plane.rates.refile(classes.rates_of(inline), inline.lease)
    settle(plane.shim.pacer.classes, inline, plane.rates)
    plane.apply(changed, BY_RELOAD)
    plane.apply(plane.rates.bound(plane.mitigation.bounds()), BY_MITIGATION)
    plane.override()
    plane.engine.retune(refit.params)
    plane.shim.context[0].tick = inline.tick
    plane.shim.begin()


def settle(rows, inline, rates):
    """Give CLASS rows what the section says, but for rates: those in force stay until they are changed."""
    wanted = classes.class_rows(inline)
    for name in SETTINGS:
        rows[name] = wanted[name]
    rows["limit_ns"][1:] = [classes.limit_ns(c, rates.of(c.name)) for c in inline.classes]


def change_over(plane, shim, names):
    """Let go what is held, and go on with another Shim, whose classes have these names."""
    old, rows = plane.shim, shim.pacer.classes
    old.flush()
    before = {name: number for number, name in enumerate(plane.names)}
    for number, name in enumerate(names):
        if name in before:
            rows[number] = old.pacer.classes[before.pop(name)]
    plane.retire(list(before.values()))
    for name in ("held_max", "late_max"):
        shim.pacer.control[0][name] = old.pacer.control[0][name]
    for name in CARRIED:
        shim.context[0][name] = old.context[0][name]
    shim.attach(plane.queues)
    plane.shim = shim

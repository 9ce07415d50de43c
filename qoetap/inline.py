"""`qoetap inline`: packets of the firewall's queues go through detectors and pacing, and on (plane.py)."""

import contextlib
import signal
import sys

import detectors as registry
from dataplane.records import CHECKED
from qoetap import config, firewall, steering, warm
from qoetap.exits import DONE, LOST, RUN_ERROR, USAGE, Exit
from qoetap.plane import ENDING, WAYS, Plane
from qoetap.replay import layers, listed, open_stats, write_stats
from qoetap.say import say
from qoetap.signals import Signals, put_off

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LATER = (signal.SIGHUP, signal.SIGUSR1)
SWITCH_seconds = 1e-4  # for which another thread may keep us from the interpreter


def settings_of(args):
    """(settings, every detector). Exit if something is wrong with the configuration."""
    known = registry.load_all()
    given = [config.Layer("-q", {"inline": {"queues": args.queue}})] if args.queue else []
    settings = config.load([*layers(args, known), *given], known)
    if not settings.inline.queues:
        raise Exit(USAGE, "name a queue: -q NUM, or inline.queues in the configuration (iptables -j NFQUEUE names it)")
    if args.install:
        steering.rules_of(settings.inline)  # now, while nothing is changed
    if CHECKED:
        raise Exit(USAGE, "inline is compiled only: unset NUMBA_DISABLE_JIT and NUMBA_BOUNDSCHECK")
    return settings, known


def stats_of(run):
    """What --stats writes."""
    rows = run.rows()
    told = {name: {f: int(row[f]) for f in rows.dtype.names} for name, row in zip(run.names, rows, strict=True)}
    ledger = {"seen": run.engine.seen, "former": run.former, "pardoned": run.pardoned}
    ledger["outputs"] = run.outputs.counts()
    return {"classes": told, "ledger": ledger, "seconds": run.engine.seconds}


def summarise(run):
    """The last lines on stderr."""
    shown = {name.replace("_", " "): n for name, n in run.totals().items() if n and name in WAYS}
    say(f"{run.engine.seen:,} packets" + (f": {listed(shown)}" if shown else ""))
    if run.failures:
        say(f"{run.failures} times a stage failed; {run.pardoned} packets were let through because of it")


def uninstall(queues):
    """Take our rules out of the firewall; the exit status."""
    removed = firewall.uninstall(queues or None).removed
    for command in removed:
        print(command)
    say(f"{len(removed)} rules taken out")
    return DONE


def inline(args):
    """The command; its exit status."""
    if args.uninstall:
        return uninstall(args.queue)
    settings, known = settings_of(args)
    stats_file = open_stats(args.stats)
    put_off(LATER)
    missing = warm.units(config.chosen(settings, known), "shim.arrive")
    sys.setswitchinterval(SWITCH_seconds)
    if missing:
        say(f"compiling kernels, once per installation (about {warm.seconds(missing)} s)")
        warm.compile_units(missing)
    with Signals(SIGNALS) as signals, contextlib.ExitStack() as stack:
        run = Plane(settings, known, lambda: settings_of(args)[0], stack)
        try:
            run.run(signals, args.install)
        finally:
            run.let_go()
            signals.last(ENDING)
            faults = run.end()
        faults += write_stats(stats_file, lambda: stats_of(run))
        summarise(run)
    for sentence in faults:
        say(sentence)
    return RUN_ERROR if faults else LOST if run.outputs.losses(run.settings.live.loss_allowed) else DONE

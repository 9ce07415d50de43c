"""`qoetap live`: interfaces in, events out, until it is told to end. Puts agent, outputs and signals together."""

import signal
import time
import traceback

import detectors as registry
from dataplane.capture import CaptureError, interface
from dataplane.capture.bpf import compile_filter
from dataplane.engine import Engine
from dataplane.evidence import History, history_bytes
from qoetap import config, stats, warm
from qoetap.agent import Agent, PAGE_bytes, ring_options
from qoetap.doctor import available_bytes
from qoetap.evidence import Evidence
from qoetap.exits import DONE, LOST, RUN_ERROR, USAGE, Exit
from qoetap.loss import losses
from qoetap.metrics import Exporter, read_token
from qoetap.notify import Notifier
from qoetap.outputs import Outputs, rotation_of
from qoetap.reload import changes, params_of
from qoetap.replay import MIB, engine_parts, layers, listed, most_bytes, open_stats, write_stats
from qoetap.say import say
from qoetap.signals import Signals, put_off

LOOK_seconds = 0.25  # signals are heard at once, the rest is looked after so often
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
ENDING = (signal.SIGTERM, signal.SIGINT)
LATER = tuple(number for number in SIGNALS if number not in ENDING)

WHOLE_PACKETS = config.Layer("evidence", {"live": {"snaplen": config.SNAPLEN_MAX_bytes}})


def live_layers(args, known):
    """Layers of the configuration, the command line's last."""
    found = layers(args, known)
    given = {"-i": ("interfaces", args.interface), "--write": ("write", args.write)}
    given["--on"] = ("write_on", args.on and args.on.split(","))
    found += [config.Layer(option, {"live": {key: value}}) for option, (key, value) in given.items() if value]
    if any(layer.values.get("live", {}).get("write") for layer in found if isinstance(layer.values.get("live"), dict)):
        found.insert(0, WHOLE_PACKETS)
    if args.expression:
        found.append(config.Layer("the command line", {"filter": " ".join(args.expression)}))
    return found


def settings_of(args):
    """(settings, every detector). Exit if something is wrong with the configuration."""
    known = registry.load_all()
    settings = config.load(live_layers(args, known), known)
    if not settings.live.interfaces:
        raise Exit(USAGE, "name an interface: -i IFACE, or live.interfaces in the configuration (ip link lists them)")
    if len(set(settings.live.interfaces)) < len(settings.live.interfaces):
        raise Exit(USAGE, "live.interfaces: an interface is named twice")
    require_groups(settings.live)
    if settings.workers > 1 and settings.detectors.iqn.enabled and settings.detectors.iqn.pool == "client":
        raise Exit(USAGE, "detectors.iqn.pool: client needs workers: 1, for a client's flows go to different workers")
    if args.on and not settings.live.write:
        raise Exit(USAGE, "--on: say where evidence goes, with --write DIR")
    return settings, known


def require_groups(live):
    """Exit if there are not as many fanout groups, from the one that is given on, as interfaces."""
    highest = config.GROUP_MAX + 1 - len(live.interfaces)
    if live.fanout_group and live.fanout_group > highest:
        raise Exit(USAGE, f"live.fanout_group: each interface takes a group, the next number: give {highest} at most")


def require_interfaces(settings):
    """Exit if one is not there."""
    try:
        for name in settings.live.interfaces:
            interface.require(name)
    except CaptureError as error:
        raise Exit(USAGE, str(error)) from error


def require_memory(settings, known):
    """Bytes that rings and tables may come to use. Exit if that is more than there is."""
    rings = ring_options(settings.live).ring_bytes * settings.workers * len(settings.live.interfaces)
    kept = settings.workers * history_bytes(history_size(settings)) if settings.live.write else 0
    need, there = rings + kept + most_bytes(settings, known, settings.workers), available_bytes()
    if there is not None and need > there:
        raise Exit(
            USAGE,
            f"live.ring_size: rings of {rings / MIB:,.0f} MiB and tables need {need / MIB:,.0f} MiB, but only "
            f"{there / MIB:,.0f} MiB are available: lower it, or the detectors' capacity",
        )
    return rings, need - rings


def announce(settings, known, rings, tables):
    running = config.chosen(settings, known)
    count = f"{settings.workers} worker" + "s" * (settings.workers > 1)
    names, memory = ", ".join(settings.live.interfaces), f"{rings / MIB:.0f} MiB, tables up to {tables / MIB:.0f} MiB"
    say(f"{names}: {len(running)} detectors, rings of {memory}, {count}")
    merging = ["merge.merge"] * (len(settings.live.interfaces) > 1)
    missing = warm.units(running, "ring.walk_stage", *merging, *["evidence.keep"] * bool(settings.live.write))
    if missing:
        say(f"compiling kernels, once per installation (about {warm.seconds(missing)} s)")
        warm.compile_units(missing)


def filtering_of(settings):
    """What makes the kernel's filter for an interface: the expression, and how much of a packet is copied."""

    def filtering(linktype, name):
        return compile_filter(settings.filter, linktype, settings.live.snaplen, name)

    return filtering


def history_size(settings):
    """Bytes of packets that each worker keeps for evidence."""
    return max(PAGE_bytes, settings.live.write_size // settings.workers)


def outputs_of(settings, top=False):
    return dict.fromkeys(settings.outputs or ["null" if top else "-"])


class Tap:
    """What one worker's engine sees as its sink: the outputs, and what else looks at the events."""

    def __init__(self, outputs, evidence, history, top):
        self.outputs, self.evidence, self.history, self.top = outputs, evidence, history, top

    def write(self, events):
        self.outputs.write(events)
        if self.evidence:
            self.evidence.look(events, self.history)
        if self.top:
            self.top.look(events)


class Live:
    """A running `qoetap live`."""

    def __init__(self, args, settings, known):
        self.args, self.settings, self.known = args, settings, known
        self.root, live = config.root_secret(settings.seed), settings.live
        running = list(config.chosen(settings, known).values())
        self.evidence = self.top = self.exporter = None
        if live.write:
            self.evidence = Evidence(live.write, live.write_on, live.write_seconds, live.write_files, running)
        self.outputs = Outputs(outputs_of(settings, args.top), [*running, stats.STATS], True, rotation_of(settings))
        if args.top:
            from qoetap.top import Top  # late: rich is slow to import

            self.top = Top()
        self.agent = Agent(settings, self._engine, filtering_of(settings), self.outputs)
        if live.metrics:
            self.exporter = Exporter(live.metrics, self.agent.snapshot, read_token())
        self.notifier = Notifier()
        self.reported, self.before = time.monotonic(), self.agent.snapshot()
        self.ended_by = None

    def _engine(self):
        """(engine, what watches it) for one worker."""
        settings, history = self.settings, None
        parts, options = engine_parts(settings, self.known, self.root, settings.workers)
        if self.evidence:
            history = History(history_size(settings))
        tap = Tap(self.outputs, self.evidence, history, self.top)
        return Engine(parts, tap, options, 1, settings.batch_rows, settings.agent_id), history and history.watch

    def run(self, signals):
        """Until a signal ends it, a worker fails or nobody reads what it prints."""
        self.agent.start()
        self.notifier.ready()
        self._say("listening; TERM or INT ends it, HUP reads the configuration anew, USR1 rotates outputs")
        while not (self.ended_by or self.agent.failed or self.outputs.deserted):
            self._hear(signals.next(LOOK_seconds))
            self._look()

    def end(self):
        """Deliver what was taken; the last snapshot and the ledger."""
        self.notifier.stopping()
        if self.top:
            self.top.close()
        self.outputs.drain()
        self.agent.stop()
        self.outputs.close()
        for part in filter(None, (self.evidence, self.exporter)):
            part.close()
        snapshot, ledger = self.agent.snapshot(), self.agent.ledger()
        self.agent.close()
        return snapshot, ledger

    def _hear(self, heard):
        if heard in ENDING:
            self.ended_by = heard
        elif heard == signal.SIGHUP:
            self.reload()
        elif heard == signal.SIGUSR1:
            self.outputs.rotate()

    def _look(self):
        sentences = [*self.agent.look(), *self.outputs.troubles(), *(self.evidence.troubles() if self.evidence else ())]
        for sentence in sentences:
            self._say(sentence)
        if self.top:
            self.top.draw(self.agent.snapshot)
        every = self.settings.live.stats_every / 1e9
        if every and time.monotonic() - self.reported >= every:
            self._report()
        self.notifier.feed(not self.agent.stuck)

    def _report(self):
        now, snapshot = time.monotonic(), self.agent.snapshot()
        values = stats.values_of(snapshot, self.before, now - self.reported)
        self.agent.report(stats.as_events(values, self.settings.agent_id))
        self.reported, self.before = now, snapshot
        text = stats.line(values, snapshot)
        self._say(text)
        self.notifier.status(text)

    def _say(self, sentence):
        """On stderr, or under the tables of --top."""
        (self.top.say if self.top else say)(sentence)

    def reload(self):
        """HUP: outputs are opened anew and the options of detectors taken over; a bad file changes nothing."""
        self.notifier.reloading()
        try:
            settings, _ = settings_of(self.args)
            self._take_over(settings)
        except Exit as error:
            self._say(f"reload: {error}; going on as before")
        self.outputs.reopen()
        self.notifier.ready()

    def _take_over(self, wanted):
        """Exit if an output cannot be opened; then nothing has changed."""
        settings, fixed = changes(self.settings, wanted)
        params = params_of(settings, self.known, self.root)
        self.outputs.replace(outputs_of(settings, self.args.top), rotation_of(settings))
        for worker in self.agent.workers:
            worker.changes.append(lambda engine=worker.engine: engine.retune(params))
        self.settings = settings
        self._say("reload: done" + (f"; what takes a restart stays as it was: {', '.join(fixed)}" if fixed else ""))


def stats_of(snapshot, agent):
    """What --stats writes."""
    seconds = {}
    for worker in agent.workers:
        for stage, spent in worker.engine.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    total = snapshot["uptime_seconds"]
    ledger = {name: snapshot[name] for name in ("packets", "events", "states", "balanced", "outputs", "interfaces")}
    return {
        "ledger": ledger,
        "seconds": {**seconds, "total": total},
        "packets_per_second": snapshot["packets"]["seen"] / max(total, 1e-9),
    }


def summarise(snapshot):
    """The last lines on stderr."""
    packets, events = snapshot["packets"], snapshot["events"]
    made = sum(events["made"].values())
    text = f"{made:,} events" + (f" ({listed(events['made'])})" if made else "")
    say(f"{packets['seen']:,} packets in {snapshot['uptime_seconds']:.1f} s; {text}")
    clock = {name: packets[name] for name in ("backwards", "jumps", "timeless")}
    lost = {f"{name} states given up": s["emergency"] for name, s in snapshot["states"].items()}
    missed = {f"missed by {name}": port["missed"] for name, port in snapshot["interfaces"].items()}
    for title, counts in (
        ("not decoded", packets["undecoded"]),
        ("decoded in part", packets["cut"]),
        ("packets lost", {**{f"dropped by the {who}": n for who, n in packets["dropped"].items()}, **missed}),
        ("time", clock),
        ("tables full", lost),
        ("events lost", {"dropped": events["dropped"]}),
    ):
        if shown := {name: n for name, n in counts.items() if n}:
            say(f"{title}: {listed(shown)}")


def show_traces(workers):
    """Where the workers that failed did so: for who mends it."""
    for worker in workers:
        if worker.error is not None:
            traceback.print_exception(worker.error)


def status_of(run, ledger, faults):
    """Say what went wrong, `faults` among it; the exit status."""
    if run.args.verbose:
        show_traces(run.agent.workers)
    faults = [*faults, *run.agent.complaints(), *run.outputs.complaints(), *ledger.imbalance()]
    for sentence in faults:
        say(sentence)
    if faults:
        return RUN_ERROR
    lost = losses(ledger, run.outputs, run.settings.live.loss_allowed)
    for sentence in lost:
        say(sentence)
    return LOST if lost else DONE


def live(args):
    """The command; its exit status."""
    settings, known = settings_of(args)
    require_interfaces(settings)
    rings, tables = require_memory(settings, known)
    stats_file = open_stats(args.stats)
    put_off(LATER)
    announce(settings, known, rings, tables)
    with Signals(SIGNALS) as signals:
        run = Live(args, settings, known)
        try:
            run.run(signals)
        finally:  # whatever ended it: what was taken is delivered, the terminal left as it was
            signals.last(ENDING)  # a second one ends it at once
            snapshot, ledger = run.end()
        faults = write_stats(stats_file, lambda: stats_of(snapshot, run.agent))
        summarise(snapshot)
        if run.evidence and (text := run.evidence.summary()):
            say(text)
        return status_of(run, ledger, faults)

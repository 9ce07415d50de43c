"""`qoetap replay`: captures in, events out. Puts sources, engine and outputs together and says what came of it."""

import json
import os
import time

import detectors as registry
from dataplane.capture import CaptureError, open_capture
from dataplane.capture.sieve import blocks_of
from dataplane.engine import Engine, shares_of
from dataplane.runner import runner_bytes
from dataplane.wire import decode_options
from dataplane.wire.fields import UNKNOWN_LINK
from qoetap import config, warm
from qoetap.exits import DONE, INPUT, LOST, RUN_ERROR, USAGE, Exit
from qoetap.inputs import filter_layers, inputs, sieve_of
from qoetap.interrupt import Stop
from qoetap.loss import losses
from qoetap.outputs import Outputs, rotation_of
from qoetap.progress import Progress
from qoetap.say import say

MIB = 1 << 20


def strange_links(path, packets, unknown):
    """The sentence about a capture none of whose packets has a known link type, else None."""
    if packets and packets == unknown:
        return f"{path}: no packet has a link type that qoetap knows (tcpdump names it); capture on another interface"
    return None


def layers(args, known):
    """Layers of the configuration, the command line's last."""
    found = [config.read_file(args.config)] if args.config else []
    found += [config.assignment(text) for text in args.set]
    given = {"workers": args.workers, "seed": args.seed, "tunnels": args.tunnels}
    found += [config.Layer(f"--{key}", {key: value}) for key, value in given.items() if value is not None]
    outputs = [*args.output, *(["-"] if args.json else [])]
    if outputs:
        found.append(config.Layer("-o", {"outputs": outputs}))
    if args.detectors:
        found.append(config.only([n for n in args.detectors.split(",") if n and n != "all"] or list(known), known))
    return found


def settings_of(args):
    """(settings, every detector). Exit if something is wrong with the configuration."""
    known = registry.load_all()
    found = layers(args, known) + filter_layers(args)
    if args.batch is not None:
        found.append(config.Layer("--batch", {"batch_rows": args.batch}))
    return config.load(found, known), known


def engine_parts(settings, known, root=None, engines=1):
    """([(Detector, params, capacity)], decode options) of one of several engines that have the capacity together.

    root: the secret that they share, None: from the settings.
    """
    root = root or config.root_secret(settings.seed)
    parts = []
    for name, detector in config.chosen(settings, known).items():
        section = getattr(settings.detectors, name)
        parts.append((detector, config.build_params(detector, section, root), -(-section.capacity // engines)))
    return parts, decode_options(config.derive(root, b"flow hash"), config.tunnel_bits(settings))


class Run:
    """One run over all inputs: the engine, what watches it, and what went wrong."""

    def __init__(self, settings, known, outputs, stop):
        parts, options = engine_parts(settings, known)
        self.outputs, self.stop, self.problems, self.loss_allowed = outputs, stop, [], settings.live.loss_allowed
        self.censuses, self.counted = {}, []  # the latter with the number of the file's first packet
        self.engine = Engine(parts, self, options, settings.workers, settings.batch_rows, settings.agent_id)
        self.total_bytes, self.done_bytes, self.progress = 0, 0, None
        self.name, self.source, self.sieve = "", None, sieve_of(settings)

    def over(self, files, counting):
        """Run over `files`; with `counting` take a census of each."""
        sizes = [os.path.getsize(f) if os.path.isfile(f) else None for f in files]
        self.progress = Progress(None if None in sizes else sum(sizes))
        try:
            for path, size in zip(files, sizes, strict=True):
                if self.stopped:
                    break
                self._file(path, counting)
                self.done_bytes += size or 0
            self.engine.end()
        finally:
            self.progress.stop()

    @property
    def stopped(self):
        return self.stop.signal is not None or self.outputs.failed

    def _file(self, path, counting):
        try:
            self.source = open_capture(path, self.engine.block_frames, self.engine.hold)
        except CaptureError as error:
            self.problems.append(str(error))
            return
        self.name = self.source.name
        if self.source.comment:
            say(f"{path}: {self.source.comment}")
        watch = None
        if counting:
            from dataplane.census import Census

            self.censuses[path] = Census()
            self.counted.append((self.engine.seen, self.censuses[path]))
            watch = self.censuses[path].watch
        ledger = self.engine.ledger
        seen, unknown = ledger.seen, ledger.lists[0, UNKNOWN_LINK]
        self.engine.run(self, watch)
        strange = strange_links(path, ledger.seen - seen, ledger.lists[0, UNKNOWN_LINK] - unknown)
        if not self.stopped and (problem := self.source.problem or strange):
            self.problems.append(problem)

    def write(self, events):
        """Hand on what the engine delivers."""
        self.outputs.write(events)
        if self.counted:
            from dataplane.census import count_pairs

            count_pairs(events, *zip(*self.counted, strict=True))

    def blocks(self):
        """Blocks of the source at hand, until something asks the run to end."""
        return self.until_stopped(blocks_of(self.source, self.sieve))

    def stretches(self):
        """The same with Stretches, where nothing is filtered."""
        return self.blocks() if self.sieve else self.until_stopped(self.source.stretches())

    def until_stopped(self, blocks):
        while not self.stopped and (block := self.stop.next(blocks)) is not None:
            yield block
            self.progress.show(self.engine.seen, self.done_bytes + self.source.bytes_done)
        blocks.close()


def most_bytes(settings, known, shares=None):
    """Memory that all tables and event buffers may come to use; `shares`: in how many the states are divided."""
    running = config.chosen(settings, known)
    shares = shares or shares_of(settings.workers)
    return sum(runner_bytes(d, getattr(settings.detectors, n).capacity, shares) for n, d in running.items())


def announce(settings, known):
    """Say what will run, the memory it may take, and whether its kernels must be compiled first."""
    running = config.chosen(settings, known)
    count = f"{settings.workers} worker" + ("s" if settings.workers > 1 else "")
    say(f"{len(running)} detectors, tables up to {most_bytes(settings, known) / MIB:.0f} MiB, {count}")
    more = ["sieve.mark"] if settings.filter else ["pcapfile.read_stage"]
    missing = warm.units(running, *more, *["relay.give_stage"] * (settings.workers > 1))
    if missing:
        say(f"compiling kernels, once per installation (about {warm.seconds(missing)} s)")
        warm.compile_units(missing)


def open_stats(path):
    """The file for --stats, opened before anything is read. Exit if that fails."""
    try:
        return open(path, "w", encoding="utf-8") if path else None
    except OSError as error:
        raise Exit(USAGE, f"{path}: cannot be written ({error.strerror})") from error


def write_stats(file, values):
    """Write what --stats asks for, if it does; sentences about what went wrong."""
    try:
        if file:
            with file:
                json.dump(values(), file, indent=1, default=int)
    except OSError as error:
        return [f"{file.name}: cannot be written ({error.strerror})"]
    return []


def stats(run, seconds):
    """What --stats writes."""
    ledger = run.engine.ledger
    return {
        "files": {path: census.as_dict() for path, census in run.censuses.items()},
        "ledger": {**ledger.as_dict(), "outputs": run.outputs.counts()},
        "seconds": {**run.engine.seconds, "total": seconds},
        "packets_per_second": ledger.seen / seconds,
    }


def listed(counts):
    return ", ".join(f"{n:,} {name}" for name, n in counts.items())


def summarise(run, seconds):
    """The last lines on stderr."""
    ledger = run.engine.ledger
    files, made = len(run.engine.files), sum(ledger.made.values())
    events = f"{made:,} events" + (f" ({listed(ledger.made)})" if made else "")
    source = f"{files} file{'s' * (files != 1)}"
    say(f"{ledger.seen:,} packets of {source} in {seconds:.2f} s ({ledger.seen / seconds:,.0f}/s); {events}")
    clock = {name: n for name, n in ledger.clock.items() if n}
    lost = {f"{name} states given up": s["emergency"] for name, s in ledger.states.items() if s["emergency"]}
    for title, counts in (
        ("filtered out", {"packets": ledger.filtered} if ledger.filtered else {}),
        ("not decoded", ledger.undecoded),
        ("decoded in part", ledger.cut),
        ("time", clock),
        ("tables full", lost),
        ("events lost", {"dropped": ledger.dropped} if ledger.dropped else {}),
    ):
        if counts:
            say(f"{title}: {listed(counts)}")


def status_of(run, faults):
    """Say what went wrong, `faults` among it; the exit status."""
    if run.stop.signal is not None:
        run.problems.append(f"stopped by {run.stop.signal.name}; what was read until then is delivered")
    faults = [*faults, *run.outputs.complaints(), *run.engine.ledger.imbalance()]
    lost = [] if faults else losses(run.engine.ledger, run.outputs, run.loss_allowed)
    for sentence in [*run.problems, *faults, *lost]:
        say(sentence)
    return RUN_ERROR if faults else INPUT if run.problems else LOST if lost else DONE


def replay(args):
    """The command; its exit status."""
    started = time.perf_counter()
    settings, known = settings_of(args)
    files = inputs(args)
    stats_file = open_stats(args.stats)
    running = config.chosen(settings, known).values()
    outputs = Outputs(dict.fromkeys(settings.outputs or ["table"]), running, rotation=rotation_of(settings))
    for sentence in outputs.troubles():
        say(sentence)
    announce(settings, known)
    with Stop() as stop:
        run = Run(settings, known, outputs, stop)
        begun = time.perf_counter()
        run.engine.seconds["start"] = begun - started
        run.over(files, stats_file is not None)
        outputs.close()
        seconds = time.perf_counter() - begun
    outputs.settle(run.engine.ledger)
    faults = write_stats(stats_file, lambda: stats(run, seconds))
    summarise(run, seconds)
    return status_of(run, faults)

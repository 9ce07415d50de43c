"""The agent: ports, workers and outputs of a live run, and the numbers that tell how it is.

Each worker is a thread with an engine and tables of its own; the kernel divides the packets among them. The thread that
made the agent looks after it.
"""

import gc
import threading
import time

from dataplane.capture import CaptureError
from dataplane.capture.port import Port, Share
from dataplane.capture.ring import RingOptions
from dataplane.ledger import Ledger, add
from qoetap.exits import PRIVILEGE, USAGE, Exit

PAGE_bytes = 4096
RING_BLOCKS = 4  # the least
STOP_seconds = 9.5  # for all workers to take what is left; outputs make them wait for 9 s at most
STUCK_seconds = 30.0  # a worker that did nothing for so long is not healthy


def ring_options(live):
    """RingOptions of the section `live`: whole pages a block, whole blocks a ring."""
    for key, least in (("ring_size", RING_BLOCKS * PAGE_bytes), ("block_size", PAGE_bytes)):
        if (size := getattr(live, key)) < least:
            raise Exit(USAGE, f"live.{key}: {size} bytes are too few, take 64KiB or more")
    block = min(live.block_size, live.ring_size // RING_BLOCKS) // PAGE_bytes * PAGE_bytes
    ring = live.ring_size // block * block
    retire_ms = max(1, live.retire // 1_000_000)
    hardware = live.hardware_timestamps
    return RingOptions(ring, block, retire_ms, live.promiscuous, live.outgoing, hardware)


def clocks_differ(ports):
    """A sentence if some ports have hardware timestamps and others the kernel's."""
    others = [port.name for port in ports if not port.hardware]
    if len(others) in (0, len(ports)):
        return []
    return [
        f"{', '.join(others)}: the kernel's timestamps, the other interfaces the cards': packets are merged only as "
        "well as these clocks agree (phc2sys), or set live.hardware_timestamps: false"
    ]


class Worker(threading.Thread):
    """A thread that takes its share of all ports through its engine."""

    def __init__(self, number, ports, engine, watch=None):
        super().__init__(name=f"qoetap-worker-{number}", daemon=True)
        self.engine, self.watch, self.error = engine, watch, None
        self.share = Share(ports, number, engine.block_frames, stretches=watch is None)
        self.changes = []  # to be made between two blocks
        self.left = False  # given up at the end
        engine.load()

    def run(self):
        try:
            self.engine.follow(self._blocks(), self.watch)
        except Exception as error:  # told by whoever looks after the agent
            self.error = error

    def _blocks(self):
        for block in self.share.blocks():
            while self.changes:
                self.changes.pop(0)()
            yield block

    @property
    def trouble(self):
        """What is wrong with it, None if nothing is."""
        if self.error is not None:
            return f"{self.name} failed: {type(self.error).__name__}: {self.error}"
        silent = time.monotonic() - self.share.alive
        if self.is_alive() and silent > STUCK_seconds:
            return f"{self.name} has been stuck for {silent:.0f} s"
        return None


class Agent:
    """Everything of a live run. Exit if an interface cannot be had.

    filtering(linktype, interface) -> program; engines: one for each worker, made by `make_engine()`.
    """

    def __init__(self, settings, make_engine, filtering, outputs):
        live, self.outputs, self.agent_id = settings.live, outputs, settings.agent_id
        self.own = Ledger()  # of events that no engine makes
        self.workers, self.ports, self.notes = [], [], []
        self.began = time.monotonic()
        try:
            for number, name in enumerate(live.interfaces):
                group = live.fanout_group + number if live.fanout_group else None  # a group belongs to one interface
                fanout = (group, live.fanout == "flow")
                self.ports.append(Port(name, ring_options(live), settings.workers, filtering, fanout))
                self.notes += self.ports[-1].notes
            self.notes += clocks_differ(self.ports)
            self.workers = [Worker(n, self.ports, *make_engine()) for n in range(settings.workers)]
        except CaptureError as error:
            self.close()
            raise Exit(PRIVILEGE if "CAP_NET_RAW" in str(error) else USAGE, str(error)) from error
        except PermissionError as error:
            self.close()
            raise Exit(PRIVILEGE, str(error)) from error

    def start(self):
        gc.collect()
        gc.freeze()  # what is there stays: it need not be looked through while packets come
        for port in self.ports:
            port.begin()
        for worker in self.workers:
            worker.start()

    def look(self):
        """What has changed since the last time, as sentences."""
        found, self.notes = self.notes, []
        return found + [sentence for port in self.ports for sentence in port.look()]

    @property
    def failed(self):
        return any(worker.error is not None for worker in self.workers)

    @property
    def stuck(self):
        """What is wrong with the workers, one sentence each."""
        return [worker.trouble for worker in self.workers if worker.trouble]

    @property
    def trouble(self):
        """Why it is not healthy, "" if it is. Outputs do not count: a new start would lose what waits for them."""
        found = self.stuck
        found += [f"{port.name} is {'gone' if port.gone else 'down'}" for port in self.ports if not port.up]
        return "; ".join(found)

    def stop(self):
        """Take what is left in the rings and end; what all detectors have to say last goes to the outputs."""
        for port in self.ports:
            port.stop()
        for worker in self.workers:
            worker.share.stop()
        deadline = time.monotonic() + STOP_seconds
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            worker.left = worker.is_alive()
        engines = [worker.engine for worker in self.workers if worker.error is None and not worker.left]
        latest = max((int(engine.clock[0]["now"]) for engine in engines if engine.seen), default=0)
        for engine in engines:
            engine.pass_time(latest)
            engine.end()

    def close(self):
        for port in self.ports:
            port.close()

    def ledger(self):
        """Ledger of all workers together and of what the kernel counted."""
        received, dropped, _ = map(sum, zip(*(port.counts() for port in self.ports), strict=True))
        ledger = Ledger.of([self.own, *(worker.engine.book() for worker in self.workers)])
        ledger.seen, ledger.lost = received, {"kernel": dropped}
        self.outputs.settle(ledger)
        return ledger

    def snapshot(self):
        """The numbers as a dict."""
        found = self.ledger().as_dict()
        trouble, failures = self.trouble, self.outputs.failures(time.monotonic())
        return {
            "agent_id": self.agent_id,
            "uptime_seconds": time.monotonic() - self.began,
            "healthy": not trouble,
            "why": "; ".join(filter(None, [trouble, *failures.values()])),
            **found,
            "interfaces": {port.name: self._numbers(port) for port in self.ports},
            "outputs": self.outputs.counts(),
            "outputs_up": {name: int(not failure) for name, failure in failures.items()},
        }

    def _numbers(self, port):
        received, dropped, freezes = port.counts()
        up = int(port.up)
        return {"up": up, "received": received, "dropped": dropped, "freezes": freezes, "missed": port.missed}

    def report(self, events):
        """Send events that no engine made."""
        for detector, rows in events.parts:
            add(self.own.made, {detector.events[0].name: len(rows)})
        self.outputs.write(events)

    def complaints(self):
        """Why a worker ended before it was told to, or did not when it was."""
        left = [worker.name for worker in self.workers if worker.left]
        found = [f"{name} does not end: given up after {STOP_seconds} s, its last events are lost" for name in left]
        return found + [worker.trouble for worker in self.workers if worker.error is not None]

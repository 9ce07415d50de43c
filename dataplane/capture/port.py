"""Interfaces and workers: on each Port a Ring for each worker; a Share is what one worker reads, of all ports.

The thread that opens the ports also looks after them (`Port.look`): an interface may go down, vanish and come back. A
worker closes its ring on an interface that is gone when it has taken what was left; when all have, and the interface
is there again, the port is opened anew, for all workers in the same order: so both directions of a flow that comes in
on two ports always belong to the same one.
"""

import select
import threading
import time

from dataplane.capture import interface
from dataplane.capture.merge import Merge
from dataplane.capture.ring import Counts, Ring
from dataplane.capture.source import CaptureError
from dataplane.records import CHECKED, FRAME, rows

IDLE_ms = 50  # without packets, so often time is passed on
STOPPING_ms = 1
# While packets of one interface wait for another's, it sleeps so long the first time and so long from then on, or until
# the other shows a block
HOLDING_ms = 2, 10
EVERYTHING = [(0x06, 0, 0, 0xFFFFFFFF)]  # ret: the whole packet
EMPTYING_seconds = 2.0  # what the kernel has counted is waited for so long, at the end or of an interface that is gone
BUSY_packets, NAP_RETIRES = 2048, 2.5  # after so many at once it sleeps for so many retire times
NAP_MOST_seconds, NAP_RING_bytes = 0.02, 32 << 20  # and a smaller ring could be full by then
# After so many it sleeps twice as long, unless they filled more than this share of the ring
FLOODED_packets, FLOODED_SHARE = 8192, 1 / 4
RETIRES = 2  # a packet is shown within so many retire times


def total(counts):
    """The sum of Counts."""
    return Counts(*map(sum, zip(*counts, strict=True)))


class Port:
    """One interface, read by `workers`, from `begin` on. CaptureError: it cannot be.

    filtering(linktype, interface): the program of the expression, None: everything; fanout: (group or None, by flow).
    """

    def __init__(self, name, options, workers=1, filtering=None, fanout=(None, False)):
        self.name, self.workers, self.fanout = name, workers, fanout
        self.past, self.missed_before = Counts(), interface.missed(name)
        self.missed, self.up, self.gone, self.gone_at, self.closing = 0, True, False, 0.0, []
        self.options, self.filtering, self.told, self.notes = options, filtering, [], []
        self.rings, self.lock = [None] * workers, threading.Lock()
        self._open(interface.require(name))

    def _open(self, index):
        """Make the rings; they let nothing in before `begin`, when all have joined their group."""
        self.index, group, by_flow = index, *self.fanout
        linktype, loopback = interface.link_type(self.name)
        # On a loopback every packet goes out and comes in: once is enough
        options = self.options._replace(outgoing=self.options.outgoing and not loopback)
        why = interface.use_hardware_timestamps(self.name) if options.hardware else None
        if why:
            options = options._replace(hardware=False)
        self.hardware = options.hardware  # whose timestamps its packets have
        self.program = self.filtering(linktype, self.name) if self.filtering else EVERYTHING
        rings = []
        try:
            for _ in range(self.workers):
                rings.append(Ring(self.name, index, linktype, options))
                if self.workers > 1 or group is not None:
                    group = rings[-1].join(group, by_flow)
        except CaptureError:
            for ring in rings:
                ring.close()
            raise
        self.notes = [why] if why else []  # about how it was opened
        self.gone = False  # first: a worker leaves the rings of a port that is gone
        self.rings = rings

    def begin(self):
        """Let packets in."""
        for ring in filter(None, self.rings):
            ring.begin(self.program)

    def look(self):
        """What has changed since the last time, as sentences."""
        self.closing = [ring for ring in self.closing if not ring.close()]
        self.counts()  # the kernel's counters have 32 bits
        if self.gone:
            return self._return()
        if interface.index_of(self.name) != self.index:
            self.gone, self.gone_at, self.up = True, time.monotonic(), False
            return [f"{self.name}: the interface is gone; waiting for it to come back"]
        before, self.up = self.up, interface.is_up(self.name)
        self.missed = max(self.missed, interface.missed(self.name) - self.missed_before)
        if before != self.up:
            return [f"{self.name}: the interface is " + ("up again" if self.up else "down; waiting for it to come up")]
        return []

    def _return(self):
        index = interface.index_of(self.name)
        if not index or any(self.rings):
            return []
        try:
            self._open(index)
        except CaptureError as error:
            self.gone, before, self.told = True, self.told, [str(error)]
            return [] if interface.index_of(self.name) != index or self.told == before else self.told
        self.begin()
        self.told = []
        self.missed_before, self.up = interface.missed(self.name) - self.missed, interface.is_up(self.name)
        return [f"{self.name}: the interface is back", *self.notes]

    def leave(self, number):
        """A worker's ring has no more to give: keep its counts and close it."""
        with self.lock:
            ring, self.rings[number] = self.rings[number], None
            self.past = total([self.past, ring.count()])
        if not ring.close():
            self.closing.append(ring)

    def counts(self):
        """Counts of the kernel's so far, over all rings."""
        with self.lock:
            return total([self.past, *(ring.count() for ring in self.rings if ring)])

    def stop(self):
        """Let nothing more in."""
        with self.lock:  # a worker may be leaving
            for ring in filter(None, self.rings):
                ring.stop()

    def close(self):
        for number, ring in enumerate(self.rings):
            if ring:
                self.leave(number)


class Share:
    """What worker `number` reads. Yields Blocks, each valid until the next, and when there is none the ns since.

    The packets of several ports come in order of time. Of one port, with `stretches`, Stretches instead of Blocks.
    CaptureError: the rings of several ports cannot be mapped.
    """

    def __init__(self, ports, number, block_frames, stretches=False):
        self.ports, self.number = ports, number
        self.frames = rows(FRAME, block_frames)
        self.margin_ns = RETIRES * max(port.options.retire_ms for port in ports) * 1_000_000
        self.read_ns = 0  # monotonic time when the last packet was read
        self.stopping = None  # monotonic seconds at which that was asked for
        self.alive = time.monotonic()  # when it last did something
        self.polled, self.poller = [], select.poll()
        long_enough = all(port.options.ring_bytes >= NAP_RING_bytes for port in ports)
        self.taken, self.nap_seconds = 0, min(NAP_RETIRES * port.options.retire_ms for port in ports) / 1000
        self.nap_seconds = min(self.nap_seconds, NAP_MOST_seconds) if long_enough else 0.0
        self.passed = 0.0  # by the one ring, when it last waited
        self.held = 0  # passes in a row with packets at hand that had to wait for others
        self.merge = self._merge() if len(ports) > 1 else None
        self.taking = self._stretch if stretches and not self.merge and not CHECKED else self._block

    def _merge(self):
        options = [port.options for port in self.ports]
        blocks = max(each.ring_bytes // each.block_bytes for each in options)
        merge = Merge(len(options), max(each.ring_bytes for each in options), blocks, self.margin_ns)
        merge.follow(self._places())
        return merge

    def elapsed(self, now_ns):
        """Nanoseconds since the last packet, at a monotonic time before which the rings were found empty.

        Packets that the kernel has not shown yet are not overtaken.
        """
        return max(0, now_ns - self.read_ns - self.margin_ns)

    def blocks(self):
        """What all rings have, until `stop` and nothing is left."""
        while True:
            taken, empty, now_ns = 0, True, time.monotonic_ns()
            for reader in self._readers():
                came, all_of_it = yield from self.taking(reader)
                taken, empty = taken + came, empty and all_of_it
            self.alive = time.monotonic()
            self.taken += taken
            self.held = self.held + 1 if not taken and self._holding() else 0
            self._leave_gone()
            if empty:
                yield self.elapsed(now_ns) if self.read_ns and not self.held else 0
                rings = self._rings()
                if self._done(rings):
                    return
                self._wait(rings)

    def _block(self, reader):
        """Yield the next one, if there is any; how many frames it had, whether nothing is left."""
        block = reader.take(self.frames)
        came = len(block.frames)
        if came:
            self.read_ns = time.monotonic_ns()
            yield block
        return came, not came

    def _stretch(self, reader):
        """The same of all that is there, or as much as makes the engine pause."""
        memory = reader.buf  # while it is here, nobody unmaps it
        if memory is None:
            return 0, True
        yield reader.stretch
        del memory
        came, empty = reader.noted()
        if came:
            self.read_ns = time.monotonic_ns()
        return came, empty

    def _readers(self):
        """What there is to `take` from: the one ring, or all as one."""
        self._follow()
        return self._rings() if self.merge is None else [self.merge]

    def _follow(self):
        if self.merge is not None:
            self.merge.follow(self._places())

    def _holding(self):
        return self.merge is not None and self.merge.holding

    def _places(self):
        """The ring on each port, None where there is none."""
        return [port.rings[self.number] for port in self.ports]

    def _rings(self):
        return [ring for ring in self._places() if ring]

    def _leave_gone(self):
        for port in self.ports:
            ring = port.rings[self.number]
            if port.gone and ring and (ring.behind <= 0 or time.monotonic() - port.gone_at > EMPTYING_seconds):
                port.leave(self.number)
                self._follow()  # its memory is free at once

    def stop(self):
        """End when all that the kernel has counted was seen. The ports must have been stopped before."""
        self.stopping = time.monotonic()

    def _done(self, rings):
        if self.stopping is None:
            return False
        return time.monotonic() - self.stopping > EMPTYING_seconds or all(ring.behind <= 0 for ring in rings)

    def _nap(self, taken, rings):
        """How long to sleep where `taken` packets came since the last time; 0.0: until something comes.

        Twice as long for many, where one ring has room for as many again.
        """
        passed, before = rings[0].passed if len(rings) == 1 else 0.0, self.passed
        self.passed = passed
        if taken < BUSY_packets or self.stopping is not None:
            return 0.0
        two = taken >= FLOODED_packets and 0.0 < passed - before <= FLOODED_SHARE
        return self.nap_seconds * (2 if two else 1)

    def _wait(self, rings):
        """Sleep until a ring has something, time is to be passed on, or it is to end.

        Where there was much, for a while at least: a pass has its price, whatever it takes.
        """
        taken, self.taken = self.taken, 0
        if nap := self._nap(taken, rings):
            time.sleep(nap)
            return
        limit_ms = IDLE_ms if self.stopping is None else STOPPING_ms
        if self.held:  # a ring with packets at hand is always ready
            rings = [ring for ring in rings if not self.merge.holds(ring)]
            limit_ms = min(limit_ms, HOLDING_ms[self.held > 1 and self.nap_seconds > 0])  # a small ring fills quickly
        if rings != self.polled:
            self.polled, self.poller = rings, select.poll()
            for ring in rings:
                self.poller.register(ring.socket, select.POLLIN | select.POLLERR)
        by_fd = {ring.socket.fileno(): ring for ring in rings}
        for fd, event in self.poller.poll(limit_ms):
            if event & ~select.POLLIN:
                by_fd[fd].pardon()

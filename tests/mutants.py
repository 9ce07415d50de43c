"""Damage: frames and whole capture files with bytes changed, cut out and put in. Judges nothing.

A mutant is known by a seed and a number and can be made again: `mutants(files, seed, number + 1)` ends with it.
`python -m tests.mutants FOLDER SEED COUNT` runs the engine over mutants of the captures in FOLDER and prints what came
out, to be compared between compiled and interpreted.
"""

import gzip
import hashlib
import itertools
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import detectors as registry
from dataplane.capture import Block, open_capture
from dataplane.engine import Engine
from dataplane.records import FRAME, TIME_NONE, TIME_RANGE, rows
from dataplane.wire import TUNNELS
from qoetap.replay import engine_parts
from tests import captures as write
from tests.helpers import Memory, settings_for

WINDOW_FRAMES = 60  # taken from one capture at a time
GAP_NS = 10**9  # the longest in time, either way
START_NS = 1_700_000_000 * 10**9
FRAMES_MOST = 3000  # of one capture
GAP_NS = 10**9  # the longest in time, either way
START_NS = 1_700_000_000 * 10**9
FRAMES_MOST = 3000  # of one capture
WINDOW_GAP_NS = 10**9  # between the windows, which follow each other in time whatever the captures say
BLOCK_FRAMES = 1000
FILE_FRAMES = 100
CAPACITY = 96  # states a table: some are given up in emergency
LINKTYPES = (0, 1, 12, 14, 101, 108, 113, 228, 229, 276, 105, 147, 65535)
TIMES = (0, 1, -1, 2**63 - 1, -(2**63) + 1, 2**62, 9_223_372_035 * 10**9, -9_223_372_035 * 10**9, 10**18)
SPECIAL = (0, 1, 4, 5, 7, 8, 0x45, 0x60, 0x7F, 0x80, 0xFF)
HEADERS_BYTES = 90


class Frame(NamedTuple):
    data: bytes
    ts: int
    length: int
    linktype: int
    flags: int = 0
    nsec: int = 0


def originals(folder, corpus=None):
    """A list of Frames of each capture in `folder`, and in the folder `corpus`, where there is one."""
    found = [p for p in sorted(Path(folder).iterdir()) if p.suffix in (".pcap", ".pcapng")]
    if corpus:
        found += sorted(p for p in Path(corpus, "pcaps").iterdir() if p.suffix in (".pcap", ".pcapng"))
    return [frames for frames in map(frames_of, found) if frames]


def frames_of(path):
    found = []
    for buf, frames in open_capture(path, 256).blocks():
        for f in np.asarray(frames):
            at = int(f["offset"])
            data = bytes(buf[at : at + int(f["caplen"])])
            found.append(Frame(data, *(int(f[name]) for name in ("ts", "len", "linktype", "flags", "nsec"))))
        if len(found) >= FRAMES_MOST:
            break
    return found


def flip(rng, data):
    for _ in range(rng.randrange(1, 5)):
        data[rng.randrange(min(len(data), HEADERS_BYTES))] ^= rng.randrange(1, 256)


def cut(rng, data):
    del data[rng.randrange(len(data)) :]


def insert(rng, data):
    at = rng.randrange(min(len(data), HEADERS_BYTES))
    data[at:at] = rng.randbytes(rng.randrange(1, 9))


def remove(rng, data):
    at = rng.randrange(min(len(data), HEADERS_BYTES))
    del data[at : at + rng.randrange(1, 9)]


def set_byte(rng, data):
    data[rng.randrange(min(len(data), HEADERS_BYTES))] = rng.choice(SPECIAL)


def set_length(rng, data):
    """An even offset in the headers, as length fields have, takes a number that lengths must not have."""
    at = rng.randrange(0, min(len(data), HEADERS_BYTES), 2)
    value = rng.choice((0, 1, 7, 8, 19, 20, 39, 40, 0x7FFF, 0x8000, 0xFFFF, len(data) & 0xFFFF, rng.randrange(65536)))
    data[at : at + 2] = value.to_bytes(2, "big")


MUTATIONS = (flip, flip, cut, insert, remove, set_byte, set_length, set_length)


def mutate(frame, seed, number):
    """Mutant `number`: the frame with one to three mutations; now and then its link type, length or time too."""
    rng, data = random.Random(seed << 40 | number), bytearray(frame.data)
    for _ in range(rng.randrange(1, 4)):
        if data:
            rng.choice(MUTATIONS)(rng, data)
    length = max(frame.length, len(data))
    frame = frame._replace(data=bytes(data), length=length)
    what = rng.randrange(512)
    if what < 32:
        return frame._replace(linktype=rng.choice(LINKTYPES))
    if what < 48:
        return frame._replace(length=rng.choice((0, 1, 65535, 2**31 - 1, 2**31, 2**32 - 1)))
    if what == 48:
        return frame._replace(ts=rng.choice((*TIMES, frame.ts + rng.randrange(-(10**11), 10**11))))
    if what < 52:
        return frame._replace(flags=rng.choice((TIME_NONE, TIME_RANGE)), ts=rng.choice(TIMES))
    return frame


def mutants(files, seed, count):
    """Yield mutants 0 to `count` - 1 of the frames of `files`."""
    for number, frame in enumerate(itertools.islice(windows(files), count)):
        yield mutate(frame, seed, number)


def batches(files, seed, count):
    """Yield (number of the first, mutants) for each BLOCK_FRAMES of them."""
    found = mutants(files, seed, count)
    for first in range(0, count, BLOCK_FRAMES):
        yield first, list(itertools.islice(found, BLOCK_FRAMES))


def windows(files):
    """Yield frames without end, a window of each capture in turn; time goes on from one to the next in short steps."""
    now = START_NS
    for turn in itertools.count():
        for frames in files:
            at = turn * WINDOW_FRAMES % len(frames)
            last = frames[at].ts - GAP_NS
            for frame in frames[at : at + WINDOW_FRAMES]:
                now += max(-GAP_NS, min(GAP_NS, frame.ts - last))
                last = frame.ts
                yield frame._replace(ts=now)


def block_of(frames, gap=b""):
    """Block of Frames, `gap` behind each; without one the buffer ends where the last frame does."""
    data = gap.join([*(f.data for f in frames), b""] if gap else [f.data for f in frames])
    made = rows(FRAME, len(frames))
    made["offset"] = np.cumsum([0] + [len(f.data) + len(gap) for f in frames[:-1]])
    made["caplen"] = [len(f.data) for f in frames]
    made["len"] = [f.length for f in frames]
    for name in ("ts", "linktype", "flags", "nsec"):
        made[name] = [getattr(f, name) for f in frames]
    return Block(np.frombuffer(bytearray(data), np.uint8), made)


class InMemory:
    """A source of mutants in blocks; `where` names those at hand."""

    name = "mutants"

    def __init__(self, files, seed, count):
        self.batches, self.seed, self.where = batches(files, seed, count), seed, ""

    def blocks(self):
        for first, frames in self.batches:
            self.where = f"seed {self.seed}, mutants {first} to {first + len(frames) - 1}"
            yield block_of(frames)


def new_engine(sink=Memory, tunnels=True, **options):
    """An Engine with every detector, small tables and every tunnel entered; batches as large as the blocks."""
    known = registry.load_all()
    sections = {name: {"capacity": CAPACITY} for name in known}
    tunnels = list(TUNNELS) if tunnels else []
    settings = settings_for(known, {"settings": sections, "tunnels": tunnels, "batch_rows": BLOCK_FRAMES, **options})
    parts, decode = engine_parts(settings, known)
    sink = sink([detector for detector, _, _ in parts])
    return Engine(parts, sink, decode, settings.workers, settings.batch_rows, "mutants")


def mutant_file(frames, seed, number):
    """A capture file of Frames (of the first one's link type), damaged behind its magic, of one of four formats."""
    rng = random.Random(seed << 40 | number)
    order, nano = rng.choice("<>"), rng.random() < 0.5
    times = [(f.ts // 10**9 & 0xFFFFFFFF, f.ts % 10**9) for f in frames]
    if rng.random() < 0.5:
        packets = [(s, ns if nano else ns // 1000, f.data, f.length & 0xFFFFFFFF) for (s, ns), f in zip(times, frames)]
        magic = 0xA1B23C4D if nano else rng.choice((0xA1B2C3D4, 0xA1B2CD34))
        data = write.pcap(packets, order, magic, (2, rng.choice((2, 3, 4, 4, 4))), frames[0].linktype)
    else:
        data = mutant_pcapng(frames, times, order, rng)
    data = damaged(data, rng, rng.randrange(3))
    if rng.random() < 0.15:
        return damaged(gzip.compress(data, 1), rng, rng.randrange(2))
    return data


def mutant_pcapng(frames, times, order, rng):
    """A section with interfaces of several resolutions, and their packets in the three kinds of blocks."""
    links = sorted({f.linktype for f in frames})
    data = write.section(order) + b"".join(write.interface(order, link, 0, 9) for link in links)
    snaplen, resolution, offset = (
        rng.choice((0, 40)),
        rng.choice((0, 6, 19, 0x80, 0xBF)),
        rng.choice((0, 2**62, -(2**62))),
    )
    data += write.interface(order, 1, snaplen, resolution, offset)
    kinds = 16 if rng.random() < 0.1 else 128  # the strange interface makes the clock jump, which is slow interpreted
    for (s, ns), f in zip(times, frames, strict=True):
        number, kind = links.index(f.linktype), rng.randrange(kinds)
        if kind == 0:
            data += write.simple(f.data + bytes(-len(f.data) % 4), len(f.data), order)
        elif kind == 1:
            data += write.obsolete(s * 10**9 + ns, f.data + bytes(-len(f.data) % 4), number, order)
        else:
            number = len(links) if kind == 2 else number
            data += write.enhanced(s * 10**9 + ns, f.data, f.length & 0xFFFFFFFF, number, order)
    return data


def damaged(data, rng, times):
    """`data` with some bytes behind the first four changed, removed or doubled."""
    data = bytearray(data)
    for _ in range(times):
        at, what = rng.randrange(4, len(data)), rng.randrange(4)
        if what < 2:
            data[at] = rng.choice((0, 1, 4, 255, rng.randrange(256)))
        elif what == 2:
            del data[at : at + rng.randrange(9)]
        else:
            data[at:at] = data[at : at + rng.randrange(9)]
        if len(data) < 12:
            break
    return bytes(data)


def outcome(folder, seed, count, corpus=None):
    """What the engine makes of `count` mutants: the events' JSON lines, the ledger, a digest of all packet rows."""
    engine, digest = new_engine(), hashlib.sha256()
    source = InMemory(originals(folder, corpus), seed, count)

    def watch(batch, block):
        digest.update(np.asarray(batch.packets)[: len(block.frames)].tobytes())

    engine.run(source, watch)
    engine.end()
    return bytes(engine.sink.text) + f"{engine.ledger.as_dict()}\n{digest.hexdigest()}\n".encode()


if __name__ == "__main__":
    text = outcome(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), os.environ.get("QOETAP_CORPUS"))
    sys.stdout.buffer.write(text)

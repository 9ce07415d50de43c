"""Traffic for the benchmarks: seeded pcap files, byte for byte the same each time. This file measures nothing.

A file holds `packets` packets of `flows` conversations. Each conversation has a kind (frames.PER_THOUSAND), a family,
perhaps a VLAN tag, and behaves: a TCP one opens with SYN, an echo request is answered, a PTP exchange has its four
messages. Every length and checksum is true to the full frame; bytes that no header needs are zero.
"""

import os
import struct
from math import log
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from bench import frames

START_NS = 1_700_000_000 * 10**9
CHUNK_PACKETS = 1 << 16
SNAP_BYTES = 96
FULL_BYTES = 65535
RATE_PPS = 500_000
TRAIN_PACKETS = 16  # mean of the geometric distribution
MIXED, TRAINS, FLOOD = range(3)
ORDERS = ("mixed", "trains", "flood")
US_MAGIC = 0xA1B2C3D4  # microseconds: what tcpdump writes, and no peer has to convert
VERSION = 1  # of the traffic: part of the file name, so that an older file is not taken for this one


class Traffic(NamedTuple):
    """What one file holds. `flows` is not used by a flood, where every packet opens a new flow."""

    packets: int
    flows: int = 10_000
    order: str = "mixed"
    snap: int = SNAP_BYTES
    seed: int = 1
    rate: int = RATE_PPS

    @property
    def name(self):
        snap = "imix" if self.snap == FULL_BYTES else f"snap{self.snap}"
        return f"v{VERSION}-{snap}-{self.order}-{self.flows}f-{self.packets}p-{self.rate}pps-s{self.seed}.pcap"


@njit
def next_flow(now, order, flows, draw):
    """Which conversation the next packet belongs to."""
    if order == FLOOD:
        return now.number
    if order == TRAINS and now.number > 0 and draw % np.uint64(TRAIN_PACKETS) != np.uint64(0):
        return now.flow
    return np.int64((draw >> np.uint64(16)) % np.uint64(flows))


@njit
def gap_ns(draw, rate):
    """Exponentially distributed, from the upper 53 bits."""
    return np.int64(-log(1.0 - np.float64(draw >> np.uint64(11)) * 2.0**-53) * 1e9 / rate)


@njit(nogil=True)  # not cached: numba would not notice an edit in frames.py
def fill(buf, states, nows, count, spec):
    """Write `count` pcap records to `buf`, which is zero; returns the bytes used.

    `nows` is one NOW row, `spec` int64: order, flows, snap, seed, rate.
    """
    order, flows, snap, seed, rate = (spec[0], spec[1], spec[2], np.uint64(spec[3]), spec[4])
    now, at = nows[0], 0
    for _ in range(count):
        draw = frames.mix(seed, np.uint64(now.number))
        now.flow = next_flow(now, order, flows, draw)
        now.ts += gap_ns(draw, rate)
        now.draw = np.int64(frames.mix(draw, np.uint64(1)) >> np.uint64(2))
        state = states[0 if order == FLOOD else now.flow]
        if order == FLOOD:
            state.count = 0
        length = frames.write(buf, at + 16, state, now, seed)
        caplen = min(length, snap)
        frames.put32le(buf, at, now.ts // 1_000_000_000)
        frames.put32le(buf, at + 4, now.ts % 1_000_000_000 // 1000)
        frames.put32le(buf, at + 8, caplen)
        frames.put32le(buf, at + 12, length)
        at += 16 + caplen
        now.number += 1
    return at


def folder():
    """Where the large files are: QOETAP_BENCH_DIR, or /tmp/bench."""
    path = Path(os.environ.get("QOETAP_BENCH_DIR", "/tmp/bench"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def make(traffic):
    """Path of the file of `traffic`, written unless it is there already."""
    path = folder() / traffic.name
    if not path.exists():
        part = path.with_suffix(".part")
        with part.open("wb") as out:
            write(out, traffic)
        part.rename(path)
    return path


def write(out, traffic):
    """Write a little-endian pcap file, a chunk at a time: memory does not grow with `packets`."""
    out.write(struct.pack("<IHHiIII", US_MAGIC, 2, 4, 0, 0, traffic.snap, 1))
    order = ORDERS.index(traffic.order)
    states = np.zeros(1 if order == FLOOD else traffic.flows, frames.STATE).view(np.recarray)
    nows = np.zeros(1, frames.NOW).view(np.recarray)
    nows[0].ts = START_NS
    spec = np.array([order, traffic.flows, traffic.snap, traffic.seed, traffic.rate], np.int64)
    chunk = min(CHUNK_PACKETS, traffic.packets)
    buf = np.zeros(chunk * (16 + min(traffic.snap, frames.MAX_BYTES)) + frames.MAX_BYTES, np.uint8)
    for done in range(0, traffic.packets, chunk):
        with np.errstate(over="ignore"):  # hashes wrap; only interpreted code would warn
            used = fill(buf, states, nows, min(chunk, traffic.packets - done), spec)
        out.write(buf[:used])
        buf[: used + frames.MAX_BYTES] = 0


def head(path, packets):
    """Path of a file that holds the first `packets` records of `path`, for peers too slow for the whole."""
    part = path.with_name(f"{path.stem}.first{packets}.pcap")
    if not part.exists():
        with path.open("rb") as source, part.with_suffix(".part").open("wb") as out:
            out.write(source.read(24))
            for _ in range(packets):
                record = source.read(16)
                out.write(record + source.read(int.from_bytes(record[8:12], "little")))
        part.with_suffix(".part").rename(part)
    return part

"""A ring of packets shared with the kernel (packet(7), AF_PACKET TPACKET_V3): mapped, walked in place, never copied.

The kernel fills blocks of the ring and hands each over when it is full or has waited for the retire time. A Ring is one
socket on one interface; each `take` shows the frames of some blocks and gives back those of the one before. Several
rings are read as one by merge.py. Where there is but one and nobody else looks at its frames, `walk_stage` finds them
tile by tile in the chain of stages that sees them: so they stay in the caches. Structures and numbers:
linux/if_packet.h.
"""

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
import threading
from typing import NamedTuple

import numpy as np
from numba import njit

from dataplane.capture import interface
from dataplane.capture.bpf import attach
from dataplane.capture.fanout import BY_PAIR, assemble
from dataplane.capture.source import Block, CaptureError, u16, u32
from dataplane.capture.stretch import FRAME_BYTES
from dataplane.chain import DONE, SPENT, Stage, batch_at
from dataplane.kernels import Kernel, stage_address
from dataplane.memory import array_at, memory
from dataplane.records import FRAME, Stretch, rows

SOL_PACKET = 263
ADD_MEMBERSHIP, RX_RING, STATISTICS, VERSION, RESERVE, TIMESTAMP = 1, 5, 6, 10, 12, 17
FANOUT, FANOUT_DATA, IGNORE_OUTGOING = 18, 22, 23
TPACKET_V3, PROMISCUOUS, ETH_P_ALL = 2, 1, 3
FANOUT_HASH, FANOUT_CBPF, FANOUT_UNIQUE = 0, 6, 0x2000
RAW_HARDWARE = 1 << 6  # SOF_TIMESTAMPING_RAW_HARDWARE

STATUS_AT, PACKETS_AT, FIRST_AT = 8, 12, 16  # of a block's header
BLOCK_OURS = 1
# of a frame's header
NEXT_AT, SEC_AT, NSEC_AT, CAPTURED_AT, LENGTH_AT, FLAGS_AT, MAC_AT, TCI_AT, TPID_AT = 0, 4, 8, 12, 16, 20, 24, 32, 36
VLAN_VALID, TPID_VALID = 0x10, 0x40
TAG_bytes, ADDRESSES_bytes = 4, 12
T_8021Q = 0x8100
FRAME_bytes = 2048  # what the interface's definition asks for; frames of version 3 take what they need
TILE_frames = 4096  # that the stage finds at once, at most
SHOWN_SHARE = 4  # of the ring's blocks, one in so many is shown at a time: the kernel needs room meanwhile
BIG = int(sys.byteorder == "big")
DROP_ALL = [(0x06, 0, 0, 0)]  # ret #0
MAP_FIXED = 0x10  # mman.h: in place of what is there

WALK = np.dtype(
    [
        ("base", np.int64),  # where the ring begins, in the buffer
        ("block", np.int64),  # number of the block at hand
        ("at", np.int64),  # next frame, in the buffer
        ("left", np.int64),  # frames of the block that were not walked yet
        ("passed", np.int64),  # blocks before it, all of them
        ("shown", np.int64),  # of these, those that are to be given back
        ("most", np.int64),  # which may not be more
        ("blocks", np.int64),
        ("block_bytes", np.int64),
        ("linktype", np.int64),
        ("big", np.int64),
    ],
    align=True,
)


WALKING = np.dtype(  # context of the stage: addresses and sizes; what came
    [
        *((name, np.int64) for name in ("buf", "buf_bytes", "frames", "room", "walk")),
        ("walked", np.int64),  # frames since that was last asked
        ("last", np.int64),  # of the last tile
    ],
    align=True,
)


class RingOptions(NamedTuple):
    """How a ring is made."""

    ring_bytes: int
    block_bytes: int
    retire_ms: int
    promiscuous: bool = True
    outgoing: bool = True
    hardware: bool = False  # timestamps


class Counts(NamedTuple):
    """What the kernel says of a socket: `received` includes `dropped`; `freezes`: how often the ring was full."""

    received: int = 0
    dropped: int = 0
    freezes: int = 0


@njit
def put_tag_back(buf, at, tci, tpid):
    """Move the two addresses four bytes towards the front and write the tag behind them (IEEE 802.1Q, 9.6)."""
    for i in range(ADDRESSES_bytes):
        buf[at - TAG_bytes + i] = buf[at + i]
    tag = at - TAG_bytes + ADDRESSES_bytes
    buf[tag], buf[tag + 1], buf[tag + 2], buf[tag + 3] = tpid >> 8, tpid & 255, tci >> 8, tci & 255


@njit
def is_ours(mem, row, block):
    """Whether the kernel has handed block number `block` over."""
    return u32(mem, row.base + block * row.block_bytes + STATUS_AT, row.big) & BLOCK_OURS != 0


@njit
def enter_block(mem, row):
    """Go to the first frame of the block at hand."""
    start = row.base + row.block * row.block_bytes
    row.left, row.at = u32(mem, start + PACKETS_AT, row.big), start + u32(mem, start + FIRST_AT, row.big)


@njit
def open_block(mem, row):
    """Look for the next block that the kernel has handed over; False: there is none, or enough were shown."""
    while row.left == 0:
        if row.shown >= row.most or not is_ours(mem, row, row.block):
            return False
        enter_block(mem, row)
        if row.left == 0:
            leave_block(row)
    return True


@njit
def leave_block(row):
    """The block was walked to its end: it goes back to the kernel with the next call."""
    row.passed += 1
    row.shown += 1
    row.block = (row.block + 1) % row.blocks


@njit
def give_back(words, row):
    """Give the blocks that were shown back to the kernel."""
    for i in range(row.shown):
        block = (row.block - row.shown + i) % row.blocks
        words[(row.base + block * row.block_bytes + STATUS_AT) >> 2] = 0
    row.shown = 0


@njit
def time_at(mem, at, big):
    """When the packet of the frame at `at` came, in ns."""
    return u32(mem, at + SEC_AT, big) * 1_000_000_000 + u32(mem, at + NSEC_AT, big)


@njit
def walk_block(buf, mem, frames, first, count, row):
    """Fill `count` of `frames` from `first` on with the next frames of the block at hand."""
    at, big = row.at, row.big
    for n in range(first, first + count):
        frame, flags, offset = frames[n], u32(mem, at + FLAGS_AT, big), at + u16(mem, at + MAC_AT, big)
        length, captured = u32(mem, at + LENGTH_AT, big), u32(mem, at + CAPTURED_AT, big)
        if flags & VLAN_VALID:
            tpid = u16(mem, at + TPID_AT, big) if flags & TPID_VALID else T_8021Q
            put_tag_back(buf, offset, u32(mem, at + TCI_AT, big), tpid)
            offset, length, captured = offset - TAG_bytes, length + TAG_bytes, captured + TAG_bytes
        frame.offset, frame.len, frame.caplen = offset, length, captured
        frame.ts = time_at(mem, at, big)
        frame.linktype, frame.flags = row.linktype, 0
        at += u32(mem, at + NEXT_AT, big)
    row.at, row.left = at, row.left - count


@njit(nogil=True, cache=True)
def walk(buf, words, frames, state):
    """Give back what the call before has shown, and fill `frames` with what is there; how many that were."""
    mem, row, found = memory(buf), state[0], 0
    give_back(words, row)
    while found < frames.size and open_block(mem, row):
        count = min(row.left, frames.size - found)
        walk_block(buf, mem, frames, found, count, row)
        found += count
        if row.left == 0:
            leave_block(row)
    return found


def walk_stage(context, batch):
    """Reading, as a stage: a tile of what is there."""
    c, b = array_at(context, 1, WALKING)[0], batch_at(batch)
    frames = array_at(c.frames, min(b.count, c.room), FRAME)
    words, state = array_at(c.buf, c.buf_bytes >> 2, np.uint32), array_at(c.walk, 1, WALK)
    c.last = walk(array_at(c.buf, c.buf_bytes, np.uint8), words, frames, state)
    c.walked += c.last
    b.buf, b.buf_bytes, b.count = c.buf, c.buf_bytes, c.last
    b.frames = c.frames - b.first * FRAME_BYTES  # as if all tiles were of one long block
    return DONE if c.last else SPENT


_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_mmap.restype = ctypes.c_void_p


def map_over(address, size, flags, fd=-1):
    """Map `size` bytes of `fd` in place of what the caller has at `address` (mmap(2)). OSError: it cannot be."""
    found = _mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags | MAP_FIXED, fd, 0)
    if found != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Ring:
    """One socket on the interface `name`, to which nothing comes before `begin`. CaptureError: it cannot be had.

    linktype: of the interface's frames.
    """

    def __init__(self, name, index, linktype, options):
        self.name, self.options, self.index = name, options, index
        self.socket = self.map = None
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._prepare()
            self.socket.bind((name, ETH_P_ALL))
        except OSError as error:
            self.close()
            raise CaptureError(f"{name}: {self._why(error)}") from error
        self.words = np.frombuffer(self.map, np.uint32)
        self.buf = np.frombuffer(self.map, np.uint8)
        self.state, self.walk = rows(WALK, 1), Kernel(walk)
        self.counts, self.walked, self.counting = Counts(), 0, threading.Lock()
        row = self.state[0]
        row.linktype, row.big, row.block_bytes = linktype, BIG, options.block_bytes
        row.blocks = options.ring_bytes // options.block_bytes
        self._passed = np.asarray(self.state)["passed"]  # cheaper than a row
        self.take(rows(FRAME, 0))  # loads what is compiled
        self.frames, self.context = rows(FRAME, TILE_frames), rows(WALKING, 1)
        self._fill_context()
        self.came, self.last = (np.asarray(self.context)[name] for name in ("walked", "last"))  # cheaper than a row
        self.stretch = Stretch(Stage("reading", stage_address(walk_stage), self.context, None), 0)
        row.most = max(1, row.blocks // SHOWN_SHARE)

    def _fill_context(self):
        row = self.context[0]
        row.buf, row.buf_bytes, row.walk = self.buf.ctypes.data, len(self.buf), self.state.ctypes.data
        row.frames, row.room = self.frames.ctypes.data, len(self.frames)

    def _prepare(self):
        """Set all options before the socket is bound, so that nothing unwanted comes."""
        options, blocks = self.options, self.options.ring_bytes // self.options.block_bytes
        self._set(VERSION, TPACKET_V3)
        self._set(RESERVE, TAG_bytes)
        if not options.outgoing:
            self._set(IGNORE_OUTGOING, 1)
        if options.hardware:
            self._set(TIMESTAMP, RAW_HARDWARE)
        size = options.block_bytes
        ring = struct.pack("7I", size, blocks, FRAME_bytes, size // FRAME_bytes * blocks, options.retire_ms, 0, 0)
        self.socket.setsockopt(SOL_PACKET, RX_RING, ring)
        self.map = mmap.mmap(self.socket.fileno(), options.ring_bytes)
        self.stop()
        if options.promiscuous:
            self.socket.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("iHH8x", self.index, PROMISCUOUS, 0))

    def _set(self, option, value):
        self.socket.setsockopt(SOL_PACKET, option, value)

    def _why(self, error):
        if error.errno == errno.EPERM:
            return (
                "capturing needs the privilege CAP_NET_RAW: run as root, or give it to the service "
                "(AmbientCapabilities=CAP_NET_RAW) or to the command (setpriv, capsh)"
            )
        if error.errno in (errno.ENOMEM, errno.EINVAL):
            size = self.options.ring_bytes >> 20
            return f"a ring of {size} MiB could not be had ({error.strerror}): lower live.ring_size, or its block_size"
        if error.errno == errno.ENETDOWN:
            return self._advice_when_down()
        return error.strerror or str(error)

    def _advice_when_down(self):
        return f"is down: ip link set dev {self.name} up"

    def join(self, group, by_flow):
        """Share the interface's packets with the other sockets of fanout group `group`, None: a new one; its number.

        by_flow: by the kernel's hash of addresses and ports, else by fanout.BY_PAIR. The kernel's first group is 0.
        """
        kind = FANOUT_HASH if by_flow else FANOUT_CBPF
        flags = FANOUT_UNIQUE if group is None else 0
        try:
            self._set(FANOUT, (group or 0) | (kind | flags) << 16)
            if not by_flow:
                attach(self.socket, assemble(BY_PAIR), SOL_PACKET, FANOUT_DATA)
        except OSError as error:
            raise CaptureError(f"{self.name}: {self._why_not_shared(error, group)}") from error
        return self.socket.getsockopt(SOL_PACKET, FANOUT) & 0xFFFF

    def _why_not_shared(self, error, group):
        if error.errno == errno.EINVAL and not interface.is_up(self.name):  # kernels before 6.13
            return self._advice_when_down()
        if group is None:
            return f"no fanout group could be made ({error.strerror})"
        why = "is used with other settings by another program" if error.errno == errno.EINVAL else error.strerror
        return f"fanout group {group} {why}: set live.fanout_group to another"

    def take(self, frames):
        """Fill `frames` from the ring; the Block, valid until the next call, without frames if there are none."""
        count = self.walk(self.buf, self.words, frames, self.state)
        self.walked += count
        return Block(self.buf, frames[:count])

    @property
    def passed(self):
        """How many times its size it has held, with blocks that were not full."""
        return int(self._passed[0]) * self.options.block_bytes / self.options.ring_bytes

    def noted(self):
        """How many frames `stretch` had, and whether it took all that was there: to be called after each."""
        came, self.came[0] = int(self.came[0]), 0
        self.walked += came
        return came, self.last[0] == 0

    def move(self, address):
        """Have the memory at `address`, where somebody else reads it, instead of here. CaptureError: it cannot be."""
        try:
            map_over(address, self.options.ring_bytes, mmap.MAP_SHARED, self.socket.fileno())
        except OSError as error:
            raise CaptureError(f"{self.name}: the ring could not be mapped ({error.strerror})") from error
        self.words = self.buf = None
        self.map.close()

    def count(self):
        """Bring `counts` up to date (the kernel forgets what it has told)."""
        with self.counting:
            told = struct.unpack("3I", self.socket.getsockopt(SOL_PACKET, STATISTICS, 12))
            self.counts = Counts(*(old + new for old, new in zip(self.counts, told, strict=True)))
            return self.counts

    @property
    def behind(self):
        """Packets that the kernel has counted, but that were neither walked nor dropped yet."""
        received, dropped, _ = self.count()
        return received - dropped - self.walked

    def pardon(self):
        """Take notice of the socket's error, such as that the interface went down: it goes on when that is over."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def begin(self, program):
        """Let in what `program` (bpf.compile_filter) lets pass."""
        attach(self.socket, program)

    def stop(self):
        """Let nothing more in; what is in the ring stays to be taken."""
        attach(self.socket, DROP_ALL)

    def close(self):
        """Let go of the socket, and of the memory if no Block refers to it; False: one does, try again.

        Memory that was moved is let go by who has it.
        """
        self.words = self.buf = None
        if self.socket is not None:
            self.socket.close()
        if self.map is not None:
            try:
                self.map.close()
            except BufferError:
                return False
        self.map = None
        return True

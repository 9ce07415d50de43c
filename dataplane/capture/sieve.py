"""A filter over blocks of frames. What it does not let pass is marked (records.UNWANTED) and stays where it is, so that
packets keep the numbers that they have in their file; nothing that comes after does anything with it.
"""

import contextlib

import numpy as np
from numba import njit

from dataplane.capture.bpf import FilterError, MatchesNothing, compile_filter
from dataplane.capture.machine import CELLS, assembled, has_cells, run
from dataplane.kernels import Kernel
from dataplane.memory import be32, memory, put
from dataplane.records import UNWANTED

NULL = 0  # LINKTYPE_: begins with an address family, in the byte order of the machine that captured
BIG_NULL = 1 << 16  # the same where that is big-endian: no link type, but in `starts`
FAMILY_MAX = 0xFFFF
PASSES, MISSING = -1, -2  # in `starts`: no frame of this link type is filtered; its program is still to be made
NOTHING_MATCHES = [(0x06, 0, 0, 0)]  # ret #0


@njit(forceinline=True)
def start_of(mem, frame, starts):
    """Where in all the programs that for a frame begins, or PASSES or MISSING."""
    link = np.int64(frame.linktype)
    if link == NULL and frame.caplen >= 4 and be32(mem, frame.offset) <= FAMILY_MAX:
        link = BIG_NULL
    return np.int64(starts[link])


def mark(buf, frames, first, program, starts, cells):
    """Mark the frames from `first` on that do not match; the number of the first without a program."""
    mem, code, room = memory(buf), memory(program), memory(cells)
    for i in range(first, frames.size):
        frame = frames[np.uint64(i)]
        start = start_of(mem, frame, starts)
        if start == MISSING:
            return i
        for k in range(cells.size):
            put(room, k, np.uint64(0))
        caplen, length = np.int64(frame.caplen), np.int64(frame.len)
        if start != PASSES and not run(code, start, room, mem, frame.offset, caplen, length):
            frame.flags |= UNWANTED
    return frames.size


mark = Kernel(njit(nogil=True, cache=True)(mark))


class Sieve:
    """Lets pass what matches `expression`, and frames of any link type but `linktypes`, which nobody can decode."""

    def __init__(self, expression, linktypes):
        self.expression = expression
        self.program, self.cells = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self.starts = np.full(BIG_NULL + 1, PASSES, np.int32)
        self.starts[list(linktypes)] = MISSING
        self.starts[BIG_NULL] = self.starts[NULL]

    def over(self, source):
        """Blocks of `source`. They end where the expression means nothing for a link type; `source.problem` says so."""
        number = 1
        with contextlib.closing(source.blocks()) as blocks:
            for block in blocks:
                done, why = self.sift(block)
                if done:
                    yield block if not why else block._replace(frames=block.frames[:done])
                number += done
                if why:
                    source.problem = f"{source.name}: stopped at packet {number}: {why}"
                    return

    def sift(self, block):
        """Mark the block's frames: how many could be, and why not all."""
        done, size = 0, len(block.frames)
        while (done := mark(block.buf, block.frames, done, self.program, self.starts, self.cells)) < size:
            try:
                self._prepare(int(block.frames[done]["linktype"]))
            except FilterError as error:
                return done, str(error)
        return done, None

    def _prepare(self, linktype):
        """Add the program for a link type, and for NULL those of both byte orders."""
        self.starts[linktype] = self._add(linktype, False)
        if linktype == NULL:
            self.starts[BIG_NULL] = self._add(linktype, True)

    def _add(self, linktype, big):
        try:
            program = compile_filter(self.expression, linktype, big=big)
        except MatchesNothing:
            program = NOTHING_MATCHES
        start, words = len(self.program), assembled(program)
        self.program = np.concatenate((self.program, words))
        if has_cells(words):
            self.cells = np.zeros(CELLS, np.uint64)
        return start


def blocks_of(source, sieve=None):
    """Blocks of `source`, through `sieve` if there is one."""
    return sieve.over(source) if sieve else source.blocks()

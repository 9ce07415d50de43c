"""Feeds: where a reader's bytes come from. A file is mapped, anything else flows through a few reused buffers.

A feed shows `buf` up to `end`; `base` is the position of buf[0] in the (decompressed) stream. `more(pos, need)` makes
more bytes visible, may move those from `pos` on, and returns their new place; `eof` says that there are no more,
`failure` why, where that was no clean end. Memory does not grow with the input.

Mapping with MADV_POPULATE_READ was never slower than read() into a buffer that fits L2, and takes half of its time with
full frames, because most of a frame is never looked at. A file that shrinks meanwhile is an error, not SIGBUS.
"""

import collections
import ctypes
import errno
import mmap
import os

import numpy as np

from dataplane.capture.stream import Broken

BUFFER_bytes = 1 << 20
AHEAD_bytes = 2 << 20  # mapped at a time
BLOCK_bytes = 4 << 20  # a block of a mapped file is not extended beyond
MADV_POPULATE_READ = 22  # Linux 5.14; <linux/mman.h>


class _Pages:
    """A read-only mapping that numpy takes for a writable array, so that kernels see one type of buffer."""

    def __init__(self, mapping):
        self._held = np.frombuffer(mapping, np.uint8)
        self.address = self._held.ctypes.data
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": self._held.shape, "data": (self.address, False),
        }  # fmt: skip


class Mapped:
    """Feed of a regular file: the whole file is the buffer, pages are mapped ahead and let go behind."""

    base, where = 0, ""
    block_bytes = BLOCK_bytes

    def __init__(self, fd, hold):
        self.bytes_total = os.fstat(fd).st_size
        self._pages = _Pages(mmap.mmap(fd, self.bytes_total, access=mmap.ACCESS_READ))
        os.close(fd)
        self.buf = np.asarray(self._pages)
        self.end, self.eof, self.failure = 0, False, None
        self._starts = collections.deque(maxlen=hold + 1)  # of the blocks that are valid
        self._released = 0
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise  # lets other threads run, unlike mmap.madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def _advise(self, start, stop, advice):
        done = self._madvise(self._pages.address + start, stop - start, advice)
        return 0 if done == 0 else ctypes.get_errno()

    def begin(self, start):
        """A block begins at `start`: let go what lies before all valid ones, make sure of some bytes ahead."""
        self._starts.append(start)
        behind = self._starts[0] // AHEAD_bytes * AHEAD_bytes
        if behind > self._released:
            self._advise(self._released, behind, mmap.MADV_DONTNEED)
            self._released = behind
        if self.end - start < AHEAD_bytes:
            self.more(start, AHEAD_bytes)

    def more(self, pos, need):
        stop = min(self.bytes_total, max(self.end + AHEAD_bytes, pos + need))
        if stop > self.end:
            why = self._advise(self.end // mmap.PAGESIZE * mmap.PAGESIZE, stop, MADV_POPULATE_READ)
            if why in (errno.EFAULT, errno.EIO):
                self.failure, stop = "the file became shorter or its device failed", self.end
                self.eof = True
        self.end = stop
        self.eof = self.eof or stop == self.bytes_total
        return pos

    def given(self):
        """A block was made of the buffer: nothing to do, it stays."""

    def bytes_done(self, pos):
        return pos

    def close(self):
        """Nothing: the mapping ends with the last block that uses it."""


class Stream:
    """Feed of anything that is read in order: hold + 1 buffers take turns, a cut record is carried to the next one."""

    block_bytes = 0

    def __init__(self, reader, hold, bytes_total=None):
        self._reader, self.bytes_total = reader, bytes_total
        self.where = reader.where
        self._buffers = [np.empty(BUFFER_bytes, np.uint8) for _ in range(hold + 1)]
        self._turn, self._given = 0, False
        self.buf = self._buffers[0]
        self.base, self.end, self.eof, self.failure = 0, 0, False, None

    def begin(self, start):
        """A block begins: nothing to prepare."""

    def given(self):
        """A block was made of this buffer, so it must rest until `hold` others were."""
        self._given = True

    def more(self, pos, need):
        left = self.end - pos
        if self._given:
            self._turn = (self._turn + 1) % len(self._buffers)
            self._given = False
        if need > self._buffers[self._turn].size:
            self._buffers[self._turn] = np.empty(need, np.uint8)
        target = self._buffers[self._turn]
        if pos or target is not self.buf:
            target[:left] = self.buf[pos : self.end]
        self.buf, self.end, self.base = target, left, self.base + pos
        try:
            got = self._reader.readinto(memoryview(target)[left:])
        except Broken as broken:
            got, self.failure = 0, str(broken)
        self.end, self.eof = left + got, got == 0
        return 0

    def bytes_done(self, _pos):
        return self._reader.bytes_done

    def close(self):
        self._reader.close()

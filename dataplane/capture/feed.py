"""The feed: a reader's bytes, shown through a few reused buffers. Memory does not grow with the input.

A feed shows `buf` up to `end`; `base` is the position of buf[0] in the (decompressed) stream. `more(pos, need)` makes
more bytes visible, may move those from `pos` on, and returns their new place; `eof` says that there are no more,
`failure` why, where that was no clean end.

Bytes are read in pieces that stay in the second-level cache until a walk has gone over them. Mapping the file instead
costs half as much for the copy, but then the walk waits for memory at every record: full frames took 105 ns, not 30.
"""

import numpy as np

from dataplane.capture.stream import Broken

BUFFER_bytes = 2 << 20
PIECE_bytes = 512 << 10


class Feed:
    """hold + 1 buffers take turns; a cut record is carried to the next one.

    `steady`: bytes come as fast as they are asked for, so a block need not be given before more are there.
    """

    def __init__(self, reader, hold, bytes_total=None):
        self._reader, self.bytes_total = reader, bytes_total
        self.where, self._steady = reader.where, bytes_total is not None
        self._buffers = [np.empty(BUFFER_bytes, np.uint8) for _ in range(hold + 1)]
        self._turn, self._given = 0, False
        self.buf = self._buffers[0]
        self.base, self.end, self.eof, self.failure = 0, 0, False, None

    @property
    def fd(self):
        """The file from which anybody may read on, behind what is shown; -1 where there is none."""
        return self._reader.fd if self._steady and self._reader.plain else -1

    def went_on(self, passed_bytes, end, read_bytes):
        """Somebody has read on: `passed_bytes` were dropped from the buffer, which now holds bytes up to `end`."""
        self.base, self.end = self.base + passed_bytes, end
        self._reader.bytes_done += read_bytes

    def given(self):
        """A block was made of this buffer, so once left it must rest until `hold` others were."""
        self._given = True

    def stays(self, pos, need):
        """Whether `more` would leave the bytes before `pos` where they are, and not have a user wait for them."""
        return self._steady and self._fits(pos, need)

    def _fits(self, pos, need):
        return max(pos + need, self.end + PIECE_bytes) <= self.buf.size

    def more(self, pos, need):
        """Show more bytes, at least one unless the input has ended."""
        if not self._fits(pos, need):
            self._move(pos, need)
            pos = 0
        stop = max(pos + need, self.end + PIECE_bytes)
        try:
            got = self._reader.readinto(memoryview(self.buf)[self.end : stop])
        except Broken as broken:
            got, self.failure = 0, str(broken)
        self.end, self.eof = self.end + got, got == 0
        return pos

    def _move(self, pos, need):
        """Carry the bytes from `pos` on to the front of a buffer that no block uses."""
        left = self.end - pos
        if self._given:
            self._turn = (self._turn + 1) % len(self._buffers)
            self._given = False
        room = max(need, left + PIECE_bytes)
        if room > self._buffers[self._turn].size:
            self._buffers[self._turn] = np.empty(room, np.uint8)
        target = self._buffers[self._turn]
        if pos or target is not self.buf:
            target[:left] = self.buf[pos : self.end]
        self.buf, self.end, self.base = target, left, self.base + pos

    @property
    def bytes_done(self):
        return self._reader.bytes_done

    def close(self):
        self._reader.close()

"""What every capture file reader shares: blocks, their rules of validity, the loop that fills them and the one sentence
at the end. This file knows no file format; a format is a walk over a feed's bytes, a feed is where bytes come from.

A walk is a kernel that fills FRAME rows from `row.pos` on, up to `row.end`, and says why it stopped: FULL, MORE
(needs `row.need` bytes from `pos` on), CONTROL (a block that Python reads) or DAMAGED (`row.why`, `row.detail`).
"""

import numpy as np
from numba import njit

from dataplane.memory import be16, be32, byte
from dataplane.records import FRAME, Block, rows

FULL, MORE, CONTROL, DAMAGED = range(4)

MAX_CAPLEN_bytes = 262144  # wiretap's WTAP_MAX_PACKET_SIZE_STANDARD: more is damage

WALK = [  # what every walk's row begins with
    ("pos", np.int64),  # next byte to read, in the feed's buffer
    ("end", np.int64),  # of what the buffer holds
    ("count", np.int64),  # frames filled
    ("need", np.int64),
    ("why", np.int64),
    ("detail", np.int64),
    ("big", np.int64),  # 1: big-endian
]


class CaptureError(Exception):
    """The capture cannot be read at all; str() is one sentence for the user."""


@njit
def u16(mem, at, big):
    """Unsigned 16-bit word as int64."""
    return be16(mem, at) if big else byte(mem, at) | (byte(mem, at + 1) << 8)


@njit
def u32(mem, at, big):
    """Unsigned 32-bit word as int64. Bytes put together in this order become one load."""
    if big:
        return be32(mem, at)
    return byte(mem, at) | (byte(mem, at + 1) << 8) | (byte(mem, at + 2) << 16) | (byte(mem, at + 3) << 24)


class Source:
    """One capture being read. Subclasses give `walk`, `why` and, where the walk says CONTROL, `control`.

    A block stays valid until `hold` further blocks were taken; the next one may reuse its buffers.
    """

    comment = None  # to be told on stderr

    def __init__(self, name, feed, dtype, block_frames=4096, hold=1):
        self.name, self.feed, self.problem = name, feed, None
        self.state = rows(dtype, 1)  # the walk's row, for the kernel
        self.row = self.state.view(np.ndarray).view(dtype)[0]  # the same without attributes, cheaper to ask
        self.row["end"] = feed.end
        self.block_frames = block_frames
        self._ring = [rows(FRAME, block_frames) for _ in range(hold + 1)]
        self._ended = False

    @property
    def bytes_total(self):
        return self.feed.bytes_total

    @property
    def bytes_done(self):
        return self.feed.bytes_done

    @property
    def pos(self):
        """Next byte to read, in the feed's buffer."""
        return int(self.row["pos"])

    def blocks(self):
        """Yield Blocks to the end of the capture; then `problem` is None or says where reading stopped and why."""
        turn = 0
        try:
            while not self._ended:
                frames = self._ring[turn]
                count = self._fill(frames)
                if count:
                    turn = (turn + 1) % len(self._ring)
                    yield Block(self.feed.buf, frames if count == len(frames) else frames[:count])
        finally:
            self.close()

    def stretches(self):
        """The same, but where compiled code can read by itself, Stretches, to be used up before the next is asked for.

        Blocks are as valid as those of `blocks`.
        """
        if (reading := self.reading()) is None:
            yield from self.blocks()
        try:
            while not self._ended:
                yield reading.begin()
                if (status := reading.end()) is not None:
                    self._answer(status)
        finally:
            self.close()

    def reading(self):
        """The stretch.Reading of this source, None if it has none."""
        return None

    def close(self):
        """Release the file; blocks taken stay valid."""
        self._ended = True
        self.feed.close()

    def _fill(self, frames):
        """Fill `frames` as far as one buffer goes; the number of frames."""
        row, feed = self.row, self.feed
        row["count"] = 0
        while not self._ended:
            status = self.walk(frames)
            if status == FULL:
                break
            stays = status == DAMAGED or status == MORE and feed.stays(self.pos, int(row["need"]))
            if row["count"] and not stays:
                break  # more bytes might move what the frames point at
            self._answer(status)
        count = int(row["count"])
        if count:
            feed.given()
        return count

    def _answer(self, status):
        """Do what the walk needs to go on, or stop."""
        if status == MORE:
            self._more(int(self.row["need"]))
        elif why := self.control() if status == CONTROL else self.why():
            self._stop(why)

    def _more(self, need):
        """Get more bytes; at the end of them, end, with a sentence if something is left or was damaged."""
        if not self.feed.eof:
            self._get(need)
        elif self.feed.failure:
            self._stop(self.feed.failure)
        elif left := self.feed.end - self.pos:
            self._stop(f"cut short, {left} of at least {need} bytes are left")
        else:
            self._ended = True

    def _get(self, need):
        self.row["pos"] = self.feed.more(self.pos, need)
        self.row["end"] = self.feed.end

    def require(self, need):
        """True if `need` bytes from `pos` on are, or now were made, available in the buffer."""
        while self.feed.end - self.pos < need and not self.feed.eof:
            self._get(need)
        return self.feed.end - self.pos >= need

    def _stop(self, why):
        self.problem = f"{self.name}: stopped at byte {self.feed.base + self.pos}{self.feed.where}: {why}"
        self._ended = True

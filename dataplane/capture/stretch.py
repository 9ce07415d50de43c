"""Reading in compiled code: a stage that comes before decoding in the same chain. It reads a file in pieces and finds
the frames of a tile in them, so bytes and rows stay in the second-level cache until all detectors have seen them.

Pieces are read until a tile is full, or WINDOW_bytes are before us, the last one as large as the tile is likely to
need; what is left is moved to the front of the feed's buffer, or of the window that the batch names, before the next
tile. Whatever is not just more of the same (the end, damage) ends the stretch: source.py answers what the walk says.
"""

import ctypes

import numpy as np
from numba import njit, types

from dataplane.capture.source import MORE
from dataplane.chain import DONE, SPENT, Stage, batch_at
from dataplane.kernels import stage_address
from dataplane.memory import array_at, load64, store64
from dataplane.records import FRAME, Stretch, rows

PIECE_bytes, PAGE_bytes, WINDOW_bytes = 128 << 10, 4 << 10, 640 << 10
STRETCH_bytes = 16 << 20  # then a stretch ends: signals are heard and events handed on, however slow the file
FRAME_BYTES = FRAME.itemsize

READING = np.dtype(  # context of the stage: addresses and sizes; what it has done
    [
        *((name, np.int64) for name in ("fd", "buf", "buf_bytes", "frames", "room", "walk")),
        ("status", np.int64),  # of the last walk
        ("read_bytes", np.int64),
        ("passed_bytes", np.int64),  # before what is now the buffer's first byte
        ("wanted", np.int64),  # frames of the tile at hand
        ("frame_bytes", np.int64),  # what one took, with its header, in the tile before
    ],
    align=True,
)

read = types.ExternalFunction("read", types.int64(types.int32, types.int64, types.int64))


@njit
def move(context, row, target):
    """Move what is left to the front of the buffer at `target`, and up to seven bytes more."""
    pos, left = row.pos, row.end - row.pos
    for i in range(0, left, 8):
        store64(target, i, load64(context.buf, pos + i))
    context.buf = target
    context.passed_bytes += pos
    row.pos, row.end = 0, left


@njit
def refill(context, row):
    """Read a piece; whether there was one, room for it, and the stretch still lasts."""
    missing = (context.wanted - row.count) * context.frame_bytes - (row.end - row.pos)
    piece = max(1, min(-(-missing // PAGE_bytes), PIECE_bytes // PAGE_bytes)) * PAGE_bytes
    if row.end + piece > min(context.buf_bytes, WINDOW_bytes) or context.read_bytes >= STRETCH_bytes:
        return False
    got = max(0, read(context.fd, context.buf + row.end, piece))
    context.read_bytes += got
    row.end += got
    return got > 0


# A source's stage is `begin`, its walk, while that wants MORE a `refill` and the walk again, `finish`


@njit
def context_of(context):
    """The READING row at an address."""
    return array_at(context, 1, READING)[0]


@njit
def begin(context, batch, row):
    """Move what is left to the front; the bytes, and the FRAME rows to be filled, at most a tile."""
    b = batch_at(batch)
    target = context.buf
    if b.window:
        context.frames, target = b.window, b.window + b.rows * FRAME_BYTES
    if row.pos or target != context.buf:
        move(context, row, target)
    row.count, context.wanted = 0, min(b.count, context.room)
    frames = array_at(context.frames, context.wanted, FRAME)
    return array_at(context.buf, context.buf_bytes, np.uint8), frames


@njit
def finish(context, batch, row):
    """Hand the frames on; what the stage returns."""
    b = batch_at(batch)
    b.buf, b.buf_bytes, b.count = context.buf, context.buf_bytes, row.count
    b.frames = context.frames - b.first * FRAME_BYTES  # as if all tiles were of one long block
    if row.count:
        context.frame_bytes = row.pos // row.count + 1
    return DONE if row.count else SPENT


class Reading:
    """What a Source needs for stretches: its feed's file, its walk's row, the stage that has that walk."""

    def __init__(self, feed, state, function, room):
        self.feed, self.state, self.frames = feed, state, rows(FRAME, room)
        self.context = rows(READING, 1)
        context = self.context[0]
        context.room, context.frame_bytes = room, PIECE_bytes // room + 1
        context.fd, context.frames, context.walk = feed.fd, self.frames.ctypes.data, state.ctypes.data
        self.stretch = Stretch(Stage("reading", stage_address(function), self.context, None), len(feed.buf))

    def begin(self):
        """The Stretch that begins where the walk now is."""
        context = self.context[0]
        context.buf, context.buf_bytes = self.feed.buf.ctypes.data, len(self.feed.buf)
        context.read_bytes = context.passed_bytes = 0
        context.status = MORE
        return self.stretch

    def end(self):
        """Bring the feed to where the stretch has come; what its last walk said, if that is to be answered, or None."""
        context, row, own = self.context[0], self.state[0], self.feed.buf.ctypes.data
        if context.buf != own:
            ctypes.memmove(own, int(context.buf + row.pos), int(row.end - row.pos))
            context.passed_bytes += row.pos
            row.pos, row.end = 0, row.end - row.pos
        self.feed.went_on(int(context.passed_bytes), int(row.end), int(context.read_bytes))
        return None if row.count or context.read_bytes >= STRETCH_bytes else int(context.status)

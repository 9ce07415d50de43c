"""Stages run one after another over a block of frames, tile by tile, without coming back to Python in between.

A stage is reading, decoding, one detector's loop, or what hands tiles from worker to worker. Compiled, it is a C
function of two addresses, of its own context and of the batch, so any set of detectors makes a chain without being
compiled together. A tile's rows stay in the second-level cache until all stages have seen them. Interpreted or with
bounds checks, a stage is called as what it is.
"""

import time
from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from dataplane.kernels import Kernel
from dataplane.memory import array_at
from dataplane.records import BATCH, CHECKED, rows, zeros

# What a stage returns: it is done with the tile; Python must do something (take its events, wait) before it can go on;
# the block ends here. 0: it has raised, and numba has written to stderr what
DONE, AGAIN, SPENT = 1, 2, 3

PLACE = np.dtype(
    [
        ("first", np.int64),  # frame at which the tile at hand begins
        ("stage", np.int64),  # the next one for it
        ("frames", np.int64),  # in the block
        ("tile", np.int64),  # frames in a tile
    ],
    align=True,
)
FIRST, STAGE, FRAMES, TILE = range(4)  # where these fields are in Chain.place


class Stage(NamedTuple):
    """function: address of its compiled code, 0 where that is not called; context: its row; call(batch): the same."""

    name: str
    function: int
    context: np.ndarray
    call: object


@intrinsic
def _call(typing_context, function, context, batch):
    """The int64 that the C function at an address returns for two others."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        number = ir.IntType(64)
        kind = ir.FunctionType(number, [number, number])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def _cycles(typing_context):
    """The processor's time stamp counter."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        counter = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=counter), [])

    return types.int64(), generate


@njit
def batch_at(address):
    """The BATCH row at an address."""
    return array_at(address, 1, BATCH)[0]


if CHECKED:
    cycles = time.perf_counter_ns

    def call(stages, i, batches):
        return stages[i](batches)

else:
    cycles = _cycles

    @njit(forceinline=True)
    def call(stages, i, batches):
        return _call(stages[i, 0], stages[i, 1], np.int64(batches.ctypes.data))


def go(stages, batches, places, ticks):
    """Run all stages over what is left of the block. AGAIN: Python must do something, then call again. SPENT: a stage
    has ended the block, such as the first when it has found no more of the frames that it was to give.

    A block without frames is one tile: only time passes.

    `ticks` (stages,) adds up the time of each, in units of its own.
    """
    batch, place = batches[0], places[0]
    while True:
        if place.stage == 0:
            batch.first, batch.count = place.first, min(place.tile, place.frames - place.first)
        while place.stage < len(stages):
            begun = cycles()
            done = call(stages, place.stage, batches)
            ticks[place.stage] += cycles() - begun
            if done != DONE:
                return done
            place.stage += 1
        place.stage = 0
        place.first += batch.count
        if place.first >= place.frames:
            return DONE


go = go if CHECKED else Kernel(njit(nogil=True, cache=True)(go))


class Chain:
    """Stages in order."""

    def __init__(self, stages):
        self.stages = stages  # their contexts must stay
        addresses = [(stage.function, stage.context.ctypes.data) for stage in stages]
        self.table = [s.call for s in stages] if CHECKED else np.array(addresses, np.int64).reshape(-1, 2)
        self.places, self.ticks = rows(PLACE, 1), zeros(8 * len(stages)).view(np.int64)
        self.place = self.places.view(np.int64).view(np.ndarray)  # cheaper to ask than a row
        self.busy = 0.0  # seconds to which `ticks` belong

    def end_with_tile(self, batch):
        """What runs ends when the tile at hand is done."""
        self.place[FRAMES] = self.place[FIRST] + batch.size

    def over(self, batch, tile):
        """Run the stages over the block that `batch` was given, or the frames that it may expect; notes how many came.

        Yields whenever a stage returns AGAIN.
        """
        place = self.place
        place[FIRST] = place[STAGE] = 0
        place[FRAMES], place[TILE] = batch.frames, tile
        table = [lambda rows, s=s: s(batch) for s in self.table] if CHECKED else self.table
        while (done := go(table, batch.row, self.places, self.ticks)) == AGAIN:
            yield
        batch.frames = int(self.place[FIRST])
        if done not in (DONE, SPENT):
            raise RuntimeError(f"{self.stages[self.place[STAGE]].name} failed")

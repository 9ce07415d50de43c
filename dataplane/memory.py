"""Loads and stores without the cost of handing an array from function to function.

numba counts references at each call that takes an array, which is dearer than all of decoding (113 ns a packet against
20). So kernels turn an array into a handle once, `mem = memory(array)`, and the functions below take that. Compiled, a
handle is an address and a load is one instruction; interpreted, or with NUMBA_BOUNDSCHECK=1, it is the array itself and
each access is checked.

`byte`, `be16`, `be32`, `be64` read big-endian words at a byte offset of a uint8 array; `word` and `put` read and write
elements of a uint64 array; `prefetch` asks for the cache line of a row that will be wanted soon.
"""

import os

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from dataplane.records import JIT

CHECKED = not JIT or os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")


def _loader(bits):
    """Intrinsic: the unaligned big-endian word of `bits` at base + at, as int64 (64 bits: uint64)."""
    result = types.uint64 if bits == 64 else types.int64

    @intrinsic
    def load(typing_context, base, at):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            word = ir.IntType(bits)
            pointer = builder.inttoptr(builder.add(*args), word.as_pointer())
            value = builder.load(pointer, align=1)
            if bits > 8:
                value = builder.bswap(value)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return result(types.int64, types.int64), generate

    return load


def _word():
    """Intrinsics: element `index` of the uint64 array at `base`, read and written."""
    signature_in = types.uint64(types.int64, types.int64)
    signature_out = types.void(types.int64, types.int64, types.uint64)

    def place(builder, base, index):
        from llvmlite import ir

        address = builder.add(base, builder.shl(index, ir.Constant(ir.IntType(64), 3)))
        return builder.inttoptr(address, ir.IntType(64).as_pointer())

    @intrinsic
    def word(typing_context, base, index):
        return signature_in, lambda context, builder, signature, args: builder.load(place(builder, *args))

    @intrinsic
    def put(typing_context, base, index, value):
        def generate(context, builder, signature, args):
            builder.store(args[2], place(builder, *args[:2]))
            return context.get_dummy_value()

        return signature_out, generate

    return word, put


def _prefetch():
    """Intrinsic: llvm.prefetch of byte `within` of row `index` of `size` bytes at `base`, for writing."""

    @intrinsic
    def prefetch(typing_context, base, index, size, within):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            one, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [pointer, one, one, one])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            address = builder.add(builder.add(args[0], args[3]), builder.mul(args[1], args[2]))
            at = builder.inttoptr(address, pointer)
            builder.call(function, [at, one(1), one(3), one(1)])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), generate

    return prefetch


if CHECKED:

    @njit
    def memory(buf):
        """The handle of a uint8 array, good as long as the caller holds the array."""
        return buf

    @njit
    def byte(mem, at):
        return np.int64(mem[np.uint64(at)])

    @njit
    def be16(mem, at):
        return (byte(mem, at) << 8) | byte(mem, at + 1)

    @njit
    def be32(mem, at):
        return (be16(mem, at) << 16) | be16(mem, at + 2)

    @njit
    def be64(mem, at):
        return (np.uint64(be32(mem, at)) << np.uint64(32)) | np.uint64(be32(mem, at + 4))

    @njit
    def word(mem, index):
        return mem[index]

    @njit
    def put(mem, index, value):
        mem[index] = value

    @njit
    def prefetch(mem, index, size, within):
        pass

else:
    byte, be16, be32, be64 = (_loader(bits) for bits in (8, 16, 32, 64))
    word, put = _word()
    prefetch = _prefetch()

    @njit
    def memory(buf):
        """The handle of a uint8 array, good as long as the caller holds the array."""
        return np.int64(buf.ctypes.data)


@njit
def signed64(mem, at):
    """The big-endian two's complement word at `at`."""
    return np.int64(be64(mem, at))

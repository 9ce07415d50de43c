"""Loads and stores without the cost of handing an array from function to function.

numba counts references at each call that takes an array, which is dearer than all of decoding (113 ns a packet against
20). So kernels turn an array into a handle once, `mem = memory(array)`, and the functions below take that. Compiled, a
handle is an address and a load is one instruction; interpreted, or with NUMBA_BOUNDSCHECK=1, it is the array itself and
each access is checked.

`byte`, `be16`, `be32`, `be64` read big-endian words at a byte offset of a uint8 array, `load64` and `store64` move
eight bytes; `word` and `put` read and write elements of a uint64 array, `matches` says which of eight from a cache
line's start on are equal to a value, as bits; `prefetch` asks for the cache line of a row that will be wanted soon.
`row_at` is a row of an array of rows. `high_product` is the upper half of a product. Only compiled: `array_at` makes an
array of memory at an address, `acquire` and `release` read and write a counter that threads share.
"""

import sys

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from dataplane.records import CHECKED, JIT


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


def _copier():
    """Intrinsics: eight bytes at base + at in the machine's order, read and written as one uint64."""

    def place(builder, base, at):
        from llvmlite import ir

        return builder.inttoptr(builder.add(base, at), ir.IntType(64).as_pointer())

    @intrinsic
    def load64(typing_context, base, at):
        def generate(context, builder, signature, args):
            return builder.load(place(builder, *args), align=1)

        return types.uint64(types.int64, types.int64), generate

    @intrinsic
    def store64(typing_context, base, at, value):
        def generate(context, builder, signature, args):
            builder.store(args[2], place(builder, *args[:2]), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.uint64), generate

    return load64, store64


def _atomic():
    """Intrinsics: the int64 at an address that another thread may write or read, with all that it wrote before."""

    def place(builder, address):
        from llvmlite import ir

        return builder.inttoptr(address, ir.IntType(64).as_pointer())

    @intrinsic
    def acquire(typing_context, address):
        def generate(context, builder, signature, args):
            return builder.load_atomic(place(builder, args[0]), "acquire", 8)

        return types.int64(types.int64), generate

    @intrinsic
    def release(typing_context, address, value):
        def generate(context, builder, signature, args):
            builder.store_atomic(args[1], place(builder, args[0]), "release", 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return acquire, release


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


def _eight():
    """Intrinsics: eight uint64 compared at once, and the place of a mask's lowest bit."""

    @intrinsic
    def matches(typing_context, base, index, value):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            eight, one = ir.VectorType(ir.IntType(64), 8), ir.IntType(32)
            address = builder.add(args[0], builder.shl(args[1], ir.Constant(ir.IntType(64), 3)))
            there = builder.load(builder.inttoptr(address, eight.as_pointer()), align=64)
            first = builder.insert_element(ir.Constant(eight, ir.Undefined), args[2], one(0))
            every = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(one, 8), [0] * 8))
            mask = builder.bitcast(builder.icmp_unsigned("==", there, every), ir.IntType(8))
            return builder.zext(mask, ir.IntType(64))

        return types.int64(types.int64, types.int64, types.uint64), generate

    @intrinsic
    def lowest_bit(typing_context, mask):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.int64), generate

    return matches, lowest_bit


def _row_at():
    """Intrinsic: row `index` of the rows of `dtype` at `base`, without an array around it."""

    @intrinsic
    def row_at(typing_context, base, index, dtype):
        record = dtype.dtype

        def generate(context, builder, signature, args):
            from llvmlite import ir

            address = builder.add(args[0], builder.mul(args[1], ir.Constant(ir.IntType(64), record.size)))
            return builder.inttoptr(address, context.get_value_type(record))

        return record(types.int64, types.int64, dtype), generate

    return row_at


def _high_product():
    """Intrinsic: the upper half of the 128-bit product."""

    @intrinsic
    def high_product(typing_context, first, second):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            wide = ir.IntType(128)
            product = builder.mul(*(builder.zext(arg, wide) for arg in args))
            return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

        return types.uint64(types.uint64, types.uint64), generate

    return high_product


if CHECKED:

    @njit
    def memory(buf):
        """The handle of an array of bytes, words or rows, good as long as the caller holds the array."""
        return buf

    @njit
    def row_at(mem, index, dtype):
        return mem[index]

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
    def matches(mem, index, value):
        mask = 0
        for i in range(8):
            mask |= np.int64(mem[index + i] == value) << i
        return mask

    @njit
    def lowest_bit(mask):
        """Place of the lowest bit of `mask`, which is not 0."""
        place = 0
        while not mask >> place & 1:
            place += 1
        return place

    @njit
    def prefetch(mem, index, size, within):
        pass

else:
    byte, be16, be32, be64 = (_loader(bits) for bits in (8, 16, 32, 64))
    word, put = _word()
    load64, store64 = _copier()
    matches, lowest_bit = _eight()
    prefetch, row_at = _prefetch(), _row_at()

    @njit
    def memory(buf):
        """The handle of an array of bytes, words or rows, good as long as the caller holds the array."""
        return np.int64(buf.ctypes.data)


acquire, release = _atomic()  # of counters that threads share; only compiled


@intrinsic
def array_at(typing_context, address, shape, dtype):
    """The array in memory at an address, which somebody else keeps; only compiled.

    What numba's carray makes, but no function of its own for each shape and dtype: those took a tenth of all compiling.
    """
    array = types.Array(dtype.dtype, len(shape) if isinstance(shape, types.BaseTuple) else 1, "C")

    def generate(context, builder, signature, args):
        from llvmlite import ir
        from numba.np.arrayobj import np_cfarray

        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        return np_cfarray(context, builder, array(types.voidptr, shape), (pointer, args[1]))

    return array(types.int64, shape, dtype), generate


if CHECKED and JIT:

    @njit
    def load64(mem, at):
        value = np.uint64(0)
        for i in range(8):
            value |= np.uint64(byte(mem, at + i)) << np.uint64(8 * i)
        return value

    @njit
    def store64(mem, at, value):
        for i in range(8):
            mem[np.uint64(at + i)] = value >> np.uint64(8 * i) & np.uint64(255)

elif CHECKED:

    def load64(mem, at):
        if not 0 <= at <= len(mem) - 8:
            raise IndexError(at)
        return np.uint64(int.from_bytes(mem[at : at + 8].tobytes(), sys.byteorder))

    def store64(mem, at, value):
        if not 0 <= at <= len(mem) - 8:
            raise IndexError(at)
        mem[at : at + 8] = np.frombuffer(int(value).to_bytes(8, sys.byteorder), np.uint8)


if JIT:
    high_product = _high_product()
else:

    def high_product(first, second):
        """The upper half of the product of two uint64."""
        return np.uint64(int(first) * int(second) >> 64)


@njit
def signed64(mem, at):
    """The big-endian two's complement word at `at`."""
    return np.int64(be64(mem, at))

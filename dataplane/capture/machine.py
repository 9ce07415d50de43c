"""The machine that runs filter programs (bpf.py) over packets in memory: for files what the kernel is for sockets.

As libpcap's bpf_filter.c: an accumulator A, an index register X and sixteen cells M, all unsigned 32-bit and 0 before
each packet. A program only goes forward and ends with the number of bytes to keep: 0 is no match, and so is a load of
bytes that were not captured and a division by zero. Instructions and their numbers: pcap/bpf.h.

A program is checked once, by `assembled`, so that nothing has to be asked at each packet but where a load ends.
"""

import numpy as np
from numba import njit

from dataplane.capture.bpf import FilterError
from dataplane.memory import be16, be32, byte, put, word

LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)  # the class: the lowest three bits of a code
KIND = 0x07
W, H, B, SIZE = 0x00, 0x08, 0x10, 0x18  # of a load: 4, 2 or 1 bytes
IMM, ABS, IND, MEM, LEN, MSH, MODE = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0, 0xE0
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = range(0x00, 0xB0, 0x10)
JA, JEQ, JGT, JGE, JSET, OPERATION = 0x00, 0x10, 0x20, 0x30, 0x40, 0xF0
K, X, A = 0x00, 0x08, 0x10  # where an operand, or what is returned, stands
TAX, TXA = 0x00, 0x80

CELLS = 16
ANCILLARY = 1 << 31  # from here on k is a negative offset: of what the kernel knows besides the bytes
M32 = 0xFFFFFFFF
KNOWN = {
    *(LD | mode | size for mode in (ABS, IND) for size in (W, H, B)),
    *(kind | mode for kind in (LD, LDX) for mode in (IMM, MEM, LEN)),
    *(ALU | operation | operand for operation in range(ADD, XOR + 1, 0x10) for operand in (K, X)),
    *(JMP | operation | operand for operation in (JEQ, JGT, JGE, JSET) for operand in (K, X)),
    *(LDX | MSH | B, ST, STX, JMP | JA, RET | K, RET | A, MISC | TAX, MISC | TXA),
} - {ALU | NEG | X}  # fmt: skip


def assembled(program):
    """`program` as the machine wants it: a uint64 an instruction. FilterError: it cannot be run on a file's packets."""
    words = []
    for at, instruction in enumerate(program):
        code, jt, jf, k = map(int, instruction)
        if why := fault(code, max(jt, jf), k, len(program) - at - 1):
            raise FilterError(f"instruction {at} of the filter {why}")
        words.append(code | jt << 16 | jf << 24 | k << 32)
    if not words or words[-1] & KIND != RET:
        raise FilterError("the filter has an end that returns nothing")
    return np.array(words, np.uint64)


def fault(code, jump, k, left):
    """What is wrong with an instruction that `left` others follow, None if nothing is."""
    kind, mode, operation = code & KIND, code & MODE, code & OPERATION
    if code not in KNOWN:
        return f"has the unknown code 0x{code:02x}"
    if kind == JMP and (k if operation == JA else jump) >= left:
        return "jumps out of it"
    if k >= CELLS and (kind in (ST, STX) or kind in (LD, LDX) and mode == MEM):
        return f"means the cell {k}, of {CELLS}"
    if code in (ALU | DIV | K, ALU | MOD | K) and k == 0:
        return "divides by zero"
    if kind == LD and mode == ABS and k >= ANCILLARY:
        return "asks for what only the kernel knows, which no file holds"
    return None


def has_cells(words):
    """Whether an assembled program uses cells."""
    kinds = words & np.uint64(KIND)
    return bool(((kinds == ST) | (kinds == STX)).any())


@njit(forceinline=True)
def load(mem, start, at, size, captured):
    """The big-endian word at offset `at` of the packet, -1 if it was not captured."""
    if size == H:
        return be16(mem, start + at) if at + 2 <= captured else -1
    if size == B:
        return byte(mem, start + at) if at + 1 <= captured else -1
    return be32(mem, start + at) if at + 4 <= captured else -1


@njit(forceinline=True)
def compute(operation, a, b):
    """One step of arithmetic, `b` no zero where it divides."""
    if operation == ADD:
        return (a + b) & M32
    if operation == SUB:
        return (a - b) & M32
    if operation == MUL:
        return (a * (b & 0xFFFF) + ((a * (b >> 16) & 0xFFFF) << 16)) & M32  # in 64 bits
    if operation == DIV:
        return a // b
    if operation == MOD:
        return a % b
    if operation == OR:
        return a | b
    if operation == AND:
        return a & b
    if operation == LSH:
        return (a << b) & M32 if b < 32 else 0
    if operation == RSH:
        return a >> b if b < 32 else 0
    return -a & M32 if operation == NEG else a ^ b


@njit(forceinline=True)
def holds(operation, a, b):
    """Whether the condition of a jump does."""
    if operation == JEQ:
        return a == b
    if operation == JSET:
        return a & b != 0
    return a > b if operation == JGT else a >= b


@njit(forceinline=True)
def run(program, pc, cells, mem, start, captured, length):
    """What the program returns from instruction `pc` on, for the packet of `length` bytes of which `captured` lie at
    `start`. `program`, `cells` and `mem` are handles (memory.py).
    """
    a = x = np.int64(0)
    while True:
        instruction = np.int64(word(program, pc))
        code, k = instruction & 0xFF, instruction >> 32 & M32
        kind, mode = code & KIND, code & MODE
        pc += 1
        if kind == JMP:
            if code == JMP | JA:
                pc += k
            else:
                taken = holds(code & OPERATION, a, x if code & X else k)
                pc += instruction >> (16 if taken else 24) & 0xFF
        elif kind == LD:
            if mode == ABS or mode == IND:
                a = load(mem, start, k if mode == ABS else x + k, code & SIZE, captured)
                if a < 0:
                    return 0
            else:
                a = k if mode == IMM else length if mode == LEN else np.int64(word(cells, k))
        elif kind == RET:
            return a if code & A else k
        elif kind == LDX:
            if mode == MSH:
                header = load(mem, start, k, B, captured)
                if header < 0:
                    return 0
                x = (header & 15) << 2
            else:
                x = k if mode == IMM else length if mode == LEN else np.int64(word(cells, k))
        elif kind == ALU:
            b = x if code & X else k
            if b == 0 and (code & OPERATION == DIV or code & OPERATION == MOD):
                return 0
            a = compute(code & OPERATION, a, b)
        elif kind == MISC:
            a, x = (x, x) if code & TXA else (a, a)
        else:
            put(cells, k, np.uint64(a if kind == ST else x))

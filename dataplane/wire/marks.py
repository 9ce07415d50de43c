"""What is changed in an IP header on the way: its DSCP, and congestion experienced."""

import sys

import numpy as np
from numba import njit

from dataplane.memory import be16, byte, load64, store64

CE = 3  # both bits of the ECN field (RFC 3168, section 5)
CHECKSUM_AT = 10  # in IPv4's header
LOW_bits = np.uint64(56 if sys.byteorder == "big" else 0)  # where the first byte of eight in memory is in their word


@njit
def put_byte(mem, at, value):
    """Write one byte; seven more behind it must be there."""
    word = load64(mem, at)
    other = (word >> LOW_bits & np.uint64(0xFF)) ^ np.uint64(value)
    store64(mem, at, word ^ other << LOW_bits)


@njit
def new_class(old, ce, dscp):
    """The traffic class `old` with CE where `ce` is set, and with this DSCP where it is not negative."""
    if dscp >= 0:
        old = dscp << 2 | old & CE
    return old | CE if ce else old


@njit
def set_traffic_class(mem, at, ce, dscp):
    """Set CE, a DSCP (-1: as it is) or both in the header of 20 bytes or more at `at`; IPv4's checksum by RFC 1624."""
    first, second = byte(mem, at), byte(mem, at + 1)
    if first >> 4 == 6:
        tos = new_class((first & 15) << 4 | second >> 4, ce, dscp)
        put_byte(mem, at, first & 0xF0 | tos >> 4)
        put_byte(mem, at + 1, (tos & 15) << 4 | second & 15)
        return
    tos = new_class(second, ce, dscp)
    put_byte(mem, at + 1, tos)
    total = (~be16(mem, at + CHECKSUM_AT) & 0xFFFF) + (~second & 0xFFFF) + tos
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    put_byte(mem, at + CHECKSUM_AT, total >> 8)
    put_byte(mem, at + CHECKSUM_AT + 1, total & 0xFF)

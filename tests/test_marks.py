"""Headers that are changed on the way stay valid, and nothing but what was asked for changes."""

import random

import numpy as np
import pytest
from numba import njit

from dataplane.memory import memory
from dataplane.wire.marks import set_traffic_class
from pcaps.packets import checksum

SAME, CE = -1, 3


@njit
def mark(buf, at, ce, dscp):
    set_traffic_class(memory(buf), at, ce, dscp)


def marked(header, ce, dscp):
    """The header behind three bytes and before eight others, after the change."""
    buf = np.frombuffer(b"abc" + header + b"12345678", np.uint8).copy()
    mark(buf, 3, ce, dscp)
    assert bytes(buf[:3]) == b"abc" and bytes(buf[-8:]) == b"12345678"
    return bytes(buf[3:-8])


def wanted(tos, ce, dscp):
    tos = tos if dscp == SAME else dscp << 2 | tos & CE
    return tos | CE if ce else tos


@pytest.mark.parametrize(("ce", "dscp"), [(True, SAME), (False, 0), (False, 46), (True, 63), (False, SAME)])
@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0xB8, 0xFF])
def test_ipv4(tos, ce, dscp):
    rng = random.Random(tos)
    for _ in range(50):
        bare = bytes([0x45, tos]) + rng.randbytes(8) + b"\0\0" + rng.randbytes(8)
        header = bare[:10] + checksum(bare).to_bytes(2, "big") + bare[12:]
        found = marked(header, ce, dscp)
        assert found[1] == wanted(tos, ce, dscp)
        assert checksum(found) == 0
        assert found[:1] + found[2:10] + found[12:] == header[:1] + header[2:10] + header[12:]


@pytest.mark.parametrize(("ce", "dscp"), [(True, SAME), (False, 0), (False, 46), (True, 63), (False, SAME)])
@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0xB8, 0xFF])
def test_ipv6(tos, ce, dscp):
    header = bytes([0x60 | tos >> 4, (tos & 15) << 4 | 0xA]) + random.Random(tos).randbytes(38)
    new = wanted(tos, ce, dscp)
    assert marked(header, ce, dscp) == bytes([0x60 | new >> 4, (new & 15) << 4 | 0xA]) + header[2:]

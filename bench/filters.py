"""`python -m bench.filters`: nanoseconds a packet to decide what passes, by our machine and by libpcap's, in turns.

Processor time on blocks as a replay has them, read just before. Prints medians over rounds, machine and versions.
"""

import argparse
import ctypes
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
from numba import njit

from bench import traffic
from dataplane.capture import open_capture
from dataplane.capture.bpf import compile_filter
from dataplane.capture.sieve import Sieve
from dataplane.kernels import Kernel
from dataplane.records import UNWANTED
from dataplane.wire import LINK_TYPES

ETHERNET = 1
BLOCK_FRAMES = 16384
EXPRESSIONS = (
    "vlan", "udp", "host 10.0.0.1", "udp port 443", "tcp port 80", "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
    "net 10.0.0.0/8 and (tcp port 443 or udp port 443 or icmp)",
)  # fmt: skip

libpcap = ctypes.CDLL("libpcap.so.0.8")
bpf_filter = libpcap.bpf_filter
bpf_filter.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint]
bpf_filter.restype = ctypes.c_uint
libpcap.pcap_lib_version.restype = ctypes.c_char_p


@njit(nogil=True)
def by_libpcap(buf, frames, program):
    """How many frames pass libpcap's bpf_filter."""
    base, code, passed = np.int64(buf.ctypes.data), np.int64(program.ctypes.data), 0
    for i in range(frames.size):
        frame = frames[np.uint64(i)]
        passed += bpf_filter(code, base + frame.offset, frame.len, frame.caplen) != 0
    return passed


def timed(call, *args):
    """Seconds of processor time."""
    started = time.thread_time()
    call(*args)
    return time.thread_time() - started


def seconds_of(path, expression):
    """(ours, libpcap's, share that passes) over a capture; both see each block while it is in the caches."""
    sieve, theirs = Sieve(expression, LINK_TYPES), Kernel(by_libpcap)
    code = np.frombuffer(bytearray(compile_filter(expression, ETHERNET).tobytes()), np.uint8)
    ours_s = theirs_s = passed = count = 0
    for block in open_capture(path, BLOCK_FRAMES).blocks():
        timed(sieve.sift, block)
        ours_s += timed(sieve.sift, block)
        theirs_s += timed(theirs, block.buf, block.frames, code)
        passed += int((block.frames["flags"] & UNWANTED == 0).sum())
        count += len(block.frames)
    return ours_s / count, theirs_s / count, passed / count


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.filters", description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, numba {numba.__version__},")
    print(f"{libpcap.pcap_lib_version().decode()}; {args.packets:,} packets of 10,000 flows, medians of {args.rounds}")
    print("ns a packet: qoetap, libpcap; passes; expression")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traffic.pcap"
        with path.open("wb") as out:
            traffic.write(out, traffic.Traffic(args.packets))
        seconds_of(path, EXPRESSIONS[0])
        for expression in EXPRESSIONS:
            found = [seconds_of(path, expression) for _ in range(args.rounds)]
            ours, theirs, share = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"{ours * 1e9:20.1f} {theirs * 1e9:8.1f} {share:8.0%}  {expression}", flush=True)


if __name__ == "__main__":
    main()

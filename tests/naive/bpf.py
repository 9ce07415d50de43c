"""Slow twin of dataplane.capture's filters: libpcap's own verdict on one packet, and what tcpdump compiles."""

import ctypes
import functools
import shutil
import struct
import subprocess


class PacketHeader(ctypes.Structure):
    """struct pcap_pkthdr (pcap/pcap.h)."""

    _fields_ = [
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("caplen", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    """struct bpf_program (pcap/bpf.h)."""

    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.c_char_p)]


@functools.cache
def library():
    return ctypes.CDLL("libpcap.so.0.8")


def verdict(program, data, length):
    """What libpcap returns for the packet; `program` holds tuples (code, jt, jf, k)."""
    code = b"".join(struct.pack("@HBBI", *map(int, instruction)) for instruction in program)
    header = PacketHeader(0, 0, len(data), length)
    made = Program(len(program), ctypes.cast(ctypes.create_string_buffer(code, len(code)), ctypes.c_char_p))
    return library().pcap_offline_filter(ctypes.byref(made), ctypes.byref(header), bytes(data)) & 0xFFFFFFFF


def tcpdump(path, *argv):
    """What tcpdump writes to stdout, as bytes, when it reads the capture at `path`. CalledProcessError."""
    tool = shutil.which("tcpdump") or "/usr/sbin/tcpdump"
    command = [tool, "-Z", "root", "-r", str(path), *argv]
    return subprocess.run(command, check=True, capture_output=True).stdout


def compiled(path, expression):
    """The program of tcpdump for an expression over the capture at `path`, as tuples."""
    numbers = list(map(int, tcpdump(path, "-ddd", expression).split()))[1:]
    return [tuple(numbers[at : at + 4]) for at in range(0, len(numbers), 4)]


def cut(path, expression):
    """The capture at `path` with only those packets that tcpdump lets pass, in nanoseconds."""
    return tcpdump(path, "--time-stamp-precision=nano", "-w", "-", expression)

"""Filter programs: libpcap makes them of an expression, the kernel runs them on a socket, machine.py on files.

A program is rows of INSTRUCTION, in the language of the BSD packet filter (McCanne and Jacobson, USENIX 1993; Linux:
Documentation/networking/filter.rst). Expressions are those of pcap-filter(7).
"""

import contextlib
import ctypes
import functools
import socket
import struct

import numpy as np

from dataplane.capture.source import CaptureError, MAX_CAPLEN_bytes

LIBRARIES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")  # Debian's name, others', a development package's
# struct sock_filter (linux/filter.h)
INSTRUCTION = np.dtype([("code", np.uint16), ("jt", np.uint8), ("jf", np.uint8), ("k", np.uint32)])
RETURN, JUMP = 0x06, 0x05  # BPF_RET | BPF_K, BPF_JMP | BPF_JA
BACKWARDS = 1 << 31  # a jump's distance is signed, though for libpcap alone
KERNEL_MAX = 4096  # instructions: BPF_MAXINSNS (linux/bpf_common.h)
SO_ATTACH_FILTER = 26  # asm-generic/socket.h

ETHERNET, SLL2 = 1, 276  # LINKTYPE_
AS_RAW = {12: 101, 14: 101}  # what BSDs call LINKTYPE_RAW
DLT = {101: 12}  # libpcap's own number of a link type, where that differs
MAGIC, VERSION = 0xA1B2C3D4, (2, 4)  # of a pcap file
NETMASK_UNKNOWN = 0xFFFFFFFF
OPTIMIZE = 1
ERROR_BYTES = 256  # PCAP_ERRBUF_SIZE
NO_PERMISSION, NOT_UP = -8, -9  # PCAP_ERROR_PERM_DENIED, PCAP_ERROR_IFACE_NOT_UP
LOOPBACK = "lo"
PREAMBLE = "can't parse filter expression: "
REJECTS_ALL = "expression rejects all packets"


class FilterError(CaptureError):
    """An expression cannot be used; str() is one sentence for the user."""


class MatchesNothing(FilterError):
    """libpcap can tell that no packet of the link type matches: of IPv4 alone, none is `ip6`."""


class InterfaceDown(CaptureError):
    """libpcap cannot capture on it for now."""


class _Program(ctypes.Structure):
    """struct bpf_program (pcap/bpf.h)."""

    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.c_void_p)]


_FUNCTIONS = {  # name: what it returns and takes (pcap/pcap.h)
    "pcap_fopen_offline": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
    "pcap_create": (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p),
    "pcap_set_snaplen": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    "pcap_activate": (ctypes.c_int, ctypes.c_void_p),
    "pcap_datalink": (ctypes.c_int, ctypes.c_void_p),
    "pcap_compile": (
        ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32,
    ),
    "pcap_freecode": (None, ctypes.POINTER(_Program)),
    "pcap_geterr": (ctypes.c_char_p, ctypes.c_void_p),
    "pcap_statustostr": (ctypes.c_char_p, ctypes.c_int),
    "pcap_close": (None, ctypes.c_void_p),
}  # fmt: skip


@functools.cache
def _libpcap():
    """libpcap, its functions declared. FilterError: it is not installed."""
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            for function, (result, *arguments) in _FUNCTIONS.items():
                getattr(library, function).restype = result
                getattr(library, function).argtypes = arguments
            return library
    raise FilterError("filters need libpcap: apt install libpcap0.8")


def compile_filter(expression, linktype, snaplen=MAX_CAPLEN_bytes, interface=None, big=False):
    """INSTRUCTION rows that return `snaplen` for a packet that matches `expression` and 0 for any other; "": for all.

    linktype: LINKTYPE_ number of the packets. For a file; `big`: written on a big-endian machine, which matters to
    LINKTYPE_NULL. With `interface` for a socket on it, whose kernel takes VLAN tags out of the packets and keeps them
    apart from the bytes: then CAP_NET_RAW is needed. FilterError: libpcap makes nothing of the expression, or is not
    there. CaptureError: it cannot open the interface.
    """
    if not expression.strip():
        return np.array([(RETURN, 0, 0, snaplen)], INSTRUCTION)
    if "\0" in expression:
        raise FilterError(f"filter {expression!r}: holds a NUL character, take it out")
    linktype = AS_RAW.get(linktype, linktype)
    with contextlib.ExitStack() as stack:
        handle = _live(stack, interface, linktype, snaplen) if interface else None
        program = _compile(handle or _savefile(stack, linktype, snaplen, big), expression)
    if ((program["code"] == JUMP) & (program["k"] >= BACKWARDS)).any():
        raise FilterError(f"filter {expression!r}: protochain loops, which no kernel does: test the bytes of a header")
    if interface and len(program) > KERNEL_MAX:
        raise FilterError(f"filter of {len(program)} instructions: the kernel takes {KERNEL_MAX}, shorten it")
    return program


def check_expression(expression):
    """FilterError if `expression` is right neither for Ethernet nor for cooked frames, which alone tell directions."""
    try:
        compile_filter(expression, ETHERNET)
    except FilterError as error:
        try:
            compile_filter(expression, SLL2)
        except FilterError:
            raise error from None


def attach(sock, program, level=socket.SOL_SOCKET, option=SO_ATTACH_FILTER):
    """Have the kernel run `program`, INSTRUCTION rows or tuples like them, on what a socket receives. OSError.

    Other options that take a struct sock_fprog: PACKET_FANOUT_DATA at SOL_PACKET.
    """
    code = np.array(program, INSTRUCTION)
    sock.setsockopt(level, option, struct.pack("@HP", len(code), code.ctypes.data))


def _compile(handle, expression):
    library, made = _libpcap(), _Program()
    text = expression.encode(errors="surrogateescape")
    if library.pcap_compile(handle, made, text, OPTIMIZE, NETMASK_UNKNOWN):
        message = library.pcap_geterr(handle).decode(errors="replace").removeprefix(PREAMBLE)
        kind = MatchesNothing if message == REJECTS_ALL else FilterError
        raise kind(f"filter {expression!r}: {message} (man pcap-filter explains filters)")
    try:
        data = ctypes.string_at(made.instructions, made.length * INSTRUCTION.itemsize)
        return np.frombuffer(data, INSTRUCTION)
    finally:
        library.pcap_freecode(made)


def _savefile(stack, linktype, snaplen, big):
    """A pcap_t of a capture file without packets: libpcap compiles for files what it knows of files."""
    library, system, error = _libpcap(), ctypes.CDLL(None), ctypes.create_string_buffer(ERROR_BYTES)
    system.fmemopen.restype, system.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    header = struct.pack(">IHHiIII" if big else "<IHHiIII", MAGIC, *VERSION, 0, 0, snaplen, linktype)
    data = ctypes.create_string_buffer(header, len(header))
    stack.callback(lambda: data)  # read as long as the file is open
    file = system.fmemopen(data, ctypes.c_size_t(len(header)), b"rb")
    handle = library.pcap_fopen_offline(file, error)
    if not handle:
        system.fclose(file)
        raise FilterError(f"filter for link type {linktype}: {error.value.decode(errors='replace')}")
    stack.callback(library.pcap_close, handle)  # and the file
    return handle


def _live(stack, interface, linktype, snaplen):
    """A pcap_t that captures, None where libpcap sees other frames on the interface than we do. CaptureError.

    What a kernel takes out of the bytes is the same on all interfaces, so the loopback does for one that is down.
    """
    try:
        handle = _activated(stack, interface, snaplen)
    except InterfaceDown:
        handle = _activated(stack, LOOPBACK, snaplen)
    return handle if _libpcap().pcap_datalink(handle) == DLT.get(linktype, linktype) else None


def _activated(stack, interface, snaplen):
    library, error = _libpcap(), ctypes.create_string_buffer(ERROR_BYTES)
    handle = library.pcap_create(interface.encode(), error)
    if not handle:
        raise CaptureError(f"{interface}: {error.value.decode(errors='replace')}")
    stack.callback(library.pcap_close, handle)
    library.pcap_set_snaplen(handle, snaplen)
    status = library.pcap_activate(handle)
    if status == NOT_UP:
        raise InterfaceDown(f"{interface}: is down: ip link set dev {interface} up")
    if status == NO_PERMISSION:
        raise CaptureError(f"{interface}: compiling a filter for it needs the privilege CAP_NET_RAW, as capturing does")
    if status < 0:
        why = library.pcap_geterr(handle) or library.pcap_statustostr(status)
        raise CaptureError(f"{interface}: {why.decode(errors='replace')}")
    return handle

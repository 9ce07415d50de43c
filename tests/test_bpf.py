"""Filter programs: what libpcap makes of expressions, and the machine that runs them against libpcap's verdicts."""

import errno
import os
import random
import socket
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dataplane.capture import CaptureError, bpf, machine
from dataplane.capture.bpf import FilterError, attach, check_expression, compile_filter
from dataplane.capture.machine import assembled, has_cells
from dataplane.capture.sieve import Sieve
from dataplane.records import JIT, UNWANTED
from dataplane.wire import LINK_TYPES
from pcaps.files import pcap
from qoetap.lab import Link
from tests import packets as make
from tests.naive import bpf as naive
from tests.rows import block_of
from tests.test_wire import STORIES

EXAMPLES = 150 if JIT else 40
SOME_FRAMES = 40 if JIT else 8
PROGRAMS = 4000 if JIT else 1500
PLAIN = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip

ETHERNET, NULL, RAW = 1, 0, 101
BY_LINK = {link: [f for f in STORIES if f[2] == link] for link in (*LINK_TYPES, 1)}
LINKS = [link for link, frames in BY_LINK.items() if frames]
EXPRESSIONS = (
    "udp port 443", "tcp", "icmp or icmp6", "ip", "ip6", "arp", "host 10.0.0.1", "net 192.0.2.0/24",
    "src net 2001:db8::/32",
    "portrange 300-400", "udp[8] & 0x40 != 0", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "ip[2:2] > 600", "len > 200",
    "less 100", "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420", "ip[6:2] & 0x1fff != 0", "ip6[6] = 44", "proto 132",
    "ether[0] & 1 = 0", "link[0] = 0", "ip[8] * 3 / 7 - 2 < 20", "udp[4:2] % 5 = 1", "ip[12:4] ^ ip[16:4] > 1000",
    "ip[1] << 3 = 32", "ip[0] / (ip[1] & 3) > 20", "len / (ip[8] - 64) > 1", "ether proto 0x88f7", "vlan",
    "vlan 100 and ip", "vlan and udp", "mpls", "mpls and ip", "pppoes and ip6", "multicast", "ether multicast", "sctp",
    "igmp",
    "icmp[icmptype] = icmp-echo", "geneve", "ip[len - 40] = 0", "udp[udp[4:2] - 1] = 0", "inbound", "greater 1000",
)  # fmt: skip
PRIMITIVES = st.sampled_from(EXPRESSIONS)
WHOLE = st.recursive(
    PRIMITIVES,
    lambda inner: st.one_of(
        inner.map("not ({})".format),
        st.tuples(inner, st.sampled_from(("and", "or")), inner).map(lambda parts: "({}) {} ({})".format(*parts)),
    ),
    max_leaves=4,
)
CODES, EDGES = sorted(machine.KNOWN), (0xFFFFFFFF, 0xFFFFFFFC, 0x80000000, 0x7FFFFFFF, 0xFFFF, 31, 32)


@pytest.fixture(scope="module")
def link():
    with Link() as link:
        yield link


def tuples(program):
    return [tuple(map(int, instruction)) for instruction in program]


def passing(sieve, frames):
    """Whether each of the frames (bytes, length, link type) passes."""
    block = block_of(frames, gap=b"\xa5" * 3)
    assert sieve.sift(block) == (len(frames), None)
    return [not frame["flags"] & UNWANTED for frame in np.asarray(block.frames)]


def machine_verdicts(program, frames):
    """The machine's on frames (bytes, length), `program` as tuples."""
    sieve = Sieve("", ())
    sieve.program = assembled(program)
    sieve.cells = np.zeros(machine.CELLS, np.uint64)
    sieve.starts[:] = 0
    return passing(sieve, [(data, length, ETHERNET) for data, length in frames])


# --- compiling


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", [0, 1, 101, 108, 113, 228, 229, 276])
def test_compiled_as_by_tcpdump(tmp_path, linktype, order):
    """The very program that tcpdump runs over a file of that link type and byte order."""
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([], linktype, order))
    done = 0
    for expression in ("udp port 443", "ip6 or len > 100", "not tcp", "link[0] & 1 = 0", ""):
        ours = compile_filter(expression, linktype, big=order == ">")
        assert tuples(ours) == naive.compiled(path, expression), expression
        done += 1
    assert done == 5


def test_what_bsds_call_raw_is_raw():
    for linktype in (12, 14):
        assert tuples(compile_filter("udp port 443", linktype)) == tuples(compile_filter("udp port 443", RAW))


def test_the_snapshot_length_is_what_a_match_returns():
    assert compile_filter("udp", ETHERNET, 96)["k"].tolist().count(96) == 1
    assert tuples(compile_filter(" ", ETHERNET, 96, "no interface is asked for")) == [(6, 0, 0, 96)]


WRONG = (  # expression, what the sentence has
    ("udp prot 443", "syntax error"), ("host no.such.name.invalid", "unknown host"), ("port 70000", "illegal port"),
    ("udp and tcp", "rejects all packets"), ("ip6 protochain 6", "protochain loops"), ("udp\0port 443", "NUL"),
    ("ip[0] / 0 = 1", "division by zero"), ("\udcff", "syntax error"), ("ip[0] << 40 = 1", "shift"),
    ("(udp", "syntax error"),
)  # fmt: skip


@pytest.mark.parametrize(("expression", "why"), WRONG)
def test_a_wrong_expression_is_told_in_one_sentence(expression, why):
    with pytest.raises(FilterError, match=why) as told:
        check_expression(expression)
    assert "\n" not in str(told.value) and repr(expression) in str(told.value)


def test_expressions_of_some_link_types_only_are_right():
    for expression in ("ether host 02:00:00:00:00:01", "inbound", "ifindex 3", "vlan", ""):
        check_expression(expression)


def test_without_libpcap(monkeypatch):
    monkeypatch.setattr(bpf, "LIBRARIES", ("libnowhere.so",))
    bpf._libpcap.cache_clear()
    with pytest.raises(FilterError, match="apt install libpcap0.8"):
        compile_filter("udp", ETHERNET)
    assert len(compile_filter("", ETHERNET)) == 1
    monkeypatch.undo()
    assert len(compile_filter("udp", ETHERNET)) > 1


# --- the machine


def frames_of_link(linktype, seed):
    """Some frames of the sample captures, and the same damaged, as (bytes, length, link type)."""
    rng = np.random.default_rng(seed)
    frames = BY_LINK[linktype]
    for i in rng.integers(0, len(frames), SOME_FRAMES):
        data, length, _ = frames[i]
        data = bytearray(data)
        if data and rng.random() < 0.7:
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(0, min(len(data), 90))] = rng.choice((0, 1, 4, 0x45, 0x60, 0x81, 255))
            data = data[: rng.integers(0, len(data) + 1)] if rng.random() < 0.5 else data
        yield bytes(data), length, linktype


@PLAIN
@given(WHOLE, st.sampled_from(LINKS), st.integers(0, 2**32))
def test_expressions_against_libpcap(expression, linktype, seed):
    try:
        program = compile_filter(expression, linktype)
    except FilterError:
        assume(False)
    frames = list(frames_of_link(linktype, seed))
    if linktype == NULL:  # those in the other byte order have a program of their own
        frames = [f for f in frames if int.from_bytes(f[0][:4], "big") > 0xFFFF or len(f[0]) < 4]
        assume(frames)
    expected = [naive.verdict(program, data, length) > 0 for data, length, _ in frames]
    assert passing(Sieve(expression, LINK_TYPES), frames) == expected


def instruction(rng, left):
    """A tuple (code, jt, jf, k) that `left` others follow, most often one that is right."""
    code, wild = rng.choice(CODES), rng.random() < 0.03
    kind = code & machine.KIND
    k = rng.choice((rng.randrange(80), rng.randrange(80), rng.getrandbits(32), rng.choice(EDGES)))
    if wild:
        return rng.choice((code, rng.getrandbits(9))), rng.getrandbits(4), rng.getrandbits(4), k
    if kind in (machine.ST, machine.STX) or code & machine.MODE == machine.MEM and kind in (machine.LD, machine.LDX):
        k %= machine.CELLS
    elif code in (0x64, 0x74):  # shifts: libpcap leaves it to the processor what more than 31 bits do
        k %= 32
    jumps = [rng.randrange(left) if kind == machine.JMP else 0 for _ in range(3)]
    return code, *jumps[:2], jumps[2] if code == machine.JMP else k


def random_program(rng):
    """Cells are written before they are read, for libpcap does not clear them; the end returns A."""
    size = rng.randrange(1, 25)
    body = [instruction(rng, size - at) for at in range(size)]
    return [(machine.ST, 0, 0, k) for k in range(machine.CELLS)] + body + [(machine.RET | machine.A, 0, 0, 0)]


def random_frames(rng):
    for _ in range(SOME_FRAMES // 10 + 1):
        data = rng.randbytes(rng.randrange(70))
        yield data, min(2**32 - 1, len(data) + rng.choice((0, 0, 1400, rng.getrandbits(32))))


def test_any_program_against_libpcap():
    """Or it is refused. The packets lie between others, of which no byte is read."""
    refused = 0
    for seed in range(PROGRAMS):
        rng = random.Random(seed)
        program, frames = random_program(rng), list(random_frames(rng))
        try:
            found = machine_verdicts(program, frames)
        except FilterError:
            refused += 1
            continue
        assert found == [naive.verdict(program, data, length) > 0 for data, length in frames], f"seed {seed}"
    assert PROGRAMS // 10 < refused < PROGRAMS * 3 // 4


FAULTS = (
    ([], "an end"), ([(0x00, 0, 0, 1)], "an end"), ([(0x15, 0, 1, 7), (6, 0, 0, 1)], "jumps out"),
    ([(0x15, 1, 0, 7), (6, 0, 0, 1)], "jumps out"), ([(0x05, 0, 0, 1), (6, 0, 0, 1)], "jumps out"),
    ([(0x05, 0, 0, 0xFFFFFFFE), (6, 0, 0, 1)], "jumps out"), ([(0x60, 0, 0, 16), (6, 0, 0, 1)], "cell 16"),
    ([(0x61, 0, 0, 16), (6, 0, 0, 1)], "cell 16"), ([(0x02, 0, 0, 16), (6, 0, 0, 1)], "cell 16"),
    ([(0x03, 0, 0, 99), (6, 0, 0, 1)], "cell 99"), ([(0x34, 0, 0, 0), (6, 0, 0, 1)], "divides by zero"),
    ([(0x94, 0, 0, 0), (6, 0, 0, 1)], "divides by zero"), ([(0xFF, 0, 0, 0), (6, 0, 0, 1)], "unknown code 0xff"),
    ([(0x106, 0, 0, 0), (6, 0, 0, 1)], "unknown code"), ([(0x30, 0, 0, 0xFFFFF030), (6, 0, 0, 1)], "only the kernel"),
)  # fmt: skip


@pytest.mark.parametrize(("program", "why"), FAULTS)
def test_programs_that_are_refused(program, why):
    with pytest.raises(FilterError, match=why):
        assembled(program)


STEPS = (  # a program without its end, and A after it; X is 5 before it
    ([(0x00, 0, 0, 0xFFFFFFFF), (0x04, 0, 0, 2)], 1), ([(0x00, 0, 0, 1), (0x1C, 0, 0, 0)], 0xFFFFFFFC),
    ([(0x00, 0, 0, 0xFFFFFFFF), (0x24, 0, 0, 0xFFFFFFFF)], 1),
    ([(0x00, 0, 0, 0x12345678), (0x24, 0, 0, 0x9ABCDEF0)], 0x242D2080),
    ([(0x00, 0, 0, 0x80000001), (0x6C, 0, 0, 0)], 0x20), ([(0x00, 0, 0, 0x80000000), (0x7C, 0, 0, 0)], 0x4000000),
    ([(0x01, 0, 0, 32), (0x00, 0, 0, 1), (0x6C, 0, 0, 0)], 0),
    ([(0x01, 0, 0, 32), (0x00, 0, 0, 1), (0x7C, 0, 0, 0)], 0), ([(0x00, 0, 0, 1), (0x84, 0, 0, 0)], 0xFFFFFFFF),
    ([(0x80, 0, 0, 0)], 1500), ([(0x81, 0, 0, 0), (0x87, 0, 0, 0)], 1500), ([(0xB1, 0, 0, 0), (0x87, 0, 0, 0)], 20),
    ([(0x48, 0, 0, 0xFFFFFFFC)], None), ([(0x40, 0, 0, 0)], None), ([(0x40, 0, 0, 0xFFFFFFFF)], None),
    ([(0x48, 0, 0, 1)], 0x6667), ([(0x50, 0, 0, 2)], 0x67), ([(0x20, 0, 0, 4)], 0x64656667), ([(0x20, 0, 0, 5)], None),
    ([(0x28, 0, 0, 6)], 0x6667), ([(0x28, 0, 0, 7)], None), ([(0x30, 0, 0, 7)], 0x67), ([(0x30, 0, 0, 8)], None),
    ([(0x01, 0, 0, 0), (0x3C, 0, 0, 0)], None), ([(0x01, 0, 0, 0), (0x9C, 0, 0, 0)], None),
    ([(0x03, 0, 0, 15), (0x60, 0, 0, 15)], 5), ([(0x60, 0, 0, 3)], 0), ([(0xB1, 0, 0, 8)], None),
)  # fmt: skip


@pytest.mark.parametrize(("steps", "accumulator"), STEPS)
def test_what_instructions_do(steps, accumulator):
    """The end compares A with the expected value; None: the program ends with no match before it."""
    packet = (b"\x45abcdefg", 1500)
    end = [(0x15, 0, 1, accumulator or 0), (6, 0, 0, 1), (6, 0, 0, 0)]
    always = [(6, 0, 0, 1)]
    program = [(0x01, 0, 0, 5), *steps, *(always if accumulator is None else end)]
    assert machine_verdicts(program, [packet]) == [accumulator is not None]


def test_cells_are_empty_before_each_packet():
    program = [(0x60, 0, 0, 1), (0x15, 0, 3, 0), (0x00, 0, 0, 9), (0x02, 0, 0, 1), (6, 0, 0, 1), (6, 0, 0, 0)]
    assert has_cells(assembled(program)) and not has_cells(assembled([(6, 0, 0, 1)]))
    assert machine_verdicts(program, [(b"", 0)] * 3) == [True] * 3


# --- on a socket


LAST, FROM_LAST = 65000, "02:00:00:00:00:77"


def tagged(number, port, vid=None):
    source = bytes.fromhex((FROM_LAST if number == LAST else "02:00:00:00:00:01").replace(":", ""))
    frame = make.eth(make.ipv4("10.0.0.1", "10.0.0.2", make.udp(number, port)), source)
    return frame if vid is None else frame[:12] + struct.pack(">HH", 0x8100, vid) + frame[12:]


def received(end, program, frames, send):
    """Numbers (source ports) of the frames that a socket on the interface receives through the program."""
    sock = end.inside(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock, send:
        attach(sock, program)
        sock.bind((end.interface, 3))
        for frame in frames:
            send.send(frame)
        send.send(tagged(LAST, 7))
        sock.settimeout(5)
        found = []
        while not found or found[-1] != LAST:
            found.append(int.from_bytes(sock.recv(2048)[34:36], "big"))
    return found[:-1]


SENT = [tagged(1, 443), tagged(2, 443, 5), tagged(3, 443, 6), tagged(4, 53), tagged(5, 53, 5)]


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ("udp port 443 and not vlan", [1]),
        ("vlan 5", [2, 5]),
        ("vlan and udp port 443", [2, 3]),
        ("vlan 6", [3]),
        ("udp port 443 or (vlan and udp port 443)", [1, 2, 3]),
    ],
)
def test_live_filters_know_the_tags_that_the_kernel_took(root, link, expression, numbers):
    """The same frames as in a file, where the tag is in the bytes."""
    end = link.receiver
    program = end.inside(compile_filter, f"ether src {FROM_LAST} or ({expression})", ETHERNET, 256, end.interface)
    assert received(end, program, SENT, link.sender.socket()) == numbers
    in_file = Sieve(expression, LINK_TYPES)
    kept = passing(in_file, [(frame, len(frame), ETHERNET) for frame in SENT])
    assert [n for n, passes in enumerate(kept, 1) if passes] == numbers


def test_without_the_word_vlan_live_filters_take_both(root, link):
    """As tcpdump's do: the tag is gone when they run."""
    end, expression = link.receiver, f"ether src {FROM_LAST} or udp port 443"
    program = end.inside(compile_filter, expression, ETHERNET, 256, end.interface)
    assert received(end, program, SENT, link.sender.socket()) == [1, 2, 3]
    assert passing(Sieve("udp port 443", LINK_TYPES), [(f, len(f), ETHERNET) for f in SENT]) == [True] + [False] * 4


def test_a_filter_can_wait_for_its_interface(root, link):
    """Of one that is down the loopback stands in; where that is down too, it is told."""
    end = link.receiver
    end.down()
    try:
        with pytest.raises(CaptureError, match="ip link set"):
            end.inside(compile_filter, "vlan", ETHERNET, 256, end.interface)
        end.inside(os.system, "ip link set dev lo up")
        there = end.inside(compile_filter, "vlan", ETHERNET, 256, end.interface)
    finally:
        end.up()
    assert tuples(there) == tuples(end.inside(compile_filter, "vlan", ETHERNET, 256, end.interface))


def test_what_a_socket_cannot_have(root, monkeypatch):
    with pytest.raises(CaptureError, match="nowhere0"):
        compile_filter("udp", ETHERNET, interface="nowhere0")
    monkeypatch.setattr(bpf, "KERNEL_MAX", 5)
    with pytest.raises(FilterError, match="takes 5, shorten it"):
        compile_filter("udp port 443", ETHERNET, interface="lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as refused:
        attach(sock, [(0x05, 0, 0, 9)])
    assert refused.value.errno == errno.EINVAL


def test_a_live_filter_without_privilege(root):
    """In a child process that gives its privileges away."""
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            compile_filter("udp", ETHERNET, interface="lo")
        except CaptureError as error:
            os._exit(0 if "CAP_NET_RAW" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

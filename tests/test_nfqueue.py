"""Packets through NFQUEUE of the real kernel: every verdict does what it says, and nothing is lost when we are slow,
full or gone.
"""

import ctypes
import errno
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_street import udp

from dataplane.capture import CaptureError, nfqueue
from dataplane.capture.nfnetlink import VERDICT
from dataplane.capture.nfqueue import QueueOptions, Queues, WHOLE_bytes
from dataplane.chain import DONE
from dataplane.records import CHECKED, FRAME, META, NF_ACCEPT, NF_DROP, rows
from qoetap.firewall import Rule, install, uninstall
from qoetap.street import RECEIVER, SENDER, Street
from tests.live import wait_until

PORT = 5000
CE = 3  # RFC 3168, 5
SECOND_ns = 1_000_000_000


@pytest.fixture
def rules(street):
    """Puts rules into the router's firewall."""
    yield lambda *wanted: street.router.inside(install, wanted)
    street.router.inside(uninstall)


class Way:
    """The way from the street's sender to its receiver, with a queue on it."""

    def __init__(self, street, numbers=(5,), family="ipv4", **options):
        self.queues = street.router.inside(Queues, numbers, QueueOptions(**options))
        self.mouth, self.ear = udp(street.sender, SENDER, family), udp(street.receiver, RECEIVER, family, PORT)
        self.ear.setsockopt(socket.SOL_SOCKET, nfqueue.SO_RCVBUFFORCE, 32 << 20)
        self.to = getattr(RECEIVER, family), PORT
        self.frames, self.metas = rows(FRAME, 256), rows(META, 256)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sock in (self.queues, self.mouth, self.ear):
            sock.close()

    def say(self, *words):
        for word in words:
            self.mouth.sendto(word, self.to)

    def take(self, count=1):
        """The next so many packets, as VERDICT rows that accept them, and copies of their frames."""
        made, frames, found = rows(VERDICT, count), [], 0
        while found < count:
            assert self.queues.wait(5 * SECOND_ns)
            new = self.queues.receive(self.frames[: count - found], self.metas)
            for frame, meta in zip(self.frames[:new], self.metas[:new]):
                row = made[found]
                row.id, row.queue, row.what = meta.id, meta.queue, NF_ACCEPT
                frames.append((bytes(self.queues.buf[frame.offset :][: frame.caplen]), int(frame.len)))
                found += 1
        return made, frames

    def heard(self, seconds=0.05):
        """What arrives, until nothing does for so long."""
        words = []
        self.ear.settimeout(seconds)
        while True:
            try:
                words.append(self.ear.recv(2000))
            except TimeoutError:
                return words

    def counters(self):
        return {name: int(self.queues.context[0][name]) for name in ("damaged", "foreign", "gone", "refused", "unsent")}


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_is_accepted_passes_and_what_is_dropped_does_not(street, rules, family):
    rules(Rule(5))
    with Way(street, family=family) as way:
        way.say(b"one", b"two", b"three")
        verdicts, frames = way.take(3)
        assert [data[-3:] for data, _ in frames] == [b"one", b"two", b"ree"] and way.heard() == []
        assert {data[0] >> 4 for data, _ in frames} == {int(family[-1])}
        assert way.queues.counts()[0].waiting == 3
        verdicts[1].what = NF_DROP
        assert way.queues.send(verdicts) == 3
        assert way.heard() == [b"one", b"three"] and not any(way.counters().values())
        assert way.queues.counts()[0][:4] == (0, 0, 0, 3)


def test_rows_say_what_the_kernel_knows(street, rules):
    rules(Rule(5))
    with Way(street) as way:
        before = time.time_ns()
        way.say(bytes(1000))
        _, frames = way.take()
        frame, meta = way.frames[0], way.metas[0]
        assert before < frame.ts < time.time_ns() and (frame.len, frame.caplen, frame.linktype) == (1028, 256, 101)
        names = street.router.inside(socket.if_nameindex)
        indices = [index for name in ("r0", "r1") for index, other in names if name == other]
        assert [meta.indev, meta.outdev] == indices and (meta.hook, meta.mark, meta.queue) == (2, 0, 0)


def marks(street, family="iptables"):
    """Packets that the rule for mark 7 has counted."""
    listing = subprocess.check_output(street.router.command(family, "-t", "mangle", "-L", "POSTROUTING", "-vxn"))
    return int(next(line for line in listing.decode().splitlines() if "0x7" in line).split()[0])


def test_marks_are_set_where_asked_and_seen_by_rules_behind(street, rules):
    rules(Rule(5))
    rule = ("POSTROUTING", "-m", "mark", "--mark", "7")
    subprocess.check_call(street.router.command("iptables", "-t", "mangle", "-A", *rule))
    try:
        with Way(street) as way:
            way.say(b"one", b"two", b"three")
            verdicts, _ = way.take(3)
            verdicts.mark = 7
            verdicts[0].set_mark = verdicts[2].set_mark = 1
            way.queues.send(verdicts)
            assert len(way.heard()) == 3 and marks(street) == 2
    finally:
        subprocess.check_call(street.router.command("iptables", "-t", "mangle", "-D", *rule))


def test_a_mark_that_a_packet_has_is_told(street, rules):
    rules(Rule(5))
    rule = ("PREROUTING", "-j", "MARK", "--set-mark", "0xfedcba98")
    subprocess.check_call(street.router.command("iptables", "-t", "mangle", "-A", *rule))
    try:
        with Way(street) as way:
            way.say(b"one")
            way.take()
            assert way.metas[0].mark == 0xFEDCBA98
    finally:
        subprocess.check_call(street.router.command("iptables", "-t", "mangle", "-D", *rule))


def test_held_packets_leave_when_told_and_in_that_order(street, rules):
    rules(Rule(5))
    words = [b"%d" % i for i in range(20)]
    with Way(street) as way:
        way.say(*words)
        verdicts, _ = way.take(20)
        begun = time.monotonic()
        assert way.heard(0.05) == []
        way.queues.send(verdicts[10:])
        assert way.heard(0.01) == words[10:] and time.monotonic() - begun >= 0.05
        way.queues.send(verdicts[:10])
        assert way.heard(0.01) == words[:10]


def test_all_up_to_a_packet_are_accepted_by_one_message(street, rules):
    rules(Rule(5))
    with Way(street) as way:
        way.say(*(b"%d" % i for i in range(10)))
        verdicts, _ = way.take(10)
        way.queues.accept_through(0, int(verdicts[6].id))
        assert len(way.heard()) == 7 and way.queues.counts()[0].waiting == 3
        way.queues.send(verdicts)
        assert len(way.heard()) == 3
        assert way.queues.receive(way.frames, way.metas) == 0 and way.counters()["gone"] == 7


def with_ce(packet):
    """The IPv4 packet, marked (RFC 3168), its header checksum brought up to date (RFC 1624, equation 3)."""
    old = int.from_bytes(packet[:2], "big")
    total = (0xFFFF - int.from_bytes(packet[10:12], "big")) + (0xFFFF - old) + (old | CE)
    total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
    return packet[:1] + bytes([packet[1] | CE]) + packet[2:10] + total.to_bytes(2, "big") + packet[12:]


def test_another_packet_takes_the_place(street, rules):
    """The mark for congestion arrives, with a header that the receiver takes."""
    rules(Rule(5))
    with Way(street, copy_bytes=WHOLE_bytes) as way:
        way.ear.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        way.mouth.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
        words = [bytes([65 + i]) * size for i, size in enumerate((0, 1, 2, 3, 1000, 1472))]
        way.say(*words)
        verdicts, frames = way.take(len(words))
        made = b""
        for row, (data, length) in zip(verdicts, frames):
            assert len(data) == length
            row.offset, row.bytes = len(made), len(data)
            made += with_ce(data)
        assert way.queues.send(verdicts, np.frombuffer(made, np.uint8).copy()) == len(words)
        for word in words:
            data, [(_, _, tos)], *_ = way.ear.recvmsg(2000, 100)
            assert (data, tos[0]) == (word, CE)


def test_several_queues_share_a_socket_and_keep_the_order(street, rules):
    rules(Rule(5, ("-p", "udp", "-m", "length", "--length", "29")), Rule(700, ("-p", "udp")))
    with Way(street, numbers=(700, 5)) as way:
        way.say(b"a", b"bb", b"c", b"dd")
        verdicts, frames = way.take(4)
        assert verdicts.queue.tolist() == [1, 0, 1, 0] and [data[28:] for data, _ in frames] == [
            b"a",
            b"bb",
            b"c",
            b"dd",
        ]
        assert [count.waiting for count in way.queues.counts()] == [2, 2]
        way.queues.send(verdicts)
        assert len(way.heard()) == 4


def test_a_full_queue_lets_packets_pass(street, rules):
    """The reader has stopped."""
    rules(Rule(5))
    with Way(street, most=100) as way:
        way.say(*(b"%d" % i for i in range(500)))
        assert way.heard() == [b"%d" % i for i in range(100, 500)]
        assert way.queues.counts()[0].waiting == 100
        way.queues.accept_all()
        assert way.heard() == [b"%d" % i for i in range(100)]


def test_a_full_buffer_lets_packets_pass(street, rules):
    rules(Rule(5))
    with Way(street, buffer_bytes=20_000) as way:
        way.say(*(b"%d" % i for i in range(500)))
        held = way.queues.counts()[0].waiting
        assert 0 < held < 100 and len(way.heard()) == way.queues.overflows() == 500 - held
        way.queues.send(way.take(held)[0])
        assert len(way.heard()) == held and way.queues.context[0].overruns == 0


def test_losses_that_the_kernel_tells_are_counted(street, rules):
    rules(Rule(5))
    with Way(street, buffer_bytes=20_000) as way:
        way.queues.socket.setsockopt(nfqueue.SOL_NETLINK, nfqueue.NETLINK_NO_ENOBUFS, 0)
        way.say(*(b"%d" % i for i in range(500)))
        way.queues.send(way.take(way.queues.counts()[0].waiting)[0])
        assert len(way.heard()) == 500 and way.queues.context[0].overruns == 1


def test_packets_can_pass_by_for_a_while(street, rules):
    rules(Rule(5))
    with Way(street) as way:
        way.say(b"held")
        way.queues.pass_by()
        way.say(b"free")
        assert way.heard() == [b"free"]
        way.queues.pass_by(False)
        way.say(b"queued")
        way.queues.send(way.take(2)[0])
        assert way.heard() == [b"held", b"queued"] and way.counters()["refused"] == 0


def test_nothing_is_lost_when_queues_come_and_go(street, rules):
    """Under load: opened, left with packets held, and opened again; the ears hear all."""
    rules(Rule(5), Rule(6))
    sent = stop = 0
    with udp(street.receiver, RECEIVER, port=PORT + 1) as ear, udp(street.sender, SENDER) as mouth:
        before = street.receiver.counters()["rx_packets"]
        ear.setsockopt(socket.SOL_SOCKET, nfqueue.SO_RCVBUFFORCE, 32 << 20)

        def talk():
            nonlocal sent
            while not stop:
                for _ in range(20):
                    mouth.sendto(b"", (RECEIVER.ipv4, PORT + 1))
                    sent += 1
                time.sleep(0.0005)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            for i in range(20):
                with Way(street, numbers=(6, 5)) as way:
                    way.take(i + 1)  # never answered
        finally:
            stop = 1
            thread.join()
        assert sent > 100
        wait_until(lambda: street.receiver.counters()["rx_packets"] == before + sent)


def test_when_the_listener_dies_packets_pass_but_those_it_held(street, rules):
    rules(Rule(5))
    with Way(street) as way:
        way.say(b"held")
        way.take()
        way.queues.socket.close()
        way.say(b"free")
        assert way.heard() == [b"free"]


def test_waiting_ends_in_time(street, rules):
    rules(Rule(5))
    with Way(street) as way:
        way.queues.wait(0)  # loads what is compiled
        for limit_ns in (-5, 0, 300_000, 20_000_000):
            begun = time.monotonic_ns()
            assert not way.queues.wait(limit_ns)
            assert limit_ns <= time.monotonic_ns() - begun < limit_ns + 2 * SECOND_ns
        way.say(b"one")
        assert way.queues.wait(5 * SECOND_ns)


def test_segments_come_as_packets():
    """The sender hands on what is larger than a packet; the kernel cuts it before it is queued."""
    with Street(offloads=True) as street:
        street.router.inside(install, [Rule(5, ("-p", "tcp", "--dport", str(PORT)))])
        server = street.receiver.inside(socket.create_server, (RECEIVER.ipv4, PORT))
        client = street.sender.inside(socket.socket)
        with street.router.inside(Queues, [5]) as queues, server, client, ThreadPoolExecutor(1) as pool:
            done, lengths = pool.submit(client.connect, (RECEIVER.ipv4, PORT)), []
            done.add_done_callback(lambda _: client.sendall(bytes(50_000)))
            frames, metas, verdicts = rows(FRAME, 64), rows(META, 64), rows(VERDICT, 64)
            verdicts.what = NF_ACCEPT
            while sum(lengths) < 50_000:
                assert queues.wait(5 * SECOND_ns)
                count = queues.receive(frames, metas)
                verdicts.id[:count] = metas.id[:count]
                queues.send(verdicts[:count])
                lengths += frames.len[:count].tolist()
            assert max(lengths) == 1500
            with server.accept()[0] as connection:
                connection.settimeout(5)
                assert len(connection.recv(50_000, socket.MSG_WAITALL)) == 50_000


# In a chain of compiled stages


@pytest.mark.skipif(CHECKED, reason="only compiled")
@pytest.mark.parametrize("at_once", [0, 1])
def test_a_compiled_stage_receives_and_sends(street, rules, at_once):
    from dataplane.capture import nfcalls
    from dataplane.kernels import stage_address
    from dataplane.memory import array_at

    work = np.dtype(
        [(name, np.int64) for name in ("queues", "frames", "metas", "verdicts", "at_once", "begun", "ended")]
    )
    queues_row = nfcalls.QUEUES

    def stage(context, batch):
        w = array_at(context, 1, work)[0]
        q = array_at(w.queues, 1, queues_row)[0]
        w.begun = nfcalls.clock(q, nfcalls.MONOTONIC)
        if not nfcalls.wait(q, 5_000_000_000):
            return 0
        frames, metas = array_at(w.frames, 64, FRAME), array_at(w.metas, 64, META)
        count = nfcalls.receive(q, frames, metas, nfcalls.clock(q, nfcalls.REALTIME))
        verdicts = array_at(w.verdicts, count, VERDICT)
        for i in range(count):
            verdicts[i].id, verdicts[i].queue, verdicts[i].what = metas[i].id, metas[i].queue, NF_ACCEPT
        if w.at_once:
            nfcalls.accept_through(q, 0, metas[count - 1].id)
        elif nfcalls.send(q, verdicts, q.buf) < count:
            return 0
        w.ended = nfcalls.clock(q, nfcalls.MONOTONIC)
        return DONE

    rules(Rule(5))
    with Way(street) as way:
        context, tables = rows(work, 1), (way.queues.context, way.frames, way.metas, rows(VERDICT, 64))
        for name, table in zip(("queues", "frames", "metas", "verdicts"), tables):
            context[0][name] = table.ctypes.data
        context[0].at_once = at_once
        call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(stage_address(stage))
        before = time.monotonic_ns()
        way.say(b"one", b"two", b"three")
        assert call(context.ctypes.data, 0) == DONE
        assert before < context[0].begun < context[0].ended < time.monotonic_ns()
        assert way.heard() == [b"one", b"two", b"three"] and abs(int(way.frames[0].ts) - time.time_ns()) < SECOND_ns


# What cannot be had


def test_a_queue_that_is_taken(street):
    with street.router.inside(Queues, [5]), pytest.raises(CaptureError) as caught:
        street.router.inside(Queues, [4, 5, 6])
    assert (
        str(caught.value) == f"NFQUEUE: queue 5 is taken by process {os.getpid()}: stop that, or choose another queue"
    )
    with street.router.inside(Queues, [4, 5, 6]):
        pass
    with pytest.raises(CaptureError, match="queue 5 is taken by .*: stop that, or choose another queue"):
        street.router.inside(Queues, [5, 5])


def without_privilege(call, *args):
    """Call in a thread that may do nothing special (capabilities(7))."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    def give_up():
        assert ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), (ctypes.c_uint32 * 6)()) == 0

    with ThreadPoolExecutor(1, initializer=give_up) as pool:
        return pool.submit(call, *args).result()


def test_without_privilege_it_says_so(root):
    with pytest.raises(CaptureError, match=r"NFQUEUE: queues need the privilege CAP_NET_ADMIN: run as root"):
        without_privilege(Queues, [65000, 65001])


def test_a_kernel_without_it(root, monkeypatch):
    monkeypatch.setattr(nfqueue, "CONFIG", 15 << 8 | 2)  # a subsystem that there is not
    with pytest.raises(CaptureError, match="NFQUEUE: this kernel has none: modprobe nfnetlink_queue"):
        Queues([65000])
    monkeypatch.setattr(nfqueue, "NETLINK_NETFILTER", 31)
    with pytest.raises(CaptureError, match="NFQUEUE: this kernel has no netfilter: it needs CONFIG_NETFILTER"):
        Queues([65000])


def test_other_reasons(root, monkeypatch):
    queues = Queues([65000])
    assert queues._why(5, errno.ENOMEM) == "queue 5 could not be had (Cannot allocate memory)"
    queues.close()
    queues.close()  # once more does no harm

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(CaptureError, match=r"NFQUEUE: no netlink socket could be had \(Too many open files\)"):
        Queues([5])


def test_what_is_refused_otherwise(root, monkeypatch):
    monkeypatch.setattr(nfqueue, "OUT_bytes", 0)  # makes the buffer for sending so small that nothing goes
    with pytest.raises(CaptureError, match=r"NFQUEUE: could not be set up \(Message too long\)"):
        Queues(list(range(60_000, 60_100)))


def test_there_is_a_row_for_each_of_ours(street):
    with street.router.inside(Queues, [7, 3]) as queues:
        assert [count.port for count in queues.counts()] == [queues.socket.getsockname()[0]] * 2
        queues.table.close()
        queues.table = None
        assert queues.counts() == [(0, 0, 0, 0, 0)] * 2

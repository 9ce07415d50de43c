"""NFQUEUE: packets that the firewall hands to us wait in the kernel until we say what becomes of them.

One netlink socket serves all queues of a run: one wait, one reception and one sending for all of them, and packets of
different queues come in the order in which they were queued. Compiled stages receive and send by the functions of
nfcalls.py, with `queues.context[0]`; the methods of Queues are the same for Python, in all modes.

The network outlives us: the kernel lets packets pass by when a queue or the socket's buffer is full (fail-open), the
firewall's --queue-bypass when nobody listens, and `close` leaves no moment in which a packet could be lost.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataplane.capture import nfnetlink
from dataplane.capture.nfcalls import MESSAGE, QUEUES, VECTOR, OUT_bytes, receive_in, send_in, wait_in
from dataplane.capture.nfnetlink import CONFIG, NFQA_VERDICT_HDR, NLM_F_ACK, NLM_F_REQUEST, VERDICT_BATCH
from dataplane.capture.source import CaptureError
from dataplane.kernels import Kernel
from dataplane.memory import memory
from dataplane.records import CHECKED, NF_ACCEPT, rows, zeros

NETLINK_NETFILTER = 12  # linux/netlink.h
SOL_NETLINK, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK = 270, 5, 10
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_MEMINFO, MEMINFO_DROPS = 32, 33, 55, 8  # asm-generic/socket.h, linux/sock_diag.h
BIND = 1  # NFQNL_CFG_CMD_
CFG_CMD, CFG_PARAMS, CFG_MAXLEN, CFG_MASK, CFG_FLAGS = range(1, 6)  # NFQA_CFG_
COPY_PACKET = 2
FAIL_OPEN, GSO = 1, 4  # NFQA_CFG_F_. Without GSO the kernel cuts packets to size before it queues them
TABLE = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")

SLOTS = 256  # datagrams of one reception
HEADERS_bytes = 512  # of a message besides the packet; the kernel's have less than half of that
WHOLE_bytes = 65535
KERNEL_bytes = 1024  # what a message takes up in the kernel besides the packet
LONG_bytes = 1536  # where whole packets are copied, most are shorter
FAR = (0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFF)  # packet ids go round: all are at or before one of these, in this order
NOTHING = zeros(8)


class QueueOptions(NamedTuple):
    """How queues are had.

    copy_bytes: of each packet that are shown, WHOLE_bytes where packets are rewritten; most: packets that a queue
    holds, more pass by; buffer_bytes: of messages not yet received, 0: enough for `most` in each queue.
    """

    copy_bytes: int = 256
    most: int = 16384
    buffer_bytes: int = 0


class Counts(NamedTuple):
    """What the kernel says of a queue; `full`: packets that found no room, `lost`: for which there was no message.

    With fail-open those of `full` are not counted: they passed by.
    """

    waiting: int
    full: int
    lost: int
    last_id: int
    port: int  # netlink port of who has the queue, mostly its process's id


def _attribute(kind, data):
    size = nfnetlink.ATTRIBUTE_bytes + len(data)
    return struct.pack("HH", size, kind) + data + bytes(-size % 4)


def _config(number, sequence, attributes, flags=0):
    """NFQNL_MSG_CONFIG about queue `number`."""
    body = struct.pack(">BBH", 0, 0, number) + b"".join(_attribute(*one) for one in attributes)
    length = nfnetlink.HEADER_bytes + len(body)
    return struct.pack("IHHII", length, CONFIG, NLM_F_REQUEST | flags, sequence, 0) + body


def _limits(most, copy_bytes):
    """Attributes: packets that a queue holds, and of each what is copied."""
    flags = [(CFG_MASK, struct.pack(">I", FAIL_OPEN | GSO)), (CFG_FLAGS, struct.pack(">I", FAIL_OPEN))]
    return [(CFG_PARAMS, struct.pack(">IB", copy_bytes, COPY_PACKET)), (CFG_MAXLEN, struct.pack(">I", most)), *flags]


def _batch(number, last):
    """NFQNL_MSG_VERDICT_BATCH: accept what waits in queue `number` up to packet id `last`."""
    body = struct.pack(">BBH", 0, 0, number) + _attribute(NFQA_VERDICT_HDR, struct.pack(">II", NF_ACCEPT, last))
    length = nfnetlink.HEADER_bytes + len(body)
    return struct.pack("IHHII", length, VERDICT_BATCH, NLM_F_REQUEST, 0, 0) + body


def counts_of(text):
    """{queue number: Counts} of what the kernel's table holds."""
    table = {}
    for line in text.splitlines():
        number, port, waiting, _, _, full, lost, last, *_ = map(int, line.split())
        table[number] = Counts(waiting, full, lost, last, port)
    return table


def _no_socket(error):
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return "this kernel has no netfilter: it needs CONFIG_NETFILTER_NETLINK_QUEUE"
    return f"no netlink socket could be had ({error.strerror})"


class Queues:
    """The NFQUEUE queues `numbers` of the namespace that the calling thread is in, from now on.

    Packets that come are to be received and each to be sent a verdict; `context` holds the QUEUES row with all
    counters. CaptureError: they cannot be had.
    """

    def __init__(self, numbers, options=QueueOptions()):
        self.numbers, self.options = np.array(numbers, np.int32), options
        self.table = self.socket = None
        self._wait, self._receive, self._send = Kernel(wait_in), Kernel(receive_in), Kernel(send_in)
        try:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise CaptureError(f"NFQUEUE: {_no_socket(error)}") from error
        try:
            with contextlib.suppress(OSError):  # of root only; without it there are no counts
                self.table = TABLE.open("rb", buffering=0)
            self._make_room()
            self._bind()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise CaptureError(f"NFQUEUE: could not be set up ({error.strerror})") from error
            raise

    def _make_room(self):
        """Buffers, and the row that says where they are."""
        copied, sock = self.options.copy_bytes, self.socket
        each = min(copied, LONG_bytes) + KERNEL_bytes
        asked = self.options.buffer_bytes or len(self.numbers) * self.options.most * each
        with contextlib.suppress(PermissionError):  # `_bind` will say so
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, min(asked, 2**30) // 2)  # the kernel doubles it
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, OUT_bytes)
        sock.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)  # else after a loss all is lost until we have read it all
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.context = rows(QUEUES, 1)
        self.slot_bytes = copied + HEADERS_bytes
        self.buf, self.out = zeros(SLOTS * self.slot_bytes + 8), zeros(OUT_bytes + 8)
        self.lengths = zeros(8 * SLOTS).view(np.int64)
        self.messages, self.vectors = zeros(SLOTS * MESSAGE.itemsize).view(MESSAGE), np.zeros(SLOTS, VECTOR)
        self.poll, self.times = np.array([sock.fileno(), select.POLLIN], np.int32), np.zeros(2, np.int64)
        self.vectors["address"] = self.buf.ctypes.data + np.arange(SLOTS) * self.slot_bytes
        self.vectors["length"] = self.slot_bytes
        self.messages["vectors"] = self.vectors.ctypes.data + np.arange(SLOTS) * VECTOR.itemsize
        self.messages["vector_count"] = 1
        row = self.context[0]
        row.fd, row.slots, row.queues, row.slot_bytes = sock.fileno(), SLOTS, len(self.numbers), self.slot_bytes
        for name in ("buf", "out", "lengths", "messages", "numbers", "poll", "times"):
            row[name] = getattr(self, name).ctypes.data

    def _bind(self):
        """Take all queues, each whole at once: a queue that is bound but not yet set up would drop packets."""
        settings = [(CFG_CMD, struct.pack(">BBH", BIND, 0, 0)), *_limits(self.options.most, self.options.copy_bytes)]
        asked = [_config(int(number), i, settings, NLM_F_ACK) for i, number in enumerate(self.numbers)]
        self.socket.send(b"".join(asked))
        errors, early = self._answers(len(asked))
        for number, error in zip(self.numbers.tolist(), errors, strict=True):
            if error:
                raise CaptureError(f"NFQUEUE: {self._why(number, error)}")
        self._keep(early)

    def _answers(self, count):
        """The errno that answers each of `count` settings, 0: done; and packets' messages that came meanwhile.

        All answers are there when the settings are sent. To who may set nothing there is one for all of them.
        """
        errors, early = {}, []
        with contextlib.suppress(BlockingIOError):
            while len(errors) < count:
                data = self.socket.recv(self.slot_bytes, socket.MSG_DONTWAIT)
                kind, _, sequence = struct.unpack_from("HHI", data, nfnetlink.TYPE_AT)
                if kind == nfnetlink.NLMSG_ERROR:
                    errors[sequence] = -struct.unpack_from("i", data, nfnetlink.ERROR_AT)[0]
                else:
                    early.append(data)
        return [errors.get(i, errno.ENOBUFS) for i in range(count)], early

    def _keep(self, early):
        """Packets that came while queues were set up are received first."""
        if len(early) > SLOTS:
            self.accept_all()
            return
        for i, data in enumerate(early):
            self.buf[i * self.slot_bytes :][: len(data)] = np.frombuffer(data, np.uint8)
            self.lengths[i] = len(data)
        self.context[0].got = len(early)

    def _why(self, number, error):
        taken = self.counts_by_number().get(number)
        if error == errno.EBUSY or (error == errno.EPERM and taken):
            known = taken and Path(f"/proc/{taken.port}").exists()
            by = f"process {taken.port}" if known else "another process"
            return f"queue {number} is taken by {by}: stop that, or choose another queue"
        if error == errno.EPERM:
            return (
                "queues need the privilege CAP_NET_ADMIN: run as root, or give it to the service "
                "(AmbientCapabilities=CAP_NET_ADMIN) or to the command (setpriv, capsh)"
            )
        if error == errno.EINVAL:
            return "this kernel has none: modprobe nfnetlink_queue, or a kernel with CONFIG_NETFILTER_NETLINK_QUEUE"
        return f"queue {number} could not be had ({os.strerror(error)})"

    def _tell(self, most):
        """Set how many packets queues hold; a refusal is counted as the answer to a verdict is."""
        settings = _limits(most, self.options.copy_bytes)
        self.socket.send(b"".join(_config(int(number), 0, settings) for number in self.numbers))

    def pass_by(self, passing=True):
        """Let new packets pass by in the kernel, without being queued; or not any more. Held ones stay held."""
        self._tell(0 if passing else self.options.most)

    def accept_through(self, queue, packet_id):
        """Accept all packets of the queue with this index up to `packet_id`, held ones too."""
        self.socket.send(_batch(int(self.numbers[queue]), packet_id))

    def accept_all(self):
        """Accept all packets that wait, received or not. Verdicts sent on them later count as `gone`, and so do up to
        three answers a queue, where nothing waits.
        """
        self.socket.send(b"".join(_batch(int(number), last) for number in self.numbers for last in FAR))

    def wait(self, limit_ns):
        """Wait until a message is there, but not longer; whether one is."""
        if not CHECKED:
            return self._wait(self.context, limit_ns)
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        return bool(poller.poll(max(0, limit_ns) / 1e6))

    def receive(self, frames, metas, now=None):
        """Fill FRAME and META rows with packets that are there; how many. Their bytes are in `buf` until the next call.

        now: realtime ns, for packets that the kernel has given no time.
        """
        now = time.time_ns() if now is None else now
        if not CHECKED:
            return self._receive(self.context, frames, metas, now)
        row = self.context[0]
        if row.slot >= row.got:
            self._fetch(min(len(frames), SLOTS))
        return nfnetlink.walk(memory(self.buf), self.lengths, self.numbers, frames, metas, row, now)

    def _fetch(self, most):
        row = self.context[0]
        row.got = row.slot = row.at = 0
        while row.got < most:
            slot = memoryview(self.buf)[row.got * self.slot_bytes :][: self.slot_bytes]
            try:
                self.lengths[row.got] = self.socket.recv_into(slot, flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                row.overruns += 1
                continue
            row.got += 1

    def send(self, verdicts, source=NOTHING):
        """Send VERDICT rows; how many the kernel took: all, or try the others again.

        source: uint8, packets that take the place of others, and at least eight bytes.
        """
        if not CHECKED:
            return self._send(self.context, verdicts, source)
        first, out = 0, memory(self.out)
        while first < len(verdicts):
            size, after = nfnetlink.write_verdicts(out, OUT_bytes, verdicts, first, self.numbers, memory(source))
            try:
                self.socket.send(self.out[:size], socket.MSG_DONTWAIT)
            except OSError:
                self.context[0].unsent += 1
                break
            first = after
        return first

    def counts(self):
        """Counts of each of our queues, in their order; of zeros where the kernel does not tell, as to all but root."""
        table = self.counts_by_number()
        return [table.get(int(number), Counts(0, 0, 0, 0, 0)) for number in self.numbers]

    def counts_by_number(self):
        """{number: Counts} of all queues of the namespace."""
        if self.table is None:
            return {}
        self.table.seek(0)
        return counts_of(self.table.readall().decode())

    def overflows(self):
        """Messages for which the socket's buffer had no room: their packets passed by."""
        told = self.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (MEMINFO_DROPS + 1))
        return struct.unpack_from("I", told, 4 * MEMINFO_DROPS)[0]

    def close(self):
        """Let all packets that wait go and leave the queues; once more does no harm.

        New packets pass by before those that wait are accepted, so that none is there when the queue goes, which would
        drop it. Where the rule has no --queue-bypass, it drops what comes after that.
        """
        if self.socket is not None:
            for step in (self.pass_by, self.accept_all):
                with contextlib.suppress(OSError):
                    step()
            self.socket.close()
        if self.table is not None:
            self.table.close()
        self.socket = self.table = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

"""System calls on the socket of NFQUEUE, for compiled stages: each takes the QUEUES row of nfqueue.py's Queues.

Only compiled; Queues has methods that do the same in all modes. Messages are received into slots by recvmmsg(2), many
verdicts are sent as one buffer.
"""

import errno
import select
import socket
import time

import numpy as np
from numba import njit, types

from dataplane.capture import nfnetlink
from dataplane.capture.nfnetlink import VERDICT_BATCH
from dataplane.memory import array_at, memory
from dataplane.records import NF_ACCEPT

OUT_bytes = 128 << 10  # of messages in one sending: the longest packet, or 4096 plain verdicts

QUEUES = np.dtype(
    [
        *nfnetlink.WALK,
        ("fd", np.int64),
        *(
            (name, np.int64) for name in ("buf", "slots", "messages", "lengths", "numbers", "queues")
        ),  # addresses, sizes
        *((name, np.int64) for name in ("out", "poll", "times")),
        ("unsent", np.int64),  # sendings that failed, their verdicts are to be sent again
    ],
    align=True,
)
MESSAGE = np.dtype(  # struct mmsghdr of 64-bit Linux
    [
        *((name, np.uint64) for name in ("name", "name_bytes", "vectors", "vector_count", "control", "control_bytes")),
        ("flags", np.uint64),
        ("received", np.uint32),
        ("unused", np.uint32),
    ]
)
VECTOR = np.dtype([("address", np.uint64), ("length", np.uint64)])  # struct iovec
I32, I64 = np.dtype(np.int32), np.dtype(np.int64)
DONTWAIT, POLLIN = int(socket.MSG_DONTWAIT), select.POLLIN
EINTR, ENOBUFS = errno.EINTR, errno.ENOBUFS
REALTIME, MONOTONIC = time.CLOCK_REALTIME, time.CLOCK_MONOTONIC

_long, _int = types.int64, types.int32
recvmmsg = types.ExternalFunction("recvmmsg", _int(_int, _long, types.uint32, _int, _long))
send_bytes = types.ExternalFunction("send", _long(_int, _long, _long, _int))
ppoll = types.ExternalFunction("ppoll", _int(_long, _long, _long, _long))
clock_gettime = types.ExternalFunction("clock_gettime", _int(_int, _long))
errno_at = types.ExternalFunction("__errno_location", _long())


@njit
def clock(q, which):
    """ns of the clock REALTIME or MONOTONIC."""
    clock_gettime(which, q.times)
    times = array_at(q.times, 2, I64)
    return times[0] * 1_000_000_000 + times[1]


@njit
def wait(q, limit_ns):
    """Wait until a message is there, but not longer; whether one is. A signal ends it too."""
    times = array_at(q.times, 2, I64)
    times[0], times[1] = max(0, limit_ns) // 1_000_000_000, max(0, limit_ns) % 1_000_000_000
    return ppoll(q.poll, 1, q.times, 0) > 0


@njit
def fetch(q, most):
    """Receive what is there, at most so many datagrams."""
    got = -1
    for _ in range(2):  # the first says that messages were lost, the next gives what is there
        got = recvmmsg(q.fd, q.messages, min(most, q.slots), DONTWAIT, 0)
        if got >= 0 or array_at(errno_at(), 1, I32)[0] != ENOBUFS:
            break
        q.overruns += 1
    messages, lengths = array_at(q.messages, q.slots, MESSAGE), array_at(q.lengths, q.slots, I64)
    for i in range(got):
        lengths[i] = messages[i].received
    q.got, q.slot, q.at = max(0, got), 0, 0


@njit
def receive(q, frames, metas, now):
    """Fill rows with packets that are there; how many. Offsets are in the buffer at `q.buf`, good until the next call.

    now: realtime ns.
    """
    if q.slot >= q.got:
        fetch(q, frames.size)
    return nfnetlink.walk(
        q.buf, array_at(q.lengths, q.slots, I64), array_at(q.numbers, q.queues, I32), frames, metas, q, now
    )


@njit
def push(q, size):
    """Send what was written; False: the kernel took nothing of it."""
    sent = -1
    while sent < 0:
        sent = send_bytes(q.fd, q.out, size, DONTWAIT)
        if sent < 0 and array_at(errno_at(), 1, I32)[0] != EINTR:
            q.unsent += 1
            return False
    return True


@njit
def send(q, verdicts, source):
    """Send VERDICT rows; how many the kernel took: all, or try the others again.

    source: address of the buffer with the packets that take another's place.
    """
    first, numbers = 0, array_at(q.numbers, q.queues, I32)
    while first < verdicts.size:
        size, after = nfnetlink.write_verdicts(q.out, OUT_bytes, verdicts, first, numbers, source)
        if not push(q, size):
            break
        first = after
    return first


@njit
def accept_through(q, queue, packet_id):
    """Accept all packets of the queue with this index up to `packet_id`, held ones too, by one message.

    Half the cost of a verdict each where many come together. False: try again.
    """
    nfnetlink.write_plain(q.out, 0, VERDICT_BATCH, array_at(q.numbers, q.queues, I32)[queue], NF_ACCEPT, packet_id)
    return push(q, nfnetlink.PLAIN_bytes)


# For methods: of arrays


@njit(nogil=True, cache=True)
def wait_in(context, limit_ns):
    return wait(context[0], limit_ns)


@njit(nogil=True, cache=True)
def receive_in(context, frames, metas, now):
    return receive(context[0], frames, metas, now)


@njit(nogil=True, cache=True)
def send_in(context, verdicts, source):
    return send(context[0], verdicts, memory(source))

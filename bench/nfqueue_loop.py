"""The peer that anybody writes first: a Python callback of the library NetfilterQueue. Imports nothing of the project.

    QUEUE MOST [RATE]   packets that the queue holds; bit/s of each destination port, else all are accepted at once

With a rate it retains packets, keeps them in a heap by departure time and accepts them when a timerfd says so. What
would have to wait too long is dropped. Says `ready`; ends on TERM or INT and prints its counts as JSON.
"""

import contextlib
import ctypes
import heapq
import json
import os
import select
import signal
import sys
from time import monotonic_ns

from netfilterqueue import COPY_PACKET, NetfilterQueue

COPY_bytes, BUFFER_bytes = 256, 16 << 20
CREDIT_ns, LIMIT_ns = 4_000_000, 200_000_000  # as inline.credit and limit_time
CLOCK_MONOTONIC, TFD_NONBLOCK, TFD_TIMER_ABSTIME = 1, os.O_NONBLOCK, 1  # timerfd_create(2)
PR_SET_TIMERSLACK = 29  # linux/prctl.h
libc = ctypes.CDLL(None)


class Ended(Exception):
    """A signal came."""


def end(*_):
    raise Ended


class Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "s", "ns")]


class Accept:
    """Every packet leaves at once."""

    def __init__(self):
        self.packets = 0

    def take(self, packet):
        self.packets += 1
        packet.accept()

    def run(self, queue):
        queue.run()


class Pace:
    """Each port has a rate; a packet that may not leave yet is retained."""

    def __init__(self, rate):
        self.rate, self.next, self.heap = rate, {}, []
        self.packets = self.held = self.dropped = 0
        self.timer, self.set_for = libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 0

    def take(self, packet):
        self.packets += 1
        head, now = packet.get_payload(), monotonic_ns()
        port, length = head[22:24], head[2] << 8 | head[3]  # get_payload_len() is that of what was copied
        due = max(now - CREDIT_ns, self.next.get(port, 0))
        if due - now > LIMIT_ns:
            self.dropped += 1
            packet.drop()
            return
        self.next[port] = due + length * 8_000_000_000 // self.rate
        if due <= now:
            packet.accept()
            return
        self.held += 1
        packet.retain()
        heapq.heappush(self.heap, (due, self.packets, packet))

    def release(self):
        """Let go what is due, and set the timer for what is next."""
        now = monotonic_ns()
        while self.heap and self.heap[0][0] <= now:
            heapq.heappop(self.heap)[2].accept()
        if self.heap and self.heap[0][0] != self.set_for:
            self.set_for = self.heap[0][0]
            until = Itimerspec(0, 0, *divmod(self.set_for, 1_000_000_000))
            libc.timerfd_settime(self.timer, TFD_TIMER_ABSTIME, ctypes.byref(until), None)

    def run(self, queue):
        libc.prctl(PR_SET_TIMERSLACK, 1)
        poll = select.epoll()
        poll.register(queue.get_fd(), select.EPOLLIN)
        poll.register(self.timer, select.EPOLLIN | select.EPOLLET)
        while True:
            for fd, _ in poll.poll():
                if fd != self.timer:
                    queue.run(block=False)
            self.release()


def main():
    number, most, *rate = map(int, sys.argv[1:])
    loop = Pace(*rate) if rate else Accept()
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    queue = NetfilterQueue()
    queue.bind(number, loop.take, max_len=most, mode=COPY_PACKET, range=COPY_bytes, sock_len=BUFFER_bytes)
    print("ready", flush=True)
    with contextlib.suppress(Ended):
        loop.run(queue)
    queue.unbind()
    print(json.dumps({name: value for name, value in vars(loop).items() if isinstance(value, int)}))


if __name__ == "__main__":
    main()

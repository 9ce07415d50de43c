"""Signals of a running agent are heard whichever thread the kernel gives them to."""

import os
import signal
import subprocess
import sys
import threading
import time

from qoetap.signals import Signals

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ENDS = """
import os, signal, sys
from qoetap.signals import Signals
with Signals((signal.SIGTERM, signal.SIGHUP)) as signals:
    signals.last((signal.SIGTERM,))
    os.kill(os.getpid(), signal.SIGHUP)
    print("not heeded", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still there")
"""


def test_signals_are_heard_in_order():
    with Signals(NUMBERS) as signals:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert [signals.next(1) for _ in range(3)] == [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM]


def test_without_a_signal_the_time_passes():
    with Signals(NUMBERS) as signals:
        began = time.monotonic()
        assert signals.next(0.05) is None
        assert 0.04 < time.monotonic() - began < 2


def test_a_signal_that_another_thread_takes_is_heard_at_once():
    """A library's thread that was there before has nothing blocked."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with Signals(NUMBERS) as signals:
            signal.pthread_kill(other.ident, signal.SIGTERM)
            assert signals.next(5) == signal.SIGTERM
    finally:
        done.set()
        other.join()


def test_afterwards_all_is_as_before():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    descriptors = len(os.listdir("/proc/self/fd"))
    with Signals(NUMBERS):
        assert all(signal.getsignal(number) != before[number] for number in NUMBERS)
    assert {number: signal.getsignal(number) for number in NUMBERS} == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_the_last_one_ends_the_process_and_the_others_are_not_heeded():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "not heeded\n")

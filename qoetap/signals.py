"""Signals of a running agent, heard by its main thread one after the other.

They are caught, not blocked and waited for (sigwait(3)): libraries start threads of their own before we can have them
block anything, such as OpenBLAS at numpy's import, and a signal that such a thread takes would end the process.
"""

import os
import select
import signal

from qoetap.say import say


class Signals:
    """Catches `numbers` while in its context. For the main thread (signal(2) and the signal module's rules)."""

    def __init__(self, numbers):
        self.numbers, self.before, self.wakeup = numbers, {}, -1
        self.ear = self.mouth = -1
        self.poll = select.poll()

    def __enter__(self):
        self.ear, self.mouth = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll.register(self.ear, select.POLLIN)
        self.wakeup = signal.set_wakeup_fd(self.mouth, warn_on_full_buffer=False)
        self.before = {number: signal.signal(number, _caught) for number in self.numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        self.poll.unregister(self.ear)
        os.close(self.ear)
        os.close(self.mouth)

    def next(self, seconds):
        """The signal that came next, None if none does for so long."""
        if not self.poll.poll(seconds * 1000):
            return None
        return signal.Signals(os.read(self.ear, 1)[0])

    def last(self, ending):
        """From now on those in `ending` end the process at once, the others are not heeded."""
        for number in self.numbers:
            signal.signal(number, signal.SIG_DFL if number in ending else signal.SIG_IGN)


def put_off(numbers):
    """Until Signals catches them: say that one came too early, while kernels compile, instead of ending by it."""
    for number in numbers:
        signal.signal(number, _too_early)


def _too_early(number, _):
    say(f"{signal.Signals(number).name} came too early: send it again once qoetap listens")


def _caught(*_):
    """Nothing: its number is in the pipe."""

"""INT and TERM end the input early and orderly: the block at hand is finished, states are ticked, outputs flushed."""

import signal


class Interrupted(Exception):
    """Raised where the process waits for input."""


class Stop:
    """Whether the input should end. As a context manager it takes over INT and TERM; a second signal kills as usual."""

    def __init__(self):
        self.signal, self.waiting, self.before = None, False, {}

    def __enter__(self):
        self.before = {s: signal.signal(s, self._caught) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _caught(self, number, _frame):
        signal.signal(number, signal.SIG_DFL)
        self.signal = signal.Signals(number)
        if self.waiting:
            raise Interrupted

    def next(self, blocks):
        """The next block, None at the end or when a signal came."""
        if self.signal is not None:
            return None
        try:
            self.waiting = True
            block = next(blocks, None)
            self.waiting = False
        except Interrupted:
            return None
        finally:
            self.waiting = False
        return block

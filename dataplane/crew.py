"""Several workers over one capture: whoever is free does what is most urgent.

The calling thread reads, for only it hears signals. Each share of the states is brought over the blocks in order,
always by the same worker, in whose caches they are; blocks are decoded by anybody, ahead of that.
"""

import collections
import threading

READER = -1


class Crew:
    """One run. `read()` gives the next block or None, `decode(number, block)` and `detect(share, number)` do the work,
    in any thread, and `settle(number)` follows for each block in order when all shares have seen it. At most `ahead`
    blocks are in hand.
    """

    def __init__(self, workers, shares, ahead, read, decode, detect, settle):
        self.workers, self.ahead = workers, ahead
        self.read, self.decode, self.detect, self.settle = read, decode, detect, settle
        self.changed = threading.Condition()
        self.taken = 0  # blocks read
        self.raw, self.decoded = collections.deque(), set()  # numbers of blocks
        self.seen = [0] * shares  # the next block of each share
        self.settled, self.settling = 0, False
        self.ended, self.error = False, None

    def run(self):
        """Work until the input has ended and all is settled. Raises what any worker raised."""
        threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.workers - 1)]
        for thread in threads:
            thread.start()
        try:
            self.work(READER)
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()
            for thread in threads:
                thread.join()
        if self.error is not None:
            raise self.error

    def work(self, me):
        with self.changed:
            while not self.done():
                task = self.next_task(me)
                if task is None:
                    self.changed.wait()
                    continue
                try:
                    task()
                except BaseException as error:
                    self.error = self.error or error
                self.changed.notify_all()

    def done(self):
        return self.error is not None or (self.ended and self.settled == self.taken)

    def next_task(self, me):
        """What to do now, as a function that holds the lock but while it works; None: wait."""
        if not self.settling and self.settled < min(self.seen):
            return self.do_settle
        if me < len(self.seen) and me != READER and self.seen[me] in self.decoded:
            return lambda: self.do_detect(me)
        if me == READER and not self.ended and self.taken - self.settled < self.ahead:
            return self.do_read
        return self.do_decode if self.raw else None

    def apart(self, function, *args):
        """Call without the lock."""
        self.changed.release()
        try:
            return function(*args)
        finally:
            self.changed.acquire()

    def do_read(self):
        block = self.apart(self.read)
        if block is None:
            self.ended = True
        else:
            self.raw.append((self.taken, block))
            self.taken += 1

    def do_decode(self):
        number, block = self.raw.popleft()
        self.apart(self.decode, number, block)
        self.decoded.add(number)

    def do_detect(self, share):
        self.apart(self.detect, share, self.seen[share])
        self.seen[share] += 1

    def do_settle(self):
        self.settling, number = True, self.settled
        self.apart(self.settle, number)
        self.decoded.discard(number)
        self.settled, self.settling = number + 1, False

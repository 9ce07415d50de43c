"""Several workers over one capture: whoever is free does what is most urgent.

The calling thread reads, for only it hears signals. Each share of the states is brought over the blocks in order,
always by the same worker, in whose caches they are; blocks are decoded by anybody, ahead of that.
"""

import collections
import threading

READER = -1


class Crew:
    """One run. `read()` gives the next job or None, `decode(slot, job)` and `detect(share, slot, job)` work on it, in
    any thread, and `settle(slot, job)` follows for each job in order when all shares have seen it. At most `slots` jobs
    are in hand, each in a slot of its own.
    """

    def __init__(self, workers, shares, slots, read, decode, detect, settle):
        self.workers, self.slots = workers, slots
        self.read, self.decode, self.detect, self.settle = read, decode, detect, settle
        self.changed = threading.Condition()
        self.jobs, self.taken = {}, 0  # by number; how many were read
        self.raw, self.decoded = collections.deque(), set()  # their numbers
        self.seen = [0] * shares  # the next one of each share
        self.settled, self.settling = 0, False
        self.ended, self.error = False, None

    def run(self):
        """Work until the input has ended and all is settled. Raises what any worker raised."""
        threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.workers - 1)]
        try:
            for thread in threads:
                thread.start()
            self.work(READER)
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()
            for thread in threads:
                if thread.ident is not None:
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
        if me == READER and not self.ended and self.taken - self.settled < self.slots:
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
        job = self.apart(self.read)
        if job is None:
            self.ended = True
        else:
            self.jobs[self.taken] = job
            self.raw.append(self.taken)
            self.taken += 1

    def do_decode(self):
        number = self.raw.popleft()
        self.apart(self.decode, number % self.slots, self.jobs[number])
        self.decoded.add(number)

    def do_detect(self, share):
        number = self.seen[share]
        self.apart(self.detect, share, number % self.slots, self.jobs[number])
        self.seen[share] += 1

    def do_settle(self):
        self.settling, number = True, self.settled
        self.apart(self.settle, number % self.slots, self.jobs.pop(number))
        self.decoded.discard(number)
        self.settled, self.settling = number + 1, False

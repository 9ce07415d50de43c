"""The queue in front of a sink: order, counts that add up, and in live that nothing is held up or given up for good."""

import threading
import time

import pytest

from dataplane.sinks import Queued, ReaderGone, SinkError, queued
from tests.sinks import Recorder, Slow, balanced, batch, text_of, until


class Diary(Recorder):
    """Writes down what is called; `error` is raised instead of delivering."""

    def __init__(self):
        super().__init__()
        self.error = None

    def put(self, events):
        if self.error is not None:
            raise self.error
        self.calls.append(len(events.order))
        self.delivered += len(events.order)

    def tick(self):
        self.calls.append("tick")


def full():
    return OSError(28, "No space left on device")


def test_the_queue_keeps_a_copy_and_the_order():
    slow = Slow()
    queue = Queued(slow)
    batches = [batch(5, seed) for seed in range(4)]
    want = [text_of(b) for b in batches]
    for events in batches:
        queue.write(events)
        for _, made in events.parts:
            made.view("u1")[:] = 0  # the engine uses its rows again
        events.order[:] = 0
        assert balanced(queue)
    assert queue.counts().queued == 20
    slow.go.release(4)
    queue.close()
    assert queue.counts() == (20, 20, 0, 0)
    assert slow.got == want
    assert slow.closed


def test_a_full_queue_drops_or_waits():
    slow = Slow()
    queue = Queued(slow, drop=True, limit_events=10)
    for seed in range(4):
        queue.write(batch(5, seed))
    assert queue.counts() == (20, 0, 10, 10)
    slow.go.release(2)
    queue.close()
    assert queue.counts() == (20, 10, 0, 10)

    slow = Slow()
    queue = Queued(slow, limit_events=10)
    writer = threading.Thread(target=lambda: [queue.write(batch(5, seed)) for seed in range(4)], daemon=True)
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    assert balanced(queue)
    slow.go.release(4)
    writer.join(60)
    queue.close()
    assert queue.counts() == (20, 20, 0, 0)


def test_a_batch_beyond_the_limit_is_taken_alone():
    slow = Slow()
    slow.go.release(1)
    queue = Queued(slow, limit_events=3)
    queue.write(batch(5))
    queue.close()
    assert queue.counts() == (5, 5, 0, 0)


def test_a_sink_that_fails_behind_the_queue_is_heard_and_counted():
    slow = Slow(fail_at=1)
    queue = Queued(slow)
    for seed in range(4):
        queue.write(batch(5, seed))
    slow.go.release(2)
    until(lambda: queue.counts().queued == 0)
    with pytest.raises(SinkError, match="No space left"):
        queue.write(batch(5))
    assert queue.counts() == (25, 5, 0, 20)
    with pytest.raises(SinkError):
        queue.close()
    assert slow.closed


def test_commands_come_in_order_with_the_events(monkeypatch):
    monkeypatch.setattr(queued, "TICK_S", 100)
    diary = Diary()
    queue = Queued(diary)
    queue.write(batch(5))
    queue.rotate()
    queue.write(batch(4))
    queue.reopen()
    queue.write(batch(3))
    queue.close()
    assert diary.calls == [5, "rotate", 4, "reopen", 3, "close"]


def test_a_sink_ticks_without_events(monkeypatch):
    monkeypatch.setattr(queued, "TICK_S", 0.01)
    diary = Diary()
    queue = Queued(diary)
    until(lambda: len(diary.calls) >= 3)
    queue.close()
    assert set(diary.calls[:-1]) == {"tick"} and diary.calls[-1] == "close"


def test_a_sink_ticks_while_events_wait(monkeypatch):
    monkeypatch.setattr(queued, "TICK_S", 0.005)
    go = threading.Event()

    class Busy(Diary):
        def put(self, events):
            go.wait()
            time.sleep(0.002)
            super().put(events)

    diary = Busy()
    queue = Queued(diary)
    for _ in range(20):
        queue.write(batch(1))
    go.set()
    queue.close()
    last = len(diary.calls) - diary.calls[::-1].index(1)
    assert diary.calls[diary.calls.index(1) : last].count("tick") >= 3
    assert (diary.calls.count(1), diary.calls[-1]) == (20, "close")


@pytest.mark.parametrize("error", [full(), SinkError("cannot write x: No space left on device"), KeyError("odd")])
def test_in_live_a_sink_that_fails_is_tried_again(error):
    diary = Diary()
    queue = Queued(diary, drop=True)
    diary.error = error
    for _ in range(3):
        queue.write(batch(5))
    until(lambda: queue.counts().dropped == 15)
    assert queue.trouble.endswith("; events are dropped and counted until it can be written")
    assert ("No space" in queue.trouble) != ("KeyError: 'odd'" in queue.trouble)
    assert queue.error.__traceback__ is None  # it would hold the batch
    diary.error = None
    queue.write(batch(4))
    until(lambda: queue.trouble is None)
    queue.close()
    assert queue.counts() == (19, 4, 0, 15)


def test_in_live_a_reader_may_come_back():
    diary = Diary()
    queue = Queued(diary, drop=True)
    diary.error = BrokenPipeError(32, "Broken pipe")
    queue.write(batch(5))
    until(lambda: queue.counts().dropped == 5)
    assert isinstance(queue.error, ReaderGone)
    diary.error = None
    queue.write(batch(4))
    queue.close()
    assert (queue.trouble, queue.counts()) == (None, (9, 4, 0, 5))


def test_what_a_sink_says_of_itself_is_its_trouble():
    diary = Diary()
    queue = Queued(diary, drop=True)
    diary.trouble = "no broker answers"
    assert queue.trouble == "no broker answers"
    queue.close()


def test_a_failure_while_closing_is_trouble():
    class Unclosed(Diary):
        def close(self):
            raise SinkError("cannot write x: Input/output error")

    queue = Queued(Unclosed(), drop=True)
    queue.write(batch(2))
    queue.close()
    assert queue.trouble.startswith("cannot write x")
    assert queue.counts() == (2, 2, 0, 0)


@pytest.mark.parametrize("inside", ["put", "close"])
def test_a_sink_that_hangs_is_given_up(inside):
    go = threading.Event()

    class Hangs(Diary):
        def put(self, events):
            super().put(events)
            if inside == "put":
                self.queued += 1  # of those that it took: half-way
                self.delivered -= 1
                go.wait()

        def close(self):
            go.wait()

    queue = Queued(Hangs(), drop=True, limit_events=10)
    started = time.monotonic()
    for _ in range(100):
        queue.write(batch(5))
        assert balanced(queue)
    assert time.monotonic() - started < 5  # nobody waits for it
    queue.close(0.2)
    assert time.monotonic() - started < 10
    left = queue.counts()
    assert balanced(queue)
    assert (left.made, left.queued) == (500, 0)
    assert "hangs: given up after 0.2 s" in queue.trouble
    queue.write(batch(5))
    go.set()
    queue.thread.join(60)
    assert not queue.thread.is_alive()
    assert queue.counts() == (505, left.delivered, 0, left.dropped + 5)


def test_a_slow_sink_does_not_hang(monkeypatch):
    monkeypatch.setattr(queued, "HANG_S", 0.05)
    go = threading.Event()

    class Stuck(Diary):
        def put(self, events):
            go.wait()

    stuck = Stuck()
    queue = Queued(stuck, drop=True, name="s3:***")
    queue.write(batch(5))
    for _ in range(3):
        time.sleep(0.1)
        stuck.delivered += 1
        assert queue.trouble is None
    time.sleep(0.1)
    assert queue.trouble.startswith("s3:*** hangs: it has taken nothing")
    go.set()
    queue.close()


def test_a_late_failure_of_one_given_up_changes_nothing():
    go = threading.Event()

    class Hangs(Diary):
        def put(self, events):
            go.wait()
            raise full()

    queue = Queued(Hangs(), drop=True)
    queue.write(batch(5))
    queue.close(0.1)
    said = queue.trouble
    go.set()
    queue.thread.join(60)
    assert (queue.trouble, queue.counts()) == (said, (5, 0, 0, 5))


def test_many_threads_write():
    diary = Diary()
    queue = Queued(diary, drop=True, limit_events=40)

    def write():
        for _ in range(200):
            queue.write(batch_of_two)
            assert balanced(queue)

    batch_of_two = batch(2)
    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close()
    counts = queue.counts()
    assert (counts.made, counts.queued) == (1600, 0)
    assert counts.delivered == 2 * diary.calls.count(2) == 1600 - counts.dropped


def test_at_the_end_events_are_waited_for():
    slow = Slow()
    queue = Queued(slow, drop=True, limit_events=5)
    queue.drain(30)
    writer = threading.Thread(target=lambda: [queue.write(batch(5, seed)) for seed in range(4)], daemon=True)
    writer.start()
    slow.go.release(4)
    writer.join(60)
    queue.close()
    assert queue.counts() == (20, 20, 0, 0)


def test_at_the_end_a_sink_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(queued, "STALL_S", 0.05)
    slow = Slow()
    queue = Queued(slow, drop=True, limit_events=5)
    queue.drain(30)
    started = time.monotonic()
    for seed in range(20):
        queue.write(batch(5, seed))
    assert time.monotonic() - started < 15
    assert queue.counts() == (100, 0, 5, 95)
    slow.go.release(1)
    queue.close()
    assert queue.counts() == (100, 5, 0, 95)

"""The outputs of a run together: what is told of them, what a reload changes, and that the ledger balances."""

import itertools
import random
import threading
import time

import pytest

from dataplane.ledger import Ledger
from dataplane.sinks import Queued, Rotation, SinkError, queued, redacted
from dataplane.sinks.queued import Counts
from qoetap import outputs
from qoetap.exits import USAGE, Exit
from qoetap.outputs import Outputs, worst_succession
from tests.sinks import DETECTORS, Recorder, batch, text_of, until


class Faulty(Recorder):
    """Delivers, unless it is told to fail or to hang."""

    def __init__(self, path):
        super().__init__()
        self.path, self.failing, self.go = path, False, threading.Event()
        self.go.set()

    def put(self, events):
        self.go.wait()
        if self.failing:
            raise OSError(28, "No space left on device")
        self.delivered += len(events.order)


@pytest.fixture
def made(monkeypatch):
    """The sinks that were opened, by spec; a spec that begins with `bad` cannot be."""
    found = {}

    def open_faulty(spec, _detectors, _live=False, _rotation=None):
        if spec.startswith("bad"):
            raise SinkError(f"cannot write {spec}: No such file or directory; make the directory first")
        found.setdefault(spec, []).append(Faulty(spec))
        return found[spec][-1]

    monkeypatch.setattr(outputs, "open_sink", open_faulty)
    return found


def live(*specs):
    return Outputs(specs, DETECTORS, live=True)


def settled(run, count):
    """The ledger's (delivered, queued, dropped) of `count` events; they balance."""
    ledger = Ledger()
    ledger.made["any"] = count
    run.settle(ledger)
    assert not ledger.imbalance()
    return ledger.delivered, ledger.queued, ledger.dropped


def quiet(run):
    """Wait until nothing is queued."""
    until(lambda: not any(counts["queued"] for counts in run.counts().values()))


def test_the_output_that_lost_most_is_the_ledgers(made):
    run = live("a", "b")
    made["b"][0].failing = True
    run.write(batch(5))
    quiet(run)
    made["b"][0].failing = False
    run.write(batch(3))
    run.close()
    assert settled(run, 8) == (3, 0, 5)
    assert run.counts()["a"] == {"made": 8, "delivered": 8, "queued": 0, "dropped": 0}


def test_trouble_is_told_once_each_way(made):
    run = live("a", "b")
    assert run.troubles() == []
    made["a"][0].failing = True
    for _ in range(3):
        run.write(batch(5))
    quiet(run)
    assert run.troubles() == [
        "cannot write a: No space left on device; free some space or give -o another place; "
        "events are dropped and counted until it can be written"
    ]
    assert run.troubles() == []
    assert run.complaints() == ["cannot write a: No space left on device; free some space or give -o another place"]
    assert not run.failed
    made["a"][0].failing = False
    run.write(batch(2))
    quiet(run)
    assert run.troubles() == ["a: written again"]
    run.close()
    assert (run.troubles(), run.complaints()) == ([], [])


FULL = "cannot write a: No space left on device; free some space or give -o another place"
DROPPED = "events are dropped and counted until it can be written"


def test_an_output_fails_when_it_could_not_deliver_for_a_minute(made):
    run, start = live("a", "b"), time.monotonic()
    assert run.failures(start + 1000) == {"a": "", "b": ""}
    made["a"][0].failing = True
    run.write(batch(5))
    quiet(run)
    run.troubles()
    assert run.failures(start + outputs.FAILING_SECONDS - 1)["a"] == ""
    for seconds in (73, 75):
        run.write(batch(5))
        quiet(run)
        run.troubles()
        why = run.failures(min(run.troubled.values()) + seconds)
        assert why == {"a": f"an output has failed for {seconds} s: {FULL}; {DROPPED}", "b": ""}
    made["a"][0].failing = False
    run.write(batch(2))
    quiet(run)
    assert run.failures(start + 1000)["a"] == ""
    run.troubles()
    assert run.troubled == {}
    run.replace(["b"])
    assert list(run.failures(start)) == ["b"]
    run.close()


def test_one_that_was_removed_is_not_said_to_be_written_again(made):
    run = live("a", "b")
    made["a"][0].trouble = "a: no broker answers"
    assert run.troubles() == ["a: no broker answers"]
    run.replace(["b"])
    until(lambda: made["a"][0].calls == ["close"] and run.former[0].queued.sink is None)
    assert run.troubles() == []
    run.close()


def test_a_write_that_hangs_is_told(made, monkeypatch):
    monkeypatch.setattr(queued, "HANG_S", 0.1)
    monkeypatch.setattr(queued, "TICK_S", 0.02)
    run = live("a", "b")
    made["a"][0].go.clear()
    run.write(batch(5))
    until(lambda: (told := run.troubles()) and told[0].startswith("a hangs: it has taken nothing for"))
    why = run.failures(min(run.troubled.values()) + 61)
    assert why["a"].startswith("an output has failed for 61 s: a hangs") and why["b"] == ""
    made["a"][0].go.set()
    until(lambda: run.troubles() == ["a: written again"])
    run.close()


def test_a_real_full_device_and_a_real_file(tmp_path):
    run = Outputs(["jsonl:/dev/full", str(tmp_path / "e.jsonl")], DETECTORS, live=True)
    for _ in range(3):
        run.write(batch(5))
    quiet(run)
    (sentence,) = run.troubles()
    assert sentence.startswith("cannot write /dev/full: No space left on device; free some space")
    run.close()
    assert (tmp_path / "e.jsonl").read_bytes() == 3 * text_of(batch(5))
    assert settled(run, 15) == (0, 0, 15)


def test_what_was_found_at_the_start_is_told(tmp_path):
    (tmp_path / ".e-1.jsonl.part").write_bytes(b"{}\n{")
    run = Outputs([str(tmp_path / "e-%s.jsonl")], DETECTORS)
    assert run.troubles() == [f"{tmp_path}/e-1.jsonl holds what a process that was killed had written until then"]
    assert run.troubles() == []
    run.close()


def test_commands_go_to_all(made):
    run = live("a", "b")
    run.reopen()
    run.rotate()
    run.close()
    assert made["a"][0].calls == made["b"][0].calls == ["reopen", "rotate", "close"]


def test_one_that_cannot_be_opened_is_one_sentence(made):
    with pytest.raises(Exit, match="cannot write bad: No such file") as error:
        live("a", "bad")
    assert error.value.status == USAGE
    assert made["a"][0].calls == ["close"]


def test_a_reload_opens_closes_and_keeps(made):
    run = live("stays", "goes")
    run.write(batch(5))
    run.replace(["comes", "stays"], Rotation(7, 8))
    run.write(batch(3))
    run.close()
    assert {spec: len(sinks) for spec, sinks in made.items()} == {"stays": 1, "goes": 1, "comes": 1}
    assert {spec: counts["delivered"] for spec, counts in run.counts().items()} == {"stays": 8, "goes": 5, "comes": 3}
    assert made["goes"][0].calls == ["close"]
    assert made["stays"][0].rotation == Rotation(7, 8)
    assert settled(run, 8) == (8, 0, 0)


def test_secrets_are_not_shown_but_tell_outputs_apart(made):
    specs = ["http://h/in?token=one", "http://h/in?token=two", "http://u:pw@h/in"]
    run = live(*specs)
    made[specs[0]][0].failing = True
    run.write(batch(5))
    quiet(run)
    run.troubles()
    made[specs[0]][0].failing = False
    run.write(batch(1))
    quiet(run)
    assert run.troubles() == ["http://h/in?***: written again"]
    assert list(run.counts()) == ["http://h/in?***", "http://h/in?***#2", "http://***@h/in"]
    run.close()


def test_a_failing_web_hook_is_told_without_its_path(made):
    spec = "https://hooks.example/services/hush?key=hush"
    run = live(spec)
    made[spec][0].trouble = f"{redacted(spec)}: 503 Service Unavailable; it is tried again"
    run.troubles()
    said = run.failures(time.monotonic() + outputs.FAILING_SECONDS + 1)
    run.close()
    assert list(said.values()) == [
        "an output has failed for 61 s: https://hooks.example: 503 Service Unavailable; it is tried again"
    ]


def test_outputs_that_hang_are_given_up_together(made, monkeypatch):
    monkeypatch.setattr(outputs, "DRAIN_SECONDS", 0.0)
    monkeypatch.setattr(outputs, "LEAST_SECONDS", 0.3)
    go = threading.Event()
    run = live("a", "b", "c")
    for (sink,) in made.values():
        sink.put = lambda _events: go.wait()
    run.write(batch(5))
    began = time.monotonic()
    run.close()
    assert time.monotonic() - began < 0.8
    assert all("hangs: given up after 0.3 s, 5 events dropped" in sentence for sentence in run.complaints())
    assert len(run.complaints()) == 3
    go.set()


def test_an_output_whose_secret_changed_is_counted_on(made):
    run = live("http://h/in?token=one", "a")
    run.write(batch(5))
    for token in ("two", "three"):
        run.replace([f"http://h/in?token={token}", "a"])
        run.write(batch(1))
    run.close()
    assert {name: counts["made"] for name, counts in run.counts().items()} == {"http://h/in?***": 7, "a": 7}


def test_names_keep_their_order_when_one_is_removed(made):
    run = live("http://h/a", "http://h/b")
    run.replace(["http://h/a"])
    assert list(run.counts()) == ["http://h/a", "http://h/b"]
    run.close()


def test_a_reload_that_fails_changes_nothing(made):
    run = live("a", "b")
    with pytest.raises(Exit, match="make the directory first"):
        run.replace(["a", "new", "bad"], Rotation(7, 8))
    assert run.rotation == Rotation()
    assert made["new"][0].calls == ["close"]
    run.write(batch(5))
    run.close()
    assert {spec: counts["delivered"] for spec, counts in run.counts().items()} == {"a": 5, "b": 5}
    assert made["a"][0].rotation is None


def test_an_output_may_leave_and_return(made):
    run = live("a")
    run.write(batch(5))
    run.replace(["b"])
    run.write(batch(4))
    run.replace(["a"])
    made["a"][1].failing = True
    run.write(batch(3))
    run.close()
    assert run.counts()["a"] == {"made": 8, "delivered": 5, "queued": 0, "dropped": 3}
    assert settled(run, 12) == (9, 0, 3)


def test_losses_of_outputs_that_followed_each_other_add_up(made):
    run = live("a", "c")
    made["a"][0].failing = True
    run.write(batch(5))
    run.replace(["b", "c"])
    made["b"][0].failing = True
    run.write(batch(4))
    run.close()
    assert settled(run, 9) == (0, 0, 9)


def test_a_removed_output_that_hangs_holds_up_nobody(made, monkeypatch):
    monkeypatch.setattr(outputs, "DRAIN_SECONDS", 0.3)
    monkeypatch.setattr(outputs, "LEAST_SECONDS", 0.1)
    run = live("a", "b")
    made["a"][0].go.clear()
    run.write(batch(5))
    started = time.monotonic()
    run.replace(["b"])
    assert time.monotonic() - started < 5
    run.write(batch(4))
    until(lambda: run.counts()["b"]["delivered"] == 9)
    assert settled(run, 9) == (4, 5, 0)  # may still be delivered
    run.close()
    assert settled(run, 9) == (4, 0, 5)
    assert ["a hangs" in sentence for sentence in run.troubles()] == [True]
    made["a"][0].go.set()


def test_the_end_is_bounded_and_others_get_all(made, monkeypatch):
    monkeypatch.setattr(outputs, "DRAIN_SECONDS", 2.0)
    monkeypatch.setattr(outputs, "LEAST_SECONDS", 0.1)
    monkeypatch.setattr(outputs, "Queued", lambda *args, **named: Queued(*args, limit_events=10, **named))
    monkeypatch.setattr(queued, "STALL_S", 0.5)
    run = live("hangs", "works")
    made["hangs"][0].go.clear()
    started = time.monotonic()
    run.drain()
    for _ in range(50):  # more than the queue holds
        run.write(batch(5))
    run.close()
    assert time.monotonic() - started < 8
    assert run.counts()["works"] == {"made": 250, "delivered": 250, "queued": 0, "dropped": 0}
    assert settled(run, 250) == (0, 0, 250)
    assert len(run.complaints()) == 1
    made["hangs"][0].go.set()


def test_engines_write_from_several_threads_while_outputs_change(made):
    run, stop = live("a"), threading.Event()
    events, written = batch(2), [0] * 3

    def write(number):
        while not stop.is_set():
            run.write(events)
            written[number] += 2

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for specs in (["a", "b"], ["b"], ["c", "a"], ["a"]):
        time.sleep(0.03)
        run.replace(specs)
        run.settle(Ledger())
    stop.set()
    for thread in threads:
        thread.join()
    run.close()
    delivered, waiting, dropped = settled(run, sum(written))
    assert waiting == 0
    assert all(c["made"] == c["delivered"] + c["dropped"] for c in run.counts().values())


@pytest.mark.parametrize("seed", range(5))
def test_the_ledger_balances_whatever_is_reloaded(made, seed):
    """Outputs come, go, fail and recover; at every moment the equation holds, and at the end nothing is queued."""
    chance = random.Random(seed)
    run, count, now = live("a"), 0, ["a"]
    for _ in range(40):
        what = chance.random()
        if what < 0.2:
            now = chance.sample("abcd", chance.randint(1, 3))
            run.replace(now)
        elif what < 0.5:
            sink = made[chance.choice(now)][-1]
            sink.failing = not sink.failing
        else:
            count += chance.randint(1, 5)
            run.write(batch(count - run.made))
        settled(run, count)
    run.close()
    delivered, waiting, dropped = settled(run, count)
    assert (waiting, delivered + dropped) == (0, count)
    assert dropped >= max(counts["dropped"] for counts in run.counts().values())


def naive_worst(counted):
    """The same as worst_succession, by trying every set of outputs."""
    best = Counts(0, 0, 0, 0)
    for size in range(len(counted) + 1):
        for chosen in itertools.permutations(counted, size):
            ends = [since + counts.made for since, counts in chosen]
            if all(end <= since for end, (since, _) in zip(ends, chosen[1:])):
                total = Counts(*(sum(values) for values in zip(Counts(0, 0, 0, 0), *(c for _, c in chosen))))
                best = max(best, total, key=lambda c: (c.dropped, c.queued, c.made))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_succession_is_the_worst(seed):
    chance = random.Random(seed)
    counted = []
    for _ in range(chance.randint(0, 5)):
        parts = [chance.randint(0, 3) for _ in range(3)]
        counted.append((chance.randint(0, 6), Counts(sum(parts), *parts)))
    found, want = worst_succession(counted), naive_worst(counted)
    assert (found.dropped, found.queued, found.made) == (want.dropped, want.queued, want.made)
    assert found.made == found.delivered + found.queued + found.dropped


def test_in_replay_one_that_fails_is_told_at_the_end(made):
    run = Outputs(["a", "b"], DETECTORS)
    made["a"][0].failing = True
    run.write(batch(5))
    until(lambda: run.counts()["a"]["dropped"] == 5)
    run.write(batch(4))
    quiet(run)
    assert not run.failed
    made["b"][0].failing = True
    run.write(batch(3))
    until(lambda: run.counts()["b"]["dropped"] == 3)
    run.write(batch(2))
    assert run.failed
    run.close()
    assert len(run.complaints()) == 2
    assert settled(run, 14) == (0, 0, 14)

"""How `qoetap live` ends when something breaks: in order, and saying what."""

import threading
from types import SimpleNamespace

import pytest

from dataplane.ledger import Ledger
from qoetap import agent as agent_module
from qoetap import live
from qoetap.agent import Agent, Worker


class Broken:
    """Stands for live.Live: breaks while it runs."""

    ended = 0

    def __init__(self, *_):
        pass

    def run(self, _signals):
        raise OSError(5, "Input/output error")

    def end(self):
        Broken.ended += 1
        return {}, Ledger()


def test_what_was_taken_is_delivered_whatever_breaks(monkeypatch):
    for name in ("require_interfaces", "announce", "open_stats"):
        monkeypatch.setattr(live, name, lambda *_: None)
    monkeypatch.setattr(live, "settings_of", lambda _: (None, None))
    monkeypatch.setattr(live, "require_memory", lambda *_: (0, 0))
    monkeypatch.setattr(live, "Live", Broken)
    with pytest.raises(OSError, match="Input/output"):
        live.live(SimpleNamespace(stats=None))
    assert Broken.ended == 1


class Hanging(Worker):
    """A worker that does not come back before `go`."""

    def __init__(self, number):
        threading.Thread.__init__(self, name=f"qoetap-worker-{number}", daemon=True)
        self.share, self.error, self.left, self.go = SimpleNamespace(stop=lambda: None), None, False, threading.Event()
        self.calls = []
        self.engine = SimpleNamespace(seen=0, pass_time=self.calls.append, end=lambda: self.calls.append("end"))

    def run(self):
        self.go.wait()


def test_a_worker_that_hangs_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(agent_module, "STOP_seconds", 0.2)
    agent = Agent.__new__(Agent)
    agent.ports, agent.workers = [], [Hanging(0), Hanging(1)]
    for worker in agent.workers:
        worker.start()
    agent.workers[1].go.set()
    agent.stop()
    assert [worker.calls for worker in agent.workers] == [[], [0, "end"]]
    assert agent.complaints() == ["qoetap-worker-0 does not end: given up after 0.2 s, its last events are lost"]
    agent.workers[0].go.set()


def failed():
    """A worker that has failed."""
    try:
        raise IndexError("row 7")
    except IndexError as error:
        return SimpleNamespace(error=error)


@pytest.mark.parametrize("verbose", [False, True])
def test_where_a_worker_failed_is_shown_when_asked_for(capsys, verbose):
    agent = SimpleNamespace(workers=[failed(), SimpleNamespace(error=None)], complaints=lambda: ["it failed"])
    run = SimpleNamespace(args=SimpleNamespace(verbose=verbose), agent=agent, outputs=SimpleNamespace(complaints=list))
    assert live.status_of(run, Ledger(), ["no room"]) == 1
    said = capsys.readouterr().err
    assert ("in failed" in said) == verbose and said.endswith("qoetap: no room\nqoetap: it failed\n")

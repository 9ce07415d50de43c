"""How `qoetap live` ends when something breaks: in order, and saying what."""

from types import SimpleNamespace

import pytest

from dataplane.ledger import Ledger
from qoetap import live


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

"""Every sample capture, replayed, gives the events expected of it and no others. `make golden` runs this file."""

from pathlib import Path

import pytest

from dataplane.capture import open_capture
from pcaps.cases import CASES
from pcaps.make import make
from tests.golden import concerns, difference, load, matches
from tests.helpers import replay_events

COMMITTED = Path(__file__).resolve().parent.parent / "pcaps"
INPUT_CUT_SHORT = 4  # exit status
NAMES = [case.__name__ for case in CASES]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folder of freshly made captures."""
    folder = tmp_path_factory.mktemp("pcaps")
    make(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_events_are_as_expected(made, name):
    header, expected = load(COMMITTED / f"{name}.expected.jsonl")
    events = replay_events(made / header["file"], detectors=header["detectors"], **header.get("options", {}))
    diff = difference(expected, [event for event in events if concerns(header, event)])
    assert not diff, f"{name}: {header['file']}\n{diff}"


@pytest.mark.parametrize("name", NAMES)
def test_packets_before_the_damage_are_delivered(made, name):
    header, _ = load(COMMITTED / f"{name}.expected.jsonl")
    source = open_capture(made / header["file"])
    assert sum(len(block.frames) for block in source.blocks()) == header["packets"]
    assert (source.problem is not None) == (header.get("exit") == INPUT_CUT_SHORT)


def test_expected_files_are_those_of_the_script(made):
    stale = [n for n in NAMES if (made / f"{n}.expected.jsonl").read_text() != committed_text(n)]
    assert not stale, f"run `python pcaps/make.py`: {', '.join(stale)} differ from what the script makes"
    assert {p.name for p in COMMITTED.glob("*.expected.jsonl")} == {f"{n}.expected.jsonl" for n in NAMES}


def committed_text(name):
    path = COMMITTED / f"{name}.expected.jsonl"
    return path.read_text() if path.exists() else None


def test_the_script_makes_the_same_bytes_each_time(made, tmp_path):
    make(tmp_path)
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


EVENT = {"event_type": "a.b", "pcap_cnt": 3, "a": {"x": 10, "y": 2.5, "z": None}}


@pytest.mark.parametrize(
    ("expected", "same"),
    [
        ({"event_type": "a.b"}, True),
        ({"event_type": "a.b", "a": {"x": 10}}, True),
        ({"event_type": "a.b", "a": {"x": 12}}, False),
        ({"event_type": "a.b", "a": {"x": 12}, "~": {"a.x": 2}}, True),
        ({"event_type": "a.b", "a": {"x": 13}, "~": {"a.x": 2}}, False),
        ({"event_type": "a.b", "a": {"z": None}}, True),
        ({"event_type": "a.b", "a": {"z": 0}, "~": {"a.z": 1}}, False),
        ({"event_type": "a.b", "a": {"w": None}}, False),
        ({"event_type": "a.c"}, False),
    ],
)
def test_an_expected_event_is_a_subset(expected, same):
    assert matches(expected, EVENT) is same
    assert (difference([expected], [EVENT]) == "") is same


def test_an_event_too_many_or_too_few_is_a_difference():
    assert "+{" in difference([], [EVENT])
    assert "-{" in difference([{"event_type": "a.b"}], [])
    assert difference([{"event_type": "a.b"}] * 2, [EVENT] * 2) == ""

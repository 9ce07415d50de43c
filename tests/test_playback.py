"""The player's buffer, against stalls counted by hand."""

import pytest

from endhost.playback import PLAYING, STALLED, STARTING, Playback


def test_it_begins_when_there_is_enough_and_waiting_for_it_is_no_stall():
    playback = Playback(10, 3, 100.0)
    assert playback.add(2, 105.0) == STARTING
    assert playback.add(2, 110.0) == PLAYING
    assert playback.stalls == [] and playback.stalled_s() == 0


def test_a_stall_begins_when_the_buffer_is_empty_whenever_one_looks():
    playback = Playback(10, 2, 0.0)
    playback.add(2, 1.0)
    assert playback.advance(2.9) == PLAYING
    assert playback.level_s == pytest.approx(0.1)
    assert playback.advance(5.0) == STALLED
    assert playback.stalls == [[3.0, None]] and playback.stalled_s() == 2
    assert playback.played_s == 2


def test_it_goes_on_only_when_there_is_enough_again():
    playback = Playback(10, 4, 0.0)
    playback.add(4, 0.0)
    assert playback.add(2, 6.0) == STALLED
    assert playback.add(2, 9.0) == PLAYING
    assert playback.stalls == [[4.0, 9.0]]
    assert playback.advance(14.0) == STALLED
    assert playback.stalls == [[4.0, 9.0], [13.0, None]] and playback.stalled_s() == 6


def test_what_arrives_in_time_keeps_it_going():
    playback = Playback(10, 2, 0.0)
    for second in range(0, 100, 2):
        assert playback.add(2, float(second)) == PLAYING
    assert playback.stalls == [] and playback.played_s == 98


def test_it_waits_for_room():
    playback = Playback(10, 2, 0.0)
    for _ in range(4):
        playback.add(2, 0.0)
    assert playback.room_in(2) == 0
    playback.add(2, 0.0)
    assert playback.room_in(2) == 2
    playback.advance(1.5)
    assert playback.room_in(2) == 0.5


@pytest.mark.parametrize("resume", [0, 11])
def test_it_could_never_begin(resume):
    with pytest.raises(ValueError, match="resume_s"):
        Playback(10, resume, 0.0)

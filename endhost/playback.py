"""A player's buffer: what is played, when it runs dry and when it goes on. Pure: `now` in, in seconds of any clock.

Playback begins when `resume_s` of video is there. It stalls when the buffer is empty and goes on when `resume_s` is
there again: the hysteresis of a player. Waiting for the very first picture is no stall.
"""

STARTING, PLAYING, STALLED = PHASES = ("starting", "playing", "stalled")


class Playback:
    """level_s: video in the buffer; stalls: [since, until] each, until None while it lasts."""

    def __init__(self, capacity_s, resume_s, now):
        if not 0 < resume_s <= capacity_s:
            raise ValueError(f"resume_s is {resume_s}: choose above 0 and at most capacity_s, {capacity_s}")
        self.capacity_s, self.resume_s, self.clock = capacity_s, resume_s, now
        self.level_s, self.played_s, self.phase, self.stalls = 0.0, 0.0, STARTING, []

    def advance(self, now):
        """Play on to `now`; the phase then."""
        passed, self.clock = now - self.clock, now
        if self.phase != PLAYING:
            return self.phase
        played = min(passed, self.level_s)
        self.level_s -= played
        self.played_s += played
        if played < passed:
            self.phase = STALLED
            self.stalls.append([now - passed + played, None])
        return self.phase

    def add(self, seconds, now):
        """So much video has arrived; the phase then."""
        self.advance(now)
        self.level_s += seconds
        if self.phase != PLAYING and self.level_s >= self.resume_s:
            if self.stalls and self.phase == STALLED:
                self.stalls[-1][1] = now
            self.phase = PLAYING
        return self.phase

    def room_in(self, seconds):
        """How long until the buffer has room for so much more, if nothing else comes."""
        return max(0.0, self.level_s + seconds - self.capacity_s)

    def stalled_s(self):
        """Length of all stalls up to the last `advance`."""
        return sum((self.clock if until is None else until) - since for since, until in self.stalls)

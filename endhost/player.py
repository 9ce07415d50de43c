"""A video player over HTTP/3, and its viewer's agent that reports stalls in-band (docs/iqn.md).

The player is scripted: segments of given sizes, one after the other, at one quality, over one connection; no picture.
The transport is real: QUIC with its congestion control, a handshake, encryption. The agent has a connection of its
own, as to a service's API host: each `screenshot_s` in which the player stands still it toggles TOGGLES times, one
request each, and the server answers each with one datagram of the characteristic size.
"""

import asyncio
import contextlib
import time
from typing import NamedTuple

from endhost.playback import STALLED, Playback
from endhost.report import begin_at, tell
from endhost.web import asking

TOGGLES, ANSWER_bytes = 4, 1150  # a datagram of 1195 bytes or so, a frame of 1237 over IPv4
SAMPLE_seconds = 0.25


class Play(NamedTuple):
    """What the script says."""

    address: str
    begin_ns: int  # since 1970; the player starts delay_s later
    seconds: float  # after begin_ns it ends
    delay_s: float
    sizes: list  # bytes of each segment; from the last on, the first again
    segment_s: float = 2.0
    capacity_s: float = 10.0
    resume_s: float = 2.0
    screenshot_s: float = 0.2


class Player:
    """Plays `script` over the connections `video` and `api`, which are web.Asking or alike."""

    def __init__(self, script, video, api, now):
        self.script, self.video, self.api = script, video, api
        self.playback = Playback(script.capacity_s, script.resume_s, now)

    async def fill(self):
        """Fetch segments while there is room for them."""
        number = 0
        while True:
            self.playback.advance(time.monotonic())
            await asyncio.sleep(self.playback.room_in(self.script.segment_s))
            await self.video.ask("GET", self.script.sizes[number % len(self.script.sizes)])
            self.playback.add(self.script.segment_s, time.monotonic())
            number += 1

    async def signal(self):
        """Look at the screen every now and then, and toggle while it stands still."""
        due = time.monotonic()
        while True:
            if self.playback.advance(time.monotonic()) == STALLED:
                for _ in range(TOGGLES):
                    self.api.ask("POST", ANSWER_bytes)
            due = max(due + self.script.screenshot_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def sample(self):
        """Tell the buffer's level now and then."""
        while True:
            phase = self.playback.advance(time.monotonic())
            tell(level_s=round(self.playback.level_s, 3), phase=phase, received=self.video.received)
            await asyncio.sleep(SAMPLE_seconds)


async def play(**options):
    """The role: samples, then what was played and when it stalled, as JSON lines."""
    script = Play(**options)
    async with asking(script.address) as video, asking(script.address) as api:
        await begin_at(script.begin_ns, script.delay_s)
        player = Player(script, video, api, time.monotonic())
        left = script.begin_ns / 1e9 + script.seconds - time.time()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(player.fill(), player.signal(), player.sample()), left)
        player.playback.advance(time.monotonic())
        tell(**summary(player.playback, time.time_ns() - time.monotonic_ns()))


def summary(playback, offset_ns):
    """What is told at the end. offset_ns: what the playback's clock is behind the time since 1970."""
    ends = [(since, playback.clock if until is None else until) for since, until in playback.stalls]
    return {
        "stalled_s": round(playback.stalled_s(), 3),
        "played_s": round(playback.played_s, 3),
        "stalls": [[int(t * 1e9) + offset_ns for t in pair] for pair in ends],
    }

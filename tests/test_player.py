"""The player and its agent: what goes over real QUIC, and when the agent speaks."""

import asyncio
import socket
import time

import pytest

from endhost.playback import Playback

pytest.importorskip("aioquic")

from endhost import player, web

LOOPBACK = "127.0.0.1"


@pytest.fixture
def port(monkeypatch):
    """A free port for the server in place of 443."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK, 0))
        monkeypatch.setattr(web, "PORT", sock.getsockname()[1])


async def answers(sizes):
    """Ask for so many bytes each; what was received then."""
    await web.listen(LOOPBACK)
    async with web.asking(LOOPBACK) as client:
        for size in sizes:
            await asyncio.wait_for(client.ask("GET", size), 30)
        return client.received


def test_as_many_bytes_come_as_were_asked_for(port):
    assert asyncio.run(answers([1, 300_000, 0])) == 300_001


def test_an_answer_to_a_toggle_is_one_datagram_of_the_characteristic_size(port, monkeypatch):
    sizes, plain = [], web.Asking.datagram_received

    def note(self, data, address):
        sizes.append((data[0], len(data)))
        plain(self, data, address)

    monkeypatch.setattr(web.Asking, "datagram_received", note)
    asyncio.run(answers([player.ANSWER_bytes] * player.TOGGLES))
    large = [size for first, size in sizes if size > 1000 and not first & 0x80]
    assert len(large) == player.TOGGLES
    assert all(1180 <= size + 42 <= 1288 for size in large)  # what docs/iqn.md calls a candidate


class Heard:
    """A connection that answers at once, or never."""

    def __init__(self, answering=True):
        self.asked, self.answering, self.received = [], answering, 0

    def ask(self, method, size):
        self.asked.append((method, size))
        found = asyncio.get_running_loop().create_future()
        if self.answering:
            found.set_result(None)
        return found


def scripted(video, api, segment_s, screenshot_s=0.02):
    sizes = [1000, 2000, 3000]
    script = player.Play(LOOPBACK, time.time_ns(), 1, 0, sizes, segment_s, 10 * segment_s, 2 * segment_s, screenshot_s)
    return player.Player(script, video, api, time.monotonic())


async def within(seconds, *tasks):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks), seconds)


def test_it_fetches_what_there_is_room_for_and_says_nothing_while_it_plays():
    video, api = Heard(), Heard()

    async def play():
        made = scripted(video, api, 60.0)
        await within(0.3, made.fill(), made.signal())

    asyncio.run(play())
    assert video.asked == [("GET", size) for _ in range(4) for size in (1000, 2000, 3000)][:10]
    assert api.asked == []


def test_while_it_stands_still_the_agent_toggles_at_each_screenshot():
    video, api = Heard(answering=False), Heard()

    async def play():
        made = scripted(video, api, 60.0)
        made.playback.add(120.0, time.monotonic())
        made.playback.advance(made.playback.clock + 121.0)
        made.playback.clock = time.monotonic()
        await within(0.5, made.signal())

    asyncio.run(play())
    assert set(api.asked) == {("POST", player.ANSWER_bytes)}
    assert len(api.asked) % player.TOGGLES == 0 and 2 <= len(api.asked) // player.TOGGLES <= 26


def test_the_summary_is_in_time_since_1970():
    playback = Playback(10, 2, 5.0)
    playback.add(2, 5.0)
    playback.advance(8.0)
    found = player.summary(playback, 10**18)
    assert found["stalled_s"] == 1 and found["played_s"] == 2
    assert found["stalls"] == [[10**18 + 7 * 10**9, 10**18 + 8 * 10**9]]

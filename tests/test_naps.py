"""How long a live worker sleeps where much comes: as its rings allow."""

from types import SimpleNamespace

import pytest

from dataplane.capture.port import Port, Share
from dataplane.capture.ring import RingOptions
from tests.live import wait_until
from tests.packets import eth, ipv4, udp

MIB = 1 << 20
PORT = SimpleNamespace(options=RingOptions(64 * MIB, MIB, 8))


@pytest.mark.parametrize(
    ("ring_mib", "retire_ms", "taken", "filled", "nap_ms"),
    [
        (64, 8, 2047, 0.1, 0),
        (64, 8, 2048, 0.1, 20),
        (64, 8, 8191, 0.1, 20),
        (64, 8, 8192, 0.1, 40),
        (64, 8, 8192, 0.25, 40),
        (64, 8, 8192, 0.26, 20),  # as many again in twice the time would leave too little room
        (64, 8, 8192, 1.5, 20),
        (64, 1, 8192, 0.1, 5),
        (32, 4, 8192, 0.1, 20),
        (31, 8, 8192, 0.1, 0),  # it could be full by then
    ],
)
def test_the_more_came_the_longer(ring_mib, retire_ms, taken, filled, nap_ms):
    share = Share([SimpleNamespace(options=RingOptions(ring_mib * MIB, MIB, retire_ms))], 0, 64)
    for passed in (7.0, 7.0 + filled):
        nap = share._nap(taken, [SimpleNamespace(passed=passed)])
    assert nap == pytest.approx(nap_ms / 1000)


def test_no_nap_when_it_is_to_end():
    share = Share([PORT], 0, 64)
    share.stop()
    assert share._nap(1 << 20, [SimpleNamespace(passed=0.1)]) == 0


def test_a_ring_made_anew_begins_at_the_short_nap():
    share = Share([PORT], 0, 64)
    share._nap(8192, [SimpleNamespace(passed=9.0)])
    assert share._nap(8192, [SimpleNamespace(passed=0.1)]) == pytest.approx(0.02)


def test_a_ring_counts_what_it_has_held(link):
    port = link.receiver.inside(Port, link.receiver.interface, RingOptions(4 * MIB, MIB, 2))
    port.begin()
    (ring,), frames = port.rings, Share([PORT], 0, 64).frames
    with link.sender.socket() as sock:
        for times in range(1, 11):  # more than once around
            sock.send(eth(ipv4("10.0.0.1", "10.0.0.2", udp(1, 2, b""))))
            wait_until(lambda: len(ring.take(frames).frames))
            assert not len(ring.take(frames).frames)
            assert ring.passed == pytest.approx(times / 4)
    port.close()

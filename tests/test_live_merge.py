"""Packets of several interfaces come in order of time: a reply on one after its request on the other."""

import time

import pytest

from dataplane.records import CHECKED, JIT
from qoetap.lab import Link
from tests.live import REPLY, REQUEST, Agent, balanced, echo, second_pair

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="a process of its own, which is always compiled")
TRIPS = 600
LONGEST_ns = 2_000_000


@pytest.fixture(scope="module")
def link(root):
    with Link() as made:
        yield made


def spin_until(then):
    while time.monotonic_ns() < then:
        pass


def exchange(there, back, count, first=0):
    """Round trips, from microseconds to 2 ms long: requests go out of one end, replies out of the other."""
    pairs = [(echo(n, REQUEST), echo(n, REPLY)) for n in range(first, first + count)]
    with there.socket() as asking, back.socket() as answering:
        for n, (request, reply) in enumerate(pairs):
            asking.send(request)
            spin_until(time.monotonic_ns() + n % 7 * LONGEST_ns // 6)
            answering.send(reply)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_round_trip_over_two_interfaces_is_found(link, tmp_path, workers):
    with second_pair(link) as (sender, receiver):
        names = [link.receiver.interface, receiver.interface]
        with Agent(link.receiver, tmp_path, "--workers", workers, interfaces=names) as agent:
            exchange(link.sender, sender, TRIPS)
            exchange(sender, link.sender, TRIPS, TRIPS)
            ended = agent.end()
    balanced(ended, 4 * TRIPS)
    made = ended.stats["ledger"]["events"]["made"]
    assert made == {"icmp.rtt": 2 * TRIPS, "flow.end": 1}
    assert ended.status == 0

"""Packets of several interfaces come in order of time: a reply on one after its request on the other."""

import contextlib
import signal
import time
from pathlib import Path

import pytest

from dataplane.records import CHECKED, JIT
from tests.live import (
    REPLY,
    REQUEST,
    Agent,
    Load,
    balanced,
    datagram,
    echo,
    echoes,
    second_pair,
    send,
    wait_until,
)

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="a process of its own, which is always compiled")
TRIPS = 600
TURN = 50
LONGEST_ns = 2_000_000
HELD_seconds = 0.1


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


def test_one_interface_is_as_quick_as_before_when_the_other_is_silent(link, tmp_path):
    late = []
    with second_pair(link) as (_, receiver):
        names = [link.receiver.interface, receiver.interface]
        with Agent(link.receiver, tmp_path, interfaces=names) as agent:
            for n in range(20):
                sent = send(link.sender, echoes(1, n))
                began = time.monotonic()
                agent.wait_for(n + 1, "icmp.rtt")
                late.append(time.monotonic() - began)
            ended = agent.end()
    balanced(ended, 20 * sent)
    assert sorted(late)[len(late) // 2] < HELD_seconds


def mapped(agent):
    """How often a ring is mapped."""
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    return sum("packet" in line or "socket:" in line for line in maps.splitlines())


@pytest.mark.parametrize("workers", [1, 2])
def test_one_of_two_interfaces_vanishes_and_is_made_again(pair, tmp_path, workers):
    with second_pair(pair) as (sender, receiver):
        names = [pair.receiver.interface, receiver.interface]
        with Agent(pair.receiver, tmp_path, "--workers", workers, interfaces=names) as agent:
            for turn in range(3):
                since = len(agent.said)
                exchange(pair.sender, sender, TURN, turn * 2 * TURN)
                agent.wait_for((turn * 2 + 1) * TURN, "icmp.rtt")
                pair.remove_pair()
                agent.hear("b0: the interface is gone", since=since)
                exchange(sender, sender, TURN, (turn * 2 + 1) * TURN)
                pair.make_pair()
                agent.hear("b0: the interface is back", since=since)
            wait_until(lambda: mapped(agent) == 2 * workers)
            ended = agent.end()
    balanced(ended, 3 * 4 * TURN)
    assert ended.made == 3 * 2 * TURN + 1 == len(agent.events("icmp.rtt")) + 1


def test_term_under_the_load_of_two_interfaces(link, tmp_path):
    flows = [[datagram(flow, back) for flow in range(20_000)] for back in (False, True)]
    with contextlib.ExitStack() as stack:
        sender, receiver = stack.enter_context(second_pair(link))
        names = [link.receiver.interface, receiver.interface]
        agent = Agent(link.receiver, tmp_path, "--set", "live.loss_allowed=1", interfaces=names)
        stack.enter_context(agent)
        loads = [stack.enter_context(Load(*side)) for side in zip((link.sender, sender), flows)]
        wait_until(lambda: all(load.sent > 20_000 for load in loads))
        ended = agent.end()
    packets = balanced(ended, ended.packets["seen"])
    assert ended.status == 0 and packets["processed"] > 40_000
    assert packets["backwards"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_reader_of_two_interfaces_loses_what_is_counted(link, tmp_path, workers):
    options = ("--set", "live.ring_size=256KiB", "--set", "live.loss_allowed=1", "--workers", workers)
    with second_pair(link) as (sender, receiver):
        names = [link.receiver.interface, receiver.interface]
        with Agent(link.receiver, tmp_path, *options, interfaces=names) as agent:
            agent.stop()
            sent = sum(send(end, [datagram(flow) for flow in range(5000)]) for end in (link.sender, sender))
            agent.send(signal.SIGCONT)
            agent.rest()
            for n in range(
                TURN
            ):  # one by one: so small a ring lasts 32 ms, and whoever sends may have the reader's CPU
                exchange(link.sender, sender, 1, n)
                agent.wait_for(n + 1, "icmp.rtt")
            ended = agent.end()
    packets = balanced(ended, sent + 2 * TURN)
    assert packets["dropped"]["kernel"] > sent // 4
    assert ended.stats["ledger"]["events"]["made"]["icmp.rtt"] == TURN

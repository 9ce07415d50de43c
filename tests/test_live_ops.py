"""`qoetap live` as a service: what it tells the service manager and Prometheus while things happen to it."""

import signal
from types import SimpleNamespace

import pytest

from dataplane.records import CHECKED, JIT
from qoetap.agent import clocks_differ
from qoetap.lab import End, Link
from tests.live import Agent, echoes, send, wait_until
from tests.test_metrics import get, series, value
from tests.test_notify import Manager

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="a process of its own, which is always compiled")
ADDRESS = "127.0.0.1:9464"  # of a network of its own
LIMIT_usec = 2_000_000


@pytest.fixture
def link(root):
    with Link() as made:
        End(made.receiver.namespace, "lo").up()
        yield made


def test_a_service_tells_how_it_is(link, tmp_path):
    """Started, counting, an interface down and up again, reloading, stopping; signs of life all the while."""
    manager = Manager(str(tmp_path / "notify"))
    heard = []

    def hear(message):
        while message not in heard:
            heard.extend(manager.heard())
        heard.remove(message)
        return True

    def metrics():
        return series(link.receiver.inside(get, ADDRESS, "/metrics").text)

    def health():
        return link.receiver.inside(get, ADDRESS, "/healthz")[:2]

    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(LIMIT_usec)}
    options = ("--set", f"live.metrics={ADDRESS}")
    with Agent(link.receiver, tmp_path, *options, environment=environment) as agent:
        assert hear("READY=1") and health() == (200, "ok\n")
        send(link.sender, echoes(10))
        wait_until(lambda: value(metrics(), "output_events_delivered_total", output=str(agent.output)) == 10)
        found = metrics()
        assert value(found, "events_made_total", event_type="icmp.rtt") == 10
        for name in ("packets_seen_total", "packets_processed_total"):
            assert value(found, name) == 20
        assert value(found, "interface_packets_received_total", interface="b0") == 20
        link.receiver.down()
        agent.hear("is down")
        heard.clear()
        assert health() == (503, "b0 is down\n") and value(metrics(), "interface_up", interface="b0") == 0
        assert hear("WATCHDOG=1") and hear("WATCHDOG=1")  # that is no reason to start it anew
        link.receiver.up()
        agent.hear("up again")
        assert health() == (200, "ok\n") and metrics().keys() == found.keys()
        agent.tell(signal.SIGHUP, "reload: done")
        assert hear("RELOADING=1") and hear("READY=1")
        assert agent.end().status == 0
        assert hear("STOPPING=1")


def test_clocks_of_interfaces_that_differ_are_said():
    def said(**hardware):
        return clocks_differ([SimpleNamespace(name=name, hardware=its) for name, its in hardware.items()])

    assert said(b0=True, b1=True) == said(b0=False, b1=False) == []
    (sentence,) = said(b0=True, b1=False, b2=False)
    assert sentence.startswith("b1, b2: the kernel's timestamps, the other interfaces the cards'")

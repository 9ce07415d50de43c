"""What the service manager is told, read from a real datagram socket."""

import os
import socket

import pytest

from qoetap.notify import Notifier, address_of, watchdog_seconds

LIMIT_usec = 8_000_000


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)

    def heard(self):
        return self.socket.recv(4096).decode().split("\n")

    def silent(self):
        self.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.socket.recv(4096)
        return True


class Clock:
    ns = 5_000_000_000

    def __call__(self):
        return self.ns

    def sleep(self, seconds):
        self.ns += int(seconds * 1e9)


@pytest.fixture(params=["path", "abstract"])
def place(request, tmp_path):
    """(address that the manager binds, what NOTIFY_SOCKET says)."""
    if request.param == "path":
        return str(tmp_path / "notify"), str(tmp_path / "notify")
    name = f"qoetap-test-{os.getpid()}"
    return f"\0{name}", f"@{name}"


@pytest.fixture
def manager(place):
    found = Manager(place[0])
    yield found
    found.socket.close()


def watched(name, clock, **environ):
    return Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(LIMIT_usec), **environ}, clock)


def test_a_service_tells_its_life(manager, place):
    notifier = Notifier({"NOTIFY_SOCKET": place[1]}, Clock())
    assert notifier.ready() and manager.heard() == ["READY=1"]
    assert notifier.status("12 packets;\nall is well") and manager.heard() == ["STATUS=12 packets; all is well"]
    assert notifier.reloading() and manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=5000000"]
    assert notifier.stopping() and manager.heard() == ["STOPPING=1"]
    notifier.close()
    assert not notifier.ready() and manager.silent()


def test_signs_of_life_come_in_time_and_not_all_the_time(manager, place):
    clock = Clock()
    notifier = watched(place[1], clock, WATCHDOG_PID=str(os.getpid()))
    assert notifier.period_seconds == 2.0
    assert notifier.feed(True) and manager.heard() == ["WATCHDOG=1"]
    clock.sleep(1.9)
    assert not notifier.feed(True) and manager.silent()
    clock.sleep(0.1)
    assert notifier.feed(True)


def test_a_service_that_is_stuck_gives_no_sign_of_life(manager, place):
    clock = Clock()
    notifier = watched(place[1], clock)
    assert not notifier.feed(False) and manager.silent()
    clock.sleep(60)
    assert not notifier.feed(False) and manager.silent()
    assert notifier.feed(True)  # it is given again as soon as it lives


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "1"},  # meant for another process
    ],
)
def test_without_a_watchdog_nothing_is_fed(environ, manager, place):
    notifier = Notifier({"NOTIFY_SOCKET": place[1], **environ}, Clock())
    assert notifier.period_seconds is None and not notifier.feed(True) and manager.silent()
    assert watchdog_seconds(environ) is None


def test_outside_of_a_service_nothing_is_sent():
    notifier = Notifier({"WATCHDOG_USEC": str(LIMIT_usec)}, Clock())
    assert notifier.socket is None and notifier.period_seconds is None
    assert not any((notifier.ready(), notifier.status("x"), notifier.reloading(), notifier.feed(True)))
    notifier.close()


@pytest.mark.parametrize("name", ["", "@", "relative", "vsock:2:1"])
def test_what_is_no_address_is_not_sent_to(name):
    assert address_of(name) is None


def test_a_manager_that_is_gone_is_no_error(tmp_path):
    notifier = watched(str(tmp_path / "nobody"), Clock())
    assert not notifier.ready() and not notifier.feed(True)
    notifier.close()

"""Telling systemd how a service is: sd_notify(3), one datagram a message. Outside a service nothing is sent.

The manager names its socket in NOTIFY_SOCKET. WATCHDOG_USEC and WATCHDOG_PID say whether, and in what time, it wants a
sign of life (sd_watchdog_enabled(3)); a service that gives none is restarted.
"""

import os
import socket
import time

SEND_seconds = 1.0  # a manager that takes no message for so long does not get it
FEEDS = 4  # signs of life in the time that the manager waits for one


class Notifier:
    """The manager of this service, if there is one. Each message returns whether it was sent; if not, that is no error.

    period_seconds: call `feed` at least so often; None without a watchdog.
    """

    def __init__(self, environ=os.environ, clock_ns=time.monotonic_ns):
        self.clock_ns, self.socket = clock_ns, None
        self.address = address_of(environ.get("NOTIFY_SOCKET", ""))
        if self.address:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self.socket.settimeout(SEND_seconds)
        limit = watchdog_seconds(environ) if self.socket else None
        self.period_seconds, self.fed_ns = limit and limit / FEEDS, None

    def ready(self):
        """Started, or done with reloading."""
        return self._send("READY=1")

    def status(self, sentence):
        """What `systemctl status` shows."""
        return self._send(f"STATUS={' '.join(sentence.split())}")

    def reloading(self):
        """The configuration is read anew; `ready` ends that. The time is for Type=notify-reload."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={self.clock_ns() // 1000}")

    def stopping(self):
        return self._send("STOPPING=1")

    def feed(self, alive):
        """Give a sign of life if `alive` and if it is time for one."""
        now = self.clock_ns()
        due = self.period_seconds and (self.fed_ns is None or now - self.fed_ns >= self.period_seconds * 1e9)
        if not (alive and due and self._send("WATCHDOG=1")):
            return False
        self.fed_ns = now
        return True

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None

    def _send(self, *lines):
        if self.socket is None:
            return False
        try:
            self.socket.sendto("\n".join(lines).encode(), self.address)
        except OSError:
            return False
        return True


def address_of(name):
    """The address to send to: a path, or with @ in front one in the abstract namespace (unix(7)). None: neither."""
    if name.startswith("@") and len(name) > 1:
        return b"\0" + os.fsencode(name[1:])
    return name if name.startswith("/") else None


def watchdog_seconds(environ):
    """The time in which the manager wants a sign of life from this process; None: it wants none."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6

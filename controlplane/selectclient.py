"""Asks the load service for the data centre of a user, in threads, each over a connection that it keeps."""

import asyncio
import contextlib
import http.client
import ipaddress
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit

from controlplane.redirect import NoAnswer

THREADS = 8
BODY_MAX_bytes = 1 << 20


class SelectClient:
    """The service at `url`, http or https. timeout_seconds: for each step of a request."""

    def __init__(self, url, timeout_seconds, token=None):
        self.parts, self.timeout_seconds = urlsplit(url), timeout_seconds
        self.headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        self.pool, self.own = ThreadPoolExecutor(THREADS, "qoetap-select"), threading.local()
        self.open, self.closed = set(), False

    async def ask(self, prefix, content):
        """Addresses for users of a prefix; None: no aggregation point has them. NoAnswer if that cannot be told."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, self._ask, prefix, content)

    def close(self):
        """End, and what is being asked with it: a thread that waits would hold the end of the process up."""
        self.closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        for connection in self.open.copy():
            with contextlib.suppress(AttributeError, OSError):  # it is not connected, or not any more
                connection.sock.shutdown(socket.SHUT_RDWR)

    # --- in a thread

    def _ask(self, prefix, content):
        target = f"{self.parts.path.rstrip('/')}/v1/select?{urlencode({'client': prefix, 'content': content})}"
        try:
            status, body = self._exchange(target)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(str(error)) from error
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise NoAnswer(f"HTTP {status}")
        return addresses_of(body)

    def _exchange(self, target):
        """(status, body); over a new connection where the kept one has ended."""
        kept = getattr(self.own, "connection", None)
        if kept is not None:
            try:
                return self._over(kept, target)
            except (ConnectionError, http.client.RemoteDisconnected):
                pass  # it has been closed meanwhile
        return self._over(self._connected(), target)

    def _over(self, connection, target):
        try:
            connection.request("GET", target, headers=self.headers)
            reply = connection.getresponse()
            return reply.status, reply.read(BODY_MAX_bytes)
        except BaseException:
            connection.close()
            self.open.discard(connection)
            self.own.connection = None
            raise

    def _connected(self):
        if self.closed:
            raise NoAnswer("nobody waits any more")
        where, wait = (self.parts.hostname, self.parts.port), self.timeout_seconds
        if self.parts.scheme == "https":
            made = http.client.HTTPSConnection(*where, timeout=wait, context=ssl.create_default_context())
        else:
            made = http.client.HTTPConnection(*where, timeout=wait)
        self.own.connection = made
        self.open.add(made)
        return made


def addresses_of(body):
    """Addresses in the body of an answer. NoAnswer if there are none."""
    try:
        found = tuple(str(ipaddress.ip_address(address)) for address in json.loads(body)["addresses"])
    except (ValueError, KeyError, TypeError) as error:
        raise NoAnswer("the answer has no addresses") from error
    if not found:
        raise NoAnswer("the answer has no addresses")
    return found

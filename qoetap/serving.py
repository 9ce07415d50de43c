"""What the servers of an agent share: where they listen, the token, and bounds, so that no client can hold it up.

A server listens on loopback unless there is a token, which then every request must bring (RFC 6750, section 2.1).
Requests at a time, and the time that each may take, are bounded.
"""

import contextlib
import hmac
import ipaddress
import os
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import NamedTuple

from qoetap.exits import USAGE, Exit

CONNECTIONS_MAX = 8  # more are closed at once
REQUEST_seconds = 10.0  # one that takes longer is cut off
CHECK_seconds = 0.2
PORT_MAX = 65535


class Place(NamedTuple):
    """Which server it is, for sentences."""

    key: str  # of the configuration
    example: str  # address
    token: str  # variable of the environment; with _FILE behind it, one that names a file

    @property
    def token_file(self):
        return f"{self.token}_FILE"


def read_token(place, environ=os.environ):
    """The token of the environment, or of the file that it names; None without. Exit if it cannot be told."""
    token, path = environ.get(place.token, "").strip(), environ.get(place.token_file, "")
    if token and path:
        raise Exit(USAGE, f"{place.token} and {place.token_file} are both set: unset one")
    if not path:
        return token or None
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is no text"
        raise Exit(USAGE, f"{place.token_file}: {path} cannot be read ({why})") from error
    if not token:
        raise Exit(USAGE, f"{place.token_file}: {path} is empty: write the token into it")
    return token


def endpoint(address, place, token):
    """(family, socket address) of HOST:PORT, an IPv6 host in brackets. Exit if it is none, or may not be used so."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host == f"[{bare}]"
    if not (colon and bare and port.isdecimal() and int(port) <= PORT_MAX) or (":" in bare) != bracketed:
        _, _, number = place.example.rpartition(":")
        raise Exit(USAGE, f"{place.key}: {address!r} is no address, write it as {place.example} or [::1]:{number}")
    try:
        found = socket.getaddrinfo(bare, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise Exit(USAGE, f"{place.key}: there is no host {bare!r}: write its address, such as 127.0.0.1") from error
    family, where = found[0][0], found[0][4]
    if token is None and not ipaddress.ip_address(where[0].partition("%")[0]).is_loopback:
        raise Exit(
            USAGE,
            f"{place.key}: {address} can be reached from other hosts, so it needs a token: "
            f"set {place.token} or {place.token_file}, or listen on 127.0.0.1",
        )
    return family, where


class Handler(BaseHTTPRequestHandler):
    """One request. The connection ends with it."""

    def may_ask(self):
        token, (scheme, _, given) = self.server.token, self.headers.get("Authorization", "").partition(" ")
        return token is None or (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode()))

    def answer(self, status, text, kind, **headers):
        """Send a reply; header names with _ for -."""
        body = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self):
        return "qoetap"

    def log_message(self, *_):
        """Nothing: a request is no news."""


class Server(ThreadingMixIn, TCPServer):
    """A thread for each request, CONNECTIONS_MAX at most, each for REQUEST_seconds at most."""

    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, family, where, handler, token):
        self.address_family, self.token = family, token
        self.since, self.changing = {}, threading.Lock()
        super().__init__(where, handler)

    def verify_request(self, request, _):
        """Whether one more may be served."""
        with self.changing:
            room = len(self.since) < CONNECTIONS_MAX
            if room:
                self.since[request] = time.monotonic()
        return room

    def shutdown_request(self, request):
        with self.changing:
            self.since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self):
        """Cut off requests that take too long: what their threads wait for then ends."""
        latest = time.monotonic() - REQUEST_seconds
        with self.changing:
            late = [request for request, since in self.since.items() if since < latest]
        for request in late:
            with contextlib.suppress(OSError):  # it has just ended, or the other side has
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_):
        """Nothing: a client that went away is no news."""


def made(make, address, place):
    """The Server that `make()` makes. Exit if it cannot listen."""
    try:
        return make()
    except OSError as error:
        raise Exit(USAGE, f"{place.key}: cannot listen on {address} ({error.strerror}): give another") from error


class Service:
    """A Server that runs in a thread until `close`. Its `address` says where."""

    def __init__(self, server, name):
        self.server = server
        where = server.server_address
        if server.address_family == socket.AF_UNIX:
            self.address = f"unix:{where}"
        else:
            self.address = f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"
        run = server.serve_forever
        self.thread = threading.Thread(target=run, args=(CHECK_seconds,), name=name, daemon=True)
        self.thread.start()

    def close(self):
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

"""The server that Prometheus asks: /metrics, made of one snapshot of the agent's numbers, and /healthz.

It listens on loopback unless there is a token, which then every request must bring (RFC 6750, section 2.1). It is no
way to hold the agent up: requests at a time, and the time that each may take, are bounded.
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

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from qoetap.exits import USAGE, Exit
from qoetap.families import FAMILIES

CONNECTIONS_MAX = 8  # more are closed at once
REQUEST_seconds = 10.0  # one that takes longer is cut off
CHECK_seconds = 0.2
PORT_MAX = 65535
TOKEN, TOKEN_FILE = "QOETAP_METRICS_TOKEN", "QOETAP_METRICS_TOKEN_FILE"
TEXT = "text/plain; charset=utf-8"


def read_token(environ=os.environ):
    """The token of the environment, or of the file that it names; None without. Exit if it cannot be told."""
    token, path = environ.get(TOKEN, "").strip(), environ.get(TOKEN_FILE, "")
    if token and path:
        raise Exit(USAGE, f"{TOKEN} and {TOKEN_FILE} are both set: unset one")
    if not path:
        return token or None
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is no text"
        raise Exit(USAGE, f"{TOKEN_FILE}: {path} cannot be read ({why})") from error
    if not token:
        raise Exit(USAGE, f"{TOKEN_FILE}: {path} is empty: write the token into it")
    return token


def endpoint(address):
    """(family, socket address) of HOST:PORT, an IPv6 host in brackets. Exit if it is none."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host == f"[{bare}]"
    if not (colon and bare and port.isdecimal() and int(port) <= PORT_MAX) or (":" in bare) != bracketed:
        raise Exit(USAGE, f"live.metrics: {address!r} is no address, write it as 127.0.0.1:9464 or [::1]:9464")
    try:
        found = socket.getaddrinfo(bare, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise Exit(USAGE, f"live.metrics: there is no host {bare!r}: write its address, such as 127.0.0.1") from error
    return found[0][0], found[0][4]


class AgentCollector:
    """All families of one snapshot, which is taken for each scrape."""

    def __init__(self, snapshot):
        self.snapshot = snapshot

    def collect(self):
        snapshot = self.snapshot()
        return [family.of(snapshot) for family in FAMILIES]


class Handler(BaseHTTPRequestHandler):
    """One request. The connection ends with it."""

    def do_GET(self):
        pages = {"/metrics": self.server.metrics, "/healthz": self.server.health}
        page = pages.get(self.path.partition("?")[0])
        if not self.may_ask():
            self.answer(HTTPStatus.UNAUTHORIZED, "this needs the token: send Authorization: Bearer TOKEN\n")
        elif page is None:
            self.answer(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz\n")
        else:
            self.answer(*self.made(page))

    do_HEAD = do_GET

    def made(self, page):
        """(status, text, type) of a page. Whatever goes wrong with it, the agent must live."""
        try:
            return page(self.headers.get("Accept"))
        except Exception as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"no numbers: {type(error).__name__}: {error}\n"

    def may_ask(self):
        token, (scheme, _, given) = self.server.token, self.headers.get("Authorization", "").partition(" ")
        return token is None or (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode()))

    def answer(self, status, text, kind=TEXT):
        body = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self):
        return "qoetap"

    def log_message(self, *_):
        """Nothing: a scrape is no news."""


class Server(ThreadingMixIn, TCPServer):
    """A thread for each request, CONNECTIONS_MAX at most, each for REQUEST_seconds at most."""

    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, family, place, snapshot, token):
        self.address_family, self.snapshot, self.token = family, snapshot, token
        self.registry = CollectorRegistry()
        self.registry.register(AgentCollector(self.take))
        ProcessCollector(registry=self.registry)
        self.asking, self.since, self.changing = threading.Lock(), {}, threading.Lock()
        super().__init__(place, Handler)

    def take(self):
        """A snapshot, one at a time."""
        with self.asking:
            return self.snapshot()

    def metrics(self, accept):
        encode, kind = choose_encoder(accept)
        return HTTPStatus.OK, encode(self.registry), kind

    def health(self, _):
        snapshot = self.take()
        why = snapshot["why"]
        if snapshot["healthy"]:
            return HTTPStatus.OK, f"ok, but {why}\n" if why else "ok\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n"

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


class Exporter:
    """Serves the numbers of `snapshot()` on `address` (HOST:PORT; port 0: any that is free) until `close`.

    token: what requests must bring, None: nothing. `address` then says where. Exit if that cannot be.
    """

    def __init__(self, address, snapshot, token=None):
        family, place = endpoint(address)
        if token is None and not ipaddress.ip_address(place[0].partition("%")[0]).is_loopback:
            raise Exit(
                USAGE,
                f"live.metrics: {address} can be reached from other hosts, so it needs a token: "
                f"set {TOKEN} or {TOKEN_FILE}, or listen on 127.0.0.1",
            )
        try:
            self.server = Server(family, place, snapshot, token)
        except OSError as error:
            raise Exit(USAGE, f"live.metrics: cannot listen on {address} ({error.strerror}): give another") from error
        host, port = self.server.server_address[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        run = self.server.serve_forever
        self.thread = threading.Thread(target=run, args=(CHECK_seconds,), name="qoetap-metrics", daemon=True)
        self.thread.start()

    def close(self):
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

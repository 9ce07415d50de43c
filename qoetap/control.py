"""The control API of `qoetap inline`: classes, counters and status are read, rates set, over HTTP with JSON.

Only the main loop may touch the pacer. So a request's thread reads and checks what it can, hands a call to the main
loop and waits for its reply; a call that the main loop has not begun in time is taken back, so that a client that was
refused can be sure that nothing will happen. Errors are problems of RFC 9457.

What a call is given is the main loop's plane:

    plane.rates         Rates
    plane.names         the classes' names by their numbers, `default` first
    plane.now()         ns, the clock of rates
    plane.rows()        a copy of the CLASS rows
    plane.status()      dict for GET /v1/status
    plane.apply(changes, cause)     set what Rates has changed, at one instant
"""

import ipaddress
import json
import os
import socket
from concurrent.futures import Future, TimeoutError
from http import HTTPStatus
from queue import Empty, SimpleQueue

from qoetap import serving
from qoetap.classes import DEFAULT
from qoetap.keys import nearest_name
from qoetap.rates import BY_ONE, BY_TABLE, FILE, Refused, one_of, table_of
from qoetap.unixsocket import PREFIX, UnixServer, path_of

PLACE = serving.Place("inline.control", "127.0.0.1:9465", "QOETAP_TOKEN")
BODY_MAX_bytes = 1 << 20
DISCARDED_MAX_bytes = 16 << 20  # of a body that is too large, so that its sender reads the reply
REPLY_seconds = 2.0
JSON, PROBLEM = "application/json", "application/problem+json"
COUNTERS = (  # fields of CLASS, as they are told
    "held", "held_bytes", "packets", "bytes", "sent_bytes", "passed", "released", "flushed", "over_bytes", "over_time",
    "no_room", "marked", "wait_max",
)  # fmt: skip


def read_token(environ=os.environ):
    """The token of the environment, as of serving.read_token."""
    return serving.read_token(PLACE, environ)


class Desk:
    """Where threads hand calls to the main loop. seconds: that a call waits to be begun, and then to be done."""

    def __init__(self, seconds=REPLY_seconds):
        self.seconds, self.calls = seconds, SimpleQueue()

    def ask(self, call):
        """What `call(plane)` returns or raises in the main loop. Refused if that does not answer in time."""
        reply = Future()
        self.calls.put((call, reply))
        try:
            return reply.result(self.seconds)
        except TimeoutError:
            if reply.cancel():
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "no answer in time; nothing was changed") from None
        try:
            return reply.result(self.seconds)  # it has been begun
        except TimeoutError:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "begun, but not done in time") from None

    def serve(self, plane):
        """Do the calls that wait: for the main loop, as often as it likes."""
        while True:
            try:
                call, reply = self.calls.get_nowait()
            except Empty:
                return
            if reply.set_running_or_notify_cancel():
                _answer(call, plane, reply)


def _answer(call, plane, reply):
    """Whatever a call does, the main loop must live."""
    try:
        reply.set_result(call(plane))
    except Exception as error:
        reply.set_exception(error)


# --- calls, which run in the main loop


def states(plane):
    """(names, CLASS rows, [(rate, where it is from)]) of all classes."""
    rates = plane.rates
    known = [(rates.of(name), rates.source(name)) for name in plane.names[1:]]
    return plane.names, plane.rows(), [(None, FILE), *known]


def table_in_force(plane):
    return plane.rates.told(plane.now())


def status(plane):
    return {**plane.status(), "rates": table_in_force(plane)}


def put_table(table):
    def call(plane):
        changes = plane.rates.replace(table, plane.now())
        plane.apply(changes, BY_TABLE)
        return _done(plane, changes)

    return call


def put_one(one):
    def call(plane):
        changes = plane.rates.set_one(one, plane.now())
        plane.apply(changes, BY_ONE)
        return _done(plane, changes)

    return call


def _done(plane, changes):
    told = table_in_force(plane)
    return {"version": told["version"], "lease_left_s": told["lease_left_s"], "changed": len(changes)}


# --- what they return, as JSON


def described(names, rows, known):
    """Objects of all classes."""
    columns = [rows[name].tolist() for name in COUNTERS]
    found = zip(names, known, zip(*columns, strict=True), strict=True)
    return [
        {"name": name, "rate": rate, "source": source, **dict(zip(COUNTERS, counts, strict=True))}
        for name, (rate, source), counts in found
    ]


def named(classes, name):
    found = next((c for c in classes if c["name"] == name), None)
    if found is None:
        known = nearest_name(name, [c["name"] for c in classes])
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no class {name!r}{known}")
    return found


def decoded(body):
    """What a JSON text says. Refused if it is none, or names a key twice."""
    try:
        return json.loads(body, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON ({error})") from None


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice} stands there twice")
    return found


def _no_number(text):
    raise ValueError(f"{text} is no number")


# --- requests


class Handler(serving.Handler):
    """One request: its path and method lead to one of the functions below."""

    def do_GET(self):
        self._reply("GET")

    do_HEAD = do_GET

    def do_PUT(self):
        self._reply("PUT")

    def do_POST(self):
        self._reply("POST")

    do_DELETE = do_PATCH = do_POST

    def send_error(self, code, message=None, explain=None):
        """Of what is no request at all."""
        self._problem(Refused(HTTPStatus(code), message or HTTPStatus(code).description))

    def _reply(self, method):
        try:
            body = self._body()
            self._check()
            text = json.dumps(self._page(method)(body)) + "\n"
        except Refused as error:
            self._problem(error)
        except Exception as error:  # ours; the data plane goes on
            self._problem(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}"))
        else:
            self.answer(HTTPStatus.OK, text, JSON)

    def _problem(self, error):
        status = HTTPStatus(error.status)
        more = dict(error.more)
        headers = {"Allow": ", ".join(more["allow"])} if "allow" in more else {}
        problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": str(error), **more}
        self.answer(status, json.dumps(problem) + "\n", PROBLEM, **headers)

    def _check(self):
        """Refused if this client must not ask."""
        if not self.may_ask():
            raise Refused(HTTPStatus.UNAUTHORIZED, "this needs the token: send Authorization: Bearer TOKEN")
        if self.server.token is None and not self._by_address():
            raise Refused(HTTPStatus.FORBIDDEN, "name this server by its address or localhost, or set a token")

    def _by_address(self):
        """Whether no name of somebody else's was resolved to us: else a page in a browser could ask (DNS rebinding)."""
        host = self.headers.get("Host", "localhost")
        bare = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if self.server.address_family == socket.AF_UNIX or bare.lower() == "localhost":
            return True
        try:
            ipaddress.ip_address(bare.strip("[]"))
        except ValueError:
            return False
        return True

    def _body(self):
        """The request's body, read in any case, so that the client reads our reply."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            raise Refused(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        if int(length) > BODY_MAX_bytes:
            self.rfile.read(min(int(length), DISCARDED_MAX_bytes))
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {BODY_MAX_bytes} bytes")
        return self.rfile.read(int(length))

    def _page(self, method):
        """The function of the body that makes the reply."""
        steps = self.path.partition("?")[0].split("/")[1:]
        pages = _pages(self.server.desk, steps)
        if pages is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there are /v1/classes, /v1/classes/NAME, /v1/rates and /v1/status")
        if method not in pages:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not for this", allow=sorted(pages))
        if method == "PUT" and self.headers.get_content_type() != JSON:  # what no web page may send unasked
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send Content-Type: {JSON}")
        return pages[method]


def _pages(desk, steps):
    """{method: function of the body} of a path; None if there is no such page."""
    match steps:
        case ["v1", "classes"]:
            return {"GET": lambda _: {"classes": described(*desk.ask(states))}}
        case ["v1", "classes", name]:
            return {"GET": lambda _: named(described(*desk.ask(states)), name)}
        case ["v1", "classes", name, "rate"]:
            return {"PUT": lambda body: _set_one(desk, name, body)}
        case ["v1", "rates"]:
            return {
                "GET": lambda _: desk.ask(table_in_force),
                "PUT": lambda body: desk.ask(put_table(table_of(decoded(body)))),
            }
        case ["v1", "status"]:
            return {"GET": lambda _: desk.ask(status)}
    return None


def _set_one(desk, name, body):
    if name == DEFAULT:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "default has no rate: make a class, match: {} matches all")
    return desk.ask(put_one(one_of(decoded(body), name)))


class Control(serving.Service):
    """The API on `address` (HOST:PORT or unix:PATH) until `close`; calls go to `desk`. Exit if that cannot be."""

    def __init__(self, address, desk, token=None):
        server = serving.made(lambda: _server(address, token), address, PLACE)
        server.desk = desk
        super().__init__(server, "qoetap-control")


def _server(address, token):
    if address.startswith(PREFIX):
        return UnixServer(path_of(address, PLACE), Handler, token)
    return serving.Server(*serving.endpoint(address, PLACE, token), Handler, token)

"""HTTP: batches of JSON lines, compressed and posted one after the other over a kept connection (docs/http.md).

A batch is sent until the server takes it (2xx), refuses it (3xx, most 4xx) or RETRY_S have passed: then its events are
dropped and counted. Waiting is done here, in the thread that calls the sink; whoever calls has a queue in front.
"""

import contextlib
import gzip
import http.client
import ipaddress
import os
import random
import re
import ssl
import time
import uuid
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from dataplane.events import Renderer, json_lines
from dataplane.sinks.base import Sink, SinkError
from dataplane.sinks.names import SECRET, redacted

FORM = "write an HTTP output as https://HOST:PORT/PATH"
TOKEN, TOKEN_FILE = "QOETAP_HTTP_TOKEN", "QOETAP_HTTP_TOKEN_FILE"  # environment
B64TOKEN = re.compile(r"[\w.~+/-]+=*", re.ASCII)  # RFC 6750, 2.1

BATCH_BYTES, BATCH_EVENTS = 1 << 20, 5000  # before compression; a batch that has one of these is sent
BATCH_S = 1  # one that is not full is sent so long after the one before
GZIP_LEVEL = 1

REQUEST_S = 10  # for connecting, sending, and an answer
RETRY_S = 120  # for one batch, all attempts together
CLOSE_S = 7  # for what waits at the end
BACKOFF_S, BACKOFF_MAX_S = 0.25, 15  # before the second attempt, and at most
RETRY_AFTER_MAX_S = 60  # a server that asks for more is asked again after this
LEAST_S = 0.1  # a timeout of 0 would not be one

ANSWER_BYTES = 1 << 16  # of an answer that are read to keep the connection
SAID_CHARS = 100  # of a refusal's text that are repeated

AGAIN = "; it is tried again"
RETRIED = (408, 429)  # and 5xx
STALE = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)  # of a connection that lay idle
ADVICE = {
    401: f"set {TOKEN} or {TOKEN_FILE}",
    403: f"set {TOKEN} or {TOKEN_FILE} to a token that may write",
    404: "correct the address",
    405: "correct the address: it takes no POST",
    413: f"let the server take bodies of {BATCH_BYTES >> 20} MiB",
    415: "let the server take application/x-ndjson with Content-Encoding gzip",
}


class Address(NamedTuple):
    """Where to post."""

    scheme: str
    host: str
    port: int | None
    target: str  # path and query


class Answer(NamedTuple):
    """What a server said."""

    status: int
    reason: str
    wait: float  # seconds that it asks for
    said: str  # beginning of the body


def shown(spec):
    """What the output is called in a sentence."""
    return redacted(spec) if "://" in spec else f"https://{SECRET}"


def parse(spec):
    """Address of a spec. SinkError says what is wrong with it."""
    if not re.fullmatch(r"[!-~]+", spec):
        raise SinkError(f"{shown(spec)!r}: an address has no spaces and no letters beyond ASCII; {FORM}")
    secret, at, _ = spec.partition("/?")[0].partition("@")
    if at and "/" not in secret.partition("://")[2]:
        raise SinkError(f"{shown(spec)}: a password has no place in an address: set {TOKEN_FILE}")
    try:
        url = urlsplit(spec)
        host, port = url.hostname, url.port
    except ValueError as error:
        what = str(error).partition(" as ")[0]  # the rest repeats what may belong to a password
        raise SinkError(f"{shown(spec)}: {what}; {FORM}") from None
    if url.scheme not in ("http", "https") or not host or port == 0 or url.fragment:
        raise SinkError(f"{shown(spec)}: {FORM}")
    return Address(url.scheme, host, port, (url.path or "/") + (f"?{url.query}" if url.query else ""))


def read_token():
    """The token of the environment or of the file that it names, "" if there is none. SinkError if it is unusable."""
    token, path = os.environ.get(TOKEN, ""), os.environ.get(TOKEN_FILE, "")
    if token and path:
        raise SinkError(f"{TOKEN} and {TOKEN_FILE} are both set: unset one")
    if path:
        try:
            with open(path, encoding="ascii") as file:
                token = file.read().strip()
        except OSError as error:
            raise SinkError(f"{TOKEN_FILE}: cannot read {path} ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise SinkError(f"{TOKEN_FILE}: {path} holds no token") from error
    if (token or path) and not B64TOKEN.fullmatch(token):
        raise SinkError(f"{TOKEN_FILE}: {path} holds no token" if path else f"{TOKEN} is no token")
    return token


def is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def backoff(attempt, luck):
    """Seconds to wait after the failed `attempt` (from 0): doubled each time, by `luck` (0 to 1) up to half less."""
    return min(BACKOFF_S * 2 ** min(attempt, 32), BACKOFF_MAX_S) * (1 - luck / 2)


def retry_after(value, now):
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3), 0 if there is none; `now` in s since 1970."""
    value = (value or "").strip()
    if value.isdecimal():
        return min(int(value), RETRY_AFTER_MAX_S)
    try:
        until = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return 0
    return min(max(until - now, 0), RETRY_AFTER_MAX_S)


def reason(error):
    """What an OSError or HTTPException says."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}; SSL_CERT_FILE may name the authority"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return f"that is no HTTP server ({type(error).__name__})"
    said = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return re.sub(r"^\[[^]]*\] | ?\(?_ssl\.c:\d+(: |\))", "", said)


class Http(Sink):
    """`trouble` is what keeps a batch from being taken while it is tried again."""

    def __init__(self, spec, detectors):
        super().__init__()
        self.address = parse(spec)
        self.path, self.trouble, self.token = shown(spec), None, read_token()
        if self.token and self.address.scheme == "http" and not is_loopback(self.address.host):
            raise SinkError(f"{self.path}: a token must not be sent in the clear (RFC 6750): use https://, or none")
        self.renderer, self.connection = Renderer(detectors, json_lines), self._connection()
        self.text, self.count, self.sent_at = bytearray(), 0, time.monotonic()  # the batch at hand; the last one's time
        self.start, self.batches = uuid.uuid4().hex, 0

    def _connection(self):
        """One that is opened by the first request."""
        host, port = self.address.host, self.address.port
        if self.address.scheme == "http":
            return http.client.HTTPConnection(host, port or http.client.HTTP_PORT)
        return http.client.HTTPSConnection(host, port or http.client.HTTPS_PORT, context=ssl.create_default_context())

    def put(self, events):
        """Gather Events and send full batches. SinkError if one is not taken: the rest of Events is dropped too."""
        for text, ends in self.renderer.chunks(events):
            self._take(text, ends)
        self.tick()

    def _take(self, text, ends):
        at = start = 0
        while at < len(ends):
            fits = int(np.searchsorted(ends, start + BATCH_BYTES - len(self.text), side="right"))
            stop = min(max(fits, at), at + BATCH_EVENTS - self.count)
            if stop == at and self.count:
                self._send(RETRY_S)
                continue
            stop = max(stop, at + 1)
            self.text += text[start : ends[stop - 1]]
            self.count, self.queued = self.count + stop - at, self.queued + stop - at
            at, start = stop, int(ends[stop - 1])

    def tick(self):
        """Send what there is, unless the last batch has only just gone."""
        if self.count and time.monotonic() - self.sent_at >= BATCH_S:
            self._send(RETRY_S)

    def close(self):
        """Send what waits within CLOSE_S. SinkError if it is not taken: then it counts as dropped."""
        try:
            if self.count:
                self._send(CLOSE_S)
        finally:
            self.connection.close()

    def _send(self, seconds):
        """Send the batch at hand and count what became of it. SinkError if it was not taken."""
        body, count = gzip.compress(self.text, GZIP_LEVEL, mtime=0), self.count
        self.text, self.count, self.batches = bytearray(), 0, self.batches + 1
        taken = False
        try:
            self._deliver(body, seconds)
            taken = True
        finally:
            self.sent_at = time.monotonic()  # now: a slow server gets larger batches, not more of them
            self.queued -= count
            self.delivered, self.dropped = self.delivered + count * taken, self.dropped + count * (not taken)

    def _deliver(self, body, seconds):
        """Post until the server has taken it. SinkError if it refuses, or time is up."""
        deadline, attempt = time.monotonic() + seconds, 0
        while (wait := self._try(body, deadline)) is not None:
            wait = max(wait, backoff(attempt, random.random()))
            if time.monotonic() + wait > deadline:
                raise SinkError(self.trouble.removesuffix(AGAIN))
            time.sleep(wait)
            attempt += 1
        self.trouble = None

    def _try(self, body, deadline):
        """Post once: None if it was taken, else the seconds that the server asks for. SinkError if it refuses."""
        try:
            answer = self._post(body, deadline)
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.trouble = f"{self.path}: {reason(error)}{AGAIN}"
            return 0
        if 200 <= answer.status < 300:
            return None
        what = f"{self.path}: {answer.status} {answer.reason}".rstrip()
        if answer.status in RETRIED or answer.status >= 500:
            self.trouble = what + AGAIN
            return answer.wait
        advice = ADVICE.get(answer.status, f"it says {answer.said!r}" if answer.said else "correct the address")
        raise SinkError(f"{what}; {advice}")

    def _post(self, body, deadline):
        """The Answer; once more at once where a kept connection turns out to be closed."""
        kept = self.connection.sock is not None
        try:
            return self._exchange(body, deadline)
        except STALE:
            self.connection.close()
            if not kept:
                raise
        return self._exchange(body, deadline)

    def _exchange(self, body, deadline):
        connection = self.connection
        if connection.sock is None:
            connection.timeout = remaining(deadline)
            connection.connect()
        connection.sock.settimeout(remaining(deadline))
        try:
            connection.request("POST", self.address.target, body, self._headers())
        except BrokenPipeError:
            pass  # the server may have answered before it had read everything
        connection.sock.settimeout(remaining(deadline))
        response = connection.getresponse()
        said = response.read(ANSWER_BYTES)
        if not response.isclosed():
            connection.close()
        wait = retry_after(response.getheader("Retry-After"), time.time())
        return Answer(response.status, response.reason, wait, printable(said))

    def _headers(self):
        with contextlib.suppress(SinkError):  # the last token stays until there is another
            self.token = read_token()
        return {
            "Content-Type": "application/x-ndjson",
            "Content-Encoding": "gzip",
            "Idempotency-Key": f'"{self.start}-{self.batches}"',  # draft-ietf-httpapi-idempotency-key-header
            "User-Agent": "qoetap",
        } | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


def remaining(deadline):
    """Seconds for the next step of a request."""
    return max(min(REQUEST_S, deadline - time.monotonic()), LEAST_S)


def printable(data):
    """The beginning of an answer, safe to show."""
    return re.sub(r"[^ -~]+", " ", data.decode("ascii", "replace")).strip()[:SAID_CHARS]


SINK = Http

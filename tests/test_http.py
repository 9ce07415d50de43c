"""The HTTP sink against a server on loopback: what arrives, what is sent again, what is counted when it does not."""

import contextlib
import gzip
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataplane.sinks import Queued, SinkError, http, open_sink, sink_name
from tests.sinks import DETECTORS, balanced, batch, text_of, until


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that hangs up is part of the tests."""


class Receiver:
    """A server that answers as told: `answers` are (status, headers, body) of the next requests, then 200."""

    def __init__(self, port=0, context=None):
        self.requests, self.answers, self.sockets = [], [], []
        self.server = Server(("127.0.0.1", port), self._handler())
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def _handler(self):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def setup(self):
                super().setup()
                receiver.sockets.append(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers), body, self.path))
                status, headers, said = receiver.answers.pop(0) if receiver.answers else (200, {}, b"ok")
                if status is None:  # hang up
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_):
                pass

        return Handler

    def url(self, path="/in"):
        return f"http://127.0.0.1:{self.port}{path}"

    def texts(self):
        """Body of each batch in order, those sent again left out as a receiver does it."""
        return list({h["Idempotency-Key"]: gzip.decompress(body) for h, body, _ in self.requests}.values())

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        for connection in self.sockets:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Waits are short, and no token is set."""
    for name, seconds in {"BACKOFF_S": 0.01, "BACKOFF_MAX_S": 0.05, "RETRY_S": 5, "CLOSE_S": 1}.items():
        monkeypatch.setattr(http, name, seconds)
    for name in (http.TOKEN, http.TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)


def counts(sink):
    return sink.delivered, sink.queued, sink.dropped


@pytest.fixture(autouse=True)
def _only_full_batches(monkeypatch):
    monkeypatch.setattr(http, "BATCH_S", 100)


def test_every_event_arrives_once_in_order(receiver):
    sink = open_sink(receiver.url("/in?source=a"), DETECTORS)
    batches = [batch(20, seed) for seed in range(3)]
    for events in batches:
        sink.write(events)
    assert counts(sink) == (0, 60, 0)
    sink.close()
    sink.close()
    assert counts(sink) == (60, 0, 0)
    assert b"".join(receiver.texts()) == b"".join(map(text_of, batches))
    headers, body, path = receiver.requests[0]
    assert path == "/in?source=a"
    assert headers["Content-Type"] == "application/x-ndjson"
    assert headers["Content-Encoding"] == "gzip"
    assert len(body) == int(headers["Content-Length"])
    assert "Authorization" not in headers


@pytest.mark.parametrize("limit", [("BATCH_EVENTS", 7), ("BATCH_BYTES", 4000), ("BATCH_BYTES", 10)])
def test_batches_are_bounded_and_share_a_connection(receiver, monkeypatch, limit):
    monkeypatch.setattr(http, *limit)
    sink = open_sink(receiver.url(), DETECTORS)
    sink.write(batch(50))
    sink.write(batch(50, seed=1))
    sink.close()
    texts = receiver.texts()
    assert b"".join(texts) == text_of(batch(50)) + text_of(batch(50, seed=1))
    name, most = limit
    sizes = [len(t.splitlines()) if name == "BATCH_EVENTS" else len(t) for t in texts]
    assert all(size <= most or len(t.splitlines()) == 1 for size, t in zip(sizes, texts))
    assert len(receiver.requests) == len(texts) == {7: 15, 4000: len(texts), 10: 100}[most]
    assert len(receiver.sockets) == 1
    assert len({h["Idempotency-Key"] for h, _, _ in receiver.requests}) == len(texts)
    assert counts(sink) == (100, 0, 0)


def test_a_batch_does_not_wait_for_long(receiver, monkeypatch):
    monkeypatch.setattr(http, "BATCH_S", 0.05)
    sink = open_sink(receiver.url(), DETECTORS)
    sink.write(batch(5))
    until(lambda: sink.tick() or sink.delivered == 5)
    monkeypatch.setattr(http, "BATCH_S", 100)
    sink.write(batch(5))
    sink.tick()
    assert counts(sink) == (5, 5, 0) and len(receiver.requests) == 1
    sink.sent_at -= 100
    sink.write(batch(5))  # goes at once, since nothing has gone for so long
    assert counts(sink) == (15, 0, 0) and len(receiver.requests) == 2
    sink.close()
    assert len(receiver.requests) == 2


def test_a_slow_server_gets_few_batches(receiver, monkeypatch):
    monkeypatch.setattr(http, "BATCH_S", 0.1)
    sink = open_sink(receiver.url(), DETECTORS)
    deliver = sink._deliver
    monkeypatch.setattr(sink, "_deliver", lambda *args: (time.sleep(0.15), deliver(*args)))
    sink.sent_at = 0
    for seed in range(20):
        sink.write(batch(1, seed))
    assert sink.delivered < 20 and len(receiver.requests) <= 3
    sink.close()
    assert sink.delivered == 20


@pytest.mark.parametrize(
    "answer",
    [(500, {}, b"oh"), (503, {}, b""), (429, {}, b""), (408, {}, b""), (None, {}, b"")],
    ids=lambda a: str(a[0]),
)
def test_a_batch_that_fails_is_sent_again_under_its_key(receiver, answer):
    receiver.answers = [answer, answer, answer]
    sink = open_sink(receiver.url(), DETECTORS)
    sink.write(batch(20))
    sink.close()
    assert counts(sink) == (20, 0, 0)
    assert len(receiver.requests) == 4
    assert receiver.texts() == [text_of(batch(20))]
    assert re.fullmatch(r'"[0-9a-f]{32}-1"', receiver.requests[0][0]["Idempotency-Key"])
    assert sink.trouble is None


def test_a_server_that_comes_back_gets_everything_in_order(monkeypatch):
    monkeypatch.setattr(http, "BATCH_EVENTS", 10)
    monkeypatch.setattr("dataplane.sinks.queued.TICK_S", 0.02)
    first = Receiver()
    queued = Queued(open_sink(first.url(), DETECTORS), drop=True)
    queued.write(batch(20))
    until(lambda: queued.counts().delivered == 10)
    first.close()
    for seed in (1, 2):
        queued.write(batch(20, seed))
    until(lambda: queued.trouble is not None)
    assert re.fullmatch(r"http://127.0.0.1:\d+/in: Connection refused; it is tried again", queued.trouble)
    assert balanced(queued)
    second = Receiver(first.port)
    until(lambda: queued.counts().delivered == 50)
    assert queued.trouble is None
    queued.close(5)
    second.close()
    assert queued.counts() == (60, 60, 0, 0)
    assert b"".join(first.texts() + second.texts()) == b"".join(text_of(batch(20, seed)) for seed in range(3))


def test_retry_after_is_honoured(receiver):
    receiver.answers = [(503, {"Retry-After": "1"}, b""), (429, {"Retry-After": "0"}, b"")]
    sink = open_sink(receiver.url(), DETECTORS)
    sink.write(batch(5))
    begin = time.monotonic()
    sink._send(5)
    assert 1 <= time.monotonic() - begin < 3
    assert sink.delivered == 5
    sink.close()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("100000", http.RETRY_AFTER_MAX_S),
        ("-3", 0),
        ("soon", 0),
        (formatdate(1_000_009, usegmt=True), 9),
        (formatdate(999_000, usegmt=True), 0),
        ("Mon, 99 Foo 2000 00:00:00 GMT", 0),
    ],
)
def test_retry_after_has_two_forms(value, seconds):
    assert http.retry_after(value, 1_000_000) == seconds


def test_back_off_doubles_up_to_a_limit_with_jitter(monkeypatch):
    monkeypatch.undo()
    assert [http.backoff(n, 0) for n in (0, 1, 2, 3)] == [0.25, 0.5, 1, 2]
    assert [http.backoff(n, 1) for n in (0, 1)] == [0.125, 0.25]
    assert http.backoff(10**6, 0) == http.BACKOFF_MAX_S


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, {}, b""), "401 Unauthorized; set QOETAP_HTTP_TOKEN or QOETAP_HTTP_TOKEN_FILE"),
        ((403, {}, b""), "403 Forbidden; set QOETAP_HTTP_TOKEN or"),
        ((404, {}, b""), "404 Not Found; correct the address"),
        ((413, {}, b""), "413 Request Entity Too Large; let the server take bodies of 1 MiB"),
        ((415, {}, b""), "415 Unsupported Media Type; let the server take application/x-ndjson"),
        ((301, {"Location": "/there"}, b""), "301 Moved Permanently; correct the address"),
        ((400, {}, b"no\x1b[31m such\nfield"), "400 Bad Request; it says 'no [31m such field'"),
    ],
    ids=lambda a: str(a[0]),
)
def test_a_refused_batch_is_dropped_counted_and_said(receiver, answer, sentence):
    receiver.answers = [answer]
    sink = open_sink(receiver.url(), DETECTORS)
    sink.write(batch(5))
    with pytest.raises(SinkError) as error:
        sink.close()
    assert sentence in str(error.value)
    assert counts(sink) == (0, 0, 5)
    assert len(receiver.requests) == 1


def test_refusals_are_told_once_and_end_with_a_batch_that_is_taken(receiver, monkeypatch):
    monkeypatch.setattr(http, "BATCH_S", 0)
    receiver.answers = [(401, {}, b"")] * 3
    queued = Queued(open_sink(receiver.url(), DETECTORS), drop=True)
    told = set()
    for seed in range(4):
        queued.write(batch(5, seed))
        until(lambda: queued.counts().queued == 0)
        told.add(queued.trouble)
    assert len(told) == 2
    assert queued.trouble is None
    queued.close(5)
    assert queued.counts() == (20, 5, 0, 15)


def test_a_server_that_stays_away_costs_one_batch_after_the_other(monkeypatch):
    monkeypatch.setattr(http, "RETRY_S", 0.1)
    monkeypatch.setattr(http, "BATCH_EVENTS", 10)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    sink = open_sink(f"http://127.0.0.1:{port}/", DETECTORS)
    with pytest.raises(SinkError, match=r"http://127.0.0.1:\d+/: Connection refused$"):
        sink.write(batch(25))
    assert counts(sink) == (0, 0, 25)
    sink.write(batch(5))
    assert sink.trouble.endswith("; it is tried again")
    with pytest.raises(SinkError):
        sink.close()
    assert counts(sink) == (0, 0, 30)


def test_closing_is_bounded_where_the_server_never_answers(monkeypatch):
    monkeypatch.setattr(http, "CLOSE_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = open_sink(f"http://127.0.0.1:{silent.getsockname()[1]}", DETECTORS)
        sink.write(batch(5))
        begin = time.monotonic()
        with pytest.raises(SinkError, match="timed out"):
            sink.close()
    assert time.monotonic() - begin < 2
    assert counts(sink) == (0, 0, 5)


def test_what_is_no_http_server_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"220 mail ESMTP\r\n")
                    connection.recv(1 << 16)

        threading.Thread(target=greet, daemon=True).start()
        sink = open_sink(f"http://127.0.0.1:{server.getsockname()[1]}/", DETECTORS)
        sink.write(batch(5))
        with pytest.raises(SinkError, match="that is no HTTP server"):
            sink.close()
        server.shutdown(socket.SHUT_RDWR)
    assert counts(sink) == (0, 0, 5)


def test_an_idle_connection_that_the_server_closed_is_no_trouble(receiver):
    sink = open_sink(receiver.url(), DETECTORS)
    receiver.answers = [(200, {"Connection": "keep-alive"}, b"ok")]
    sink.write(batch(5))
    sink._send(5)
    sink.connection.sock.shutdown(socket.SHUT_RDWR)
    sink.write(batch(5, seed=1))
    sink._send(0)  # no time for a second attempt after a wait
    sink.close()
    assert counts(sink) == (10, 0, 0)
    assert b"".join(receiver.texts()) == text_of(batch(5)) + text_of(batch(5, seed=1))


def test_a_long_answer_does_not_spoil_the_next(receiver, monkeypatch):
    monkeypatch.setattr(http, "ANSWER_BYTES", 10)
    receiver.answers = [(200, {}, b"x" * 100_000)]
    sink = open_sink(receiver.url(), DETECTORS)
    for seed in (0, 1):
        sink.write(batch(5, seed))
        sink._send(5)
    sink.close()
    assert counts(sink) == (10, 0, 0)
    assert len(receiver.sockets) == 2


def test_the_token_is_sent_and_read_anew(receiver, monkeypatch, tmp_path):
    monkeypatch.setenv(http.TOKEN, "abc.DEF-1==")
    sink = open_sink(receiver.url(), DETECTORS)
    monkeypatch.delenv(http.TOKEN)
    monkeypatch.setenv(http.TOKEN_FILE, str(tmp_path / "token"))
    for seed, token in enumerate(("one", "two")):
        sink.write(batch(5, seed))
        (tmp_path / "token").write_text(f"{token}\n")
        sink._send(5)
    (tmp_path / "token").unlink()
    sink.write(batch(5))
    sink.close()
    assert [h["Authorization"] for h, _, _ in receiver.requests] == ["Bearer one", "Bearer two", "Bearer two"]


@pytest.mark.parametrize(
    ("token", "file", "sentence"),
    [
        ("a b", None, "QOETAP_HTTP_TOKEN is no token"),
        ("a\r\nX: y", None, "QOETAP_HTTP_TOKEN is no token"),
        ("a", b"b", "both set: unset one"),
        (None, b"", "holds no token"),
        (None, b"\xff", "holds no token"),
        (None, None, "cannot read"),
    ],
)
def test_a_bad_token_is_one_sentence(monkeypatch, tmp_path, token, file, sentence):
    if token is not None:
        monkeypatch.setenv(http.TOKEN, token)
    if file is not None:
        (tmp_path / "token").write_bytes(file)
    if file is not None or token is None:
        monkeypatch.setenv(http.TOKEN_FILE, str(tmp_path / "token"))
    with pytest.raises(SinkError, match=sentence):
        open_sink("http://127.0.0.1/", DETECTORS)


def test_a_token_is_not_sent_in_the_clear(monkeypatch):
    monkeypatch.setenv(http.TOKEN, "abc")
    with pytest.raises(SinkError, match="http://h: a token must not be sent in the clear"):
        open_sink("http://h", DETECTORS)
    for url in ("https://h/", "http://localhost:1/", "http://[::1]/", "http://127.9.9.9"):
        open_sink(url, DETECTORS).close()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("http://", "write an HTTP output as https://HOST:PORT/PATH"),
        ("http:///x", "write an HTTP output as"),
        ("http://h:0/", "write an HTTP output as"),
        ("http://h:99999/", "Port out of range"),
        ("http://h:x/", "Port could not be cast"),
        ("http://[::1/", "Invalid IPv6 URL"),
        ("http://h/#pw", "http://h/#***: write an HTTP output as"),
        ("http://h:0/?key=pw", "http://h:0/?***: write an HTTP output as"),
        ("http://h/a?key=pw b", "'http://h/a?***': an address has no spaces"),
        ("http://user:pw/x@h/", "http://***: Port could not be cast to integer value; write an HTTP output as"),
        ("http:user:pw@h", "https://***: a password has no place in an address"),
        ("http:h?key=pw", "https://***: write an HTTP output as"),
        ("http:/user:pw@h/", "https://***: a password has no place in an address"),
        ("http://h/a b", "no spaces"),
        ("http://h/\u00e9", "beyond ASCII"),
        ("http://user:pw@h/", "http://***@h/: a password has no place in an address: set QOETAP_HTTP_TOKEN_FILE"),
        ("http:h/x", "write an HTTP output as"),
        ("htp://user:pw@h/x?pw", "'htp://***@h/x?***': addresses begin with kafka://, http://, https://"),
    ],
)
def test_a_bad_address_is_one_sentence(spec, sentence):
    with pytest.raises(SinkError, match=re.escape(sentence)) as error:
        open_sink(spec, DETECTORS)
    assert "pw" not in str(error.value)
    assert "\n" not in str(error.value)


def test_addresses_are_taken_apart():
    address = http.parse("https://[2001:db8::1]:8443/in/put?key=secret")
    assert address == ("https", "2001:db8::1", 8443, "/in/put?key=secret")
    assert http.parse("http://h").target == "/"
    assert sink_name("https://h/events.jsonl") == ("http", "https://h/events.jsonl")


def test_tls_is_checked(tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    receiver = Receiver(context=context)
    url = f"https://localhost:{receiver.port}/in"
    monkeypatch.setattr(http, "CLOSE_S", 10)
    monkeypatch.setattr(http, "BACKOFF_S", 60)  # no second attempt
    monkeypatch.setattr(http, "BACKOFF_MAX_S", 60)
    monkeypatch.setenv(http.TOKEN, "abc")
    sink = open_sink(url, DETECTORS)
    sink.write(batch(5))
    with pytest.raises(SinkError, match=r"self-signed certificate; SSL_CERT_FILE may name the authority"):
        sink.close()
    assert not receiver.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    sink = open_sink(url, DETECTORS)
    sink.write(batch(5))
    sink.close()
    receiver.close()
    assert counts(sink) == (5, 0, 0)
    assert receiver.requests[0][0]["Authorization"] == "Bearer abc"
    assert [json.loads(line) for line in receiver.texts()[0].splitlines()]

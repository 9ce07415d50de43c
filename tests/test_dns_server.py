"""`qoetap dns` as a process on loopback: over UDP and TCP, with the service up, late, killed and back."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from dnslib import DNSRecord

from controlplane import dnsserver, load
from controlplane.redirect import NoAnswer
from controlplane.selectclient import SelectClient
from tests.dns import WAIT_seconds, addresses, ask, ecs_of, framed, over_tcp, question, subnet
from tests.helpers import run
from tests.served import Served

NAME = "video.example.com"
ITEM = {"name": NAME, "content": "page", "fallback": ["192.0.2.9", "2001:db8::9"]}
USERS = [subnet(f"10.1.{n}.0", 24) for n in range(40)]


class Command:
    """`qoetap dns` in a process of its own, until it is told to end."""

    def __init__(self, *words):
        command = [sys.executable, "-m", "qoetap", "dns", *map(str, words)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said = [self.process.stderr.readline()]
        self.ports = [int(port) for port in re.findall(r":(\d+)[,;]", self.said[0])]

    def hear(self):
        self.said.append(self.process.stderr.readline())
        return self.said[-1]

    def end(self, number=signal.SIGTERM):
        """(status, all it said)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        rest = self.process.communicate(timeout=WAIT_seconds)[1]
        return self.process.returncode, "".join(self.said) + rest


class Stub(BaseHTTPRequestHandler):
    """A service that answers /v1/select with what its server holds: (status, body), after `wait` is set."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.server.wait.wait()
        status, body = self.server.answer
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.daemon_threads = True
    server.asked, server.wait, server.answer = [], threading.Event(), (200, {"addresses": ["192.0.2.1", "2001:db8::1"]})
    server.wait.set()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.wait.set()
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def dns(folder, service, listen=("127.0.0.1:0",), **section):
    """(address, Command) of a running server."""
    path = folder / "dns.yaml"
    path.write_text(yaml.safe_dump({"dns": {"names": [ITEM], "listen": list(listen), "service": service, **section}}))
    running = Command("-c", path)
    try:
        yield [(address.rpartition(":")[0].strip("[]"), port) for address, port in zip(listen, running.ports)], running
    finally:
        running.end(signal.SIGKILL)


def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


def counts(sentence):
    """{title: {name: count}} of the last line."""
    found = {}
    for title, listed in re.findall(r"(queries|replies|addresses from|dropped):? \(?([^);\n]*)", sentence):
        found[title] = {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", listed)}
    return found


def test_over_udp_and_tcp_ipv4_and_ipv6(tmp_path, stub):
    with dns(tmp_path, url(stub), ("127.0.0.1:0", "[::1]:0")) as (places, running):
        for where in places:
            for tcp in (False, True):
                got = ask(where, question(ecs=USERS[7]), tcp)
                assert addresses(got) == ["192.0.2.1"] and ecs_of(got) == (24, 24)
        assert addresses(ask(places[0], question(kind="AAAA"))) == ["2001:db8::1"]
        assert ask(places[0], question("other.example")).header.rcode == 5
        assert ask(places[0], b"\0\1\1\0\0\1" + b"\0" * 6).header.rcode == 1
        status, said = running.end()
    assert status == 0 and "7 queries (2 TCP, 5 UDP)" in said
    assert counts(said)["replies"] == {"NOERROR": 5, "REFUSED": 1, "FORMERR": 1}
    assert stub.asked[0] == ("/v1/select?client=10.1.7.0%2F24&content=page", None)


def test_a_connection_carries_queries_in_pieces_and_many(tmp_path, stub):
    with dns(tmp_path, url(stub)) as (((where),), running):
        packets = [question(id=n).pack() for n in range(50)]
        assert [reply[:2] for reply in over_tcp(where, *packets)] == [packet[:2] for packet in packets]
        with socket.create_connection(where, WAIT_seconds) as sock, sock.makefile("rb") as file:
            for byte in len(packets[3]).to_bytes(2) + packets[3]:
                sock.sendall(bytes([byte]))
            assert framed(file)[:2] == packets[3][:2]
            sock.sendall(b"\xff\xff" + b"x" * 100)  # longer than any query
            assert framed(file) == b""
        for garbage in (b"\0\0", b"\0\5abcde", b"\1"):
            with socket.create_connection(where, WAIT_seconds) as sock, sock.makefile("rb") as file:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                assert framed(file) == b""
        assert len(over_tcp(where, packets[0])[0]) > 12
        said = running.end()[1]
    assert counts(said)["dropped"] == {"short": 3} and counts(said)["replies"] == {"NOERROR": 52}


def test_connections_are_bounded(tmp_path, stub):
    with dns(tmp_path, url(stub)) as (((where),), _), contextlib.ExitStack() as stack:
        open_ones = [
            stack.enter_context(socket.create_connection(where, WAIT_seconds))
            for _ in range(dnsserver.CONNECTIONS_OF_ONE_MAX)
        ]
        packet = question().pack()
        for sock in open_ones:
            sock.sendall(len(packet).to_bytes(2) + packet)
            assert len(framed(stack.enter_context(sock.makefile("rb")))) > 12
        with socket.create_connection(where, WAIT_seconds) as sock:
            assert sock.recv(1) == b""
        assert addresses(ask(where, question())) == ["192.0.2.1"]


def test_the_service_is_told_the_token_over_a_connection_that_is_kept(stub):
    client = SelectClient(url(stub) + "/below/", WAIT_seconds, "secret")
    assert [asyncio.run(client.ask("10.1.2.0/24", "file")) for _ in range(3)] == [("192.0.2.1", "2001:db8::1")] * 3
    assert stub.asked == [("/below/v1/select?client=10.1.2.0%2F24&content=file", "Bearer secret")] * 3
    client.close()


@pytest.mark.parametrize(
    "answer",
    [(500, {}), (429, {}), (200, b"no JSON"), (200, b"\xff"), (200, {}), (200, {"addresses": []}),
     (200, {"addresses": ["abc"]}), (200, {"addresses": 7}), (200, [])],
)  # fmt: skip
def test_what_the_service_may_not_answer(stub, answer):
    stub.answer = answer
    client = SelectClient(url(stub), WAIT_seconds)
    with pytest.raises(NoAnswer):
        asyncio.run(client.ask("10.1.2.0/24", "page"))
    stub.answer = (404, {"detail": "no aggregation point"})
    assert asyncio.run(client.ask("10.1.2.0/24", "page")) is None
    client.close()


def test_a_service_that_hangs_holds_nobody_up(tmp_path, stub):
    """Each query is answered; those whose name needs no service are not even late."""
    stub.wait.clear()
    with dns(tmp_path, url(stub), timeout="100ms") as (((where),), running):
        for user in USERS:
            assert addresses(ask(where, question(ecs=user))) == ["192.0.2.9"]
        assert len(stub.asked) < len(USERS)
        said = running.end()[1]
    assert counts(said)["addresses from"] == {"fallback": len(USERS)}


def test_hup_takes_names_over_and_a_bad_file_changes_nothing(tmp_path, stub, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.ExitStack() as stack:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_seconds)
        ((where,), running) = stack.enter_context(dns(tmp_path, url(stub)))
        path = tmp_path / "dns.yaml"
        changed = yaml.safe_load(path.read_text())
        changed["dns"] |= {"names": [{**ITEM, "name": "new.example"}], "ttl": "9s", "timeout": "1s"}
        path.write_text(yaml.safe_dump(changed))
        running.process.send_signal(signal.SIGHUP)
        assert "reload: done; what takes a restart stays as it was: dns.timeout" in running.hear()
        assert ask(where, question()).header.rcode == 5 and ask(where, question("new.example")).rr[0].ttl == 9
        path.write_text("dns: {names: 7}")
        running.process.send_signal(signal.SIGHUP)
        assert "must be a list" in running.hear() and "going on as before" in running.said[-1]
        assert addresses(ask(where, question("new.example"))) == ["192.0.2.1"]
        running.end()
        told = []
        while "STOPPING" not in told:
            told.append(manager.recv(4096).decode().partition("=")[0])
    assert [word for word in told if word != "STATUS"] == ["READY", *("RELOADING", "READY") * 2, "STOPPING"]


def asked_at_term(where, stub, running, then=lambda: None):
    """The addresses in the answer to a question that waits for the service when TERM comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_seconds)
        sock.connect(where)
        sock.send(question().pack())
        until(lambda: stub.asked)
        running.process.send_signal(signal.SIGTERM)
        then()
        return addresses(DNSRecord.parse(sock.recv(512)))


def test_term_answers_what_waits(tmp_path, stub):
    stub.wait.clear()
    with dns(tmp_path, url(stub), timeout="20s") as (((where),), running):
        assert asked_at_term(where, stub, running, stub.wait.set) == ["192.0.2.1"]
        assert running.process.wait(WAIT_seconds) == 0


def test_term_ends_it_while_the_service_hangs(tmp_path, stub):
    """Who waits is answered without it, and no thread that asks it holds the end up."""
    stub.wait.clear()
    with dns(tmp_path, url(stub), timeout="10m") as (((where),), running):
        assert asked_at_term(where, stub, running) == ["192.0.2.9"]
        assert running.process.wait(WAIT_seconds) == 0


# --- with the real service


@contextlib.contextmanager
def serving(folder, port=0):
    """The load service for two data centres, each at the end of a path."""
    path = folder / "serve.yaml"
    centres = [
        {"name": name, "addresses": [address], "paths": {"north": f"p{name}"}}
        for name, address in (("a", "192.0.2.1"), ("b", "192.0.2.2"))
    ]
    paths = [{"name": f"p{name}", "agent": f"tap-{name}", "master_clock": name * 16} for name in "ab"]
    aggregations = [{"name": "north", "prefixes": ["10.1.0.0/16"]}]
    serve = {"interval": "1s", "data_centres": centres, "aggregations": aggregations, "paths": paths}
    path.write_text(yaml.safe_dump({"serve": serve}))
    with Served(folder, "-c", path, "--listen", f"127.0.0.1:{port}") as running:
        yield running


def delays(served, **ns):
    """Post a delay of now for paths."""
    now_ns = time.time_ns()
    served.ask("/v1/delay", [{"path": path, "ts_ns": now_ns, "delay_ns": delay} for path, delay in ns.items()])


def where_to(where, users=USERS):
    """Counter of the addresses that users are sent to."""
    return Counter(addresses(ask(where, question(ecs=user)))[0] for user in users)


def until(condition):
    """What the condition returns once it is true."""
    deadline = time.monotonic() + WAIT_seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)
    return found


def test_users_follow_the_load_and_a_killed_service_takes_no_answer_away(tmp_path):
    """Two data centres: the loaded one loses its users. Then kill -9: every query is answered all the same."""
    model = load.to_document(load.Model(36100.0, 6.218, 0.2, 0.95, w=0.0, interval_s=1.0))
    quiet, busy = 233153, 2804254  # loads of 0.3 and 0.7
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving(tmp_path))
        ((where,), running) = stack.enter_context(dns(tmp_path, served.url, timeout="2s"))
        for path in ("pa", "pb"):
            served.ask(f"/v1/models/{path}", model, "PUT")
        delays(served, pa=quiet, pb=quiet)
        both = until(lambda: len(found := where_to(where)) == 2 and found)
        assert set(both) == {"192.0.2.1", "192.0.2.2"}
        delays(served, pa=busy, pb=quiet)
        until(lambda: where_to(where) == {"192.0.2.2": len(USERS)} or delays(served, pa=busy, pb=quiet))
        served.process.kill()
        served.process.wait()
        assert where_to(where) == {"192.0.2.2": len(USERS)}  # the last good answers
        assert where_to(where, [subnet(f"10.1.{n}.0", 24) for n in range(100, 140)]) == {"192.0.2.9": 40}
        stack.enter_context(serving(tmp_path, served.url.rpartition(":")[2]))
        until(lambda: "192.0.2.9" not in where_to(where, [subnet("10.1.200.0", 24)]))
        assert where_to(where) == {"192.0.2.2": len(USERS)}  # chosen before the restart, and kept
        status, said = running.end()
    found = counts(said)
    assert status == 0 and found["dropped"] == {}
    assert sum(found["replies"].values()) == sum(found["queries"].values()) == sum(found["addresses from"].values())


# --- at the door


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, "dns.names: give the names that are to be answered"),
        (["--listen", "127.0.0.1"], 2, "dns.listen: '127.0.0.1' is no address, write it as 127.0.0.1:5300"),
        (["--set", "dns.listen=[]"], 2, "dns.listen: give an address, such as 127.0.0.1:5300"),
        (["--service", "ftp://127.0.0.1"], 2, "'ftp://127.0.0.1' is no address of a service"),
        (["--service", "http://127.0.0.1:99999"], 2, "is no address of a service, write it as http://127.0.0.1:9470"),
        (["--service", "http://192.0.2.1:9470"], 2, "a token is only sent over https, or to loopback"),
        (["--listen", "192.0.2.77:0"], 2, "dns.listen: cannot listen on 192.0.2.77:0"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, status, sentence, monkeypatch):
    monkeypatch.setenv("QOETAP_SERVE_TOKEN", "secret")
    names = ["--set", f"dns.names=[{{name: {NAME}, fallback: [192.0.2.9]}}]"] if words else []
    ended = run("dns", *names, *words)
    assert ended.status == status and sentence in ended.err and ended.err.count("\n") == 1

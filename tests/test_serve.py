"""`qoetap serve` as a process: kill and restart, signals, live loads, what stops it from starting."""

import http.client
import json
import os
import signal
import socket
import sqlite3
import time

import pytest

from bench import control
from controlplane.database import Busy
from controlplane.load import to_document
from controlplane.store import MIGRATIONS, Store
from qoetap import control_parsers, serve
from qoetap.exits import USAGE
from tests.helpers import run
from tests.load_events import MASTER, MODEL, SECOND, event, lines, serving
from tests.served import Served

WAIT_seconds = 30


def until(condition):
    """Wait until it holds, or fail; what it was."""
    deadline = time.monotonic() + WAIT_seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def events(count, request_id=0):
    now = time.time_ns()
    return lines(*(event(now - at * SECOND, request_id=request_id + at) for at in range(count)))


def post(served, body):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=WAIT_seconds)
    connection.request("POST", "/v1/events", body, {"Content-Type": "application/x-ndjson"})
    return json.load(connection.getresponse())


def test_nothing_acknowledged_is_lost_and_nothing_counts_twice(tmp_path):
    """Agents post while the service is killed amid a post, and started again."""
    asked = ("--agents", "8", "--events", "400", "--seconds", "1", "--kills", "2", "--after", "0.2")
    assert control.main([*asked, "-o", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    end = found["end"]
    assert end["made"] == end["stored"] == end["counted"] >= 400 and end["resent"] >= 2
    assert [kill["missing"] for kill in found["kills"]] == [0, 0]
    for when, kill in enumerate(found["kills"], 1):
        assert (
            f"| after kill {when} | {kill['acked']:,} | {kill['stored']:,} | 0 | 0 |"
            in (tmp_path / "results.md").read_text()
        )


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The service manager's end of sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(WAIT_seconds)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def heard(manager, wanted):
    """Read what the manager is told until it is told this."""
    while not manager.recv(4096).decode().startswith(wanted):
        pass
    return True


def write_config(path, *named, model=None, **serve):
    paths = [{"name": name, "agent": "tap", "master_clock": MASTER, "domain": at} for at, name in enumerate(named)]
    if model:
        paths[0]["model"] = str(model)
    path.write_text(json.dumps({"serve": {"paths": paths, **serve}}))


def test_a_life_with_signals(tmp_path, manager):
    """Ready, fed by standard input and HTTP, listened to, reloaded, ended in order."""
    config, model = tmp_path / "site.yaml", tmp_path / "model.json"
    write_config(config, "north")
    model.write_text(json.dumps(to_document(MODEL)))
    with Served(tmp_path, "-c", config, "-r", "-", stdin=events(3)) as served:
        assert heard(manager, "READY=1")
        until(lambda: served.ask("/healthz")["samples"] == 3)
        assert post(served, events(2, 50))["accepted"] == 2
        assert served.ask("/v1/load?path=north")["reason"] == "no_model"
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=WAIT_seconds)
        connection.request("GET", "/v1/load/stream?path=north")
        stream = connection.getresponse()
        assert stream.getheader("content-type").startswith("text/event-stream")
        assert streamed(stream)["samples"] == 5

        write_config(config, "north", "south", model=model, body="1MiB")
        served.process.send_signal(signal.SIGHUP)
        assert heard(manager, "RELOADING=1") and heard(manager, "READY=1")
        assert streamed(stream)["model"]["version"] == 1
        assert [reading["path"] for reading in served.ask("/v1/paths")] == ["north", "south"]
        assert "what takes a restart stays as it was: body" in served.log.read_text()

        model.write_text("{}")
        served.process.send_signal(signal.SIGHUP)
        until(lambda: "this is no load model" in served.log.read_text())
        assert "going on as before" in served.log.read_text()
        assert post(served, events(1, 100))["accepted"] == 1 and served.ask("/v1/load?path=north")["class"] == "normal"

        served.process.send_signal(signal.SIGTERM)
        assert heard(manager, "STOPPING=1") and served.process.wait(WAIT_seconds) == 0
        stream.read()  # was ended in order
    assert not os.path.exists(tmp_path / "state.sqlite-wal")
    assert "Traceback" not in served.log.read_text()


def streamed(stream):
    """The next reading of a stream."""
    while not (line := stream.readline()).startswith(b"data: "):
        assert line, "the stream ended"
    return json.loads(line.removeprefix(b"data: "))


def newer(path):
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()


def of_another_version(path):
    """A state file with a model that this program does not read."""
    with serving(path) as found:
        document = {**to_document(MODEL), "version": 7}
        found.store.submit(lambda: (found.store.add_model("north", document, 1), lambda: None)[1]).result(WAIT_seconds)


def without_page_loads(path):
    """A state file that lacks a table."""
    store = Store(path)
    store.submit(lambda: (store.writing.execute("DROP TABLE page_loads"), lambda: None)[1]).result(WAIT_seconds)
    store.close()


def refuses(*words):
    """The one sentence with which `qoetap serve` does not start."""
    ended = run("serve", *words)
    assert ended.status == USAGE and ended.err.startswith("qoetap: ") and ended.err.count("\n") == 1, ended
    return ended.err


def test_what_keeps_it_from_starting(tmp_path, monkeypatch):
    state, model = tmp_path / "state", tmp_path / "model.json"
    newer(state)
    any_port = ("--listen", "127.0.0.1:0", "--state")
    assert "update it, or name another file" in refuses(*any_port, state)
    assert "cannot be opened" in refuses(*any_port, tmp_path / "nowhere" / "state")
    of_another_version(tmp_path / "other")
    assert "model 1 of north: the model is of version 7" in refuses(*any_port, tmp_path / "other")
    without_page_loads(tmp_path / "torn")
    assert "cannot be read (no such table: page_loads)" in refuses(*any_port, tmp_path / "torn")
    store = Store(tmp_path / "mine")
    assert "another process has it in use" in refuses(*any_port, tmp_path / "mine")
    store.close()
    assert "is no address" in refuses("--listen", "nonsense")
    assert "needs a token" in refuses("--listen", "0.0.0.0:9470")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on" in refuses("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "cannot be read" in refuses("--model", model)
    for text, said in (("{", "is no JSON"), ("{}", "no load model"), ("[" * 100_000, "serve.model")):
        model.write_text(text)
        assert said in refuses("--model", model)
    model.write_text(json.dumps({**to_document(MODEL), "version": 7}))
    assert "version 7" in refuses("--model", model)
    monkeypatch.setenv("QOETAP_SERVE_TOKEN_FILE", str(tmp_path / "nowhere"))
    assert "QOETAP_SERVE_TOKEN_FILE" in refuses(*any_port, tmp_path / "fresh")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"name": "north"}, "serve.paths: two have the same name"),
        ({"domain": 0}, "serve.paths: two have the same agent, master_clock and domain"),
        ({"master_clock": "xyz"}, "16 hexadecimal digits"),
        ({"model": "/nowhere/model.json"}, "serve.paths: south: /nowhere/model.json cannot be read"),
        ({"intervall": "4s"}, "did you mean"),
    ],
)
def test_paths_that_cannot_be(tmp_path, change, said):
    config = tmp_path / "site.yaml"
    write_config(config, "north", "south")
    values = json.loads(config.read_text())
    values["serve"]["paths"][1] |= change
    config.write_text(json.dumps(values))
    assert said in refuses("-c", config, "--state", tmp_path / "state", "--listen", "127.0.0.1:0")


@pytest.fixture
def running(tmp_path):
    """A Serve in this process, whose configuration is in site.yaml."""
    config = tmp_path / "site.yaml"
    write_config(config, "north")
    words = ("-c", str(config), "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    args = control_parsers.serve().parse_args(words)
    made = serve.Serve(args, serve.settings_of(args))
    yield made
    made.end()


def test_who_sends_no_request_is_cut_off(running, monkeypatch):
    """At once, after the beginning of one, and after an answer; who waits for an answer is not."""
    monkeypatch.setattr(serve, "KEEP_ALIVE_seconds", 1.0)
    where, head = running.server.listener.getsockname(), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    listening = socket.create_connection(where, WAIT_seconds)
    listening.sendall(b"GET /v1/load/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for sent in (b"", head, head + b"\r\n" + head):
        with socket.create_connection(where, WAIT_seconds) as client:
            client.sendall(sent)
            answers = b"".join(iter(lambda: client.recv(4096), b""))
        assert answers.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")
    with listening:
        assert running.streams.listeners == 1


def test_a_queue_that_is_full_ends_nothing(running, tmp_path, monkeypatch, capsys):
    """Neither what is done each second nor a reload, which then changes nothing."""

    def busy(*_):
        raise Busy("200000 rows wait to be written")

    model = tmp_path / "model.json"
    model.write_text(json.dumps(to_document(MODEL)))
    write_config(tmp_path / "site.yaml", "north", "south", model=model, keep="1d")
    before = running.service.settings
    with monkeypatch.context() as patch:
        patch.setattr(running.store, "submit", busy)
        running.tidied -= serve.TIDY_seconds
        running._look()
        running.reload()
    assert "reload: 200000 rows wait to be written; going on as before" in capsys.readouterr().err
    assert running.service.settings is before and list(running.service.known) == ["north"]
    running.reload()
    assert list(running.service.known) == ["north", "south"] and running.service.in_force("north").version == 1

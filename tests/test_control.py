"""The control API over real connections, with a main loop in a thread of its own."""

import http.client
import json
import os
import socket
import stat
import threading
import time
from contextlib import closing
from typing import NamedTuple

import pytest

from bench.inline_parts import UnixConnection
from dataplane.pacing import new_classes
from qoetap import control, serving
from qoetap.control import Control, Desk, read_token
from qoetap.exits import USAGE, Exit
from qoetap.rates import Rates, Refused

JSON = {"Content-Type": "application/json"}
NAMES = ["default", "web", "bulk", "free"]


class Plane:
    """A main loop's side: what was applied is kept."""

    def __init__(self, names=NAMES):
        self.names, self.applied, self.clock = names, [], 0
        self.rates = Rates(dict.fromkeys(names[1:], 1000), 30 * 10**9)
        self.classes = new_classes(len(names))

    def now(self):
        return self.clock

    def rows(self):
        return self.classes.copy()

    def status(self):
        return {"healthy": True}

    def apply(self, changes, cause):
        self.applied.append((cause, changes))


class Loop:
    """Serves a desk until it is closed."""

    def __init__(self, desk, plane):
        self.desk, self.plane, self.ended = desk, plane, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.ended.wait(0.002):
            self.desk.serve(self.plane)

    def close(self):
        self.ended.set()
        self.thread.join()


class Answer(NamedTuple):
    status: int
    body: object
    headers: dict


def ask(api, path, method="GET", body=None, headers=JSON):
    """What the API answers; a body that is no text is sent as JSON."""
    text = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
    if api.address.startswith("unix:"):
        connection = UnixConnection(api.address.removeprefix("unix:"))
        headers = {"Host": "localhost", **headers}
    else:
        connection = http.client.HTTPConnection(api.address, timeout=10)
    with closing(connection):
        connection.request(method, path, text, headers)
        reply = connection.getresponse()
        found = reply.read()
        return Answer(reply.status, json.loads(found) if found else None, reply.headers)


def problem(answer, status):
    """The sentence of a problem."""
    assert answer.status == status == answer.body["status"]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["type"] == "about:blank" and answer.body["title"]
    assert "\n" not in answer.body["detail"] and answer.body["detail"]
    return answer.body["detail"]


@pytest.fixture
def start():
    """Starts an API with its main loop, and ends both."""
    started = []

    def make(address="127.0.0.1:0", token=None, plane=None):
        desk = Desk()
        api = Control(address, desk, token)
        loop = Loop(desk, plane or Plane())
        started.extend((api, loop))
        return api, loop.plane

    yield make
    for one in started:
        one.close()


@pytest.fixture
def alone():
    """An API whose main loop never answers."""
    desk = Desk(seconds=0.05)
    api = Control("127.0.0.1:0", desk)
    yield api, desk
    api.close()


def test_classes_are_told_with_their_counters(start):
    api, plane = start()
    plane.classes["packets"][2], plane.classes["over_time"][2] = 70, 7
    plane.rates.replace(control.table_of({"version": 1, "rates": {"bulk": 50}}), 0)
    found = ask(api, "/v1/classes").body["classes"]
    assert [c["name"] for c in found] == NAMES
    assert [c["rate"] for c in found] == [None, 1000, 50, 1000]
    assert [c["source"] for c in found] == ["file", "file", "table", "file"]
    assert ask(api, "/v1/classes/bulk").body == found[2]
    assert (found[2]["packets"], found[2]["over_time"], found[2]["held"]) == (70, 7, 0)
    assert "did you mean bulk?" in problem(ask(api, "/v1/classes/blk"), 404)


def test_a_table_is_set_at_one_instant(start):
    api, plane = start()
    plane.clock = 10**9
    body = {"version": 4, "lease_s": 2.5, "rates": {"web": "2kbit", "bulk": 7}}
    assert ask(api, "/v1/rates", "PUT", body).body == {"version": 4, "lease_left_s": 2.5, "changed": 2}
    assert plane.applied == [("table", [("web", 1000, 2000), ("bulk", 1000, 7)])]
    assert ask(api, "/v1/rates").body == {"version": 4, "lease_left_s": 2.5, "rates": {"web": 2000, "bulk": 7}}
    assert ask(api, "/v1/status").body == {"healthy": True, "rates": ask(api, "/v1/rates").body}


def test_one_rate_is_set(start):
    api, plane = start()
    assert ask(api, "/v1/classes/web/rate", "PUT", {"rate": "3Mbit"}).body["changed"] == 1
    assert plane.applied == [("one", [("web", 1000, 3_000_000)])]
    assert "there is no class 'wbe'" in problem(ask(api, "/v1/classes/wbe/rate", "PUT", {"rate": 1}), 404)
    assert "default has no rate" in problem(ask(api, "/v1/classes/default/rate", "PUT", {"rate": 1}), 422)
    assert "GET is not for this" in problem(ask(api, "/v1/classes/web/rate"), 405)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("", 400, "no JSON"),
        ("{", 400, "no JSON"),
        (b"\xff", 400, "no JSON"),
        ("[" * 100_000, 400, "no JSON"),
        ('{"version": NaN, "rates": {}}', 400, "NaN is no number"),
        ('{"version": 2, "rates": {"web": 1, "web": 2}}', 400, "web stands there twice"),
        ([], 422, "must be an object with version, lease_s, rates"),
        ({"rates": {}}, 422, "version is missing"),
        ({"version": 2, "rates": {"web": 0}}, 422, "rate of web: a rate is at least 1bit"),
        ({"version": 2, "rates": {"web": -1}}, 422, "rate of web"),
        ({"version": 2, "rates": {"web": 5, "nobody": 1}}, 422, "there is no class 'nobody'"),
        ({"version": 2, "rates": {"default": 5}}, 422, "there is no class 'default'"),
        ({"version": 1, "rates": {}}, 409, "version 1 is not above 1"),
    ],
)
def test_what_is_wrong_changes_nothing(start, body, status, sentence):
    api, plane = start()
    ask(api, "/v1/rates", "PUT", {"version": 1, "rates": {"web": 9}})
    assert sentence in problem(ask(api, "/v1/rates", "PUT", body), status)
    assert len(plane.applied) == 1 and plane.rates.of("web") == 9


def test_a_conflict_tells_the_version(start):
    api, _ = start()
    ask(api, "/v1/rates", "PUT", {"version": 41, "rates": {}})
    assert ask(api, "/v1/rates", "PUT", {"version": 3, "rates": {}}).body["version"] == 41


def test_other_requests(start):
    api, _ = start()
    for path in ("/", "/v1", "/v1/classes/", "/v1/classes/web/rate/x", "/v2/rates"):
        problem(ask(api, path), 404)
    refused = ask(api, "/v1/rates", "DELETE")
    assert problem(refused, 405) and refused.headers["Allow"] == "GET, PUT"
    problem(ask(api, "/v1/rates", "BREW"), 501)
    head = ask(api, "/v1/status", "HEAD")
    assert head.status == 200 and head.body is None and int(head.headers["Content-Length"]) > 10
    assert ask(api, "/v1/status?x=1").status == 200


def test_bodies_are_bounded(start):
    api, _ = start()
    assert "at most 1048576 bytes" in problem(ask(api, "/v1/rates", "PUT", "x" * (control.BODY_MAX_bytes + 1)), 413)
    problem(ask(api, "/v1/rates", "PUT", None, {**JSON, "Content-Length": "-1"}), 400)
    problem(ask(api, "/v1/rates", "PUT", None, {**JSON, "Transfer-Encoding": "chunked"}), 411)


def test_a_page_in_a_browser_cannot_ask(start):
    api, plane = start()
    body = json.dumps({"version": 1, "rates": {}})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        problem(ask(api, "/v1/rates", "PUT", body, {"Content-Type": kind}), 415)
    for host in ("evil.example", "evil.example:9465", "127.0.0.1.evil.example"):
        assert "by its address" in problem(ask(api, "/v1/status", headers={"Host": host}), 403)
    for host in ("localhost:9465", "LOCALHOST", "127.0.0.1", "[::1]:9465", "[::1]"):
        assert ask(api, "/v1/status", headers={"Host": host}).status == 200
    assert not plane.applied


def test_a_token_is_asked_for(start):
    api, _ = start(token="s3cret")
    refused = ask(api, "/v1/status")
    assert problem(refused, 401) and refused.headers["WWW-Authenticate"] == "Bearer"
    assert ask(api, "/v1/status", headers={"Authorization": "Bearer s3cret", "Host": "tap.example"}).status == 200


def test_a_unix_socket_is_for_its_user_alone(start, tmp_path):
    path = tmp_path / "control"
    api, _ = start(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_ISSOCK(path.stat().st_mode)
    assert api.address == f"unix:{path}" and ask(api, "/v1/status").status == 200
    assert ask(api, "/v1/rates", "PUT", {"version": 1, "rates": {"web": 5}}).body["changed"] == 1
    with pytest.raises(Exit, match="in use by another process"):
        Control(f"unix:{path}", Desk())
    assert ask(api, "/v1/status").status == 200
    api.close()
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_taken_over(start, tmp_path):
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert ask(start(f"unix:{path}")[0], "/v1/status").status == 200


def test_a_path_of_another_is_not_removed(tmp_path):
    path = tmp_path / "control"
    path.write_text("precious")
    with pytest.raises(Exit, match="is no socket"):
        Control(f"unix:{path}", Desk())
    assert path.read_text() == "precious"
    path.unlink()
    api = Control(f"unix:{path}", Desk())
    os.rename(path, tmp_path / "moved")
    path.write_text("another's")
    api.close()
    assert path.read_text() == "another's"


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("9465", "write it as 127.0.0.1:9465"),
        ("0.0.0.0:9465", "needs a token: set QOETAP_TOKEN or QOETAP_TOKEN_FILE"),
        ("unix:", "is no socket, write unix: and a path"),
        ("unix:/" + "x" * 107, "is no socket"),
        ("unix:/no/such/folder/control", "cannot listen on"),
    ],
)
def test_an_address_that_will_not_do(address, what):
    with pytest.raises(Exit, match=what) as told:
        Control(address, Desk())
    assert told.value.status == USAGE and str(told.value).startswith("inline.control: ")


def test_where_the_token_is_from():
    assert read_token({}) is None and read_token({"QOETAP_TOKEN": "x"}) == "x"
    with pytest.raises(Exit, match="QOETAP_TOKEN_FILE"):
        read_token({"QOETAP_TOKEN": "x", "QOETAP_TOKEN_FILE": "/y"})


def test_a_call_that_was_refused_is_never_done(alone):
    api, desk = alone
    assert "nothing was changed" in problem(ask(api, "/v1/rates", "PUT", {"version": 1, "rates": {"web": 1}}), 503)
    plane = Plane()
    desk.serve(plane)
    assert plane.applied == [] and plane.rates.version == 0


def test_a_call_that_has_been_begun_is_waited_for():
    desk, plane, answers = Desk(seconds=0.2), Plane(), []

    def slow(_):
        time.sleep(0.3)
        return "done"

    asking = threading.Thread(target=lambda: answers.append(desk.ask(slow)))
    asking.start()
    while not answers and asking.is_alive():
        desk.serve(plane)
        time.sleep(0.01)
    asking.join()
    assert answers == ["done"]


def test_a_call_that_fails_ends_nothing(start):
    plane = Plane()
    plane.status = lambda: 1 / 0
    api, _ = start(plane=plane)
    assert "ZeroDivisionError" in problem(ask(api, "/v1/status"), 500)
    assert ask(api, "/v1/rates").status == 200


def test_refusals_come_through_the_desk():
    desk, plane = Desk(), Plane()
    loop = Loop(desk, plane)
    with pytest.raises(Refused, match="above 0"):
        desk.ask(control.put_table(control.table_of({"version": 1, "rates": {}})._replace(version=0)))
    loop.close()


def test_a_thousand_rates_take_the_main_loop_little_time():
    """No more than the 50 ms that a table of 1000 classes may take, of CPU."""
    names = ["default", *(f"app-{i}" for i in range(1000))]
    plane = Plane(names)
    table = control.table_of({"version": 1, "rates": {name: i + 1 for i, name in enumerate(names[1:])}})
    started = time.thread_time()
    control.put_table(table)(plane)
    assert time.thread_time() - started < 0.05
    assert len(plane.applied[0][1]) == 999  # one has that rate already


def test_many_clients_at_once(start):
    api, plane = start()
    statuses = []

    def client(i):
        statuses.append(ask(api, f"/v1/classes/{NAMES[1 + i % 3]}/rate", "PUT", {"rate": i + 1}).status)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(serving.CONNECTIONS_MAX)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * len(threads) == [200] * len(plane.applied)

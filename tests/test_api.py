"""The HTTP API in this process: what it answers, what it refuses and how, its bounds."""

import asyncio
import gzip
import json
from functools import partialmethod

import httpx
import pytest

from controlplane import api, guard, limits, metrics, streams
from controlplane.database import Busy
from controlplane.limits import Buckets, TooLarge, gunzip
from controlplane.load import to_document
from tests.load_events import MASTER, MODEL, NOW, PATH, SETTINGS, event, lines, series, serving

NDJSON = {"Content-Type": "application/x-ndjson"}
PACKED = {**NDJSON, "Content-Encoding": "gzip"}
JSON = {"Content-Type": "application/json"}
DOCUMENT = json.dumps(to_document(MODEL))


@pytest.fixture
def service(tmp_path):
    with serving(tmp_path / "state") as found:
        yield found


class Client:
    """Asks an API on `service` with these routers and Limits, whose time stands still."""

    def __init__(self, service, routers=(), **changes):
        limits = api.Limits()._replace(**changes)
        self.app, self.streams = api.make(service, limits, routers=routers, clock=lambda: NOW)

    def request(self, method, url, **sent):
        return asyncio.run(self._request(method, url, **sent))

    get, post, put = partialmethod(request, "GET"), partialmethod(request, "POST"), partialmethod(request, "PUT")

    async def _request(self, method, url, content=None, **sent):
        if isinstance(content, list):
            content = _chunks(content)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking:
            return await asking.request(method, url, content=content, **sent)


async def _chunks(parts):
    for part in parts:
        yield part


@pytest.fixture
def client(service):
    return Client(service)


def refused(answer, status, detail=""):
    """Whether it is a problem of RFC 9457 with this status, and a sentence that has `detail`."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == problem["status"] == status, problem
    assert problem["type"] == "about:blank" and problem["title"] and detail in problem["detail"], problem
    return True


def test_events_are_taken_packed_or_not(client):
    body = lines(*series(3), {"event_type": "flow.end"}) + b"nonsense\n"
    wanted = {"accepted": 3, "duplicates": 0, "late": 0, "ignored": 1, "rejected": {"bad_json": 1}}
    assert client.post("/v1/events", content=gzip.compress(body), headers=PACKED).json() == wanted
    again = client.post("/v1/events", content=body, headers=NDJSON).json()
    assert again == {**wanted, "accepted": 0, "duplicates": 3}
    halves = gzip.compress(lines(event(request_id=8))) + gzip.compress(lines(event(request_id=9)))
    assert client.post("/v1/events", content=halves, headers=PACKED).json()["accepted"] == 2


def test_a_path_from_its_delays_to_its_load(client):
    whose = {"agent_id": "probe", "master_clock": MASTER, "domain": 2}
    first = client.post("/v1/delay", json={**whose, "ts_ns": NOW, "delay_ns": 808_591})
    assert first.json()["accepted"] == 1
    name = f"probe:{MASTER}:2"
    more = [{"path": name, "ts_ns": NOW, "delay_ns": 5, "id": "b"}, {"path": "nix", "ts_ns": NOW, "delay_ns": 5}]
    assert client.post("/v1/delay", json=more).json()["rejected"] == {"unknown_path": 1}
    reading = client.get("/v1/load", params={"path": name}).json()
    assert client.get("/v1/paths").json() == [reading] and reading["samples"] == 2
    assert client.get("/v1/samples", params={"path": name}).json()["samples"] == [[NOW, 808_591], [NOW, 5]]
    assert client.put(f"/v1/models/{name}", content=DOCUMENT, headers=JSON).json() == {"path": name, "version": 1}
    assert client.get(f"/v1/models/{name}").json() == client.get(f"/v1/models/{name}?version=1").json()
    assert client.get("/healthz").json() == {"status": "ok", "paths": 1, "samples": 2}


@pytest.mark.parametrize(
    "method, url, sent, status, detail",
    [
        ("GET", "/v1/load?path=nix", {}, 404, "there is no path 'nix'"),
        ("GET", "/v1/load", {}, 422, "query.path"),
        ("GET", "/v1/load/stream?path=nix", {}, 404, "there is no path"),
        ("GET", "/v1/samples?path=nix", {}, 404, "there is no path"),
        ("GET", f"/v1/samples?path={PATH}&seconds=nan", {}, 422, "seconds"),
        ("GET", f"/v1/samples?path={PATH}&seconds=-1", {}, 422, "seconds"),
        ("GET", f"/v1/models/{PATH}?version=9", {}, 404, "has no model 9"),
        ("GET", f"/v1/models/{PATH}?version=0", {}, 422, "version"),
        ("PUT", "/v1/models/nix", {"content": DOCUMENT, "headers": JSON}, 404, "there is no path"),
        ("PUT", f"/v1/models/{PATH}", {"content": "{}", "headers": JSON}, 422, "no load model"),
        ("PUT", f"/v1/models/{PATH}", {"content": "[]", "headers": JSON}, 422, "body"),
        ("PUT", f"/v1/models/{PATH}", {"content": '{"a": ', "headers": JSON}, 400, "no JSON"),
        ("PUT", f"/v1/models/{PATH}", {"content": "[" * 100_000, "headers": JSON}, 400, ""),
        ("PUT", f"/v1/models/{PATH}", {"content": DOCUMENT}, 415, "application/json"),
        ("PUT", f"/v1/models/{PATH}", {"content": DOCUMENT.replace('"version": 1', '"version": 2'), "headers": JSON},
         422, "version 2"),
        ("PUT", f"/v1/models/{PATH}", {"content": DOCUMENT.replace('"r2": null', f'"r2": -1{"0" * 400}'),
                                       "headers": JSON}, 422, "r2"),
        ("POST", "/v1/events", {"content": b"{}", "headers": JSON}, 415, "application/x-ndjson"),
        ("POST", "/v1/events", {"content": b"{}"}, 415, "application/x-ndjson"),
        ("POST", "/v1/events", {"content": b"{}", "headers": PACKED}, 400, "no gzip data"),
        ("POST", "/v1/events", {"content": gzip.compress(b"{}" * 99)[:-9], "headers": PACKED}, 400, "ends within"),
        ("POST", "/v1/events", {"content": b"", "headers": {**NDJSON, "Content-Encoding": "br"}}, 415, "'br'"),
        ("POST", "/v1/delay", {"json": {"ts_ns": NOW}}, 422, "delay_ns"),
        ("POST", "/v1/delay", {"json": {"ts_ns": 2**70, "delay_ns": 1}}, 422, "ts_ns"),
        ("POST", "/v1/delay", {"json": {"ts_ns": NOW, "delay_ns": 1, "id": "x" * 65}}, 422, "id"),
        ("POST", "/v1/delay", {"content": '{"ts_ns": 1, "delay_ns": 1, "path": "\\ud800"}', "headers": JSON}, 422, ""),
        ("POST", "/v1/delay", {"json": [{}] * 10_001}, 422, ""),
        ("GET", "/nowhere", {}, 404, "/openapi.json"),
        ("DELETE", "/v1/paths", {}, 405, "Allow"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_problem(client, service, method, url, sent, status, detail):
    """And the service goes on."""
    service.take(lines(event()), NOW)
    assert refused(client.request(method, url, **sent), status, detail)
    assert client.get("/v1/load", params={"path": PATH}).json()["class"] == "normal"


def test_the_configuration_gives_a_path_its_model(client, service):
    service.configure(SETTINGS._replace(named={("tap", MASTER, 0): "north"}, models={"north": MODEL}), NOW)
    answer = client.put("/v1/models/north", content=DOCUMENT, headers=JSON)
    assert refused(answer, 409, "the configuration gives the model of path 'north'")


def test_large_bodies_are_refused_packed_or_not(service):
    client = Client(service, body_bytes=1000)
    fits = lines(event())
    assert len(fits) < 1000 and client.post("/v1/events", content=fits, headers=NDJSON).status_code == 200
    bomb = gzip.compress(b"\n" * 100_000)
    assert len(bomb) < 1000
    for body, headers in ((b"\n" * 1001, NDJSON), (b"\n" * 9000, NDJSON), (bomb, PACKED)):
        assert refused(client.post("/v1/events", content=body, headers=headers), 413, "at most 1000 bytes, unpacked")
    assert refused(client.post("/v1/events", content=[b"\n" * 600] * 2, headers=NDJSON), 413)
    assert client.app.coming_bytes == 0


def test_large_bodies_at_a_time_are_bounded(service):
    client = Client(service, body_bytes=1000)
    client.app.coming_bytes = 1000 * guard.BODIES_MAX - 10
    answer = client.post("/v1/events", content=lines(event()), headers=NDJSON)
    assert refused(answer, 503, "too many large bodies") and answer.headers["retry-after"] == "1"
    assert client.app.coming_bytes == 1000 * guard.BODIES_MAX - 10
    client.app.coming_bytes = 0
    assert client.post("/v1/events", content=lines(event()), headers=NDJSON).status_code == 200


def test_unpacking_is_bounded():
    data = b"x" * 1000
    assert gunzip(gzip.compress(data), 1000) == data
    with pytest.raises(TooLarge):
        gunzip(gzip.compress(data), 999)
    with pytest.raises(TooLarge):
        gunzip(gzip.compress(data) * 3, 2500)
    with pytest.raises(ValueError, match="members"):
        gunzip(gzip.compress(b"") * (limits.MEMBERS_MAX + 1), 1000)


def test_a_bucket_for_each_client():
    buckets = Buckets(2)
    assert [buckets.wait_s("a", 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert buckets.wait_s("b", 0.0) == 0
    assert [buckets.wait_s("a", 0.5) for _ in range(2)] == [0, 0.5]
    assert [buckets.wait_s("a", 100.0) for _ in range(3)] == [0, 0, 0.5]
    assert buckets.wait_s("a", 50.0) == 0.5  # a clock that goes back gives nothing


def test_clients_that_are_counted_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "CLIENTS_MAX", 3)
    buckets = Buckets(1)
    assert [buckets.wait_s(client, 0.0) for client in "abca"] == [0, 0, 0, 1]
    assert buckets.wait_s("d", 0.0) == 0 and list(buckets.buckets) == ["c", "a", "d"]


def test_too_many_requests(service):
    client = Client(service, requests=3)
    answers = [client.get("/healthz") for _ in range(5)]
    assert [a.status_code for a in answers[:3]] == [200] * 3
    assert refused(answers[-1], 429, "more than 3 requests in a second") and answers[-1].headers["retry-after"] == "1"


def test_without_a_token_only_names_of_this_host_are_answered(client):
    for host in ("evil.example", "evil.example:9470", "127.0.0.1.evil.example"):
        assert refused(client.get("/v1/paths", headers={"Host": host}), 403, "by its address or localhost")
    for host in ("localhost", "LOCALHOST:9470", "127.0.0.1:9470", "[::1]:9470", "[::1]"):
        assert client.get("/v1/paths", headers={"Host": host}).status_code == 200


def test_a_token_is_asked_for_everywhere(service):
    client = Client(service, token="s3cret")
    for url in ("/v1/paths", "/metrics", "/healthz", "/openapi.json", "/nowhere"):
        answer = client.get(url)
        assert refused(answer, 401, "Authorization: Bearer") and "Bearer" in answer.headers["www-authenticate"]
    for wrong in ("Bearer s3cret2", "Basic czNjcmV0", "Basic !", "Bearer ", "Digest s3cret", "Bearer ü"):
        assert client.get("/v1/paths", headers={"Authorization": wrong.encode()}).status_code == 401
    assert client.get("/v1/paths", headers={"Authorization": "bearer s3cret"}).status_code == 200
    assert client.get("/v1/paths", auth=("anybody", "s3cret")).status_code == 200
    assert client.get("/v1/paths", auth=("s3cret", "")).status_code == 401
    assert client.get("/openapi.json", auth=("a", "s3cret")).json()["security"] == [{"bearer": []}, {"basic": []}]
    foreign = Client(service, token="schlüssel")
    assert foreign.get("/v1/paths", headers={"Authorization": "Bearer schlüssel".encode()}).status_code == 200


def test_every_answer_has_the_headers(client):
    for url in ("/v1/paths", "/nowhere", "/metrics"):
        headers = client.get(url).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_busy_and_broken_state_are_told_to_come_again(client, service, monkeypatch):
    def busy(*_):
        raise Busy("9 rows wait to be written")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "submit", busy)
        answer = client.post("/v1/events", content=lines(event()), headers=NDJSON)
        assert refused(answer, 503, "9 rows wait") and answer.headers["retry-after"] == "1"
    service.store.trouble = "state: cannot be written (database or disk is full)"
    assert refused(client.get("/healthz"), 503, "disk is full")


def test_a_full_disk_is_told_and_nothing_is_counted(client, service):
    (pages,) = service.store.writing.execute("PRAGMA page_count").fetchone()
    service.store.writing.execute(f"PRAGMA max_page_count = {pages}")
    body = lines(*series(5000))
    answer = client.post("/v1/events", content=gzip.compress(body), headers=PACKED)
    assert refused(answer, 503, "full") and answer.headers["retry-after"] == "1"
    assert client.get("/v1/paths").json() == [] and service.counts["accepted"] == 0
    service.store.writing.execute("PRAGMA max_page_count = 1000000")
    assert client.post("/v1/events", content=gzip.compress(body), headers=PACKED).json()["accepted"] == 5000


def test_a_bug_is_a_problem_too(client, service, monkeypatch):
    monkeypatch.setattr(service, "paths", lambda now_ns: 1 / 0)
    assert refused(client.get("/v1/paths"), 500, "ZeroDivisionError")


def test_listeners_are_bounded(client, monkeypatch):
    monkeypatch.setattr(streams, "LISTENERS_MAX", 1)
    client.streams.enter()
    answer = client.get("/v1/load/stream")
    assert refused(answer, 429, "1 listeners already") and "retry-after" in answer.headers


def test_what_listeners_are_sent(service):
    """Readings at once, then those that changed."""
    seen = {}
    service.take(lines(event(), event(agent="b")), NOW)
    first = streams.news(service.paths(NOW), seen)
    assert [reading["path"] for reading in first] == [f"b:{MASTER}:0", PATH]
    assert streams.news(service.paths(NOW + 1), seen) == []  # older, but not stale
    service.take(lines(event(request_id=2)), NOW)
    assert [reading["path"] for reading in streams.news(service.paths(NOW), seen)] == [PATH]
    assert len(streams.news(service.paths(NOW + 3600 * 10**9), seen)) == 2  # stale
    text = streams.event(first[0])
    assert text.startswith("event: load\ndata: {") and text.endswith("}\n\n") and text.count("\n") == 3


def test_metrics_tell_and_are_bounded(client, service, monkeypatch):
    monkeypatch.setattr(metrics, "PATHS_MAX", 2)
    service.take(lines(*(event(agent=f"a{at}") for at in range(5))) + b"{\n", NOW)
    client.get("/v1/load", headers={"Host": "evil.example"})
    text = client.get("/metrics").text
    for line in (
        'qoetap_serve_events_total{result="accepted"} 5.0', 'qoetap_serve_rejected_total{reason="bad_json"} 1.0',
        "qoetap_serve_paths 5.0", "qoetap_serve_refused_total 1.0", "qoetap_serve_state_up 1.0",
        f'qoetap_serve_stale{{path="a0:{MASTER}:0"}} 0.0',
    ):  # fmt: skip
        assert line in text.splitlines(), text
    assert text.count("qoetap_serve_load_ratio{") == 2

"""Page loads in, curves and the data centre of a user out, over the API; what is kept survives a restart."""

import asyncio
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest

from controlplane import choice, selection
from controlplane.centres import PAIRS_MAX, Selection
from controlplane.ingest import given
from controlplane.load import Model
from controlplane.prefixes import PATTERN
from controlplane.service import LoadService, Settings
from controlplane.store import Store
from tests.helpers import run
from tests.test_api import Client

SECOND_ns = 10**9
NOW_ns = 1_700_000_000 * SECOND_ns
NORTH, SOUTH = "10.1.7.0/24", "10.2.7.0/24"


def item(**values):
    return SimpleNamespace(**values)


def site(**values):
    """The section `serve` as far as it counts here: centres a and b for the north, c for the south."""
    links = {"a": {"north": "pa"}, "b": {"north": "pb"}, "c": {"south": "pc"}}
    centres = [
        item(name=name, addresses=[f"192.0.2.{n}", f"2001:db8::{n}"], paths=paths, rtt=10**7, capacity=10**8)
        for n, (name, paths) in enumerate(links.items(), 1)
    ]
    aggregations = [
        item(name="north", prefixes=["10.1.0.0/16", "2001:db8:1::/48"]),
        item(name="south", prefixes=["10.2.0.0/16"]),
    ]
    return item(aggregations=aggregations, data_centres=centres, **{"hysteresis": 0.1, "near": 0.02} | values)


class Paths:
    """Readings that a test sets."""

    def __init__(self):
        self.loads, self.more, self.now_ns, self.blocked = {}, {}, NOW_ns, False

    def reading_of(self, path, _):
        if path not in self.loads:
            return None
        load = self.loads[path]
        kind = "unknown" if load is None else "congested" if load >= 0.95 else "normal"
        told = {"load": load, "class": kind, "delay_ns": 1000, "interval_s": 4.0, "stale": load is None}
        return told | self.more

    def load_at(self, path, _):
        with suppress(RuntimeError):  # no loop runs in this thread, so nobody waits for it
            self.blocked = bool(asyncio.get_running_loop())
        return self.loads.get(path)

    def set(self, seconds=1.0, **loads):
        """Loads from now on, `seconds` later."""
        self.loads.update(loads)
        self.now_ns += int(seconds * SECOND_ns)


@contextmanager
def opened(folder, paths, settings=None):
    """A client of the API, and its Selection."""
    store = Store(str(folder / "state.sqlite"))
    service = LoadService(store, Settings(10**18, 4 * SECOND_ns), NOW_ns)
    chosen = Selection(paths.reading_of, paths.load_at, store, settings or site())
    try:
        yield Client(service, [selection.router(chosen, lambda: paths.now_ns)], requests=10**6), chosen
    finally:
        store.close()


@pytest.fixture
def paths():
    return Paths()


@pytest.fixture
def client(tmp_path, paths):
    with opened(tmp_path, paths) as (made, _):
        yield made


def select(client, user=NORTH, content="page"):
    answer = client.get("/v1/select", params={"client": user, "content": content})
    assert answer.status_code == 200, answer.text
    return answer.json()


def page_loads(count=200, content="page", path="pa", start=0, **more):
    """Measured page loads of a path whose load is given."""
    rng = np.random.default_rng(start)
    loads = rng.random(count)
    return [
        {"path": path, "content": content, "seconds": 0.2 / (1 - min(load, 0.95)), "load": load,
         "ts_ns": NOW_ns + start + n, **more}
        for n, load in enumerate(loads)
    ]  # fmt: skip


def post(client, loads):
    return client.post("/v1/page-loads", json=loads)


def test_the_data_centre_of_a_user(client, paths):
    paths.set(pa=0.8, pb=0.2)
    found = select(client)
    assert (found["data_centre"], found["aggregation"], found["prefix"]) == ("b", "north", "10.1.0.0/16")
    assert found["addresses"] == ["192.0.2.2", "2001:db8::2"]
    assert (found["class"], found["reason"]) == ("normal", choice.BEST)
    assert found["expected_s"] == pytest.approx(0.08 + 0.25)
    told = {one["data_centre"]: (one["load"], one["chosen"]) for one in found["candidates"]}
    assert told == {"a": (0.8, False), "b": (0.2, True)}
    assert select(client, "2001:db8:1:2::/56")["aggregation"] == "north"
    assert select(client, "10.2.0.9")["data_centre"] == "c"


def test_the_interval_of_a_load_counts_where_its_spread_is_known(client, paths):
    paths.set(pa=0.5, pb=0.3)
    known = {"load_low": 0.2, "load_high": 0.9, "model": {"spread_known": True}}
    assert select(client)["data_centre"] == "b"
    found = {one["data_centre"]: one for one in select(client)["candidates"]}
    assert (found["a"]["expected_low_s"], found["a"]["expected_high_s"]) == (None, None)
    paths.more = known
    paths.set(pa=0.3, pb=0.5)
    found = select(client)
    assert found["reason"] == choice.NEAR and all(one["chosen"] for one in found["candidates"])
    low, high = (found["candidates"][0][name] for name in ("expected_low_s", "expected_high_s"))
    assert (low, high) == pytest.approx((0.08 + 0.2 / 0.8, 0.08 + 0.2 / 0.1))
    paths.more = {**known, "model": {"spread_known": False}}
    paths.set(seconds=100, pb=0.51)
    assert (select(client)["data_centre"], select(client)["reason"]) == ("a", choice.BEST)
    paths.more = {**known, "load_low": None, "load_high": None}
    paths.set(pa=None)
    found = select(client)["candidates"][0]
    assert (found["load"], found["expected_s"], found["expected_low_s"]) == (None, None, None)


def test_readings_move_users_and_the_reason_is_told(client, paths):
    paths.set(pa=0.2, pb=0.6)
    assert select(client)["data_centre"] == "a"
    paths.set(pa=0.97)
    assert (select(client)["data_centre"], select(client)["class"]) == ("b", "normal")
    paths.set(pb=0.99)
    assert (select(client)["data_centre"], select(client)["reason"]) == ("b", choice.CONGESTED)
    paths.set(pa=None, pb=None)
    found = select(client)
    assert (found["data_centre"], found["reason"], found["expected_s"]) == ("b", choice.UNKNOWN, None)


def test_near_equals_share_users_and_each_stays(client, paths):
    paths.set(pa=0.5, pb=0.5)
    users = [f"10.1.{n}.0/24" for n in range(60)]
    first = {user: select(client, user)["data_centre"] for user in users}
    assert set(first.values()) == {"a", "b"}
    assert {user: select(client, user.replace(".0/24", ".77"))["data_centre"] for user in users} == first
    assert select(client)["reason"] == choice.NEAR


def test_who_belongs_nowhere_is_told_so(client):
    for user in ("192.0.2.1", "10.0.0.0/8", "2001:db8:2::/48"):
        answer = client.get("/v1/select", params={"client": user})
        assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"
        assert f"no aggregation point has {user}" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["", "client=abc", "client=10.1.2.3/99", "client=10.1.2.3&content=film"])
def test_a_question_that_does_not_fit(client, query):
    answer = client.get(f"/v1/select?{query}")
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert len(answer.text) < 600


def test_the_document_tells_what_a_client_may_be(client):
    parameters = client.get("/openapi.json").json()["paths"]["/v1/select"]["get"]["parameters"]
    schemas = {one["name"]: one["schema"] for one in parameters}
    assert schemas["client"]["pattern"] == PATTERN and schemas["content"]["enum"] == ["page", "file"]


def test_a_curve_is_learned_and_counts(client, paths):
    paths.set(pa=0.5, pb=0.5)
    before, reason = client.get("/v1/curves/page").json(), "a curve needs 30 page loads, there are 0"
    assert before == {"content": "page", "pairs": 0, "curve": None, "reason": reason}
    assert post(client, page_loads()).json() == {"accepted": 200, "duplicates": 0, "rejected": {}}
    curve = client.get("/v1/curves/page").json()
    assert (curve["pairs"], curve["reason"], curve["curve"]["pairs"]) == (200, None, 200)
    assert [one["content"] for one in client.get("/v1/curves").json()] == ["page", "file"]
    paths.set()
    assert select(client)["expected_s"] == pytest.approx(0.4, rel=0.1)  # without the default's round trips
    assert select(client, content="file")["expected_s"] == pytest.approx(0.02 + 4.8)


def test_a_page_load_counts_once(client):
    assert post(client, page_loads(40)).json()["accepted"] == 40
    assert post(client, page_loads(40)).json() == {"accepted": 0, "duplicates": 40, "rejected": {}}
    assert client.get("/v1/curves/page").json()["pairs"] == 40


def test_the_load_is_that_of_the_path_then(client, paths):
    paths.set(pa=0.25)
    loads = [{**one, "load": None} for one in page_loads(3)] + page_loads(2, path="px", load=None)
    ahead = page_loads(1, ts_ns=NOW_ns + 3600 * SECOND_ns)
    rejected = {"no_load": 2, "ahead": 1}
    assert post(client, loads + ahead).json() == {"accepted": 3, "duplicates": 0, "rejected": rejected}
    assert not paths.blocked


@pytest.mark.parametrize(
    "wrong",
    [{"seconds": 0}, {"seconds": 1e9}, {"seconds": "NaN"}, {"load": 1.5}, {"content": "film"}, {"ts_ns": 0.5},
     {"path": ""}, {"bytes": -1}, {"load": False}, {"seconds": True}, {"seconds": "1"}],
)  # fmt: skip
def test_a_page_load_that_does_not_fit(client, wrong):
    answer = post(client, page_loads(1, **wrong))
    assert answer.status_code == 422 and next(iter(wrong)) in answer.json()["detail"]
    assert client.get("/v1/curves/page").json()["pairs"] == 0


def test_only_the_latest_page_loads_are_kept(client):
    for start in range(0, PAIRS_MAX + 1000, 3000):
        post(client, page_loads(3000, start=start))
    assert client.get("/v1/curves/page").json()["pairs"] == PAIRS_MAX


def test_curves_and_choices_survive_a_restart(tmp_path, paths):
    with opened(tmp_path, paths) as (client, _):
        post(client, page_loads())
        paths.set(pa=0.4, pb=0.6)
        assert select(client)["data_centre"] == "a"
        curve = client.get("/v1/curves/page").json()
    paths.set(pa=0.45, pb=0.42)  # better, but not by a tenth: chosen by who knows nothing
    with opened(tmp_path, paths) as (client, _):
        assert client.get("/v1/curves/page").json() == curve
        assert (select(client)["data_centre"], select(client)["reason"]) == ("a", choice.KEPT)
    (tmp_path / "other").mkdir()
    with opened(tmp_path / "other", paths) as (client, _):
        assert select(client)["data_centre"] == "b"


def test_another_configuration_is_taken_over(tmp_path, paths):
    paths.set(pa=0.2, pb=0.6)
    with opened(tmp_path, paths) as (client, chosen):
        assert select(client)["data_centre"] == "a"
        assert [(one["aggregation"], one["data_centre"]) for one in chosen.in_force(paths.now_ns)] == [("north", "a")]
        changed = site()
        changed.data_centres = changed.data_centres[1:]
        chosen.configure(changed)
        assert select(client)["data_centre"] == "b" and chosen.in_force(paths.now_ns)[0]["data_centre"] == "b"


def test_the_load_of_a_path_at_a_time(tmp_path):
    """It goes by the samples until then, and by none that is too old."""
    store = Store(str(tmp_path / "state.sqlite"))
    service = LoadService(store, Settings(10**18, SECOND_ns, model=Model(3.61e4, 6.218, 0.2, 0.95, w=0.0)), NOW_ns)
    delays = [{"agent_id": "tap", "master_clock": "0" * 16, "domain": 0, "ts_ns": NOW_ns + n * SECOND_ns,
               "delay_ns": 808591 if n < 20 else 9725367} for n in range(40)]  # fmt: skip
    service.submit(given(delays, NOW_ns + 40 * SECOND_ns), NOW_ns + 40 * SECOND_ns).result()
    name = next(iter(service.known))
    at = [service.load_at(name, NOW_ns + n * SECOND_ns) for n in (-1, 10, 30, 41, 60)]
    assert at == [None, pytest.approx(0.5, abs=0.01), pytest.approx(0.9, abs=0.01), at[2], None]
    assert service.load_at("other", NOW_ns) is None
    store.close()


AGGREGATION = "serve.aggregations=[{name: north, prefixes: [10.1.0.0/16]}]"
CENTRE = "{name: a, addresses: [192.0.2.1], paths: {north: pa}}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["serve.near=0.2"], "serve.near: 0.2 is above serve.hysteresis, which is 0.1: lower it"),
        ([AGGREGATION], "serve.aggregations: north: no data centre has a path to it"),
        ([AGGREGATION, f"serve.data_centres=[{CENTRE}, {CENTRE}]"], "serve.data_centres: a is there twice"),
        ([f"serve.data_centres=[{CENTRE}]"], "a: paths: there is no aggregation 'north'; there are none"),
        ([AGGREGATION.replace("north", "norht"), f"serve.data_centres=[{CENTRE}]"], "did you mean norht?"),
        ([AGGREGATION, f"serve.data_centres=[{CENTRE.replace('192.0.2.1', '')}]"], "a: addresses: give at least one"),
        (["serve.aggregations=[{name: n, prefixes: [10.0.0.0/8, 10.0.0.0/8]}]"], "prefixes: 10.0.0.0/8 is there twice"),
        (
            ["serve.aggregations=[{name: n, prefixes: ['2001:db8::/32']}, {name: m, prefixes: ['2001:DB8::/32']}]"],
            "m: prefixes: 2001:db8::/32 belongs to n already",
        ),
        (["serve.aggregations=[{name: n, prefixes: [10.1.2.3/16]}]"], "10.1.2.3/16 has host bits set"),
        (["dns.names=[{name: v.example, fallback: []}]"], "dns.names: v.example: fallback: give at least one address"),
        (["dns.names=[{name: a..b, fallback: [192.0.2.1]}]"], "dns.names: a..b: is no domain name"),
        (
            ["dns.names=[{name: v.example, fallback: [192.0.2.1]}, {name: V.example., fallback: [192.0.2.1]}]"],
            "dns.names: v.example is there twice",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(settings, sentence):
    ended = run("check", *(word for one in settings for word in ("--set", one)))
    assert ended.status == 2 and sentence in ended.err and ended.err.count("\n") == 1

"""Load service: what events make of it, in any order and however often; restarts, models, staleness, retention."""

import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import load, service
from controlplane.database import StateError
from controlplane.ingest import parse
from controlplane.load import HISTORY_samples, to_document
from controlplane.service import Settings
from tests.load_events import KEEP, MASTER, MODEL, NOW, PATH, SECOND, SETTINGS, event, lines, series, serving

OTHER = load.Model(a_ns=50_000.0, b=5.0, low=0.2, congested=0.9)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def taken(accepted=0, duplicates=0, late=0, ignored=0, **rejected):
    return {"accepted": accepted, "duplicates": duplicates, "late": late, "ignored": ignored, "rejected": rejected}


def test_a_reading_is_the_estimate_of_the_last_samples(path):
    rng = random.Random(1)
    events = [event(NOW - at * SECOND, rng.randrange(40_000, 9_000_000), at) for at in range(600)]
    with serving(path) as found:
        assert found.take(lines(*events), NOW) == taken(600)
        reading = found.load(PATH, NOW + SECOND)
    last = sorted((e["ts_ns"], e["ptp"]["mean_path_delay_ns"]) for e in events)[-HISTORY_samples:]
    wanted = load.estimate(MODEL, *(np.array(column) for column in zip(*last, strict=True)))
    assert reading == {
        "path": PATH, "agent_id": "tap", "master_clock": MASTER, "domain": 0,
        "load": wanted.load, "load_low": wanted.load_low, "load_high": wanted.load_high, "class": wanted.class_,
        "raw_load": wanted.raw_load, "delay_ns": round(wanted.delay_ns), "samples": 600, "late": 0,
        "last_ns": NOW, "age_s": 1.0, "stale": False, "interval_s": 1.0, "w": wanted.w,
        "model": {"version": 0, "kind": "exponential", "a_ns": 36_100.0, "b": 6.218, "low": 0.2, "congested": 0.95,
                  "r2": None, "spread_known": False},
        "reason": None,
    }  # fmt: skip


PLACES = st.integers(0, 30)
EVENTS = st.lists(
    st.builds(
        lambda at, request_id, delay_ns, agent: event(NOW - at * SECOND, delay_ns, request_id, agent),
        PLACES, st.integers(0, 3), st.integers(0, 10**8), st.sampled_from(["tap", "other"]),
    ),
    min_size=1, max_size=25, unique_by=lambda e: (e["agent_id"], e["ts_ns"], e["ptp"]["request_id"]),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_neither_order_nor_repetition_matters(tmp_path_factory, events, luck, batches):
    """The same readings, also after a restart; each event counts once."""
    folder = tmp_path_factory.mktemp("order")
    with serving(folder / "a") as found:
        found.take(lines(*events), NOW)
        wanted = found.paths(NOW)
    mixed = events + luck.choices(events, k=len(events))
    luck.shuffle(mixed)
    with serving(folder / "b") as found:
        counts = [found.take(lines(*mixed[at::batches]), NOW) for at in range(batches)]
        assert found.paths(NOW) == wanted
    assert sum(c["accepted"] for c in counts) == len(events)
    assert sum(c["duplicates"] for c in counts) == len(mixed) - len(events)
    with serving(folder / "b") as found:
        assert found.paths(NOW) == wanted
        assert found.counts["accepted"] == len(events) and found.counts["duplicates"] == len(mixed) - len(events)


def test_more_than_a_history_in_any_order(path):
    """Samples that are older than the history in memory count, but do not change the load."""
    events = series(HISTORY_samples + 100)
    with serving(path) as found:
        found.take(lines(*events[100:]), NOW)
        before = found.load(PATH, NOW)
        assert found.take(lines(*events[:101]), NOW) == taken(100, duplicates=1)
        assert found.load(PATH, NOW) == {**before, "samples": HISTORY_samples + 100}
    with serving(path) as found:
        assert found.load(PATH, NOW) == {**before, "samples": HISTORY_samples + 100}


def test_the_first_of_two_that_contradict_counts(path):
    with serving(path) as found:
        found.take(lines(event(delay_ns=100_000), event(delay_ns=900_000)), NOW)
        found.take(lines(event(delay_ns=500_000)), NOW)
        assert found.load(PATH, NOW)["delay_ns"] == 100_000
        wanted = found.paths(NOW)
    with serving(path) as found:
        assert found.paths(NOW) == wanted


def test_unknown_until_there_are_samples_and_a_model(path):
    bare = SETTINGS._replace(model=None, named={("tap", MASTER, 0): "north"})
    with serving(path, bare) as found:
        empty = found.load("north", NOW)
        assert (empty["reason"], empty["class"], empty["age_s"]) == ("no_samples", "unknown", None)
        assert empty["interval_s"] == 4
        found.take(lines(event()), NOW)
        assert found.load("north", NOW)["reason"] == "no_model" and found.load("north", NOW)["delay_ns"] == 808_591
        assert found.set_model("north", to_document(MODEL), NOW).result(10) == 1
        known = found.load("north", NOW)
        assert known["reason"] is None and known["class"] == "normal" and abs(known["load"] - 0.5) < 1e-5
        with pytest.raises(KeyError):
            found.load("south", NOW)
        assert found.reading_of("south", NOW) is None


@pytest.mark.parametrize("step_ns, fresh_s", [(4 * SECOND, 12), (SECOND // 8, service.STALE_LEAST_seconds)])
def test_a_load_is_stale_after_three_intervals(path, step_ns, fresh_s):
    """But not sooner than agents post."""
    with serving(path) as found:
        found.take(lines(*series(20, step_ns)), NOW)
        limit = NOW + round(fresh_s * SECOND)
        assert not found.load(PATH, limit)["stale"]
        old = found.load(PATH, limit + 1)
        assert (old["stale"], old["reason"], old["class"]) == (True, "stale", "unknown")
        assert old["load"] is old["load_low"] is old["load_high"] is old["raw_load"] is None


def test_an_interval_that_is_given_counts(path):
    named = {("tap", MASTER, 0): "north"}
    with serving(path, SETTINGS._replace(named=named, intervals_ns={"north": 10 * SECOND})) as found:
        found.take(lines(*series(20)), NOW)
        assert found.load("north", NOW)["interval_s"] == 10
        assert not found.load("north", NOW + 30 * SECOND)["stale"] and found.load("north", NOW + 31 * SECOND)["stale"]


def test_a_load_of_then_goes_by_the_interval_that_is_given(path):
    named, age_ns = {("tap", MASTER, 0): "north"}, 25 * SECOND
    for interval_ns in (10 * SECOND, 5 * SECOND):
        with serving(path, SETTINGS._replace(named=named, intervals_ns={"north": interval_ns})) as found:
            found.take(lines(event()), NOW)
            reading = found.load("north", NOW + age_ns)
            assert reading["stale"] == (3 * interval_ns < age_ns)
            assert found.load_at("north", NOW + age_ns) == reading["load"]


def test_a_clock_behind_the_events_makes_no_negative_age(path):
    with serving(path) as found:
        found.take(lines(event(NOW + SECOND)), NOW)
        assert found.load(PATH, NOW)["age_s"] == 0


def test_old_events_are_late_and_counted(path):
    old = event(NOW - KEEP - 1)
    with serving(path) as found:
        assert found.take(lines(old), NOW) == taken(late=1)
        assert found.paths(NOW) == []  # no path for that
        assert found.take(lines(event(NOW - KEEP), old, event()), NOW) == taken(2, late=1)
        assert found.load(PATH, NOW)["late"] == 1
    with serving(path) as found:
        assert found.load(PATH, NOW)["late"] == 1 and found.counts["late"] == 2


def emptied(found, now_ns):
    """Tidy until nothing is left to delete; how many went at a time."""
    steps = []
    while deleted := found.tidy(now_ns).result(10):
        steps.append(deleted)
    return steps


def test_old_samples_go_in_steps_and_never_come_back(path, monkeypatch):
    monkeypatch.setattr(service, "TIDIED_samples", 30)
    later = NOW + KEEP - 10 * SECOND
    with serving(path) as found:
        found.take(lines(*series(100)), NOW)
        assert emptied(found, later) == []  # no sample is newer, so it may be the clock
        found.take(lines(event(later, request_id=7)), later)
        assert emptied(found, later) == [30, 30, 29]
        kept = [NOW - at * SECOND for at in range(10, -1, -1)]
        assert [ts_ns for ts_ns, _ in found.samples(PATH, 0)] == [*kept, later]
        wanted = found.load(PATH, later)
        assert wanted["samples"] == 101
        assert found.take(lines(*series(100)), NOW) == taken(duplicates=11, late=89)  # the clock was set back
        assert found.load(PATH, later) == {**wanted, "late": 89}
    with serving(path) as found:
        assert found.load(PATH, later) == {**wanted, "late": 89}


def test_a_clock_that_jumps_ahead_deletes_nothing(path):
    with serving(path) as found:
        found.take(lines(*series(50)), NOW)
        assert emptied(found, NOW + 100 * KEEP) == []
        assert found.take(lines(event(NOW + SECOND, request_id=9)), NOW + 100 * KEEP) == taken(late=1)
        assert found.take(lines(event(NOW + SECOND, request_id=9)), NOW) == taken(1)  # it was set right
        assert len(found.samples(PATH, 0)) == 51


@pytest.mark.parametrize("ahead_ns", [KEEP // 7, 100 * KEEP])
@pytest.mark.parametrize("restarted", [False, True])
def test_samples_of_a_clock_that_was_ahead_hold_nothing_up(path, ahead_ns, restarted):
    """Of the agent's and of ours: once they are set right, what comes then counts."""
    events = [event(NOW + ahead_ns - at * SECOND, 9_000_000, at) for at in range(HISTORY_samples)]
    right = event(NOW, 808_591)
    with serving(path) as found:
        found.take(lines(*events), NOW + ahead_ns)
        found.tidy(NOW + ahead_ns).result(10)
        assert found.load(PATH, NOW + ahead_ns)["reason"] is None
        assert found.load(PATH, NOW)["reason"] == "stale"
        if not restarted:
            assert found.take(lines(right), NOW) == taken(1)
            assert (found.load(PATH, NOW)["last_ns"], found.load(PATH, NOW)["delay_ns"]) == (NOW, 808_591)
    if restarted:
        with serving(path) as found:
            assert found.take(lines(right), NOW) == taken(1)
            found.tidy(NOW).result(10)
            assert (found.load(PATH, NOW)["last_ns"], found.load(PATH, NOW)["delay_ns"]) == (NOW, 808_591)
            assert found.samples(PATH, 0)[0] == (NOW, 808_591)


def test_names_of_paths(path):
    named = {("tap", MASTER, 0): "north", ("tap", MASTER, 1): "south"}
    with serving(path, SETTINGS._replace(named=named)) as found:
        assert [r["path"] for r in found.paths(NOW)] == ["north", "south"]
        found.take(lines(event(), event(domain=1), event(domain=2), event(agent="rack 7/ü")), NOW)
        assert [r["path"] for r in found.paths(NOW)] == ["north", f"rack_7__:{MASTER}:0", "south", f"tap:{MASTER}:2"]
        assert found.load(f"rack_7__:{MASTER}:0", NOW)["agent_id"] == "rack 7/ü"


def test_paths_are_bounded(path, monkeypatch):
    monkeypatch.setattr(service, "PATHS_MAX", 3)
    with serving(path) as found:
        count = found.take(lines(*(event(agent=f"a{at}") for at in range(5))), NOW)
        assert count == taken(3, too_many_paths=2) and len(found.known) == 3
        assert found.take(lines(event(agent="a1", request_id=2), event(agent="b")), NOW) == taken(1, too_many_paths=1)
        assert found.counts["rejected.too_many_paths"] == 3


def test_known_paths_take_no_room_of_new_ones(path, monkeypatch):
    monkeypatch.setattr(service, "PATHS_MAX", 3)
    with serving(path) as found:
        found.take(lines(event(agent="a"), event(agent="b")), NOW)
        more = lines(event(agent="a", request_id=2), event(agent="b", request_id=2), event(agent="c"))
        assert found.take(more, NOW) == taken(3)


def test_paths_of_requests_that_share_a_transaction_are_bounded(path, monkeypatch):
    monkeypatch.setattr(service, "PATHS_MAX", 3)
    with serving(path) as found:
        inside, go = threading.Event(), threading.Event()
        found.store.submit(lambda: (inside.set(), go.wait(10), lambda: None)[2])
        assert inside.wait(10)
        bodies = [lines(event(agent=f"{at}a"), event(agent=f"{at}b")) for at in range(3)]
        futures = [found.submit(parse(body, NOW), NOW) for body in bodies]
        go.set()
        assert [future.result(10)["accepted"] for future in futures] == [2, 1, 0]
        assert len(found.known) == 3


def test_a_new_configuration_names_paths_and_sets_models(path):
    with serving(path) as found:
        found.take(lines(event()), NOW)
        named = {("tap", MASTER, 0): "north"}
        found.configure(Settings(KEEP, SECOND, named, {}, {"north": OTHER}, None), NOW)
        found.take(lines(event(request_id=2)), NOW)
        assert found.load("north", NOW)["model"]["version"] == 1 and found.load(PATH, NOW)["reason"] == "no_model"
        assert found.load("north", NOW)["samples"] == 1
        found.configure(found.settings, NOW)
        assert found.in_force("north").version == 1  # the same one again


def test_models_are_versions_of_a_path(path):
    with serving(path) as found:
        found.take(lines(event()), NOW)
        assert found.model(PATH) == to_document(MODEL) and found.load(PATH, NOW)["model"]["version"] == 0
        assert found.set_model(PATH, to_document(OTHER), NOW).result(10) == 1
        assert found.set_model(PATH, to_document(MODEL), NOW).result(10) == 2
        assert found.set_model(PATH, to_document(MODEL), NOW).result(10) == 2
        assert found.model(PATH, 1) == to_document(OTHER) and found.model(PATH) == to_document(MODEL)
        wanted = found.paths(NOW)
        for wrong, error in (((PATH, 3), KeyError), (("nix",), KeyError)):
            with pytest.raises(error):
                found.model(*wrong)
        for wrong in ({}, {**to_document(MODEL), "version": 2}, {**to_document(MODEL), "b": -1}):
            with pytest.raises(ValueError):
                found.set_model(PATH, wrong, NOW)
        assert found.paths(NOW) == wanted
    with serving(path) as found:
        assert found.paths(NOW) == wanted


def test_a_stored_model_of_another_version_is_named(path):
    with serving(path) as found:
        found.take(lines(event()), NOW)
        document = {**to_document(MODEL), "version": 2}
        found.store.submit(lambda: (found.store.add_model(PATH, document, NOW), lambda: None)[1]).result(10)
    with pytest.raises(StateError, match=f"model 1 of {PATH}: .*version 2"), serving(path):
        pass


def test_samples_that_are_asked_for(path):
    with serving(path) as found:
        found.take(lines(*series(600)), NOW)
        assert found.samples(PATH, NOW - 2 * SECOND) == [(NOW - at * SECOND, 808_591) for at in (2, 1, 0)]
        assert len(found.samples(PATH, 0)) == 600 and len(found.samples(PATH, 0, 5)) == 5
        assert found.recent(PATH, 2) == found.samples(PATH, 0, 2) and len(found.recent(PATH)) == HISTORY_samples
        with pytest.raises(KeyError):
            found.samples("nix", 0)

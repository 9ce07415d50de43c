"""The load model: inverse and classes, document, estimate; against the twin tests/naive/load.py."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import load
from controlplane.load_estimate import filtered, interval, scatter_left
from controlplane.load_model import Curve, Level, Model, Spread, free_inverse
from tests.load_samples import A_ns, B
from tests.naive import load as naive

PLAIN = settings(max_examples=100, deadline=None, derandomize=True, database=None)
PAPER = Model(A_ns, B, 0.2, 0.95)
CURVE = Curve("pchip", (0.0, 0.3, 0.7, 0.95), (5e4, 1e5, 2e6, 1e7))
SPREAD = Spread((0.0, 0.5, 1.0), (0.05, 0.5, 0.98), (0.0, 0.3, 0.9), (0.2, 0.7, 1.0), 0.3, 0.02)
FULL = replace(
    PAPER, kind="monotone", curve=CURVE, spread=SPREAD, r2=0.89, levels=(Level(0.0, 9, 5e4),), made="by hand",
    percentile=25.0, samples=4, congestion_found=False,
)  # fmt: skip
BARE = {"format": "qoetap-load-model", "version": 1, "kind": "exponential", "a_ns": 3.61e4, "b": 6.218, "low": 0.2,
        "congested": 0.95}  # fmt: skip
CHECKS = {0: 36100, 0.2: 125198, 0.3: 233153, 0.5: 808591, 0.7: 2804254, 0.9: 9725367, 0.95: 13271748}

models = st.builds(
    Model, st.floats(1e2, 1e6), st.floats(0.5, 12), st.floats(0, 0.4), st.floats(0.5, 1),
    r2=st.none() | st.floats(-9, 1),
    w=st.floats(0, 0.99), interval_s=st.floats(0.01, 60), percentile=st.floats(0, 100), samples=st.integers(1, 512),
    spread=st.none() | st.just(SPREAD), made=st.text(max_size=9), congestion_found=st.booleans(),
)  # fmt: skip
monotone = models.map(lambda model: replace(model, kind="monotone", curve=CURVE, congested=0.95))


def every(seconds, count):
    return np.arange(count, dtype=np.int64) * int(seconds * 1e9)


@pytest.mark.parametrize(("x", "y"), CHECKS.items())
def test_published_values(x, y):
    assert round(float(load.delay_at(PAPER, x))) == y
    assert free_inverse(PAPER, y) == pytest.approx(x, abs=1e-5)


def test_published_inverse():
    assert round(float(load.inverse(PAPER, 1e6)), 5) == 0.53417


@pytest.mark.parametrize(
    ("delay_ns", "class_", "told"),
    [
        (0, "low", 0.0),
        (36000, "low", 0.0),
        (125197, "low", 0.2),
        (125198, "normal", 0.2),
        (13271747, "normal", 0.95),
        (13271749, "congested", 1.0),
        (10**10, "congested", 1.0),
    ],
)
def test_classes_of_delays(delay_ns, class_, told):
    assert load.classify(PAPER, delay_ns) == class_
    assert load.inverse(PAPER, delay_ns) == pytest.approx(told, abs=1e-5)


@PLAIN
@given(models, st.lists(st.integers(0, 10**11), min_size=1))
def test_inverse_is_that_of_the_twin(model, delays):
    twin = [naive.inverse(delay, model.a_ns, model.b, model.low, model.congested) for delay in delays]
    assert load.inverse(model, delays) == pytest.approx(twin, abs=1e-9)


@PLAIN
@given(models | monotone, st.floats(0, 1))
def test_inverse_undoes_the_curve(model, share):
    at = model.low + share * (model.congested - model.low) * 0.999
    assert load.inverse(model, load.delay_at(model, at)) == pytest.approx(at, abs=1e-6)


@PLAIN
@given(models | monotone, st.lists(st.integers(0, 10**11), min_size=2))
def test_load_rises_with_delay(model, delays):
    assert np.all(np.diff(load.inverse(model, sorted(delays))) >= 0)


@PLAIN
@given(models | monotone)
def test_document_round_trip(model):
    assert load.from_document(json.loads(json.dumps(load.to_document(model)))) == model


def test_document_round_trip_of_everything():
    assert load.from_document(json.loads(json.dumps(load.to_document(FULL)))) == FULL


def test_a_bare_document_gets_the_papers_smoothing():
    model = load.from_document(BARE)
    assert (model.w, model.interval_s, model.samples, model.spread) == (0.87, 4.0, 1, None)


def changed(**fields):
    return {**load.to_document(FULL), **fields}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "no load model"),
        ({}, "no load model"),
        ({**BARE, "version": 2}, "of version 2, but qoetap reads version 1"),
        ({**BARE, "version": True}, "of version True"),
        ({key: BARE[key] for key in BARE if key != "b"}, "the model has no b"),
        ({**BARE, "kind": "linear"}, "kind must be exponential or monotone"),
        ({**BARE, "kind": []}, "kind must be exponential or monotone"),
        ({**BARE, "a_ns": math.nan}, "a_ns must lie in"),
        ({**BARE, "a_ns": "36100"}, "a_ns must be a number"),
        ({**BARE, "a_ns": True}, "a_ns must be a number"),
        ({**BARE, "a_ns": 10**400}, "a_ns must lie in"),
        ({**BARE, "b": -6.2}, "b must lie in"),
        ({**BARE, "b": 400}, "absurd delays at full load"),
        ({**BARE, "b": math.inf}, "b must lie in"),
        ({**BARE, "low": 0.96}, "low 0.96 is not below its congested 0.95"),
        ({**BARE, "w": 1.0}, "w must lie in"),
        ({**BARE, "interval_s": 0}, "interval_s must lie in"),
        ({**BARE, "speed": 1}, "unknown field 'speed'"),
        ({**BARE, "filter": {"percentile": 101, "samples": 1}}, "the model's filter: percentile must lie in 0 to 100"),
        ({**BARE, "filter": {"percentile": 50, "samples": 1.5}}, "samples must be a whole number"),
        ({**BARE, "filter": {"percentile": 50, "samples": 513}}, "samples must lie in 1 to 512"),
        ({**BARE, "filter": []}, "the model's filter must be an object"),
        ({**BARE, "kind": "monotone"}, "has no curve"),
        (changed(curve={"shape": "pchip", "load": [0, 0.5], "delay_ns": [5, 5]}), "curve.delay_ns does not rise"),
        (changed(curve={"shape": "pchip", "load": [0, 1], "delay_ns": [1e17, 1e17 + 16]}), "curve.delay_ns does not"),
        (changed(curve={"shape": "pchip", "load": [0.5, 0], "delay_ns": [5, 6]}), "curve.load does not rise"),
        (changed(curve={"shape": "pchip", "load": [0], "delay_ns": [5]}), "of one length, 2 at least"),
        (changed(curve={"shape": "round", "load": [0, 1], "delay_ns": [5, 6]}), "shape must be isotonic or pchip"),
        (changed(curve={"shape": "pchip", "load": 7, "delay_ns": [5, 6]}), "load must be a list"),
        (changed(curve={"shape": "pchip", "load": [0, 2], "delay_ns": [5, 6]}), "load[1] must lie in 0 to 1"),
        (changed(spread={"load": [0, 1], "mean": [0, 1], "low": [0.1, 1], "high": [0, 1]}), "a mean outside"),
        (changed(spread={"load": [1, 0], "mean": [0, 1], "low": [0, 1], "high": [0, 1]}), "spread.load does not rise"),
        (changed(levels={}), "levels must be a list"),
        (changed(levels=[{"load": 0, "samples": 5}]), "the model's levels[0] has no delay_ns"),
        (changed(levels=[3]), "the model's levels[0] must be an object"),
        (changed(made="x" * 1001), "made must be text of at most 1000"),
        (changed(congestion_found=1), "congestion_found must be true or false"),
    ],
)
def test_documents_that_are_no_model(document, sentence):
    with pytest.raises(ValueError) as error:
        load.from_document(document)
    assert sentence in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@PLAIN
@given(st.sampled_from(sorted(set(load.to_document(FULL)) - {"format", "version"})), json_values)
def test_any_value_in_a_document_is_a_model_or_a_sentence(field, value):
    try:
        model = load.from_document(changed(**{field: value}))
    except ValueError:
        return
    load.estimate(model, every(4, 20), np.arange(20) * 100_000)


@PLAIN
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30), st.floats(0, 100), st.integers(1, 12))
def test_filter_is_that_of_the_twin(delays, percent, count):
    assert filtered(np.array(delays), percent, count) == pytest.approx(naive.filtered(delays, percent, count))


@PLAIN
@given(models | monotone, st.lists(st.integers(0, 10**9), min_size=1, max_size=60))
def test_estimate_is_that_of_the_twin(model, delays):
    found = load.estimate(model, every(model.interval_s, len(delays)), delays)
    kept = naive.filtered(delays, model.percentile, model.samples)
    told = [float(load.inverse(model, delay)) for delay in kept]
    assert found.delay_ns == pytest.approx(kept[-1])
    assert found.raw_load == pytest.approx(told[-1], abs=1e-6)
    assert found.load == pytest.approx(naive.smoothed(told, found.w)[-1], abs=1e-6)
    congested = naive.smoothed([float(load == 1.0) for load in told], found.w)[-1]
    assert abs(congested - 0.5) < 1e-6 or (found.class_ == "congested") >= (congested > 0.5)
    assert congested > 0.499 or found.class_ == load.class_of(model, found.load)
    assert 0 <= found.load_low <= found.load <= found.load_high <= 1


def test_w_follows_the_interval_of_the_samples():
    """Twice as dense samples: each forgets the square root as much."""
    found = load.estimate(PAPER, every(2, 30), np.full(30, 10**6))
    assert (found.interval_s, found.w) == (2.0, pytest.approx(0.87**0.5))
    single = load.estimate(PAPER, every(2, 1), [10**6])
    assert (single.interval_s, single.w) == (4.0, 0.87)


def test_rounding_does_not_lead_above_a_load_of_one():
    """The weights of the past add up to 1 but for rounding, which depends on w and how many they are."""
    for w in np.arange(1, 100) / 100:
        found = load.estimate(replace(PAPER, w=float(w)), every(4, 300), np.full(300, 10**9))
        assert found.load <= 1.0 and found.load_high <= 1.0


def test_short_delays_among_long_ones_do_not_hide_congestion():
    """Four in five delays congested: the smoothed load is below the congestion point, the class is congested."""
    delays = np.where(np.arange(40) % 5 == 1, 10**6, 10**9)
    found = load.estimate(PAPER, every(4, 40), delays)
    assert found.load < PAPER.congested and found.class_ == "congested"
    assert found.load_low <= found.load and found.load_high == 1.0


def test_a_gap_and_times_that_stand_still_do_not_change_the_interval():
    ts_ns = np.array([0, 0, 4, 8, 12, 5000, 5004, 5008]) * 10**9
    assert load.estimate(PAPER, ts_ns, np.full(8, 10**6)).interval_s == 4.0


def test_nine_tenths_of_a_step_after_17_samples():
    """The paper's figure for w = 0.87."""
    quiet, busy = np.full(100, load.delay_at(PAPER, 0.3)), np.full(17, load.delay_at(PAPER, 0.8))
    before, after = (
        load.estimate(PAPER, every(4, 100 + count), np.rint([*quiet, *busy[:count]])).load for count in (16, 17)
    )
    assert before < 0.3 + 0.9 * 0.5 < after


@pytest.mark.parametrize(
    ("ts_ns", "delay_ns", "sentence"),
    [([], [], "needs samples"), ([1, 2], [3], "2 times and 1 delays"), ([1, 2], [3, -1], "negative")],
)
def test_estimates_of_nothing(ts_ns, delay_ns, sentence):
    with pytest.raises(ValueError) as error:
        load.estimate(PAPER, ts_ns, delay_ns)
    assert sentence in str(error.value)


@PLAIN
@given(st.integers(1, 40), st.floats(0, 0.95), st.floats(0, 0.95))
def test_scatter_that_smoothing_leaves_is_that_of_the_twin(count, w, persistence):
    assert scatter_left(count, w, persistence) == pytest.approx(naive.scatter_left(count, w, persistence), rel=2e-2)


def test_interval_without_scatter_is_the_class():
    assert interval(PAPER, 0.1, "low", 1.0) == (0.0, 0.2)
    assert interval(PAPER, 0.5, "normal", 1.0) == (0.2, 0.95)
    assert interval(PAPER, 0.97, "congested", 1.0) == (0.95, 1.0)


loads = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted)


@PLAIN
@given(st.lists(loads, min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_interval_holds_all_levels_that_the_twin_accepts(rows, at, scale):
    columns = [sorted(column) for column in zip(*rows)]
    low, mean, high = ([values[n] for n in range(len(rows))] for values in columns)
    where = [n / (len(rows) - 1) for n in range(len(rows))]
    model = replace(PAPER, spread=Spread(tuple(where), tuple(mean), tuple(low), tuple(high)))
    least, most = interval(model, at, load.class_of(model, at), scale)
    inside = naive.accepted(list(zip(where, mean, low, high)), at, scale)
    assert all(least - 1e-9 <= level <= most + 1e-9 for level in inside)

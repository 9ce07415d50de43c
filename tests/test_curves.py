"""Page load curves: the one that pages were drawn from comes back, hung pages do not bend it, too few make none."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import curves
from controlplane.contents import CONTENTS, default_seconds

PAIR = st.tuples(st.floats(0, 1), st.floats(0.001, 3600))


def truth(load):
    """The floor of a 2.5 MB page at 100 Mbit/s."""
    return 0.2 / (1 - np.minimum(load, 0.95))


def measured(count=400, seed=1, spread=0.15):
    rng = np.random.default_rng(seed)
    loads = rng.random(count)
    return loads, truth(loads) * rng.lognormal(0, spread, count)


def test_the_curve_that_pages_were_drawn_from_comes_back():
    curve = curves.learn("page", *measured())
    for load in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert curves.seconds_at(curve, load) == pytest.approx(truth(load), rel=0.15)


def test_pages_that_hung_do_not_bend_it():
    loads, seconds = measured()
    hung = seconds.copy()
    hung[np.random.default_rng(2).choice(len(hung), len(hung) // 10, replace=False)] = 60.0
    bent = curves.learn("page", loads, hung)
    for load in np.linspace(0, 0.9, 10):
        assert curves.seconds_at(bent, load) == pytest.approx(truth(load), rel=0.3)


def test_it_is_linear_between_levels_and_constant_beyond():
    curve = curves.Curve("page", (0.2, 0.6), (1.0, 3.0), (20, 20))
    assert [curves.seconds_at(curve, load) for load in (0.0, 0.2, 0.3, 0.6, 1.0)] == [1.0, 1.0, 1.5, 3.0, 3.0]


@given(st.lists(PAIR, min_size=curves.PAIRS_MIN, max_size=200))
def test_it_never_falls_whatever_was_measured(pairs):
    try:
        curve = curves.learn("page", *zip(*pairs))
    except ValueError as error:
        assert "apart" in str(error)
        return
    assert all(low < high for low, high in zip(curve.loads, curve.loads[1:]))
    assert all(low <= high for low, high in zip(curve.seconds, curve.seconds[1:]))
    assert curve.pairs == len(pairs) and len(curve.loads) <= curves.LEVELS_MAX
    assert min(curve.counts) >= curves.LEVEL_PAIRS


def test_levels_of_steps_are_the_steps():
    loads = np.repeat([0.0, 0.25, 0.5, 0.75, 1.0], 12)
    found = curves.levels(loads, np.arange(60.0))
    assert found.loads.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0] and found.counts.tolist() == [12] * 5
    assert found.seconds.tolist() == [5.5, 17.5, 29.5, 41.5, 53.5]


@pytest.mark.parametrize(
    ("loads", "seconds", "sentence"),
    [
        ([0.1] * 29, [1.0] * 29, "needs 30 page loads, there are 29"),
        ([0.1] * 40, [1.0] * 40, "needs loads that are 0.5 apart, these span 0.00"),
        ([0.1] * 39 + [0.9], [1.0] * 40, "these span 0.00"),
        ([1.5] * 40, [1.0] * 40, "a load is from 0 to 1"),
        ([float("nan")] * 40, [1.0] * 40, "a load is from 0 to 1"),
        ([0.5] * 40, [0.0] * 40, "more than 0 and at most 3600 s"),
        ([0.5] * 40, [float("inf")] * 40, "more than 0 and at most 3600 s"),
        ([0.5] * 40, [1.0] * 39, "as many loads as times"),
    ],
)
def test_what_makes_no_curve_is_said(loads, seconds, sentence):
    with pytest.raises(ValueError, match=sentence):
        curves.learn("page", loads, seconds)


def test_the_document_is_json():
    curve = curves.learn("file", *measured())
    found = json.loads(json.dumps(curves.to_document(curve)))
    assert (found["format"], found["version"], found["content"]) == ("qoetap-page-load-curve", 1, "file")
    assert [tuple(point.values()) for point in found["points"]] == list(zip(curve.loads, curve.seconds, curve.counts))
    assert found["pairs"] == 400


@pytest.mark.parametrize(
    ("content", "load", "floor"),
    [("page", 0.0, 0.2), ("page", 0.5, 0.4), ("file", 0.0, 2.4), ("file", 0.95, 48.0), ("file", 1.0, 48.0)],
)
def test_the_default_is_the_floor_and_round_trips(content, load, floor):
    """8 S / (C (1 - load)) at 100 Mbit/s, the load capped at 0.95, and a page's rounds of 10 ms."""
    rounds = CONTENTS[content].rounds
    assert default_seconds(CONTENTS[content], load, 0.01, 100e6) == pytest.approx(floor + rounds * 0.01)

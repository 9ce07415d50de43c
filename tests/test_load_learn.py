"""Learning a load model: curves, thresholds, smoothing and intervals, from samples whose law is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import load, load_curves
from controlplane.load_fitting import separation
from controlplane.load_levels import checked, level_numbers, levels_of, shuffled
from controlplane.load_model import Model
from controlplane.load_scores import choose_w, raw_loads, smooth_all
from tests.load_samples import PAPER_LEVELS, A_ns, B, EVERY_ns, published, queueing, random_steps, samples, steps
from tests.naive import load as naive

PLAIN = settings(max_examples=60, deadline=None, derandomize=True, database=None)
TENTHS = tuple(at / 10 for at in range(11))
MANY = 20_000  # samples a level; with 1800, the paper's two hours, the scatter of a is itself 3 %


def rng(seed=1):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def paper_fit():
    return load.learn(*steps(published, rng(), PAPER_LEVELS, 300), trace=random_steps(published, rng(2), 3000, 20))


@pytest.fixture(scope="module", params=("exponential", "monotone"))
def queue_fit(request):
    """A fit to a queue's delays, of either kind."""
    trace = random_steps(queueing, rng(2), 4000, 100)
    return load.learn(*steps(queueing, rng(), TENTHS, 400), kind=request.param, trace=trace)


@pytest.mark.parametrize("seed", range(5))
def test_the_published_model_is_fitted_back(seed):
    delays, loads, _ = steps(published, rng(seed), PAPER_LEVELS, MANY)
    fit = load.learn(delays, loads)
    assert fit.model.a_ns == pytest.approx(A_ns, rel=0.03)
    assert fit.model.b == pytest.approx(B, rel=0.03)
    assert fit.model.r2 == pytest.approx(0.89, abs=0.005)
    assert fit.model.congested == 0.95 and fit.model.congestion_found


def test_exact_medians_give_the_exact_model():
    loads = np.array(PAPER_LEVELS[:10])
    assert load_curves.exponential(loads, A_ns * np.exp(B * loads)) == pytest.approx((A_ns, B), rel=1e-6)


rising = st.lists(st.floats(10, 1e7), min_size=4, max_size=8).map(sorted).filter(lambda ys: ys[-1] > 1.1 * ys[0])


@PLAIN
@given(rising)
def test_exponential_is_that_of_the_twin(delays):
    """As good as the twin's, which searches everywhere; where the optimum is flat they may differ in a and b."""
    loads = np.arange(len(delays)) / 10

    def error(a, b):
        return np.sum((a * np.exp(b * loads) - delays) ** 2)

    twin = error(*naive.exponential(loads.tolist(), delays))
    assert error(*load_curves.exponential(loads, delays)) <= twin * (1 + 1e-6) + 1e-6 * np.max(delays) ** 2


@PLAIN
@given(st.lists(st.tuples(st.floats(10, 1e6), st.integers(1, 50)), min_size=3, max_size=9))
def test_monotone_knots_are_those_of_the_twin(levels):
    delays, weights = map(list, zip(*levels))
    loads = [at / 10 for at in range(len(levels))]
    twin = naive.isotonic(np.log(delays).tolist(), weights)
    if twin[-1] - twin[0] < 1e-7:
        with pytest.raises(ValueError):
            load_curves.monotone(loads, delays, weights, "pchip")
        return
    curve = load_curves.monotone(loads, delays, weights, "pchip")
    assert all(any(abs(np.log(y) - z) < 1e-5 for z in twin) for y in curve.delay_ns)
    assert all(a < b for column in (curve.load, curve.delay_ns) for a, b in zip(column, column[1:]))


def test_equal_medians_become_one_knot():
    curve = load_curves.monotone([0, 0.1, 0.2, 0.3], [500, 500, 700, 700], [1, 1, 1, 3], "isotonic")
    assert curve.load == pytest.approx((0.05, 0.275))
    assert curve.delay_ns == pytest.approx((500, 700))


@PLAIN
@given(rising, st.integers(3, 8), st.floats(1, 100))
def test_congestion_is_that_of_the_twin(delays, at, jump):
    delays = [*delays[:at], *(jump * y for y in delays[at:])]
    loads = [n / 10 for n in range(len(delays))]
    found = load_curves.congestion(np.array(loads), np.array(delays))
    assert found == naive.congestion(loads, delays, 10.0, 3)


small = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@PLAIN
@given(small, small)
def test_separation_is_that_of_the_twin(lower, upper):
    assert separation(np.array(lower, float), np.array(upper, float)) == pytest.approx(naive.separation(lower, upper))


@PLAIN
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 0.99))
def test_smoothing_is_that_of_the_twin(loads, w):
    assert smooth_all(np.array(loads), w) == pytest.approx(naive.smoothed(loads, w))


def test_w_is_the_best_of_the_grid():
    delays, loads, _ = random_steps(published, rng(), 400, 20)
    told = raw_loads(Model(A_ns, B, 0.2, 0.95), delays)
    scores = [naive.rmse(loads, naive.smoothed(told.tolist(), step / 100)) for step in range(100)]
    assert choose_w(told, loads) == (scores.index(min(scores)) / 100, pytest.approx(min(scores)))


def test_w_grows_with_scatter_and_with_the_time_between_changes():
    """What the paper's 0.87 says of its samples: much scatter, or loads that stay for long."""

    def chosen(scatter, held):
        delays, loads, _ = samples(lambda x, r: published(x, r, scatter), held_loads(held), rng(3))
        return choose_w(raw_loads(Model(A_ns, B, 0.2, 0.95), delays), loads)[0]

    assert chosen(0.283, 1) < 0.1 < chosen(0.283, 60) < chosen(1.0, 60) < chosen(1.0, 150)


def held_loads(held):
    return np.repeat(rng(4).integers(0, 21, 6000 // held) / 20, held)


def test_smoothing_that_was_chosen_serves_on_another_trace(paper_fit):
    delays, loads, _ = random_steps(published, rng(5), 3000, 20)
    told = load.trace_loads(paper_fit.model, delays)
    by_class = load.rmse_by_class(loads[paper_fit.model.samples - 1 :], told, paper_fit.model)
    assert all(by_class[name] < 0.08 for name in ("all", "low", "normal", "congested"))
    assert by_class["all"] == pytest.approx(paper_fit.rmse["all"], abs=0.02)


def test_rmse_by_class():
    model = Model(A_ns, B, 0.2, 0.95)
    found = load.rmse_by_class([0.0, 0.2, 0.5, 0.5], [0.1, 0.1, 0.6, 0.8], model)
    assert found == pytest.approx({"all": 0.1732050, "low": 0.1, "normal": 0.2236068, "congested": None})


def test_estimate_and_trace_agree(paper_fit):
    delays, _, ts_ns = random_steps(published, rng(6), 600, 20)
    told, classes = load.trace_loads(paper_fit.model, delays), load.trace_classes(paper_fit.model, delays)
    for end in range(paper_fit.model.samples, 500):
        found = load.estimate(paper_fit.model, ts_ns[:end], delays[:end])
        at = end - paper_fit.model.samples
        assert (found.load, found.class_) == (pytest.approx(told[at]), classes[at])
    assert len(set(classes)) == 3


def coverage(model, trace, start=50):
    """Share of the loads that lie in their interval."""
    delays, loads, ts_ns = trace
    inside = []
    for at in range(start, len(loads), 7):
        found = load.estimate(model, ts_ns[at - start : at + 1], delays[at - start : at + 1])
        inside.append(found.load_low <= loads[at] <= found.load_high)
    return np.mean(inside)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_intervals_hold_a_steady_load(queue_fit, level):
    assert coverage(queue_fit.model, steps(queueing, rng(7), (level,), 3000)) >= 0.82


def test_intervals_hold_a_changing_load(queue_fit):
    assert 0.85 <= coverage(queue_fit.model, random_steps(queueing, rng(8), 5000, 100), start=400) <= 0.99


def test_the_interval_of_a_low_load_goes_from_zero_to_the_threshold(paper_fit):
    found = load.estimate(paper_fit.model, np.arange(60) * EVERY_ns, np.full(60, int(A_ns)))
    assert found.class_ == "low" and found.load_low == 0.0 and found.load_high >= paper_fit.model.low


def test_a_monotone_curve_ends_as_a_wait_grows_but_half_way_to_congestion_at_most():
    curve = load_curves.monotone([0.2, 0.5, 0.9], [1e4, 1e5, 1e6], [9, 9, 9], "isotonic")
    for seen_ns, end_ns in ((1e8, 2e6), (None, 2e6), (9e5, 2e6), (2.25e6, 1.5e6)):
        assert load_curves.closed(curve, 0.95, seen_ns).delay_ns[-1] == pytest.approx(end_ns)
    assert load_curves.closed(curve, 0.89, 1e8) == curve


def test_the_interval_of_congestion_reaches_full_load(paper_fit):
    found = load.estimate(paper_fit.model, np.arange(60) * EVERY_ns, np.full(60, 10**9))
    assert found.class_ == "congested" and found.load_low <= 0.95 and found.load_high == 1.0


def test_more_samples_make_the_interval_narrower(queue_fit):
    delays, _, ts_ns = steps(queueing, rng(9), (0.6,), 60)
    one, many = (load.estimate(queue_fit.model, ts_ns[:n], delays[:n]) for n in (queue_fit.model.samples, 60))
    assert many.load_high - many.load_low < one.load_high - one.load_low


def test_the_monotone_curve_is_the_better_one_for_a_queue(queue_fit):
    """Its delays are no exponential of the load; the scatter of single delays is the same for both."""
    assert min(queue_fit.scores["isotonic"], queue_fit.scores["pchip"]) < 0.8 * queue_fit.scores["exponential"]


def test_the_exponential_holds_its_ground_on_its_own_law(paper_fit):
    assert paper_fit.scores["exponential"] <= min(paper_fit.scores["isotonic"], paper_fit.scores["pchip"])


def test_what_a_queue_gives(queue_fit):
    model = queue_fit.model
    assert model.low <= 0.5 <= model.w
    assert (model.curve is None) == (model.kind == "exponential")
    assert [row.in_fit for row in queue_fit.levels] == [True] * 10 + [False]
    assert queue_fit.levels[-1].class_ == "congested"
    assert load.from_document(load.to_document(model)) == model


def test_no_level_jumps():
    """Then the congestion point is half way to full load, and it is said."""
    model = load.learn(*steps(published, rng(), PAPER_LEVELS[:10], 50)).model
    assert (model.congested, model.congestion_found) == (0.95, False)


def test_full_load_is_never_fitted_to():
    """A path at its capacity has no steady delay, even if it is not ten times what the fit expects."""

    def path(x, r):
        return np.where(x >= 1, 1.5e8, published(np.minimum(x, 0.9), r))

    fit = load.learn(*steps(path, rng(), TENTHS, 50))
    assert not fit.model.congestion_found and not fit.levels[-1].in_fit and fit.model.congested == 0.95
    assert load.classify(fit.model, 1.5e8) == "congested"


def test_a_jump_at_full_load(queue_fit):
    """A point of 1 would leave no load below it that is congested."""
    assert queue_fit.model.congestion_found and queue_fit.model.congested == 0.95


def test_what_only_a_filter_tells():
    """Medians that are the same at each load, as on a fast link whose queue is empty most of the time."""

    def path(x, r):
        return np.where(r.random(x.shape) < 0.05 + 0.4 * x, A_ns * np.exp(B * x), 1e4) * np.exp(
            r.normal(0, 0.1, x.shape)
        )

    delays, loads, ts_ns = steps(path, rng(), PAPER_LEVELS[:10], 300)
    assert load.learn(delays, loads, ts_ns, held_s=400.0).model.percentile > 50
    wrong("does not rise", 1e5 - delays.clip(0, 9e4) * loads, loads, ts_ns)


def test_delay_that_is_flat_below_a_load_makes_that_the_threshold():
    """As the paper has it: below 0.2 load cannot be told."""

    def path(x, r):
        return A_ns * np.exp(B * np.maximum(x, 0.2) + r.normal(0, 0.2, x.shape))

    model = load.learn(*steps(path, rng(), TENTHS[:10], 100), kind="monotone").model
    assert 0.2 <= model.low <= 0.3


def test_continuous_loads_are_put_into_bins():
    loads, numbers = level_numbers(rng().random(1000))
    assert len(loads) == 21 and np.all(np.diff(loads) > 0) and numbers.max() == 20
    delays, known, ts_ns = samples(published, rng().random(4000) * 0.94, rng())
    fit = load.learn(delays, known, ts_ns)
    assert fit.model.samples == 1 and fit.model.b == pytest.approx(B, rel=0.1)


def test_filters_do_not_mix_levels():
    seen = levels_of(checked(np.arange(40.0), np.repeat([0.0, 0.5, 0.0, 0.5], 10)), 100, 10)
    assert [level.samples for level in seen] == []  # one window a stretch: too few
    seen = levels_of(checked(np.arange(40.0), np.repeat([0.0, 0.5, 0.0, 0.5], 10)), 100, 8)
    assert [level.delays.tolist() for level in seen] == [[7, 8, 9, 27, 28, 29], [17, 18, 19, 37, 38, 39]]


def test_a_trace_made_of_steps():
    """The same samples, in pieces of three that keep their order; as they are if the load already changes so often."""
    delays, loads, ts_ns = np.arange(70.0), np.repeat(np.arange(10) / 10, 7), np.arange(70) * EVERY_ns
    made = shuffled(checked(delays, loads, ts_ns), 12.0)
    assert sorted(made.delay_ns) == delays.tolist() and made.load.tolist() != loads.tolist()
    assert np.array_equal(made.load, loads[made.delay_ns.astype(int)]) and np.array_equal(made.ts_ns, ts_ns)
    assert all(int(at) % 7 in (2, 5, 6) for at in made.delay_ns[:-1][np.diff(made.delay_ns) != 1])
    same = shuffled(checked(delays, loads, ts_ns), 40.0)
    assert np.array_equal(same.delay_ns, delays)


def test_smoothing_chosen_on_steps_serves_on_a_trace():
    """The steps are put into another order for it: as they are, the load hardly changes, and w would be nearly 1."""
    delays, loads, ts_ns = steps(queueing, rng(), TENTHS, 400)
    on_steps, on_trace = (
        load.learn(delays, loads, ts_ns, trace=trace, held_s=400.0).model
        for trace in (None, random_steps(queueing, rng(2), 4000, 100))
    )
    other, known, _ = random_steps(queueing, rng(3), 4000, 100)

    def error(model):
        return load.rmse_by_class(known[model.samples - 1 :], load.trace_loads(model, other), model)["all"]

    assert error(on_steps) == pytest.approx(error(on_trace), abs=0.01)


def test_unsorted_samples_are_sorted_by_time():
    delays, loads, ts_ns = steps(queueing, rng(), TENTHS, 40)
    mixed = rng(2).permutation(len(loads))
    assert load.learn(delays[mixed], loads[mixed], ts_ns[mixed]).model == load.learn(delays, loads, ts_ns).model


def test_without_times_the_papers_smoothing_is_taken():
    fit = load.learn(*steps(queueing, rng(), TENTHS, 40)[:2])
    assert (fit.model.w, fit.model.interval_s, fit.model.samples, fit.rmse) == (0.87, 4.0, 1, None)


def wrong(sentence, delays, loads, ts_ns=None, **options):
    with pytest.raises(ValueError) as error:
        load.learn(delays, loads, ts_ns, **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("delay", "loaded", "sentence"),
    [
        (-1, 0.5, "sample 3: the delay is negative: -1"),
        (np.nan, 0.5, "sample 3: the delay is no finite number"),
        (np.inf, 0.5, "sample 3: the delay is no finite number"),
        (6.1e10, 0.5, "sample 3: the delay is longer than a minute"),
        (5, 1.01, "sample 3: the load is not in 0 to 1"),
        (5, np.nan, "sample 3: the load is not in 0 to 1"),
    ],
)
def test_samples_that_cannot_be(delay, loaded, sentence):
    wrong(sentence, [1, 2, delay, 4], [0, 0, loaded, 0])


@pytest.mark.parametrize("kind", ["exponential", "monotone"])
def test_a_model_that_could_not_be_read_again_is_none(kind):
    """Loads of up to 0.1 only, whose curve is absurd at full load; times in another unit than ns."""
    delays, loads, ts_ns = steps(lambda x, r: 1e4 * np.exp(8 * x + r.normal(0, 0.1, x.shape)), rng(), TENTHS, 50)
    wrong("lead to no model that could be used", delays, loads / 10, kind=kind)
    wrong("could be used: the model: interval_s must lie in", delays, loads, ts_ns * 10**5, kind=kind)


def test_samples_that_no_fit_can_be_made_from():
    noise = rng()
    wrong("there are 2 delays, but 1 loads", [1, 2], [0])
    wrong("needs 4 levels of load with 5 samples or more, but there are 0", [], [])
    wrong("but there are 3", *steps(published, noise, (0, 0.5, 0.9), 50)[:2])
    wrong("but there are 2", *steps(published, noise, (0, 0.5), 50)[:2])
    wrong("but there are 0", *steps(published, noise, PAPER_LEVELS, 4)[:2])
    wrong("begins at load 0.95, but there are 3", *steps(published, noise, (0, 0.5, 0.9, 0.95), 50)[:2])
    wrong("does not rise with load", *steps(lambda x, r: 1e6 - 5e5 * x, noise, PAPER_LEVELS, 50)[:2])
    flat = steps(lambda x, r: 1e5 + 100 * x + r.normal(0, 1e4, x.shape), noise, PAPER_LEVELS[:5], 300)
    wrong("load cannot be told from delay", *flat)

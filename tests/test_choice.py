"""The data centre: each guard by itself, then noise, load steps and herding over thousands of samples."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import choice
from controlplane.choice import Candidate, Rules, State, decide, pick
from controlplane.contents import CONTENTS, default_seconds

RULES = Rules(0.1, 0.02)
SAMPLE_seconds = 4.0
SAMPLE_ns = int(SAMPLE_seconds * 1e9)
NOW_ns = 10**18
USERS = [f"10.1.{n}.0/24" for n in range(200)]


def candidates(congested="", delays=None, **seconds):
    """Candidates of their times; None: not known."""
    delays = delays or {}
    return [Candidate(n, s, n in congested, delays.get(n), SAMPLE_seconds) for n, s in seconds.items()]


def members(found, state=State(), rules=RULES, now_ns=NOW_ns):
    return decide(found, state, rules, now_ns)[1].members


def reason(found, state=State(), user=USERS[0]):
    return pick(decide(found, state, RULES, NOW_ns)[1], user)


def test_the_fastest_is_chosen():
    assert reason(candidates(a=1.0, b=0.5, c=0.7)) == ("b", choice.BEST)


@pytest.mark.parametrize(
    ("b", "after"), [(0.89, "b"), (0.9, "b"), (0.91, "a"), (0.97, "a"), (0.99, "ab"), (1.01, "ab"), (1.03, "a")]
)
def test_better_by_a_tenth_takes_over_and_an_equal_one_shares(b, after):
    assert members(candidates(a=1.0, b=b), State(("a",))) == tuple(after)


@pytest.mark.parametrize(("b", "after"), [(1.02, "ab"), (1.1, "ab"), (1.12, "a"), (0.95, "ab"), (0.9, "b")])
def test_who_shares_goes_on_until_worse_by_a_tenth(b, after):
    assert members(candidates(a=1.0, b=b), State(("a", "b"))) == tuple(after)


LATELY = State(("a",), worse_ns={"a": NOW_ns - 10**9})  # a has been worse for a second


def test_better_by_less_than_noise_moves_nobody():
    a, b = candidates(a=2.0, b=1.0)
    assert members([a, b], State(("a",))) == ("b",)
    apart, over = a._replace(range_seconds=(1.5, 3.0)), a._replace(range_seconds=(1.1, 3.0))
    wide = b._replace(range_seconds=(0.5, 1.4))
    assert members([apart, wide], LATELY) == ("b",)
    assert members([over, wide], LATELY) == ("a", "b")  # it may be better: they share
    assert members([over, b], LATELY) == ("b",)  # its own noise is not known
    assert members([over._replace(congested=True), wide], LATELY) == ("b",)


def test_an_unsure_best_does_not_stand_before_a_sure_second():
    a, b, c = candidates(a=2.0, b=1.0, c=1.05)
    a, b, c = (x._replace(range_seconds=ends) for x, ends in ((a, (1.8, 2.2)), (b, (0.5, 3.0)), (c, (1.0, 1.1))))
    assert members([a, b], LATELY) == ("a", "b")
    assert members([a, b, c], LATELY) == ("c",)
    assert members([a, b._replace(expected_seconds=0.8), c], LATELY) == ("b", "c")


def test_a_plateau_of_the_curve_is_no_overlap():
    a, b = candidates(a=2.0, b=1.0)
    ends = [x._replace(range_seconds=ends) for x, ends in ((a, (1.5, 2.0)), (b, (0.8, 1.5)))]
    assert members(ends, LATELY) == ("b",)


def test_a_difference_beyond_noise_lasts_a_second_before_it_moves_anybody():
    a, b = candidates(a=2.0, b=1.0)
    apart, same = ([x._replace(range_seconds=ends) for x in (a, b)] for ends in ((1.5, 1.5), (1.0, 3.0)))
    state, decision = decide(apart, State(("a",)), RULES, NOW_ns)
    assert decision.members == ("a", "b") and state.worse_ns == {"a": NOW_ns}  # b shares meanwhile
    assert members(apart, state, now_ns=NOW_ns + 10**9 - 1) == ("a", "b")
    assert members(apart, state, now_ns=NOW_ns + 10**9) == ("b",)
    between = decide(same, state, RULES, NOW_ns + 10**8)[0]
    assert between.worse_ns == {} and members(apart, between, now_ns=NOW_ns + 10**9) == ("a", "b")
    assert decide(apart, state, RULES, NOW_ns - 10**9)[0].worse_ns == {"a": NOW_ns - 10**9}  # the clock was set back


def test_waits_are_no_shorter_than_agents_post():
    fast = [c._replace(interval_seconds=0.01) for c in candidates(a=2.0, b=1.0)]
    state = decide(fast, State(("a",)), RULES, NOW_ns)[0]
    equal = [c._replace(interval_seconds=0.01) for c in candidates(a=1.0, b=1.0)]
    assert members(equal, state, now_ns=NOW_ns + (choice.REST_samples - 1) * 10**9) == ("b",)
    assert members(equal, state, now_ns=NOW_ns + choice.REST_samples * 10**9) == ("a", "b")


def test_it_says_when_it_keeps_a_worse_one():
    assert reason(candidates(a=1.0, b=0.95), State(("a",))) == ("a", choice.KEPT)


@pytest.mark.parametrize("known", [{"a": None, "b": 9.0}, {"b": 9.0}])
def test_a_path_that_is_not_known_is_ignored(known):
    assert reason(candidates(**known), State(("a",))) == ("b", choice.BEST)


def test_if_none_is_known_the_choice_is_kept():
    state, decision = decide(candidates(a=None, b=None), State(("b",)), RULES, NOW_ns)
    assert state == State(("b",)) and pick(decision, USERS[0]) == ("b", choice.UNKNOWN)


def test_if_none_is_known_nor_was_chosen_users_are_spread():
    _, decision = decide(candidates(a=None, b=None), State(), RULES, NOW_ns)
    assert {pick(decision, user) for user in USERS} == {("a", choice.UNKNOWN), ("b", choice.UNKNOWN)}


def test_congested_is_worst():
    assert reason(candidates("a", a=0.1, b=9.0), State(("a",))) == ("b", choice.BEST)


def test_if_all_are_congested_the_choice_stays():
    assert reason(candidates("ab", a=9.0, b=1.0), State(("a",))) == ("a", choice.CONGESTED)
    assert reason(candidates("ab", {"a": 5, "b": 9}, a=9.0, b=1.0)) == ("a", choice.CONGESTED)


def test_of_equal_ones_the_least_delay_counts_where_nothing_is_shared():
    found = candidates(delays={"a": 900, "b": 100}, a=1.0, b=1.0)
    assert members(found, rules=Rules(0.1, 0.0)) == ("b",)
    assert decide(found, State(), RULES, NOW_ns)[1].best == "b"


def test_a_user_stays_and_only_those_of_who_leaves_move():
    three = decide(candidates(a=1.0, b=1.0, c=1.0), State(), RULES, NOW_ns)[1]
    before = {user: pick(three, user)[0] for user in USERS}
    assert min(Counter(before.values()).values()) > len(USERS) / 5
    two = decide(candidates(a=1.0, b=1.0, c=2.0), State(three.members), RULES, NOW_ns)[1]
    after = {user: pick(two, user)[0] for user in USERS}
    assert all(after[user] == name for user, name in before.items() if name != "c")
    assert {after[user] for user, name in before.items() if name == "c"} == {"a", "b"}


def test_who_left_rests_before_it_shares_again():
    state = decide(candidates(a=1.0, b=2.0), State(("a", "b")), RULES, NOW_ns)[0]
    equal = candidates(a=1.0, b=1.0)
    assert members(equal, state, now_ns=NOW_ns + (choice.REST_samples - 1) * SAMPLE_ns) == ("a",)
    assert members(equal, state, now_ns=NOW_ns + choice.REST_samples * SAMPLE_ns) == ("a", "b")
    assert members(equal, state, now_ns=NOW_ns - 10 * SAMPLE_ns) == ("a", "b")  # the clock was set back


def test_a_quick_return_is_shared_and_held_a_later_one_is_whole():
    state = decide(candidates(a=2.0, b=1.0), State(("a",)), RULES, NOW_ns)[0]
    back, soon, later = candidates(a=1.0, b=2.0), NOW_ns + 3 * SAMPLE_ns, NOW_ns + choice.SOON_samples * SAMPLE_ns
    assert members(back, state, now_ns=later) == ("a",)
    state, decision = decide(back, state, RULES, soon)
    assert decision.members == ("a", "b")
    assert members(back, state, now_ns=soon + (choice.HOLD_samples - 1) * SAMPLE_ns) == ("a", "b")
    assert members(candidates("b", a=1.0, b=2.0), state, now_ns=soon + SAMPLE_ns) == ("a",)
    assert members(back, state, now_ns=soon + choice.HOLD_samples * SAMPLE_ns) == ("a",)


def test_the_state_goes_through_its_document():
    state = decide(candidates(a=2.0, b=1.0), State(("a",)), RULES, NOW_ns)[0]
    assert choice.state_of(state.as_document()) == state


STEP = st.dictionaries(st.sampled_from("abcd"), st.none() | st.floats(0.01, 100), min_size=1)


@given(st.lists(st.tuples(STEP, st.sets(st.sampled_from("abcd")), st.integers(-5, 50)), max_size=30))
def test_somebody_who_may_be_chosen_always_is(steps):
    state, now_ns = State(), NOW_ns
    for seconds, congested, samples in steps:
        now_ns += samples * SAMPLE_ns
        state, decision = decide(candidates(congested, **seconds), state, RULES, now_ns)
        fit = {n for n, s in seconds.items() if s is not None and n not in congested}
        fit = fit or {n for n, s in seconds.items() if s is not None} or set(seconds)
        assert decision.members and set(decision.members) <= fit
        assert not set(state.members) & set(state.left_ns)


# --- over many samples


def expected(load):
    return default_seconds(CONTENTS["page"], load, 0.01, 1e8)


def simulate(true_loads, samples, noise, seed=1, guards=True, known=False):
    """(times that the set changed, share of users at `a` after each sample) of two data centres whose loads are
    measured with noise and smoothed with w = 0.87. true_loads(sample, share of users at a): of both. Without guards
    the least time of each sample counts and nothing else. known: how large the noise is.
    """
    beyond = 1.645 * noise * np.sqrt(0.13 / 1.87)  # 9 in 10 smoothed loads are nearer
    rng, smooth, state, changes, shares = np.random.default_rng(seed), None, State(), 0, [0.5]
    for sample in range(samples):
        raw = np.clip(np.array(true_loads(sample, shares[-1])) + rng.normal(0, noise, 2), 0, 1)
        smooth = raw if smooth is None else 0.87 * smooth + 0.13 * raw
        found = [
            Candidate(n, expected(load), load >= 0.95, None, SAMPLE_seconds,
                      (expected(load - beyond), expected(load + beyond)) if known else None)
            for n, load in zip("ab", smooth)
        ]  # fmt: skip
        before, rules = (state, RULES) if guards else (State(), Rules(0.0, 0.0))
        after, decision = decide(found, before, rules, NOW_ns + sample * SAMPLE_ns)
        changes, state = changes + (after.members != state.members), after
        shares.append(sum(pick(decision, user)[0] == "a" for user in USERS) / len(USERS))
    return changes, shares[1:]


def test_noise_on_two_equal_loads_moves_nobody_to_and_fro():
    guarded, _ = simulate(lambda *_: (0.5, 0.5), 1000, 0.05)
    bare, _ = simulate(lambda *_: (0.5, 0.5), 1000, 0.05, guards=False)
    assert guarded <= 2 and bare > 100


@pytest.mark.parametrize(("load", "noise"), [(0.5, 0.1), (0.5, 0.2), (0.8, 0.1)])
def test_noise_that_is_known_seldom_moves_anybody_however_large_it_is(load, noise):
    known, _ = simulate(lambda *_: (load, load), 1000, noise, known=True)
    unknown, _ = simulate(lambda *_: (load, load), 1000, noise)
    assert known <= 20 < 30 < unknown


@pytest.mark.parametrize(("seed", "known"), [(seed, known) for seed in range(5) for known in (False, True)])
def test_a_load_moves_users_within_three_samples_and_back_later(seed, known):
    changes, shares = simulate(lambda n, _: (0.8 if 200 <= n < 400 else 0.2, 0.2), 600, 0.03, seed, known=known)
    assert shares[198] > 0.3 and shares[202] <= 0.05  # three samples: 200, 201, 202
    assert max(shares[202:400]) == 0.0
    assert shares[-1] > 0.3 and changes <= 4


def test_users_own_load_does_not_drive_them_to_and_fro():
    """Half of a data centre's capacity is what all users take together, wherever they are."""

    def own(_, share):
        return 0.2 + 0.5 * share, 0.2 + 0.5 * (1 - share)

    guarded, shares = simulate(own, 1000, 0.05)
    bare, swings = simulate(own, 1000, 0.05, guards=False)
    assert guarded < 100 and bare > 500
    assert np.mean(np.abs(np.array(shares) - 0.5)) < 0.2 < np.mean(np.abs(np.array(swings) - 0.5))

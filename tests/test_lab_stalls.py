"""`qoetap lab`: a short real run closes the loop; what is counted from runs; bad usage."""

import json
import sys
from types import SimpleNamespace

import pytest

from dataplane.records import CHECKED
from qoetap import lab_command, lab_hostile, lab_plot, lab_stalls
from qoetap.exits import USAGE
from qoetap.lab_intervals import favours_of, joined, most_within, within
from tests.helpers import run

SECOND_ns = 10**9
COMPILED = pytest.mark.skipif(CHECKED, reason="inline is compiled only")


# --- favours


def told(what, second, flow="f", rule=1):
    return {
        "event_type": f"mitigation.{what}", "ts_ns": second * SECOND_ns, "flow_id": flow, "mitigation": {"rule": rule}
    }  # fmt: skip


def seconds(intervals):
    return [(since / SECOND_ns, until / SECOND_ns) for since, until in intervals]


def test_favours_of_several_flows_are_joined_and_an_open_one_ends_with_the_run():
    events = [told("start", 1), {"event_type": "iqn.stall_start"}, told("start", 2, "g"), told("end", 4)]
    events += [told("end", 6, "g"), told("start", 9), told("start", 30)]
    assert seconds(favours_of(events, 20 * SECOND_ns)) == [(1, 6), (9, 20)]


def test_favours_of_one_rule():
    events = [told("start", 1), told("start", 1, rule=2), told("end", 2, rule=2), told("end", 5)]
    assert seconds(favours_of(events, 20 * SECOND_ns, rule=2)) == [(1, 2)]
    assert seconds(favours_of(events, 3 * SECOND_ns)) == [(1, 3)]


def test_joined():
    assert joined([(5, 6), (1, 3), (2, 4), (4, 5), (8, 9)]) == [(1, 6), (8, 9)]


def test_the_most_within_a_window():
    intervals = [(0, 4), (10, 13), (15, 20)]
    assert within(intervals, 3, 16) == 5
    assert most_within(intervals, 10) == 8  # 10 to 20
    assert most_within(intervals, 2) == 2
    assert most_within([], 10) == 0


# --- runs


def a_run(seed, mitigated, stalled, bulk):
    return lab_stalls.Run(seed, mitigated, stalled, [], bulk, 0, [], [(0.0, 0.0), (1.0, 2.0)], [(0.0, 0), (5.0, 10)])


PAIRS = [a_run(1, False, 40.0, 8e6), a_run(1, True, 4.0, 6e6), a_run(2, False, 20.0, 9e6), a_run(2, True, 2.0, 6e6)]


def test_the_scenario_is_the_seeds():
    assert lab_stalls.scenario(3) == lab_stalls.scenario(3) != lab_stalls.scenario(4)
    for drawn in map(lab_stalls.scenario, range(50)):
        assert 4 <= len(drawn.bulk_delays_s) <= 8 and len(drawn.sizes) == lab_stalls.SEGMENTS
        assert 0.85e6 * 6 < sum(drawn.sizes) / lab_stalls.SEGMENTS * 8 < 1.15e6 * 6  # 3 Mbit/s for two seconds


def test_ratios_are_of_sums():
    found = lab_stalls.compare(PAIRS)
    assert found.stall_ratio == pytest.approx(0.1) and found.bulk_ratio == pytest.approx(12 / 17)
    assert lab_stalls.compare([a_run(1, False, 0.0, 0.0), a_run(1, True, 0.0, 0.0)]) == (None, None)


def test_the_table_and_the_json():
    lines = list(lab_stalls.lines_of(PAIRS))
    assert "40.0" in lines[2] and "4.0" in lines[2] and lines[-2].endswith("10 % of the seconds without")
    found = json.loads(json.dumps(lab_stalls.as_json(PAIRS)))
    assert [r["stalled_s"] for r in found["runs"]] == [40, 4, 20, 2] and found["stall_ratio"] == pytest.approx(0.1)


def test_rates_of_samples():
    samples = [(0.0, 0), (1.0, 1000), (2.0, 3000), (3.0, 5000)]
    assert lab_stalls.rate_bps(samples, 1.0) == 16_000
    assert lab_stalls.rate_bps(samples, 2.5) == 0
    assert lab_hostile.split_bps(samples, [(1.0, 2.0)]) == (16_000, 12_000)
    assert lab_hostile.split_bps(samples, [(0.5, 1.5)]) == (0, 16_000)  # the first two samples lie on edges


def test_a_promise_that_is_broken_is_seen():
    rule = SimpleNamespace(do="priority", budget=5 * SECOND_ns, window=20 * SECOND_ns)
    kept = lab_hostile.promise(rule, 1, [told("start", 1), told("end", 6), told("start", 21), told("end", 26)], 10**12)
    broken = lab_hostile.promise(rule, 1, [told("start", 1), told("end", 6), told("start", 9), told("end", 11)], 10**12)
    assert (kept.kept, kept.favoured_s, kept.most_s) == (True, 10, 5)
    assert (broken.kept, broken.most_s) == (False, 7)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    lab_plot.check_plot(tmp_path / "x.png")
    lab_plot.plot(PAIRS, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


# --- bad usage


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "invalid choice"),
        (["stalls", "--seeds", "0"], "--seeds 0: choose 1"),
        (["stalls", "--seconds", "5"], "--seconds 5: choose 20"),
        (["hostile", "--seeds", "2"], "--seeds is for stalls"),
        (["street", "--json"], "--json is for stalls and hostile"),
        (["stalls", "--plot", "x.xyz"], "ends in .png"),
        (["stalls", "--plot", "/nowhere/x.png"], "no such folder"),
        (["stalls", "-c", "/nowhere.yaml"], "/nowhere.yaml"),
        (["stalls", "--set", "inline.mitigation=[{on: iqn.stall, do: priority, class: bulk}]"], "no event 'iqn.stall'"),
    ],
)
def test_wrong_usage(words, sentence):
    ended = run("lab", *words)
    assert ended.status == USAGE and ended.out == "" and sentence in ended.err


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = run("lab", "stalls", "--plot", tmp_path / "x.png")
    assert ended.status == USAGE and "pip install 'qoetap[lab]'" in ended.err


def test_without_aioquic(monkeypatch, root):
    monkeypatch.setattr(lab_command, "check_needs", lambda: lab_command.check_needs.__wrapped__())

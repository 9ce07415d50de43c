"""`qoetap lab`: a short real run closes the loop; what is counted from runs; bad usage."""

import json
import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dataplane.records import CHECKED
from qoetap import lab_command, lab_hostile, lab_plot, lab_site, lab_stalls
from qoetap.exits import DONE, PRIVILEGE, RUN_ERROR, USAGE
from qoetap.lab import NAMESPACES, End
from qoetap.lab_intervals import favours_of, joined, most_within, within
from qoetap.lab_site import END_seconds, read_lines
from tests.helpers import run
from tests.live import ROOT, START_seconds, wait_until

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
    events += [told("end", 6, "g"), told("start", 9), told("start", 30, "h")]
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


def test_seeds():
    assert list(lab_command.seeds_of("3")) == [1, 2, 3] and list(lab_command.seeds_of("4-5")) == [4, 5]


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
        (["stalls", "--seeds", "0"], "--seeds 0: write how many"),
        (["stalls", "--seeds", "5-3"], "--seeds 5-3: write how many"),
        (["stalls", "--seeds", "many"], "--seeds many: write how many"),
        (["street", "--seconds", "0"], "--seconds is for stalls, hostile, load"),
        (["stalls", "--seconds", "5"], "--seconds 5: choose 20"),
        (["hostile", "--seeds", "2"], "--seeds is for stalls"),
        (["street", "--json"], "--json is for stalls, hostile, load"),
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


def test_without_aioquic(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab_site.importlib.util, "find_spec", lambda name: None)
    ended = run("lab", "stalls")
    assert ended.status == USAGE and "aioquic" in ended.err and "pip install 'qoetap[lab]'" in ended.err


def test_without_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ended = run("lab", "hostile")
    assert ended.status == PRIVILEGE and "needs root: run with sudo" in ended.err


@COMPILED
def test_what_inline_refuses_is_told_in_its_words(root, tmp_path):
    site = "inline: {classes: [{name: a, match: {in: nowhere0}}]}"
    (tmp_path / "site.yaml").write_text(site)
    ended = run("lab", "stalls", "-c", tmp_path / "site.yaml", "--seconds", "20")
    assert ended.status == USAGE and ended.err.splitlines()[-1].startswith("qoetap: inline.classes: there is no interf")


# --- real runs


def words_of(experiment):
    return ["-c", str(lab_command.HERE / f"lab_{experiment}.yaml"), "--set", "inline.delay_bound=0s"]


@COMPILED
def test_the_loop_closes(root, tmp_path, monkeypatch):
    """The viewer stalls, the router hears it and holds bulk transfer back, the viewer goes on."""
    monkeypatch.setattr(lab_stalls, "BULK_BEGINS", (1.0, 2.0))
    monkeypatch.setattr(lab_stalls, "FLOWS", (8, 8))
    found = lab_stalls.run_once(tmp_path, words_of("stalls"), 1, True, 30)
    events = read_lines(tmp_path / "events.jsonl")
    assert found.stalls and found.stalls[0][1] < 30
    assert found.signals and found.favours[0][0] > found.stalls[0][0]
    paced = [e["pace"] for e in events if e["event_type"] == "pace.rate_changed"]
    assert (paced[0]["class"], paced[0]["new_bps"], paced[0]["changed_by"]) == ("bulk", 5_000_000, "mitigation")
    last = {e["pace"]["class"]: e["pace"] for e in events if e["event_type"] == "pace.stats"}
    assert last["bulk"]["released"] > 100 and last["default"]["released"] == 0
    assert found.levels and found.bulk[-1][1] > 1_000_000


@COMPILED
def test_a_hostile_flow_wins_no_more_than_its_cap(root, tmp_path):
    args = SimpleNamespace(config=None, set=["inline.delay_bound=0s"], experiment="hostile")
    options, inline = lab_command.config_of(args)
    found = lab_hostile.run_once(tmp_path, options, inline, 20)
    ends = [e["mitigation"] for e in read_lines(tmp_path / "events.jsonl") if e["event_type"] == "mitigation.end"]
    assert found.signals >= 1 and found.class_bps == 4_000_000
    for number, rule in enumerate(inline.mitigation, 1):  # the run is shorter than the window
        assert 0 < sum(e["duration_ns"] for e in ends if e["rule"] == number) <= rule.budget
    assert 0 < found.other_bps < 1_200_000 < found.favoured_bps < 4_800_000


def started(*words):
    command = [sys.executable, "-m", "qoetap", "lab", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def nothing_is_left(pid):
    return not [name for name in os.listdir(NAMESPACES) if name.startswith(f"qoetap-{pid}-")]


@COMPILED
def test_a_street_for_ones_own_traffic(root, tmp_path):
    with started("street", "-o", tmp_path) as process:
        lines = [process.stdout.readline().split() for _ in range(4)]
        places = {words[0]: words for words in lines}
        namespace = places["sender"][places["sender"].index("exec") + 1]
        sender = End(namespace, "a0")
        with sender.inside(socket.create_server, (places["sender"][1], 5001)) as ear:
            receiver = End(places["receiver"][places["receiver"].index("exec") + 1], "b0")
            with receiver.inside(socket.create_connection, (places["sender"][1], 5001), 10), ear.accept()[0]:
                pass
        process.send_signal(signal.SIGINT)
        assert process.wait(END_seconds) == DONE
    last = [e["pace"] for e in read_lines(tmp_path / "events.jsonl") if e["event_type"] == "pace.stats"]
    assert sum(row["packets"] for row in last if row["class"] == "bulk") >= 1  # answers of port 5001
    assert nothing_is_left(process.pid)


@COMPILED
def test_ended_early_it_leaves_nothing(root, tmp_path):
    with started("stalls", "-o", tmp_path) as process:
        wait_until(lambda: (tmp_path / "seed1-without" / "play.log").exists(), START_seconds)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_seconds) == RUN_ERROR
        assert process.stderr.read().endswith("qoetap: interrupted\n")
    assert nothing_is_left(process.pid)


def test_a_run_on_a_busy_machine_is_repeated_and_given_up_in_the_end(capsys):
    times = iter([True, True, False])

    def measure(found):
        if next(times, True):
            raise lab_site.TooBusy(RUN_ERROR, "too busy")
        return found

    assert lab_site.tried(measure, 7) == 7
    assert capsys.readouterr().err == "qoetap: too busy; once more\n" * 2
    with pytest.raises(lab_site.TooBusy):
        lab_site.tried(measure, 7)


def test_what_a_busy_machine_cost_is_read_from_what_inline_says():
    said = "qoetap: packets left 72 ms late: everything passes by for 1 s\nqoetap: 2,000 ms\n"
    assert lab_site.lost_s(said * 2) == pytest.approx(2.144) and lab_site.lost_s("") == 0

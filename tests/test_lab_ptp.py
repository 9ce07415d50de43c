"""Paths of the lab: real ptp4l gives delays over a street and a fork; bursts; page loads; bad usage."""

import asyncio
import json
import shutil
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import require

from endhost import bursts, pages, webpages
from qoetap import calibrate, lab_centres, lab_centres_plot, lab_estimate, lab_estimate_plot, lab_load, lab_pages
from qoetap.exits import PRIVILEGE, RUN_ERROR, USAGE, Exit
from qoetap.lab_load import Step
from qoetap.lab_ptp import OnePath, TwoPaths, samples
from qoetap.lab_serve import Service
from qoetap.lab_site import TooBusy, begin_ns
from qoetap.load_command import as_labelled, fitted
from qoetap.street import passed
from tests.helpers import run

SECOND_ns = 10**9
RATE_bps = 10_000_000


@pytest.fixture(scope="module")
def _ptp(root):
    for name, package in (("ip", "iproute2"), ("tc", "iproute2"), ("setpriv", "util-linux"), ("ptp4l", "linuxptp")):
        require(shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin"), f"{name} is not installed ({package})")


# --- bursts: the schedule


def test_each_slot_has_the_bytes_that_were_asked_for_and_the_seed_decides_the_rest():
    steps = [(0.3, 3), (1.05, 2), (0, 1)]
    found = list(bursts.slots(5, steps, RATE_bps))
    assert [load for load, _, _ in found] == [0.3] * 3 + [1.05] * 2 + [0]
    sent = np.cumsum([sizes.sum() for _, _, sizes in found])
    wanted = np.cumsum([load * RATE_bps / 8 for load, _, _ in found])
    assert np.all(np.abs(sent - wanted) < bursts.LEAST_bytes)
    for (_, moments, sizes), (_, same, _) in zip(found, bursts.slots(5, steps, RATE_bps), strict=True):
        assert np.array_equal(moments, same) and len(moments) == len(sizes)
    assert not np.array_equal(found[0][1], next(bursts.slots(6, steps, RATE_bps))[1])


def test_bursts_have_random_gaps_and_sizes():
    _, moments, sizes = next(bursts.slots(1, [(0.9, 1)], 1_000_000_000))
    assert moments[0] >= 0 and moments[-1] < 1 and np.all(np.diff(moments) >= 0)
    begins, counts = np.unique(moments, return_counts=True)
    gaps = np.diff(begins)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential ones have it
    assert counts.mean() == pytest.approx(bursts.BURST_packets, rel=0.05)
    assert sizes[:-1].min() >= bursts.LEAST_bytes and sizes.max() == 1514
    assert np.mean(sizes == 1514) == pytest.approx(0.5, abs=0.02)


# --- labels


STEPS = [Step(0, 10 * SECOND_ns, 0.5, 0.5), Step(10 * SECOND_ns, 20 * SECOND_ns, 1.1, 1.1)]


def test_samples_are_labelled_with_what_was_sent_and_others_left_out():
    found = [(-1, 1), (0, 2), (10 * SECOND_ns, 3), (20 * SECOND_ns, 4)]
    lines = list(lab_load.labelled(lab_load.Run(STEPS, found, {}, 0)))
    assert lines == [{"ts_ns": 0, "delay_ns": 2, "load": 0.5}, {"ts_ns": 10 * SECOND_ns, "delay_ns": 3, "load": 1.0}]


def test_what_was_sent_is_told_by_the_sender_and_lateness_ends_the_run():
    lines = [{"bytes": 625_000, "late_s": 0.0}, {"bytes": 600_000, "late_s": 0.1}, {"bytes": 0, "late_s": 0.0}]
    found = lab_load.held([(0.5, 2), (0.0, 1)], lines, 7, RATE_bps)
    assert found == [Step(7, 2 * SECOND_ns + 7, 0.5, 0.49), Step(2 * SECOND_ns + 7, 3 * SECOND_ns + 7, 0.0, 0.0)]
    assert lab_load.told_slots(SimpleNamespace(lines=lambda: lines), [(0.5, 2), (0.0, 1)]) == lines
    with pytest.raises(Exit, match="told of 3 s in place of 2"):
        lab_load.told_slots(SimpleNamespace(lines=lambda: lines), [(0.5, 2)])
    with pytest.raises(TooBusy, match=r"up to 0\.70 s late"):
        lab_load.told_slots(SimpleNamespace(lines=lambda: [{"bytes": 1, "late_s": 0.7}]), [(0.5, 1)])


def test_random_loads_are_the_seeds_and_last_as_long_as_asked():
    steps = lab_load.random_steps(3, 600)
    assert steps == lab_load.random_steps(3, 600) != lab_load.random_steps(4, 600)
    assert sum(seconds for _, seconds in steps) == 600 and all(0 <= load <= lab_load.MOST for load, _ in steps)


def test_a_last_line_that_is_cut_short_does_not_count(tmp_path):
    event = {"event_type": "ptp.delay", "ts_ns": 5, "ptp": {"mean_path_delay_ns": 9}}
    other = {"event_type": "ptp.incomplete", "ts_ns": 6, "ptp": {"mean_path_delay_ns": None}}
    whole = json.dumps(event)
    (tmp_path / "x").write_text("\n".join([whole, json.dumps(other), whole[:-3]]))
    assert samples(tmp_path / "x") == [(5, 9)]


# --- scores


def a_fit():
    rng = np.random.default_rng(1)
    lines = [
        {"ts_ns": int((level * 50 + n) * SECOND_ns), "delay_ns": int(3e4 * np.exp(6 * level) * rng.uniform(0.9, 1.1)),
         "load": level / 1}
        for level in np.arange(0, 10) / 10 for n in range(30)
    ]  # fmt: skip
    return fitted(as_labelled("a test", lines), None, "exponential", 30.0)


def a_run():
    held = [Step(0, 10 * SECOND_ns, 0.5, 0.5), Step(10 * SECOND_ns, 20 * SECOND_ns, 0.0, 0.0)]
    told = {"load": 0.6, "load_low": 0.4, "load_high": 0.7, "class": "normal"}
    none = {"load": None, "load_low": None, "load_high": None, "class": "unknown"}
    answers = [(8 * SECOND_ns, {"last_ns": 7 * SECOND_ns, **told})]
    answers += [(12 * SECOND_ns, {"last_ns": 11 * SECOND_ns, **told})]
    answers += [(19 * SECOND_ns, {"last_ns": 18 * SECOND_ns, **none}), (1, {"last_ns": None, **none})]
    answers += [(30 * SECOND_ns, {"last_ns": 25 * SECOND_ns, **told})]
    points = lab_estimate.points_of(answers, held)
    return lab_estimate.Run(RATE_bps, a_fit(), points[:3], lab_estimate.relative(held), "said")


def test_scores_of_answers():
    found = lab_estimate.score(a_run())
    assert (found.answers, found.unknown) == (3, 1)
    assert found.rmse == pytest.approx(np.sqrt((0.1**2 + 0.6**2) / 2)) and found.rmse_concerned == pytest.approx(0.1)
    assert found.right == pytest.approx(1 / 3) and found.steady == 1.0 and found.lag_s == 1.0
    assert found.covered == 0.5 and found.rmse_by_class["normal"] == pytest.approx(0.1)


def test_tables_json_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    lines = list(lab_estimate.lines_of([a_run()]))
    assert lines[0].startswith("10Mbit: 3 answers") and "  class right: 33.3 %" in lines
    assert json.loads(json.dumps(lab_estimate.as_json([a_run()])))["runs"][0]["unknown"] == 1
    lab_estimate_plot.plot([a_run()], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_rank_correlation():
    points = [lab_pages.Point("page", 0, load, seconds) for load, seconds in ((0.1, 2), (0.2, 3), (0.2, 4), (0.9, 50))]
    assert lab_pages.rank_correlation(points) == pytest.approx(0.9486833)  # 1 2.5 2.5 4 with 1 2 3 4
    assert lab_pages.ranks([3.0, 1.0, 3.0]).tolist() == [1.5, 0.0, 1.5]


def answers(*spans):
    """Answers of new users every 0.1 s: of each span (since, until, number of the data centre)."""
    return [
        lab_centres.Answer(at / 10, (10, at % 7, 0), False, lab_centres.CENTRES[number])
        for since, until, number in spans for at in range(since * 10, until * 10)
    ]  # fmt: skip


def test_scores_of_two_data_centres():
    told = answers((0, 64, 0), (64, 130, 1), (130, 180, 0))
    told += [
        lab_centres.Answer(at, (10, 255, 1), True, lab_centres.CENTRES[at in (90, 95, 105)]) for at in range(50, 180, 5)
    ]
    told.sort()
    alone = [lab_centres.Answer(181, (10, 1, 1), False, None), lab_centres.Answer(182, (10, 1, 1), False, "192.0.2.1")]
    found = lab_centres.score(lab_centres.Run(RATE_bps, lab_centres.CASES[0], told + alone, 181))
    assert (found.moved_s, found.moved_share, found.back_s) == (4.0, 1.0, 10.0)
    assert found.back_share == 1.0 and found.flaps == {"before": 0, "loaded": 3, "after": 0}
    assert (found.unanswered, found.alone_answered) == (1, 0.5)
    assert lab_centres.moved_after(answers((60, 120, 0)), 60) is None
    lines = list(lab_centres.lines_of([lab_centres.Run(RATE_bps, lab_centres.CASES[0], told + alone, 181)]))
    assert any("4.0 s (512.0 sample intervals) after the load began" in line for line in lines)


def test_picture_of_two_data_centres(tmp_path):
    pytest.importorskip("matplotlib")
    told = answers((0, 60, 0), (60, 130, 1), (130, 190, 0))
    lab_centres_plot.plot([lab_centres.Run(RATE_bps, lab_centres.CASES[1], told, 180)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


# --- page loads


def test_the_prober_loads_the_page_and_all_its_objects():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def both():
        await webpages.webpages("127.0.0.1", port)
        return [await pages.load(f"http://127.0.0.1:{port}/{name}") for name in ("", "file.bin")]

    page, file = asyncio.run(both())
    assert (page.parts, page.bytes) == (28, 2_500_000) and (file.parts, file.bytes) == (1, 30_000_000)
    assert 0 < page.seconds < 60


def test_objects_of_a_page():
    html = """<link rel=stylesheet href=a.css><link rel=canonical href=no><script src="/b.js"></script>
    <img src=c.jpg><img src="c.jpg#top"><img src="data:x"><a href=no><iframe src="about:blank"><img src="http://["><img>
    <img src>"""
    assert pages.objects_of("http://x/y/", html) == ["http://x/y/a.css", "http://x/b.js", "http://x/y/c.jpg"]


def test_what_is_not_there_and_no_request():
    for request in ("GET /nothing HTTP/1.1", "POST / HTTP/1.1", "", "GET"):
        assert webpages.answer(webpages.site(), request)[0].startswith(b"HTTP/1.1 404")


# --- the real thing


def test_ptp4l_gives_delays_to_a_service_and_load_lengthens_them(_ptp, tmp_path):
    with OnePath(tmp_path, RATE_bps) as path:
        service = Service(path, [])
        tap = path.tap()
        path.await_samples(tap, 20)
        before, begin = path.passed(), begin_ns()
        sender = path.load([(1.1, 3)], begin, 1)
        sender.finish(60)
        tap.process.stop()
        counted = path.passed_since(before)
        assert service.get("/v1/paths") == []
    lines = lab_load.told_slots(sender, [(1.1, 3)])
    sent = sum(line["bytes"] for line in lines)
    assert sent == pytest.approx(1.1 * 3 * RATE_bps / 8, abs=100)
    assert 0.8 * sent < counted["bytes"] < sent + 1_000_000 and counted["packets"] > 0
    found = samples(tap.events)
    idle = [delay for ts_ns, delay in found if ts_ns < begin]
    loaded = [delay for ts_ns, delay in found if ts_ns > begin + 2 * SECOND_ns]
    assert np.median(loaded) > 20 * np.median(idle)


def test_a_fork_has_a_path_to_each_data_centre(_ptp, tmp_path):
    with TwoPaths(tmp_path, RATE_bps) as paths:
        taps = [paths.tap(number) for number in (0, 1)]
        for tap in taps:
            paths.await_samples(tap, 5)
        before = [passed(side.far)["packets"] for side in paths.sides]
        paths.load([(0.5, 1)], begin_ns(), 1, number=1).finish(60)
        counted = [passed(side.far)["packets"] - was for side, was in zip(paths.sides, before, strict=True)]
    assert counted[1] > counted[0] + 300  # the load of one side is not the other's
    masters = {json.loads(tap.events.read_text().splitlines()[0])["ptp"]["master_clock"] for tap in taps}
    assert masters == {"020000fffe000102", "020000fffe000302"}


# --- bad usage


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("load calibrate", "say what is wanted: --samples FILE, -o FILE, --plot FILE or --json"),
        ("load calibrate --json --rate 2", "--rate 2: choose 1Mbit to 200Mbit"),
        ("load calibrate --json --rate fast", "--rate fast: write a rate"),
        ("load calibrate --json --levels 0,x", "--levels 0,x: write loads of 0 to 1.5"),
        ("load calibrate --json --levels 0,2", "--levels 0,2: write loads of 0 to 1.5"),
        ("load calibrate --json --seconds 1", "--seconds 1: choose 2 to 3600"),
        ("load calibrate --json --seed -1", "--seed -1: choose 0 to"),
        ("load calibrate --json --random 60 --levels 0,1", "--random draws loads and how long they are held"),
        ("load calibrate file.jsonl --json", "FILE is for learn"),
        ("lab load --seeds 3", "--seeds is for stalls"),
        ("lab load --seconds 5", "--seconds 5: choose 60 to 3600"),
        ("lab load --rate 10Mbit,1", "--rate 1: choose 1Mbit to 200Mbit"),
        ("lab pages --seconds 60", "--seconds is for stalls, hostile, load"),
        ("lab load --set seed=1", "--set is for stalls"),
        ("lab stalls --rate 10Mbit", "--rate is for load, pages, centres"),
    ],
)
def test_bad_options_are_told_in_a_sentence(words, sentence):
    ended = run(*words.split())
    assert ended.status == USAGE and sentence in ended.err and len(ended.err.splitlines()) == 1


def test_without_ptp4l_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "ptp4l" else name)
    monkeypatch.setattr(calibrate.os, "geteuid", lambda: 0)
    ended = run("load", "calibrate", "--json")
    assert (ended.status, ended.err) == (RUN_ERROR, "qoetap: ptp4l is not installed: apt install linuxptp\n")


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(calibrate.os, "geteuid", lambda: 1000)
    for words in (("load", "calibrate", "--json"), ("lab", "load")):
        ended = run(*words)
        assert ended.status == PRIVILEGE and "needs root" in ended.err

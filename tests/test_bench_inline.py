"""What measures `qoetap inline` sends and judges as it says, and accounts for every packet on a real router."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import require
from test_street import udp

from bench import inline, inline_accuracy, inline_changes, inline_cost, inline_report, inline_tcp, udp_sender
from bench.inline_changes import HIGH, LOW, bursts, room
from bench.inline_cost import ACCEPT, OURS, PEER
from bench.inline_parts import BITS, RECORD, LENGTH_bytes, by_class, times_of
from bench.peers import Missing
from bench.udp_sender import FIRST_PORT, BATCH_packets, HEADERS_bytes, UdpSender
from dataplane.records import CHECKED
from qoetap.street import RECEIVER, SENDER

ROOT = Path(__file__).resolve().parent.parent


def records(times, ports):
    """RECORD rows of departures at `times`, ns."""
    rows = np.zeros(len(times), RECORD)
    rows["seconds"], rows["ns"] = np.divmod(np.array(times, np.int64), 1_000_000_000)
    rows["dport"] = ports
    return rows


# --- the sender


def test_datagrams_go_to_the_ports_in_turn(street):
    ears = [udp(street.receiver, RECEIVER, "ipv4", FIRST_PORT + i) for i in range(3)]
    with udp(street.sender, SENDER, "ipv4") as mouth:
        sender, left = UdpSender(mouth, RECEIVER.ipv4, 3, LENGTH_bytes), 200
        while left:
            left -= sender.send(left)
    for ear, count in zip(ears, (67, 67, 66), strict=True):
        ear.settimeout(5)
        assert {len(ear.recv(2000)) for _ in range(count)} == {LENGTH_bytes - HEADERS_bytes}
        ear.setblocking(False)
        with pytest.raises(BlockingIOError):
            ear.recv(2000)
        ear.close()


def test_a_refusal_is_told(street, monkeypatch):
    monkeypatch.setattr(udp_sender, "sendmmsg", lambda *_: -1)
    with udp(street.sender, SENDER, "ipv4") as mouth, pytest.raises(OSError, match="too long"):
        UdpSender(mouth, RECEIVER.ipv4, 1, 70_000).send(1)


def test_it_sends_as_many_as_are_due(street, capsys):
    with udp(street.sender, SENDER, "ipv4") as mouth:
        told = UdpSender(mouth, RECEIVER.ipv4, 7, 100).run(0.2, rate=1_000)
    assert 1 <= told["sent"] <= 1 + 1_000 * told["seconds"]
    assert BATCH_packets % 7  # so the end of a turn is no batch's end


@pytest.mark.parametrize(
    ("main", "argv", "sentence"),
    [
        (udp_sender.main, ["--to", "127.0.0.1", "--ports", "0"], "--ports must be from 1 to 56536"),
        (udp_sender.main, ["--to", "127.0.0.1", "--rate", "0"], "--rate more than 0"),
        (udp_sender.main, ["--to", "127.0.0.1", "--length", "28"], "--length must be from 29 to 1500"),
        (inline.main, ["--parts", "tcp,udp"], "unknown part udp; known are accuracy, tcp, cost, changes, table"),
        (inline.main, ["--seconds", "0"], "--seconds must be more than 0"),
    ],
)
def test_bad_usage_is_named(main, argv, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and sentence in " ".join(capsys.readouterr().err.split())


def test_no_address_is_said(capsys):
    assert udp_sender.main(["--to", "nosuch"]) == 1
    assert "nosuch" in capsys.readouterr().err


# --- accuracy


def test_errors_of_rate_and_gaps():
    rate, ms = 1_000 * BITS, 1_000_000
    begin = 1_700_000_000 * 1000 * ms
    times = begin + np.arange(3_000) * ms
    error, gaps = inline_accuracy.errors(records(times, 1), rate, 2)
    assert error == 0 and len(gaps) == 1_999 and not gaps.any()
    times[1_000:] += 4 * ms  # one gap of the 2 seconds is 5 ms
    error, gaps = inline_accuracy.errors(records(times, 1), rate, 2)
    assert error == pytest.approx(1995 / 1999 - 1) and gaps.max() == 4 * ms and np.median(gaps) == 0
    with pytest.raises(RuntimeError, match="fewer than three"):
        inline_accuracy.errors(records(times[:100], 1), rate, 2)


def test_departures_by_class_keep_their_order():
    found = by_class(records([5, 6, 7, 8], [FIRST_PORT + 1, FIRST_PORT, FIRST_PORT + 1, FIRST_PORT]))
    assert {number: times_of(rows).tolist() for number, rows in found.items()} == {0: [6, 8], 1: [5, 7]}


# --- bursts


def slow_bursts(times, changed, rates):
    """The same from the definition, window by window."""
    across, within = -np.inf, -np.inf
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            edges = [begin, *(c for c in changed if begin < c <= times[last]), times[last]]
            in_force = [rates[max(i for i, c in enumerate(changed) if c <= edge)] for edge in edges[:-1]]
            lasted = np.diff(edges)
            beyond = (last - first + 1) * LENGTH_bytes - sum(
                r * ns for r, ns in zip(in_force, lasted, strict=True)
            ) / 8e9
            across = max(across, beyond / room(HIGH))
            if len(edges) == 2:
                within = max(within, beyond / room(in_force[0]))
    return across, within


@pytest.mark.parametrize("seed", range(5))
def test_bursts_are_those_of_the_definition(seed):
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(1_000_000, 60_000_000, 40))
    changed = np.concatenate([[0], np.sort(random.integers(2_000_000, 59_000_000, 4))])
    rates = np.array([LOW, HIGH, LOW, HIGH, LOW])
    assert bursts(times, changed, rates) == pytest.approx(slow_bursts(times, changed, rates))


def test_a_burst_is_noticed():
    paced = np.arange(100) * 2_000_000  # at the low rate
    always = np.array([0]), np.array([LOW])
    across, within = bursts(paced, *always)
    assert within == pytest.approx(LENGTH_bytes / room(LOW)) and across < within < 1
    paced[50:60] = paced[50]
    assert bursts(paced, *always)[1] > 1


def test_rates_in_force_are_read_from_the_events(tmp_path):
    def event(ts, name, rate, kind="pace.rate_changed"):
        return json.dumps({"event_type": kind, "ts_ns": ts, "pace": {"class": name, "new_bps": rate}})

    path = tmp_path / "events.jsonl"
    lines = [event(5, "c1", HIGH), event(6, "c0", 7, "pace.stats"), event(9, "c1", LOW)]
    path.write_text("\n".join(lines) + "\n")
    times, rates = inline_changes.changes(path)[1]
    assert times.tolist() == [0, 5, 9] and rates.tolist() == [LOW, HIGH, LOW]
    assert inline_changes.changes(path)[0][1].tolist() == [LOW]


# --- the report


def turned(judged, cpu_s, arrived=100):
    told = {"sent_pps": 2 * judged, "waiting": 5}
    return told | {"seconds": 1.0, "judged": judged, "arrived": arrived, "cpu_s": cpu_s}


def test_ratios_are_of_rounds():
    case = {OURS: [turned(90, 1.0), turned(10, 1.0)], PEER: [turned(100, 2.0), turned(5, 0.5)]}
    found = {ACCEPT: case, "10": case}
    assert inline_cost.ratios(case, inline_cost.speed) == [0.9, 2.0]
    assert [text for _, text, _ in inline_cost.verdict(found)] == ["1.45", "1.25"]
    assert [good for _, _, good in inline_cost.verdict(found)] == [True, False]
    ours, theirs = inline_cost.lines(found)[-2:]
    assert ours.endswith(" | 1 | 1 |") and theirs.endswith(" | 1.45 | 1.25 |")


def test_each_connection_has_its_class():
    case = inline_tcp.CASES["a browser"]
    found = {c["name"]: c["match"]["dport"] for c in inline_tcp.classes(case)}
    assert found == {"browser": "5000-5005", "other": "5006-5006"}
    assert inline_tcp.furthest([1.001, 0.99, 1.005]) == 0.99


class Fails:
    """A part that cannot be measured."""

    def __init__(self, error):
        self.error = error

    def measure(self, _):
        raise self.error


def test_what_fails_is_told_and_the_next_begins(monkeypatch):
    run = {"rate_error": 0.001, "gap_error_us": 16.0, "gaps": 9, "passes": 0, "sent": 12, "arrived": 9, "dropped": 2}
    works = SimpleNamespace(**{**vars(inline_accuracy), "measure": lambda _: {"10": [run], "1000": [run]}})
    known = {"accuracy": works, "tcp": Fails(RuntimeError("it fell")), "cost": Fails(Missing("no peer"))}
    monkeypatch.setattr(inline, "PARTS", known)
    monkeypatch.setattr(inline, "Limits", lambda: SimpleNamespace(now=lambda: {"two_cores": 1.5}))
    args = SimpleNamespace(parts=list(known), seconds=1.0, rounds=1, quick=True)
    results = inline_report.begin("make it so", args)
    inline.measure(results, args)
    text = inline_report.markdown(results, known)
    assert inline_report.complaints(results, known) == ["tcp: it fell", "accuracy: 2 packets are unaccounted for"]
    assert "* cost: no peer" in text and "* tcp: it fell" in text and "tcp 1.50" in text
    assert "| 10 classes: median gap error at most 15 us | 16.0 us | **no** |" in text
    assert "| 1000 classes: median gap error at most 20 us | 16.0 us | yes |" in text


# --- all of it


@pytest.mark.skipif(CHECKED, reason="inline is compiled only")
def test_a_quick_run_accounts_for_every_packet(root, tmp_path):
    for name in ("ip", "iptables", "tcpdump"):
        require(shutil.which(name), f"{name} is not installed")
    argv = [sys.executable, "-m", "bench.inline", "--quick", "--seconds", "0.5", "-o", str(tmp_path)]
    done = subprocess.run(argv, check=False, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    parts = results["parts"]
    assert set(parts) | set(results["missing"]) == set(inline.PARTS) and set(results["missing"]) <= {"cost"}
    for run in (*parts["accuracy"]["10"], *parts["changes"]):
        assert run["sent"] == run["arrived"] + run["dropped"] > 0
    assert all(run["sent"] == run["arrived"] > 0 and len(run["took_ms"]) == 3 for run in parts["table"])
    assert parts["changes"][0]["changes"] > 0 and all(share[0] > 0 for share in parts["tcp"]["a browser"].values())
    assert all(run["cpu_s"] > 0 for runs in parts.get("cost", {}).values() for them in runs.values() for run in them)
    text = (tmp_path / "results.md").read_text()
    assert all(f"## {name}" in text for name in parts)

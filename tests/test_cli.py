"""The command line from outside: exit statuses, what goes where, and one sentence for everything that goes wrong."""

import asyncio
import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from dataplane import sinks
from dataplane.sinks import Sink
from qoetap import cli
from qoetap.exits import Exit
from tests import captures as write
from tests import packets as make
from tests.helpers import launch, replay_bytes, replay_events, run

START = 1_700_000_000


def frames(count=20):
    for i in range(count):
        yield START + i, 0, make.eth(make.ipv4("10.0.0.1", "10.0.0.2", make.udp(5000 + i % 4, 53, bytes(i)))), 100


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "traffic.pcap"
    path.write_bytes(write.pcap(frames()))
    return path


def types(path):
    return [json.loads(line)["event_type"] for line in path.read_text().splitlines()]


def test_help_is_quick_and_teaches():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = launch("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of CPU, whoever else uses it
    assert ended.status == 0 and ended.err == ""
    assert all(word in ended.out for word in ("replay", "decode", "examples:", "stdout", "stderr", "exit status:"))
    assert seconds < 0.8


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_examples(command):
    ended = run(command, "--help")
    assert ended.status == 0 and "examples:\n  qoetap" in ended.out


def test_version():
    assert run("--version").out.startswith("qoetap 0.")


@pytest.mark.parametrize(
    "argv",
    [(), ("replya",), ("replay",), ("replay", "x", "--workers", "many"), ("replay", "x", "--no-such"), ("inspect", "x")]
    + [("replay", "x", "--workers", "0"), ("replay", "x", "--batch", "0"), ("replay", "x", "--detectors", "qin")]
    + [("replay", "x", "--tunnels", "tor"), ("replay", "x", "-o", "x.xml"), ("replay", "x", "-o", "/nowhere/x.jsonl")]
    + [("replay", "x", "-c", "/nowhere.yaml"), ("replay", "x", "--set", "flow.idle"), ("replay", "x", "--seed", "-1")]
    + [("replay", "x", "--stats", "/nowhere/s.json", "-o", "null"), ("decode", "x", "-o", "/nowhere/x")]
    + [
        ("decode", "x", "--format", "parquet"),
        ("inspect", __file__, "--flow", "x"),
        ("inspect", __file__, "--packet", "0"),
    ],
)
def test_wrong_usage(argv):
    ended = run(*argv)
    assert ended.status == 2 and ended.out == ""
    assert ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["replay", "decode"])
def test_unreadable_input(command, tmp_path):
    (tmp_path / "text.pcap").write_text("this is no capture, whatever its name says")
    (tmp_path / "nothing.pcap").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("text.pcap", "nothing.pcap", "folder", "missing.pcap"):
        options = ("-o", "null") if command == "replay" else ()
        ended = run(command, tmp_path / name, *options)
        assert ended.status == 4, name
        assert name in ended.err and "Traceback" not in ended.err


def test_a_bad_file_does_not_stop_the_others(capture, tmp_path):
    out = tmp_path / "out.jsonl"
    ended = run("replay", tmp_path / "missing.pcap", capture, "-o", out, "--detectors", "flow")
    assert ended.status == 4 and "missing.pcap" in ended.err
    assert types(out) == ["flow.end"] * 4


def test_events_go_to_the_outputs_and_the_rest_to_stderr(capture, tmp_path):
    outs = [tmp_path / "a.jsonl", tmp_path / "b.csv"]
    ended = run("replay", capture, "-o", outs[0], "-o", outs[1], "--detectors", "flow", "--seed", "1")
    assert ended.status == 0 and ended.out == ""
    assert outs[0].read_bytes() == replay_bytes(capture, detectors=["flow"])
    assert len(outs[1].read_text().splitlines()) == 1 + 4
    assert (
        "1 detector" in ended.err
        and "MiB" in ended.err
        and "20 packets of 1 file" in ended.err
        and "4 flow.end" in ended.err
    )


def test_both_ways_to_name_inputs(capture, tmp_path):
    outs = []
    for i, argv in enumerate([(capture, "-o"), ("-r", capture, "-o"), (tmp_path, "-o")]):
        outs.append(tmp_path / f"{i}.jsonl")
        assert run("replay", *argv, outs[-1], "--detectors", "flow", "--seed", "1").status == 0
    assert len({out.read_bytes() for out in outs}) == 1


def test_pipes(capture):
    packed = gzip.compress(capture.read_bytes())
    ended = launch("replay", "-", "-o", "-", "--detectors", "flow", input=packed)
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.status == 0 and [e["event_type"] for e in events] == ["flow.end"] * 4
    assert {e["pcap_file"] for e in events} == {"-"}
    assert "\r" not in ended.err and "\x1b" not in ended.err  # no progress bar without a terminal


def test_json_is_lines_on_stdout_and_the_default_a_table(capture):
    assert launch("replay", capture, "--json", "--detectors", "flow").out.startswith('{"timestamp"')
    table = launch("replay", capture, "--detectors", "flow").out
    assert "flow.end" in table and "10.0.0.2:53" in table


def test_a_reader_that_leaves_is_no_error(capture):
    for argv in (("replay", capture, "-o", "-"), ("decode", capture), ("schema",)):
        command = [sys.executable, "-m", "qoetap", *map(str, argv)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        complaint = process.stderr.read().decode()
        assert process.wait() == 0, complaint
        assert "Traceback" not in complaint and "nobody" not in complaint


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(capture):
    ended = run("replay", capture, "-o", "jsonl:/dev/full", "--detectors", "flow")
    assert ended.status == 1 and "/dev/full" in ended.err and "dropped" in ended.err
    assert "accounted for" not in ended.err  # the ledger balances nevertheless


def test_stats(capture, tmp_path):
    stats = tmp_path / "stats.json"
    assert run("replay", capture, "-o", "null", "--detectors", "flow", "--stats", stats).status == 0
    told = json.loads(stats.read_text())
    assert told["files"][str(capture)]["packets"] == told["ledger"]["packets"]["seen"] == 20
    assert told["files"][str(capture)]["counts"]["udp"] == 20
    assert told["ledger"]["balanced"] and told["ledger"]["events"]["delivered"] == 4
    assert told["packets_per_second"] > 0 and {"read", "decode", "detect", "deliver", "total"} <= set(told["seconds"])


def test_damage_is_told_and_the_rest_delivered(capture, tmp_path):
    capture.write_bytes(capture.read_bytes()[:-7])
    ended = run("replay", capture, "-o", tmp_path / "x.jsonl", "--detectors", "flow")
    assert ended.status == 4 and "19 packets" in ended.err and "stopped at byte" in ended.err
    assert types(tmp_path / "x.jsonl") == ["flow.end"] * 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_input_and_drains(capture, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "qoetap", "replay", "-", "-o", "-", "--detectors", "flow"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(capture.read_bytes())
    process.stdin.flush()
    assert b"MiB" in process.stderr.readline()
    time.sleep(3)  # now it waits for more; its kernels were compiled by the tests before
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4 and signal.Signals(number).name in err.decode()
    assert [json.loads(line)["event_type"] for line in out.splitlines()] == ["flow.end"] * 4


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"workers": 4}, {"batch_rows": 3}, {"batch_rows": 3, "workers": 2}]
)
def test_workers_and_batches_change_nothing(capture, options):
    assert replay_bytes(capture, **options) == replay_bytes(capture)


def test_helper_options(capture):
    assert replay_events(capture, detectors=["ptp"]) == []
    slow = replay_events(capture, detectors=["flow"], flow={"idle": "2s"})
    assert slow == replay_events(capture, detectors=["flow"], settings={"flow": {"idle": 2}})
    assert len(slow) > 4


class Lossy(Sink):
    """Loses every fourth event, and says nothing of it when it is written to."""

    def __init__(self, path, _detectors):
        super().__init__()
        self.path, self.trouble = path, "lossy: one in four does not come through"

    def put(self, events):
        count = len(events.order)
        self.dropped += count // 4
        self.delivered += count - count // 4


def test_what_outputs_lost_in_a_replay_is_a_status(capture, monkeypatch):
    entry = SimpleNamespace(name="lossy", load=lambda: Lossy)
    monkeypatch.setattr(sinks, "entry_points", lambda group: [entry])
    ended = run("replay", capture, "-o", "lossy:hush", "-o", "null")
    assert ended.status == 5
    assert re.fullmatch(
        r"qoetap: 2\d\.\d\d% of the events for lossy:\*\*\* were lost, 1.00% are allowed \(live.loss_allowed\); "
        "the last that was wrong: lossy: one in four does not come through",
        ended.err.splitlines()[-1],
    )
    assert run("replay", capture, "-o", "lossy:hush", "--set", "live.loss_allowed=0.3").status == 0
    assert run("replay", capture, "-o", "null", "--set", "live.loss_allowed=0").status == 0


def test_a_log_that_nobody_reads_does_not_end_a_run(capture, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qoetap", "replay", capture, "-o", tmp_path / "e.jsonl"]
    with os.fdopen(writer, "wb") as log:
        assert subprocess.run(command, stderr=log, check=False).returncode == 0
    assert len(types(tmp_path / "e.jsonl")) > 0


def test_a_log_that_is_closed_does_not_go_to_standard_output(capture):
    command = [sys.executable, "-m", "qoetap", "replay", capture, "-o", "-"]
    heard = subprocess.run(command, capture_output=True, check=True)
    deaf = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, check=True)
    assert heard.stderr
    assert len(deaf.stdout.splitlines()) == len(heard.stdout.splitlines()) > 0
    assert all(map(json.loads, deaf.stdout.splitlines()))


def test_a_setting_without_its_key_is_not_repeated(capture):
    ended = run("replay", capture, "--set", "outputs:https://u:hush@h/")
    assert ended.status == 2 and ended.err.startswith("qoetap: --set outputs: write it as KEY=VALUE")
    assert "hush" not in ended.err


def test_statistics_that_cannot_be_written_are_one_sentence(capture, tmp_path):
    ended = run("replay", capture, "-o", "null", "--stats", "/dev/full")
    assert ended.status == 1
    assert "20 packets" in ended.err
    assert ended.err.endswith("qoetap: /dev/full: cannot be written (No space left on device)\n")


def test_no_traceback_reaches_a_user(monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("boom")

    monkeypatch.setattr("qoetap.check.check", broken)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().err.startswith("qoetap: unexpected RuntimeError: boom; run it with -v")
    assert cli.main(["check", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(Exit(3, "x"), 3), (KeyboardInterrupt(), 1), (MemoryError(), 1)])
def test_statuses_of_errors(monkeypatch, error, status):
    def broken(_):
        raise error

    monkeypatch.setattr("qoetap.check.check", broken)
    assert run("check").status == status


def test_schema_is_json():
    schema = json.loads(run("schema").out)
    assert schema["$schema"].endswith("2020-12/schema") and "flow.end" in schema["$defs"]


def test_doctor(monkeypatch):
    ended = run("doctor")
    assert ended.status == 0 and "kernel cache" in ended.out
    findings = {f["name"]: f for f in json.loads(run("doctor", "--json").out)}
    assert findings["numba"]["state"] == "ok"
    monkeypatch.setenv("PATH", "/nowhere")
    missing = run("doctor").out
    assert "apt install tshark" in missing


def test_doctor_finds_what_is_wrong():
    ended = run("doctor", "--set", "workers=64", "--set", "detectors.flow.capacity=268435456")
    assert ended.status == 1
    assert "set workers to" in ended.out and "lower the detectors' capacity" in ended.out


@pytest.fixture
def loop_ends():
    """pyshark leaves an event loop that hears of every child that ends and reads none of it: a pipe that fills up.

    It wants one that is there, and where another test in this process called asyncio.run there is none.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.remove_signal_handler(signal.SIGCHLD)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_inspect(capture, tshark, loop_ends):
    ended = run("inspect", capture, "--packet", "5", "--around", "1")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert [line.split()[0 if line[0] == " " else 1] for line in lines] == ["4", "5", "6"]
    assert lines[1].startswith(">") and "10.0.0.1 5000 → 10.0.0.2 53" in lines[1]
    assert run("inspect", capture, "--packet", "99").status == 2
    assert run("inspect", "/nowhere.pcap", "--packet", "1").status == 4


def test_inspect_a_flow(capture, tshark, loop_ends):
    event = replay_events(capture, detectors=["flow"])[0]
    for name in ("flow_id", "community_id"):
        ended = run("inspect", capture, "--flow", event[name])
        assert [int(line.split()[0]) for line in ended.out.splitlines()] == [1, 5, 9, 13, 17]
    assert run("inspect", capture, "--flow", "0" * 16).status == 2
    assert "Layer UDP" in run("inspect", capture, "--flow", event["flow_id"], "--most", "1", "-v").out


def test_the_kernel_cache_is_private(tmp_path):
    show = "import dataplane, os; print(os.environ['NUMBA_CACHE_DIR'])"

    def used(folder):
        env = {**os.environ, "QOETAP_CACHE_DIR": str(folder)}
        return subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True).stdout.strip()

    good = tmp_path / "good"
    assert used(good).startswith(f"{good}/kernels-") and good.stat().st_mode & 0o777 == 0o700
    for i in range(4):
        (good / f"kernels-{i}").mkdir(0o700)
        os.utime(good / f"kernels-{i}", (i, i))
    used(good)
    assert len(list(good.iterdir())) == 3
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "qoetap-kernels-" in used(shared) and not list(shared.iterdir())
    assert not os.path.exists(used(shared))  # a temporary one goes with its process
    assert "qoetap-kernels-" in used("/proc/nowhere")

"""What `qoetap live` cannot do: it says so in one sentence that names the fix, and does not begin."""

import contextlib
import socket

import pytest

from dataplane.capture.ring import FANOUT, FANOUT_HASH, SOL_PACKET
from qoetap import live
from qoetap.exits import USAGE
from tests.helpers import run

GROUP, PORT = 77, 9464
ETH_P_ALL = 3


@pytest.fixture
def refused(link, monkeypatch, tmp_path):
    """Runs the command on the receiving side, where it must not get as far as running; its one sentence."""

    def begun(*_):
        raise AssertionError("it has begun")

    monkeypatch.setattr(live.Live, "run", begun)
    monkeypatch.setattr(live, "Signals", contextlib.nullcontext)  # signals are for main threads
    monkeypatch.setattr(live, "put_off", lambda numbers: None)

    def refused(*words, interfaces=("b0",), output=tmp_path / "events.jsonl"):
        named = [word for name in interfaces for word in ("-i", name)]
        words = [*named, "-o", output, "--detectors", "flow,icmp_loop,iqn", *words]
        ended = link.receiver.inside(run, "live", *words)
        *announced, sentence = ended.err.splitlines()
        assert ended.status == USAGE, ended.err
        assert all(line.startswith(("qoetap: b0: 3 detectors", "qoetap: compiling")) for line in announced)
        assert ended.out == ""
        return sentence.removeprefix("qoetap: ")

    return refused


@pytest.mark.parametrize("name", ["b1", "", "x" * 40, "b0\n"])
def test_no_such_interface(refused, name):
    assert refused(interfaces=[name]) == f"there is no interface {name!r}: there are b0, lo"


def test_one_of_two_interfaces_is_not_there(refused):
    assert "there is no interface 'b7'" in refused(interfaces=["b0", "b7"])


def test_no_interface_named(refused):
    assert refused(interfaces=[]).startswith("name an interface: -i IFACE")


def test_an_interface_named_twice(refused):
    assert refused(interfaces=["b0", "b0"]) == "live.interfaces: an interface is named twice"


def test_a_filter_that_is_none(refused):
    assert refused("--", "udp", "prot", "53").startswith("the command line: filter 'udp prot 53': ")


@pytest.mark.parametrize("size", ["1000GiB", "100000GiB"])
def test_a_ring_larger_than_memory_is_refused_before_it_is_made(refused, monkeypatch, size):
    monkeypatch.setattr(live, "Live", lambda *_: pytest.fail("something was made"))
    sentence = refused("--set", f"live.ring_size={size}")
    assert sentence.startswith("live.ring_size: rings of ") and "lower it" in sentence


@pytest.mark.parametrize("size", ["0", "1", "4KiB", "15KiB"])
def test_a_ring_that_is_too_small(refused, size):
    assert "live.ring_size" in refused("--set", f"live.ring_size={size}")


@pytest.mark.parametrize(
    "option", ["snaplen=95", "snaplen=262145", "loss_allowed=1.5", "fanout=ports", "write_files=0"]
)
def test_a_value_out_of_range(refused, option):
    key = option.partition("=")[0]
    assert refused("--set", f"live.{option}").startswith(f"--set: live.{key}: ")


def test_blocks_that_are_too_small(refused):
    assert refused("--set", "live.block_size=4095") == "live.block_size: 4095 bytes are too few, take 64KiB or more"


def test_a_fanout_group_that_another_program_has(link, refused):
    def other():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind(("b0", ETH_P_ALL))
        sock.setsockopt(SOL_PACKET, FANOUT, GROUP | FANOUT_HASH << 16)
        return sock

    with contextlib.closing(link.receiver.inside(other)):
        sentence = refused("--set", f"live.fanout_group={GROUP}")
    assert sentence == (
        f"b0: fanout group {GROUP} is used with other settings by another program: set live.fanout_group to another"
    )


def test_more_interfaces_than_fanout_groups(refused):
    sentence = refused("--set", "live.fanout_group=65535", interfaces=["b0", "lo"])
    assert sentence == "live.fanout_group: each interface takes a group, the next number: give 65534 at most"


def test_an_event_that_there_is_not(refused, tmp_path):
    sentence = refused("--write", tmp_path / "evidence", "--on", "icmp.rtt,icmp.rrt")
    assert sentence.startswith("--on: there is no event 'icmp.rrt'; there are ") and "icmp.rtt" in sentence


def test_a_folder_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").touch()
    sentence = refused("--write", tmp_path / "file" / "evidence")
    assert sentence == f"--write {tmp_path}/file/evidence: cannot be written (Not a directory)"


def test_on_without_write(refused):
    assert refused("--on", "icmp.rtt") == "--on: say where evidence goes, with --write DIR"


@pytest.mark.parametrize(
    ("output", "advice"),
    [("/nowhere/events.jsonl", "make the directory first"), ("events.jsom", "did you mean .json"), ("/", "no output")],
)
def test_an_output_that_cannot_be_opened(refused, output, advice):
    assert advice in refused(output=output)


def test_an_output_that_another_agent_writes(refused, tmp_path):
    from dataplane.sinks.output import Output

    with contextlib.closing(Output(str(tmp_path / "events.jsonl"), append=True)):
        assert "another process writes" in refused()


def test_an_address_for_metrics_that_is_taken(link, refused):
    def other():
        sock = socket.socket()
        sock.bind(("127.0.0.1", PORT))
        sock.listen()
        return sock

    with contextlib.closing(link.receiver.inside(other)):
        sentence = refused("--set", f"live.metrics=127.0.0.1:{PORT}")
    assert sentence == f"live.metrics: cannot listen on 127.0.0.1:{PORT} (Address already in use): give another"


def test_metrics_for_others_need_a_token(refused):
    assert "so it needs a token" in refused("--set", f"live.metrics=0.0.0.0:{PORT}")


def test_a_pool_of_clients_among_workers(refused):
    sentence = refused("--set", "detectors.iqn.pool=client", "--workers", "2")
    assert sentence == "detectors.iqn.pool: client needs workers: 1, for a client's flows go to different workers"


def test_stats_that_cannot_be_written(refused):
    assert "/nowhere/stats.json" in refused("--stats", "/nowhere/stats.json")

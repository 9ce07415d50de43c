"""`qoetap live` in operation: events while it runs, time without packets, several interfaces, filters, HUP and USR1."""

import json
import os
import signal
import time

import pytest

from dataplane.records import CHECKED, JIT
from qoetap.lab import Link
from tests.live import REQUEST, Agent, Load, balanced, datagram, echo, echoes, events_in, second_pair, send, wait_until
from tests.packets import eth, ipv4, udp, vlan

pytestmark = pytest.mark.skipif(not JIT or CHECKED, reason="a process of its own, which is always compiled")
AT_ONCE_seconds = 0.2  # from the wire to the file, though the machine is busy


@pytest.fixture(scope="module")
def link(root):
    with Link() as made:
        yield made


# --- events and the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_events_come_while_it_runs_and_a_signal_ends_it(link, tmp_path, number):
    with Agent(link.receiver, tmp_path) as agent:
        late = []
        for n in range(10):
            send(link.sender, echoes(1, n))
            sent_at = time.monotonic()
            agent.wait_for(n + 1, "icmp.rtt")
            late.append(time.monotonic() - sent_at)
        send(link.sender, [b"\x02" * 12 + b"\x08\x06" + bytes(46)] * 3)
        ended = agent.end(number)
    assert sorted(late)[len(late) // 2] < AT_ONCE_seconds
    assert ended.status == 0
    packets = balanced(ended, 23)
    assert packets["processed"] == 20 and packets["undecoded"] == {"not_ip": 3}
    assert ended.stats["ledger"]["events"] == {
        "made": {"flow.end": 1, "icmp.rtt": 10}, "delivered": 11, "queued": 0, "dropped": 0,
    }  # fmt: skip
    assert [e["event_type"] for e in agent.events()] == ["icmp.rtt"] * 10 + ["flow.end"]


def test_time_passes_without_packets(link, tmp_path):
    options = ("--set", "detectors.flow.idle=600ms", "--set", "detectors.icmp_loop.timeout=300ms")
    options += ("--set", "detectors.icmp_loop.loop_max=300ms", "--set", "detectors.icmp_loop.late=300ms")
    with Agent(link.receiver, tmp_path, *options, "--set", "live.stats_every=250ms") as agent:
        send(link.sender, [echo(1)])
        agent.wait_for(1, "icmp.unanswered", 3)
        assert not agent.events("flow.end")
        (record,) = agent.wait_for(1, "flow.end", 3)
        stats = agent.wait_for(4, "stats", 3)
        ended = agent.end()
    assert record["flow"]["reason"] == "idle"
    balanced(ended, 1)
    uptimes = [event["stats"]["uptime_ns"] / 1e9 for event in stats]
    assert all(0.2 < late - early < 1 for early, late in zip(uptimes, uptimes[1:]))
    assert stats[-1]["stats"]["packets"] == stats[-1]["stats"]["processed"] == 1
    assert any("1 packets (" in line for line in agent.said)


# --- which packets


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flow_whose_directions_come_in_on_two_interfaces(link, tmp_path, workers):
    pairs, each = 40, 3
    with second_pair(link) as (sender, receiver):
        names = [link.receiver.interface, receiver.interface]
        with Agent(link.receiver, tmp_path, "--workers", workers, interfaces=names) as agent:
            for _ in range(each):
                send(link.sender, [datagram(flow) for flow in range(pairs)])
                send(sender, [datagram(flow, back=True) for flow in range(pairs)])
            ended = agent.end()
    balanced(ended, 2 * each * pairs)
    records = agent.events("flow.end")
    assert [(e["flow"]["pkts_toserver"], e["flow"]["pkts_toclient"]) for e in records] == [(each, each)] * pairs
    counted = ended.stats["ledger"]["interfaces"]
    assert {name: counted[name]["received"] for name in names} == dict.fromkeys(names, each * pairs)


@pytest.mark.parametrize(
    ("expression", "passing"),
    [(["vlan", "5"], {"vlan 5"}), (["not", "vlan"], {"icmp", "udp"}), (["icmp"], {"icmp"}), (["udp port 443"], {"udp"})],
)
def test_only_what_the_filter_lets_pass_is_seen(link, tmp_path, expression, passing):
    datagrams = {"udp": 443, "vlan 5": 5005, "vlan 6": 6006}  # a port for each, by which to know it
    frames = {name: eth(ipv4("10.9.0.1", "10.9.0.2", udp(port, port, bytes(30)))) for name, port in datagrams.items()}
    for name in ("vlan 5", "vlan 6"):
        inner = ipv4("10.9.0.1", "10.9.0.2", udp(datagrams[name], datagrams[name], bytes(30)))
        frames[name] = eth(vlan(int(name.split()[1]), inner))
    frames["icmp"] = echo(1, REQUEST)
    with Agent(link.receiver, tmp_path, "--", *expression) as agent:
        for number, frame in enumerate(frames.values(), 1):
            send(link.sender, [frame] * number)
        ended = agent.end()
    expected = {name: number for number, name in enumerate(frames, 1) if name in passing}
    balanced(ended, sum(expected.values()))
    names = {5005: "vlan 5", 6006: "vlan 6", 443: "udp"}
    records = {names.get(e.get("dest_port"), "icmp"): e["flow"]["pkts_toserver"] for e in agent.events("flow.end")}
    assert records == expected


# --- HUP and USR1


def lines_of(folder, glob):
    return [json.loads(line) for path in sorted(folder.glob(glob)) for line in path.read_text().splitlines()]


def test_hup_takes_over_a_good_file_and_survives_a_bad_one(link, tmp_path):
    config, first, second = tmp_path / "site.yaml", tmp_path / "first.jsonl", tmp_path / "second.jsonl"

    def configure(output, idle):
        config.write_text(f"outputs: ['{output}']\ndetectors: {{flow: {{idle: {idle}}}}}\n")

    configure(first, "1h")
    with Agent(link.receiver, tmp_path, "-c", config, spec=None) as agent:
        send(link.sender, [datagram(1)] + echoes(5))
        wait_until(lambda: len(events_in(first)) == 5)
        config.write_text("detectors: {flow: {idel: 1s}}\n")
        said = agent.tell(signal.SIGHUP, "reload:")
        assert "unknown key detectors.flow.idel, did you mean detectors.flow.idle" in said
        assert said.endswith("going on as before")
        config.write_text("outputs: ['/nowhere/events.jsonl']\n")
        said = agent.tell(signal.SIGHUP, "reload:")
        assert "make the directory first" in said and said.endswith("going on as before")
        send(link.sender, echoes(5, 5))
        wait_until(lambda: len(events_in(first)) == 10)
        configure(second, "300ms")
        assert agent.tell(signal.SIGHUP, "reload:") == "qoetap: reload: done"
        send(link.sender, [datagram(1), datagram(2)])
        records = wait_until(lambda: len(found := events_in(second, "flow.end")) == 2 and found, 4)
        ended = agent.end()
    assert {e["flow"]["reason"] for e in records} == {"idle"}
    assert [e["flow"]["pkts_toserver"] for e in records] == [2, 1]  # the state of before went on
    balanced(ended, 23)
    assert len(events_in(first)) == 10 and len(events_in(first)) + len(events_in(second)) == ended.made


def test_what_takes_a_restart_is_named_and_stays(link, tmp_path):
    config = tmp_path / "site.yaml"
    config.write_text("")
    with Agent(link.receiver, tmp_path, "-c", config) as agent:
        config.write_text("live: {ring_size: 4MiB, loss_allowed: 0.5}\n")
        said = agent.tell(signal.SIGHUP, "reload:")
        ended = agent.end()
    assert said == "qoetap: reload: done; what takes a restart stays as it was: live.ring_size"
    assert ended.status == 0


def test_hup_after_the_file_was_renamed_loses_nothing(link, tmp_path):
    echo_pairs = echoes(3000)
    with Agent(link.receiver, tmp_path) as agent, Load(link.sender, echo_pairs, 60_000) as load:
        for turn in range(3):
            wait_until(lambda: agent.output.exists() and agent.output.stat().st_size > 0)
            agent.output.rename(tmp_path / f"events.jsonl.{turn}")
            agent.tell(signal.SIGHUP, "reload: done")
        wait_until(lambda: load.sent == 60_000)
        ended = agent.end()
    balanced(ended, 60_000)
    found = lines_of(tmp_path, "events.jsonl*")
    assert len(found) == ended.made == ended.stats["ledger"]["events"]["delivered"]
    assert all((tmp_path / f"events.jsonl.{turn}").stat().st_size for turn in range(3))


def test_usr1_finishes_the_file_at_hand(link, tmp_path):
    with Agent(link.receiver, tmp_path, output="events-%Y.jsonl") as agent:
        for turn in range(3):
            send(link.sender, echoes(4, turn * 4))
            time.sleep(0.3)
            agent.send(signal.SIGUSR1)
            wait_until(lambda turn=turn: len(list(tmp_path.glob("events-*.jsonl"))) == turn + 1)
        ended = agent.end()
    assert ended.status == 0
    counts = sorted(len(path.read_text().splitlines()) for path in tmp_path.glob("events-*.jsonl"))
    assert counts == [1, 4, 4, 4]  # the flow's record comes at the end

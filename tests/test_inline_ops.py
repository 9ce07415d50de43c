"""`qoetap inline` in operation on a real router: several queues, a changed configuration, metrics, and what may fail
around it without costing a packet.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import test_inline
from test_classes import inline_of, many
from test_control import ask
from test_inline import CLASSES, FREE, PACED, RATE, SIZE, Way, ping
from test_metrics import follow_the_rules, get, series, value

from dataplane.capture.nfqueue import SO_RCVBUFFORCE
from dataplane.records import CHECKED
from qoetap import firewall
from qoetap.exits import RUN_ERROR, USAGE, Exit
from qoetap.inline_reload import rewire
from qoetap.lab import End
from qoetap.steering import rules_of
from tests.live import wait_until

pytestmark = pytest.mark.skipif(CHECKED, reason="inline is compiled only")

start = test_inline.start  # the fixture
QUEUE = 16384  # packets that a queue of the kernel holds where inline.held is not above that
PATIENT = ("--set", "inline.delay_bound=0s")
ADDRESS = "127.0.0.1:9464"  # of a network of its own


def api_at(folder):
    return SimpleNamespace(address=f"unix:{folder}/control")


def told(folder, page):
    return ask(api_at(folder), page).body


def classes_told(folder):
    return {c["name"]: c for c in told(folder, "/v1/classes")["classes"]}


def queued(folder):
    """How many packets each queue has had, by its number."""
    return {queue["queue"]: queue["last_id"] for queue in told(folder, "/v1/status")["queues"]}


def hear_all(way, port, found, count):
    """Add what arrives at a port to `found` until there is so much."""
    wait_until(lambda: found.extend(way.heard(port)) or len(found) >= count)


def make_room(ear):
    ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)


# --- several queues


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_each_class_has_its_own_queue(street, start, tmp_path, family):
    with start("-q", "6") as run, Way(street, family) as way:
        rules = street.router.inside(firewall.leftovers)
        assert sorted((rule.family, rule.queue) for rule in rules) == [(4, 5), (4, 6), (6, 5), (6, 6)]
        way.say(FREE, 30)
        way.say(PACED, 10)
        way.arrives(FREE, 30)
        way.arrives(PACED, 10)
        found = queued(tmp_path)
        assert found[6] == 10 and found[5] >= 30
        ended = run.end()
    assert ended.status == 0, ended.err
    assert ended.stats["classes"]["paced"]["packets"] == 10
    assert street.router.inside(firewall.leftovers) == []


def test_a_flood_of_one_class_fills_its_own_queue_only(street, start, tmp_path):
    """Stopped, with more packets than a queue holds: the surplus passes by at once, another class's packets wait; and
    when it goes on all arrive.
    """
    more = 500
    with start("-q", "6", "--set", "inline.held=1000", *PATIENT) as run, Way(street) as way:
        make_room(way.ears[FREE])
        run.send(signal.SIGSTOP)
        way.say(FREE, QUEUE + more)
        way.say(PACED, 10)
        first = []
        hear_all(way, FREE, first, more)
        assert first == list(range(QUEUE, QUEUE + more)) and way.heard(PACED) == []
        run.send(signal.SIGCONT)
        rest = []
        hear_all(way, FREE, rest, QUEUE)
        assert rest == list(range(QUEUE))
        way.arrives(PACED, 10)
        assert told(tmp_path, "/v1/status")["packets"] == QUEUE + 10
        assert run.end().status == 0


def test_a_match_that_no_rule_can_tell_stops_it_before_anything_is_changed(street, start, tmp_path):
    text = CLASSES.replace("FOLDER", str(tmp_path)).replace("proto: udp", "out: r1, proto: udp")
    (tmp_path / "site.yaml").write_text(text)
    words = ["-m", "qoetap", "inline", "-q", "5", "-q", "6", "--install", "-c", tmp_path / "site.yaml"]
    command = street.router.command(sys.executable, *words, "--set", "inline.chain=INPUT")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == USAGE and done.stderr.startswith(
        "qoetap: inline.classes: paced: rules of the chain INPUT"
    )
    assert street.router.inside(firewall.leftovers) == []


# --- HUP


class Config:
    """The configuration file of a run, and what is said when it is read anew."""

    def __init__(self, run, folder):
        self.run, self.path, self.text = run, folder / "site.yaml", CLASSES.replace("FOLDER", str(folder))

    def change(self, *pairs):
        """Replace parts of it and send HUP; the sentence."""
        text = self.text
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        self.path.write_text(text)
        return self.run.tell(signal.SIGHUP, "reload:")


def test_another_rate_by_hup_holds_on_to_what_is_held(street, start, tmp_path):
    with start() as run, Way(street) as way:
        config = Config(run, tmp_path)
        way.say(PACED, 45)
        wait_until(lambda: classes_told(tmp_path)["paced"]["held"])
        said = config.change((f"rate: {RATE}", f"rate: {2 * RATE}"), ("500ms", "2s"), ("set_mark: 7", "set_mark: 9"))
        assert said == "qoetap: reload: done"
        found = classes_told(tmp_path)["paced"]
        assert found["rate"] == 2 * RATE and found["source"] == "file" and found["flushed"] == 0
        way.arrives(PACED, 45)
        begun = time.monotonic()
        way.say(PACED, 200)  # a second's worth, more than the first limit_time allowed
        way.arrives(PACED, 200)
        assert time.monotonic() - begun > 0.9
        (changed,) = run.wait_for(1, "pace.rate_changed")
        assert changed["pace"] == {"class": "paced", "old_bps": RATE, "new_bps": 2 * RATE, "changed_by": "reload"}
        ended = run.end()
    paced = ended.stats["classes"]["paced"]
    assert ended.status == 0, ended.err
    assert (paced["packets"], paced["flushed"]) == (245, 0) and paced["passed"] + paced["released"] == 245
    assert ended.stats["classes"]["fast"]["mark"] == 9


def test_a_new_class_by_hup_loses_nothing_and_counts_on(street, start, tmp_path):
    with start() as run, Way(street) as way:
        config = Config(run, tmp_path)
        way.say(PACED, 40)
        way.say(FREE, 7)
        wait_until(lambda: classes_told(tmp_path)["paced"]["held"])
        new = f"- {{name: free, match: {{proto: udp, dport: {FREE}}}, rate: {RATE}}}\n    - {{name: paced"
        assert config.change(("- {name: paced", new)) == "qoetap: reload: done"
        way.arrives(PACED, 40)
        way.arrives(FREE, 7)
        begun = time.monotonic()
        way.say(FREE, 10)
        way.arrives(FREE, 10)
        assert time.monotonic() - begun > 0.05
        found = classes_told(tmp_path)
        assert list(found) == ["default", "free", "paced", "fast"]
        assert found["free"]["packets"] == 10 and found["paced"]["packets"] == 40 and found["paced"]["flushed"] > 0
        told_later = wait_until(lambda: [e for e in run.events("pace.stats") if e["pace"]["class"] == "free"])
        assert told_later[-1]["pace"]["rate_bps"] == RATE
        ended = run.end()
    assert ended.status == 0, ended.err  # what came and what became of it add up
    assert ended.stats["ledger"]["seen"] == sum(c["packets"] for c in ended.stats["classes"].values())


def test_a_class_that_goes_by_hup_is_told_last_and_its_packets_count(street, start, tmp_path):
    with start() as run, Way(street) as way:
        config = Config(run, tmp_path)
        way.say(PACED, 20)
        way.arrives(PACED, 20)
        line = next(line for line in config.text.splitlines(True) if "name: paced" in line)
        assert config.change((line, "")) == "qoetap: reload: done"
        way.say(PACED, 100)
        way.arrives(PACED, 100)  # of no class any more: the class would drop half of them
        gone = wait_until(lambda: [e["pace"] for e in run.events("pace.stats") if e["pace"]["packets"] == 20])[-1]
        assert (gone["class"], gone["passed"] + gone["released"]) == ("paced", 20)
        ended = run.end()
    assert ended.status == 0, ended.err
    assert "paced" not in ended.stats["classes"] and ended.stats["ledger"]["former"]["packets"] == 20
    now = sum(c["packets"] for c in ended.stats["classes"].values())
    assert ended.stats["ledger"]["seen"] == now + 20 and now >= 100


def test_rules_of_mitigation_by_hup(street, start, tmp_path):
    """A flow that is favoured is so no more when its rule changes; by the new rule it may be again, under its name."""
    with start() as run:
        config = Config(run, tmp_path)
        ping(street, 1)
        run.wait_for(1, "mitigation.start")
        assert config.change(("hold: 2s", "hold: 3s")) == "qoetap: reload: done"
        (ended,) = run.wait_for(1, "mitigation.end")
        assert (ended["mitigation"]["on"], ended["mitigation"]["reason"]) == ("icmp.rtt", "stop")
        ping(street, 1)
        begun = run.wait_for(2, "mitigation.start")[-1]
        assert begun["mitigation"]["on"] == "icmp.rtt" and begun["mitigation"]["longest_ns"] == 3_000_000_000
        assert run.end().status == 0


def test_rules_of_all_queues_follow_by_hup(street, start, tmp_path):
    """Of three queues a class alone has the second; another one gets the third, and leaves it."""
    with start("-q", "6", "-q", "7") as run:
        config = Config(run, tmp_path)
        one = street.router.inside(firewall.leftovers)
        new = ("- {name: fast", f"- {{name: free, match: {{proto: udp, dport: {FREE}}}}}\n    - {{name: fast")
        for changes, queues in (([new], {5, 6, 7}), ([], {5, 6})):
            assert config.change(*changes) == "qoetap: reload: done"
            assert {rule.queue for rule in street.router.inside(firewall.leftovers)} == queues
        assert street.router.inside(firewall.leftovers) == one
        assert run.end().status == 0


def test_rules_are_as_they_were_when_outputs_cannot_be_had(street):
    def refuse(*_):
        raise Exit(USAGE, "no such folder")

    one, two = ({"queues": [5, 6, 7], "classes": many(count)} for count in (1, 2))
    plane = SimpleNamespace(inline=inline_of(one), outputs=SimpleNamespace(replace=refuse))
    street.router.inside(firewall.install, rules_of(plane.inline))
    before = street.router.inside(firewall.leftovers)
    settings = SimpleNamespace(inline=inline_of(two), outputs=None, rotate_every=0, rotate_size=0)
    with pytest.raises(Exit, match="no such folder"):
        street.router.inside(rewire, plane, settings, True)
    assert street.router.inside(firewall.leftovers) == before
    street.router.inside(firewall.uninstall)


def test_a_bad_file_by_hup_changes_nothing(street, start, tmp_path):
    with start("-q", "6") as run, Way(street) as way:
        config, rules = Config(run, tmp_path), street.router.inside(firewall.leftovers)
        for pair, sentence in (
            ((f"rate: {RATE}", "rate: 0"), "rate"),
            ((f"dport: {PACED}", "in: nowhere0"), "there is no interface 'nowhere0'"),
            (("{name: fast", "{name: late, match: {proto: 17, dport: 9000}}\n    - {name: fast"), "match the same"),
            (("set_mark: 7", "set_dscp: ef"), "takes a restart"),
        ):
            said = config.change(pair)
            assert sentence in said and said.endswith("; going on as before"), said
        assert street.router.inside(firewall.leftovers) == rules
        way.say(PACED, 20)
        way.arrives(PACED, 20)
        found = classes_told(tmp_path)["paced"]
        assert (found["rate"], found["packets"], found["flushed"]) == (RATE, 20, 0)
        said = config.change(("stats_every: 1s", "stats_every: 2s\n  held: 100"))
        assert said == "qoetap: reload: done; what takes a restart stays as it was: inline.held"
        assert run.end().status == 0


def test_hup_again_and_again_under_load_loses_nothing(street, start, tmp_path):
    """A class comes and goes while packets pass: none is lost, and all are in order."""
    with start("-q", "6", *PATIENT) as run, Way(street) as way:
        config, found, sent = Config(run, tmp_path), [], 0
        make_room(way.ears[FREE])
        new = ("- {name: paced", "- {name: other, match: {proto: tcp}, rate: 1Mbit}\n    - {name: paced")
        for turn in range(6):
            since = len(run.said)
            config.path.write_text(config.text.replace(*new) if turn % 2 == 0 else config.text)
            run.send(signal.SIGHUP)
            while not any("reload:" in line for line in run.said[since:]):
                way.say(FREE, 20)
                sent += 20
                hear_all(way, FREE, found, sent)
            assert run.said[-1] == "qoetap: reload: done"
            assert ("other" in classes_told(tmp_path)) == (turn % 2 == 0)
        assert sent > 100 and found == list(range(20)) * (sent // 20)
        ended = run.end()
    assert ended.status == 0, ended.err
    assert street.router.inside(firewall.leftovers) == []


def test_rules_of_the_firewall_follow_the_classes(street, start, tmp_path):
    with start("-q", "6") as run, Way(street) as way:
        config = Config(run, tmp_path)
        way.say(PACED, 3)
        way.arrives(PACED, 3)
        assert config.change((f"dport: {PACED}", f"dport: [{PACED}, {FREE}]")) == "qoetap: reload: done"
        before = queued(tmp_path)
        way.say(FREE, 4)
        way.arrives(FREE, 4)
        assert queued(tmp_path)[6] == before[6] + 4
        assert run.end().status == 0
    assert street.router.inside(firewall.leftovers) == []


# --- metrics


def test_prometheus_is_told(street, start, tmp_path):
    End(street.router.namespace, "lo").up()

    def metrics():
        return series(street.router.inside(get, ADDRESS, "/metrics").text)

    with start("--set", f"live.metrics={ADDRESS}", "--set", "inline.held=30") as run, Way(street) as way:
        way.say(FREE, 12)
        way.say(PACED, 60)
        way.arrives(FREE, 12)
        ping(street, 1)
        wait_until(lambda: value(metrics(), "class_packets_held", **{"class": "paced"}) == 0)
        assert follow_the_rules(street.router.inside(get, ADDRESS, "/metrics").text)
        found, paced = metrics(), {"class": "paced"}
        table = classes_told(tmp_path)["paced"]
        assert value(found, "class_packets_total", **paced) == 60 == table["packets"]
        assert value(found, "class_bytes_total", **paced) == 60 * SIZE
        assert value(found, "class_packets_sent_total", how="released", **paced) == table["released"] == 30
        assert value(found, "class_packets_sent_total", how="no_room", **paced) == table["no_room"] == 29
        assert value(found, "class_packets_dropped_total", reason="limit_time", **paced) == 0
        assert value(found, "class_rate_bits_per_second", **paced) == RATE
        assert 0.2 < value(found, "class_wait_max_seconds", **paced) < 5
        assert not [labels for name, labels in found if "rate_bits" in name and ("class", "fast") in labels]
        assert value(found, "inline_packets_total") >= 74 and value(found, "inline_packets_held_max") == 30
        assert value(found, "queue_packets_waiting", queue="5") == 0
        rule = {"rule": "1", "on": "icmp.rtt", "do": "priority"}
        assert value(found, "mitigation_begun_total", **rule) == 1
        assert value(found, "mitigation_refused_total", reason="budget", **rule) == 0
        assert value(found, "events_made_total", event_type="icmp.rtt") == 1
        assert value(found, "output_events_dropped_total", output=str(run.output)) == 0
        assert street.router.inside(get, ADDRESS, "/healthz")[:2] == (200, "ok\n")
        assert run.end().status == 0


# --- a sink that takes nothing


def never(folder, kind):
    """(output, what must stay open) of a reader that reads nothing: a pipe, or a web server that never answers."""
    if kind == "pipe":
        os.mkfifo(folder / "pipe")
        return f"jsonl:{folder}/pipe", os.fdopen(os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK))
    silent = socket.create_server(("127.0.0.1", 0))
    return f"http://127.0.0.1:{silent.getsockname()[1]}/", silent


MANY = [f"- {{name: c{port}, match: {{dport: {port}}}}}\n    " for port in range(20_000, 22_000)]


@pytest.mark.parametrize("kind", ["pipe", "server"])
def test_a_sink_that_takes_nothing_costs_no_packet(street, start, tmp_path, kind):
    """Its queue is full of events about many classes, and further ones are dropped: all packets arrive, in order."""
    End(street.router.namespace, "lo").up()
    output, reader = street.router.inside(never, tmp_path, kind)
    text = CLASSES.replace("FOLDER", str(tmp_path)).replace("- {name: paced", f"{''.join(MANY)}- {{name: paced")
    options = ("--set", f"live.metrics={ADDRESS}", "--set", "inline.stats_every=1ms", *PATIENT)

    def dropped():
        found = series(street.router.inside(get, ADDRESS, "/metrics").text)
        return sum(count for (name, _), count in found.items() if name == "qoetap_output_events_dropped_total")

    with reader, start(*options, spec=output, text=text) as run, Way(street) as way:
        wait_until(lambda: dropped() > 1000)
        found = []
        for first in range(0, 5000, 100):
            way.say(FREE, 100)
            hear_all(way, FREE, found, first + 100)
        way.say(PACED, 20)
        way.arrives(PACED, 20)
        assert found == list(range(100)) * 50
        ended = run.end()
    assert ended.status == RUN_ERROR and "hangs: given up after" in ended.err
    assert ended.stats["classes"]["default"]["packets"] == 5000 == ended.stats["classes"]["default"]["passed"]
    (counts,) = ended.stats["ledger"]["outputs"].values()
    assert counts["dropped"] > 65_536 and counts["made"] == counts["delivered"] + counts["queued"] + counts["dropped"]

"""/metrics and /healthz over real connections, read with the parsers of Prometheus's own client."""

import copy
import http.client
import json
import socket
import threading
import time
from contextlib import closing
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from qoetap import __version__, serving
from qoetap.exits import USAGE, Exit
from qoetap.families import UNDECODED, output_labels
from qoetap.metrics import Exporter, read_token

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SNAPSHOT = {
    "agent_id": "tap-7",
    "uptime_seconds": 12.5,
    "healthy": True,
    "why": "",
    "packets": {
        "seen": 1000,
        "processed": 900,
        "filtered": 40,
        "dropped": {"kernel": 30},
        "undecoded": {"not_ip": 20, "short_ip_header": 10},
        "cut": {"short_transport_header": 3},
        "backwards": 4,
        "jumps": 5,
        "timeless": 6,
    },
    "interfaces": {
        "eth0": {"up": 1, "received": 700, "dropped": 30, "freezes": 2, "missed": 8},
        "eth1": {"up": 0, "received": 300, "dropped": 0, "freezes": 0, "missed": 0},
    },
    "events": {"made": {"iqn.stall_start": 11, "flow.end": 22, "stats": 1}, "delivered": 30, "queued": 3, "dropped": 1},
    "outputs": {
        "events.jsonl": {"made": 34, "delivered": 34, "queued": 0, "dropped": 0},
        "kafka://user:pw@broker:9092/qoetap?p=hush": {"made": 34, "delivered": 30, "queued": 3, "dropped": 1},
    },
    "outputs_up": {"events.jsonl": 1, "kafka://user:pw@broker:9092/qoetap?p=hush": 0},
    "states": {
        "iqn": {"created": 50, "expired": 20, "emergency": 5, "ended": 0, "live": 25},
        "flow": {"created": 90, "expired": 10, "emergency": 0, "ended": 0, "live": 80},
    },
    "balanced": True,
}  # fmt: skip
KAFKA = "kafka://broker:9092/qoetap"


class Answer(NamedTuple):
    status: int
    text: str
    headers: dict


def get(address, path, method="GET", **headers):
    """What HOST:PORT answers; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request(method, path, headers=named)
        reply = connection.getresponse()
        return Answer(reply.status, reply.read().decode(), reply.headers)


def ask(exporter, *words, **headers):
    return get(exporter.address, *words, **headers)


def series(text, parse=parse_text):
    """{(name, labels as sorted pairs): value} of what was scraped, without the process's own."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.name.startswith("qoetap_")
    }


@pytest.fixture
def serve():
    """Starts exporters on a free port of the loopback, and closes them."""
    started = []

    def start(snapshot=SNAPSHOT, address="127.0.0.1:0", token=None):
        started.append(Exporter(address, snapshot if callable(snapshot) else lambda: snapshot, token))
        return started[-1]

    yield start
    for exporter in started:
        exporter.close()


def value(found, name, **labels):
    return found[f"qoetap_{name}", tuple(sorted(labels.items()))]


def test_a_scrape_tells_what_the_snapshot_tells(serve):
    found = series(ask(serve(), "/metrics").text)
    packets = SNAPSHOT["packets"]
    for name in ("seen", "processed"):
        assert value(found, f"packets_{name}_total") == packets[name]
    assert value(found, "packets_dropped_total", reason="kernel") == 30
    for reason in UNDECODED:
        assert value(found, "packets_undecoded_total", reason=reason) == packets["undecoded"].get(reason, 0)
    assert value(found, "packets_cut_total", reason="short_transport_header") == 3
    for reason in ("backwards", "jumps", "timeless"):
        assert value(found, "packet_time_oddities_total", reason=reason) == packets[reason]
    for name, port in SNAPSHOT["interfaces"].items():
        assert value(found, "interface_up", interface=name) == port["up"]
        assert value(found, "interface_ring_freezes_total", interface=name) == port["freezes"]
        for key in ("received", "dropped", "missed"):
            assert value(found, f"interface_packets_{key}_total", interface=name) == port[key]
    for kind, count in SNAPSHOT["events"]["made"].items():
        assert value(found, "events_made_total", event_type=kind) == count
    for label, counts in zip(("events.jsonl", KAFKA), SNAPSHOT["outputs"].values()):
        assert value(found, "output_events_delivered_total", output=label) == counts["delivered"]
        assert value(found, "output_events_queued", output=label) == counts["queued"]
        assert value(found, "output_events_dropped_total", output=label) == counts["dropped"]
    assert value(found, "output_up", output="events.jsonl") == 1 and value(found, "output_up", output=KAFKA) == 0
    for name, states in SNAPSHOT["states"].items():
        assert value(found, "states_created_total", detector=name) == states["created"]
        assert value(found, "states_live", detector=name) == states["live"]
        for reason in ("expired", "emergency", "ended"):
            assert value(found, "states_removed_total", detector=name, reason=reason) == states[reason]
    assert value(found, "healthy") == 1
    (build,) = [dict(labels) for name, labels in found if name == "qoetap_build_info"]
    assert build["version"] == __version__ and build["agent_id"] == "tap-7"


def test_both_formats_tell_the_same(serve):
    exporter = serve()
    plain, new = ask(exporter, "/metrics"), ask(exporter, "/metrics", Accept=OPENMETRICS)
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert new.headers["Content-Type"].startswith("application/openmetrics-text") and new.text.endswith("# EOF\n")
    assert series(plain.text) == series(new.text, parse_openmetrics)


def follow_the_rules(text):
    """The families of a page. Counters end in _total, and each has a HELP."""
    families = list(parse_text(text))
    for family in families:
        assert family.documentation
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
    return families


def test_names_follow_the_rules(serve):
    """And the process tells what it uses."""
    families = follow_the_rules(ask(serve(), "/metrics").text)
    names = {sample.name for family in families for sample in family.samples}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"} <= names


def grown(snapshot):
    """The same agent a month later: every count is larger, and what was possible has happened."""
    later = json.loads(json.dumps(snapshot), parse_int=lambda text: int(text) * 1_000_003 + 7)
    later["packets"]["undecoded"] = dict.fromkeys(UNDECODED, 9)
    later["packets"]["cut"] = dict.fromkeys(UNDECODED[1:], 9)
    later["events"]["made"].update({"iqn.stall_end": 5})
    return later


def test_traffic_adds_no_series(serve):
    now = {"snapshot": copy.deepcopy(SNAPSHOT)}
    exporter = serve(lambda: now["snapshot"])
    before = series(ask(exporter, "/metrics").text)
    now["snapshot"] = grown(SNAPSHOT)
    after = series(ask(exporter, "/metrics").text)
    assert before.keys() == after.keys() and before != after
    assert value(after, "states_live", detector="flow") == 80 * 1_000_003 + 7
    assert len(before) < 100


def test_what_has_not_happened_is_there_with_zero(serve):
    """Else a rate misses the first event."""
    found = series(ask(serve(), "/metrics").text)
    assert value(found, "events_made_total", event_type="iqn.stall_end") == 0
    assert ("qoetap_events_made_total", (("event_type", "ptp.delay"),)) not in found  # ptp does not run


def test_health(serve):
    now = {"snapshot": SNAPSHOT}
    exporter = serve(lambda: now["snapshot"])
    assert ask(exporter, "/healthz")[:2] == (200, "ok\n")
    now["snapshot"] = {**SNAPSHOT, "why": "an output has failed for 73 s: the disk is full"}
    assert ask(exporter, "/healthz")[:2] == (200, "ok, but an output has failed for 73 s: the disk is full\n")
    now["snapshot"] = {**SNAPSHOT, "healthy": False, "why": "eth0 is down"}
    assert ask(exporter, "/healthz")[:2] == (503, "eth0 is down\n")
    assert value(series(ask(exporter, "/metrics").text), "healthy") == 0


def test_a_token_is_asked_for(serve):
    exporter = serve(token="s3cret")
    for path in ("/metrics", "/healthz", "/other"):
        refused = ask(exporter, path)
        assert refused.status == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        assert "qoetap_" not in refused.text
    for wrong in ("Bearer s3cre", "Bearer", "Basic s3cret", "s3cret", "Bearer s3cret\xe9"):
        assert ask(exporter, "/metrics", Authorization=wrong).status == 401
    for right in ("Bearer s3cret", "bearer s3cret"):
        assert ask(exporter, "/metrics", Authorization=right).status == 200


def test_other_requests(serve):
    exporter = serve()
    assert ask(exporter, "/").status == ask(exporter, "/metrics/x").status == 404
    assert ask(exporter, "/metrics?name=x").status == 200
    assert ask(exporter, "/metrics", "POST").status == 501
    head = ask(exporter, "/metrics", "HEAD")
    assert head.status == 200 and head.text == "" and int(head.headers["Content-Length"]) > 1000


def test_a_snapshot_that_fails_ends_nothing(serve):
    def broken():
        raise KeyError("packets")

    exporter = serve(broken)
    for path in ("/metrics", "/healthz", "/metrics"):
        answer = ask(exporter, path)
        assert answer.status == 500 and answer.text == "no numbers: KeyError: 'packets'\n"
    exporter.server.snapshot = lambda: SNAPSHOT
    assert ask(exporter, "/metrics").status == 200


def test_snapshots_are_taken_one_at_a_time(serve):
    inside, most = [], []

    def slow():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return SNAPSHOT

    exporter = serve(slow)
    threads = [threading.Thread(target=ask, args=(exporter, "/healthz")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.005)


def connect(exporter):
    host, port = exporter.server.server_address[:2]
    return socket.create_connection((host, port), timeout=10)


def test_requests_that_do_not_end_are_cut_off(serve, monkeypatch):
    """Clients that say nothing, or too little, take all places, then lose them."""
    exporter = serve()
    lazy = [connect(exporter) for _ in range(serving.CONNECTIONS_MAX)]
    for client in lazy:
        client.sendall(b"GET /metr")
    wait_until(lambda: len(exporter.server.since) == serving.CONNECTIONS_MAX)
    with connect(exporter) as one_more:
        assert one_more.recv(1) == b""  # no place
    monkeypatch.setattr(serving, "REQUEST_seconds", 0.0)
    for client in lazy:
        assert client.recv(1) == b""  # cut off
        client.close()
    wait_until(lambda: not exporter.server.since)
    monkeypatch.undo()
    assert ask(exporter, "/healthz").status == 200


def test_a_client_that_leaves_is_no_news(serve, capfd):
    exporter = serve()
    for request in (b"GET /metrics HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01\x00\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with connect(exporter) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
            client.sendall(request)
    assert ask(exporter, "/healthz").status == 200
    assert capfd.readouterr() == ("", "")


def test_ipv6_and_names(serve):
    assert ask(serve(address="[::1]:0"), "/healthz").status == 200
    exporter = serve(address="localhost:0")
    assert exporter.address.startswith(("127.0.0.1:", "[::1]:")) and ask(exporter, "/healthz").status == 200
    open_to_all = serve(address="0.0.0.0:0", token="x")
    assert open_to_all.address.startswith("0.0.0.0:")


@pytest.mark.parametrize(
    "address, what",
    [
        ("9464", "write it as 127.0.0.1:9464"),
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:", "is no address"),
        (":9464", "is no address"),
        ("127.0.0.1:70000", "is no address"),
        ("127.0.0.1:http", "is no address"),
        ("::1:9464", "is no address"),
        ("[127.0.0.1]:9464", "is no address"),
        ("no.such.host.invalid:1", "there is no host"),
        ("a" * 70 + ":1", "there is no host"),
        ("0.0.0.0:9464", "QOETAP_METRICS_TOKEN"),
        ("[::]:9464", "needs a token"),
        ("192.0.2.1:9464", "needs a token"),
    ],
)
def test_an_address_that_will_not_do_is_told_in_a_sentence(address, what):
    with pytest.raises(Exit, match=what.replace("[", r"\[")) as told:
        Exporter(address, dict)
    assert told.value.status == USAGE and "\n" not in str(told.value) and "live.metrics" in str(told.value)


def test_an_address_in_use(serve):
    with pytest.raises(Exit, match="cannot listen on .*in use"):
        Exporter(serve().address, dict)
    with pytest.raises(Exit, match="cannot listen on"):
        Exporter("192.0.2.1:1", dict, "token")  # an address of another host


def test_it_can_be_closed_and_opened_again(serve):
    exporter = Exporter("127.0.0.1:0", lambda: SNAPSHOT)
    address, thread = exporter.address, exporter.thread
    assert ask(exporter, "/healthz").status == 200
    exporter.close()
    assert not thread.is_alive()
    assert ask(serve(address=address), "/healthz").status == 200


def test_where_a_token_is_from(tmp_path):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert read_token({}) is None and read_token({"QOETAP_METRICS_TOKEN": ""}) is None
    assert read_token({"QOETAP_METRICS_TOKEN": "plain"}) == "plain"
    assert read_token({"QOETAP_METRICS_TOKEN_FILE": str(file)}) == "from-file"
    with pytest.raises(Exit, match="unset one"):
        read_token({"QOETAP_METRICS_TOKEN": "plain", "QOETAP_METRICS_TOKEN_FILE": str(file)})
    file.write_text(" \n")
    with pytest.raises(Exit, match="is empty"):
        read_token({"QOETAP_METRICS_TOKEN_FILE": str(file)})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Exit, match="cannot be read"):
        read_token({"QOETAP_METRICS_TOKEN_FILE": str(file)})
    with pytest.raises(Exit, match="No such file"):
        read_token({"QOETAP_METRICS_TOKEN_FILE": str(tmp_path / "none")})


def test_labels_of_outputs_tell_no_secrets():
    labels = output_labels(
        [
            "-", "table", "null", "/var/log/q/events-%Y%m%dT%H:%M.jsonl", "jsonl:/srv/x", "kafka://a:1,b:2/topic?p=hush",
            "https://user:hush@host:8443/hooks/hush?key=hush", "https://host:8443/other", "mysink:hush@host",
        ]
    )  # fmt: skip
    assert list(labels.values()) == [
        "-", "table", "null", "/var/log/q/events-%Y%m%dT%H:%M.jsonl", "jsonl:/srv/x", "kafka://a:1,b:2/topic",
        "https://host:8443", "https://host:8443#2", "mysink",
    ]  # fmt: skip
    assert "hush" not in str(list(labels.values()))

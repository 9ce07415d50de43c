"""The Kafka sink against brokers on loopback: what arrives, in which order, and what is counted when they go away."""

import json
import re
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import detectors as registry
from dataplane.events import SCHEMA_VERSION, Events, json_schema
from dataplane.records import rows
from dataplane.sinks import Queued, SinkError, kafka, open_sink, sink_name
from qoetap.exits import LOST, RUN_ERROR
from tests.captures import pcap
from tests.helpers import run
from tests.kafka_mock import (
    CLUSTER_AUTHORIZATION_FAILED,
    INIT_PRODUCER_ID,
    OUT_OF_ORDER_SEQUENCE_NUMBER,
    PRODUCE,
    TOPIC_AUTHORIZATION_FAILED,
    UNKNOWN_TOPIC_OR_PART,
    MockCluster,
)
from tests.packets import eth, ipv4, udp
from tests.sinks import DETECTORS, START_NS, balanced, text_of, until

BROKERS, PARTITIONS, TOPIC = 3, 4, "events"
FAST = "reconnect.backoff.ms=10&reconnect.backoff.max.ms=50&retry.backoff.ms=10&linger.ms=1"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "kafka.md"


@pytest.fixture
def cluster():
    text_of(stream(1))  # compiled before the clocks of brokers run
    with MockCluster(BROKERS) as cluster:
        cluster.create(TOPIC, PARTITIONS)
        yield cluster


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Limits that a test waits for are short."""
    monkeypatch.setattr(kafka, "PROBE_S", 0.5)
    monkeypatch.setattr(kafka, "CALM_S", 0.2)


def open_on(cluster, more=FAST):
    return open_sink(f"kafka://{cluster.bootstraps}/{TOPIC}?{more}", DETECTORS)


def stream(count, begin=0, flows=7):
    """`count` events of a few flows in turn, every tenth of none; `ts_ns` counts them from `begin`."""
    det = DETECTORS[1]
    made = rows(det.event, count)
    number = np.arange(begin, begin + count)
    made.code, made.ts, made.proto, made.ip_version = 1, START_NS + number, 17, np.where(number % 10 == 9, 0, 4)
    made.src[:, 0], made.dst[:, 0], made.sport, made.dport = 10, 10, 1000 + number % flows, 443
    order = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    return Events([(det, made)], order, [], "agent")


def lines_of(*batches):
    return [line for events in batches for line in text_of(events).splitlines()]


def settle(sink, seconds=10):
    """Tick until nothing waits in the sink."""
    until(lambda: sink.tick() or sink.queued == 0, seconds)


def attempt(sink, events):
    """Whether the sink takes Events: where it breaks meanwhile, it does not."""
    sink.tick()
    try:
        sink.write(events)
    except SinkError:
        return False
    return True


def counts(sink):
    return sink.delivered, sink.queued, sink.dropped


def kept(cluster, messages):
    """The messages that a real broker keeps: a batch whose producer and sequence number it has seen is dropped."""
    again = set()
    for partition in range(PARTITIONS):
        seen = set()
        for batch in cluster.stored(TOPIC, partition, broker=partition % BROKERS + 1):
            if batch[2:] in seen:
                again.update((partition, batch.base_offset + k) for k in range(batch.records))
            seen.add(batch[2:])
    return [m for m in messages if (m.partition(), m.offset()) not in again], len(again)


def flows_in_order(messages):
    """Whether each key's events are in one partition and in the order in which they were made."""
    places, times = defaultdict(set), defaultdict(list)
    for m in messages:
        places[m.key()].add(m.partition())
        times[m.key()].append(json.loads(m.value())["ts_ns"])
    return all(len(p) == 1 for p in places.values()) and all(t == sorted(t) for t in times.values())


def murmur2(data):
    """Hash of a key in Kafka's Java clients (org.apache.kafka.common.utils.Utils.murmur2), made positive."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    for at in range(0, len(data) & ~3, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = h * m & mask ^ (k ^ k >> 24) * m & mask
    if rest := data[len(data) & ~3 :]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


def test_every_event_arrives_once_keyed_and_in_order(cluster):
    batches = [stream(100, 100 * k) for k in range(3)]
    sink = open_on(cluster)
    for events in batches:
        sink.write(events)
    sink.close()
    sink.close()
    assert counts(sink) == (300, 0, 0)
    messages = cluster.read(TOPIC)
    assert sorted(m.value() for m in messages) == sorted(lines_of(*batches))
    for m in messages:
        assert m.key().decode() == json.loads(m.value()).get("flow_id", "agent")
        assert m.partition() == murmur2(m.key()) % PARTITIONS
        assert not m.headers()
    assert len({m.key() for m in messages}) == 8
    assert flows_in_order(messages)


def test_brokers_that_come_back_lose_and_double_nothing(cluster):
    """Their answers are lost with the connections, so that events are sent again that they have."""
    sink, made, doubled = open_on(cluster), [stream(100)], 0
    sink.write(made[0])
    settle(sink)
    for pause in (0.1, 0.2, 0.4, 0.8):  # seconds for events to get there, their answers under way
        cluster.slow(3000)
        made += [stream(100, 100 * len(made)), stream(100, 100 * len(made) + 100)]
        sink.write(made[-2])
        time.sleep(pause)
        cluster.down()
        cluster.slow(0)
        sink.write(made[-1])
        cluster.up()
        settle(sink)
        messages, doubled = kept(cluster, cluster.read(TOPIC))
        if doubled:
            break
    sink.close()
    assert doubled > 0
    assert counts(sink) == (100 * len(made), 0, 0)
    assert sorted(m.value() for m in messages) == sorted(lines_of(*made))
    assert flows_in_order(messages)


def test_one_of_three_brokers_gone_is_no_trouble_once_another_leads(cluster):
    sink = open_on(cluster)
    sink.write(stream(100))
    settle(sink)
    cluster.down(1)
    sink.write(stream(100, 100))
    for partition in range(PARTITIONS):
        cluster.lead(TOPIC, partition, 2)
    settle(sink)
    sink.tick()
    assert sink.trouble is None
    sink.close()
    assert counts(sink) == (200, 0, 0)


def test_brokers_gone_for_too_long_are_told_and_every_event_is_counted(cluster):
    sink = open_on(cluster, FAST + "&message.timeout.ms=2000")
    sink.write(stream(100))
    settle(sink)
    cluster.down()
    sink.write(stream(100, 100))
    until(lambda: sink.tick() or sink.trouble)
    assert sink.queued + sink.dropped == 100
    assert re.fullmatch(r"kafka://\S+: no broker answers \(.+\); start it or .+; events wait, .+", sink.trouble)
    settle(sink)
    assert counts(sink) == (100, 0, 100)
    cluster.up()
    until(lambda: sink.tick() or "Message timed out; events are dropped and counted" in (sink.trouble or ""))
    sink.write(stream(100, 200))
    settle(sink)
    until(lambda: sink.tick() or sink.trouble is None)
    sink.close()
    assert counts(sink) == (200, 0, 100)
    assert sorted(m.value() for m in cluster.read(TOPIC)) == sorted(lines_of(stream(100), stream(100, 200)))


def test_closing_without_brokers_is_bounded_and_counts_what_is_lost(cluster, monkeypatch):
    monkeypatch.setattr(kafka, "CLOSE_S", 0.3)
    sink = open_on(cluster)
    cluster.down()
    sink.write(stream(100))
    begin = time.monotonic()
    with pytest.raises(SinkError, match=r"100 events were not confirmed within 0.3 s and count as dropped"):
        sink.close()
    assert time.monotonic() - begin < 2
    assert counts(sink) == (0, 0, 100)


def test_events_that_the_brokers_refuse_are_dropped_told_and_forgotten(cluster):
    sink = open_on(cluster)
    cluster.fail(PRODUCE, TOPIC_AUTHORIZATION_FAILED, times=PARTITIONS)
    attempt(sink, stream(100))
    settle(sink)
    assert sink.dropped > 0
    assert "Topic authorization failed; let this user" in sink.trouble
    cluster.heal(PRODUCE)
    until(lambda: attempt(sink, stream(100, 100)))
    settle(sink)
    until(lambda: sink.tick() or sink.trouble is None)
    sink.close()
    assert sink.delivered + sink.dropped == sink.settled >= 200
    assert len(cluster.read(TOPIC)) == sink.delivered


def test_a_replay_whose_events_the_brokers_refuse_does_not_end_well(cluster, tmp_path):
    packets = [(n, 0, eth(ipv4("10.0.0.1", "10.0.0.2", udp(5000 + n, 53, b""))), 60) for n in range(20)]
    (tmp_path / "a.pcap").write_bytes(pcap(packets))
    cluster.fail(PRODUCE, TOPIC_AUTHORIZATION_FAILED, times=1000)
    spec = f"kafka://{cluster.bootstraps}/{TOPIC}?{FAST}&enable.idempotence=false"  # so that it gives up at once
    ended = run("replay", tmp_path / "a.pcap", "-o", spec, "--detectors", "flow")
    assert ended.status in (RUN_ERROR, LOST)  # the latter where it hears of them before the end
    assert "Topic authorization failed; let this user" in ended.err and "not confirmed within" not in ended.err


def test_a_producer_that_failed_for_good_is_replaced(cluster):
    """librdkafka gives an idempotent producer up when a broker's sequence numbers make no sense."""
    sink = open_on(cluster)
    sink.write(stream(100))
    settle(sink)
    cluster.fail(PRODUCE, OUT_OF_ORDER_SEQUENCE_NUMBER)
    attempt(sink, stream(10, 100, flows=1))
    settle(sink)
    assert 0 < sink.dropped <= 10
    assert "out of order sequence" in sink.trouble
    before = sink.delivered
    until(lambda: attempt(sink, stream(100, 200)))
    settle(sink)
    sink.close()
    assert sink.delivered == before + 100
    assert sink.queued == 0


def test_a_broken_producer_says_why(cluster):
    sink = open_on(cluster)
    cluster.fail(INIT_PRODUCER_ID, CLUSTER_AUTHORIZATION_FAILED, times=100)
    sink._renew(sink.settings, 0)

    def refused():
        try:
            sink.write(stream(1))
        except SinkError as error:
            return "Cluster authorization failed" in str(error)

    until(refused)
    sink.tick()
    assert sink.dropped == sink.settled > 0
    sink.close()


def test_a_full_queue_waits_while_events_are_confirmed(cluster):
    sink = open_on(cluster, FAST + "&queue.buffering.max.messages=10")
    sink.write(stream(100))
    sink.close()
    assert counts(sink) == (100, 0, 0)


def test_a_full_queue_drops_when_nothing_is_confirmed(cluster, monkeypatch):
    monkeypatch.setattr(kafka, "PATIENCE_S", 0.2)
    monkeypatch.setattr(kafka, "CLOSE_S", 0)
    sink = open_on(cluster, FAST + "&queue.buffering.max.messages=10")
    cluster.down()
    with pytest.raises(SinkError, match=r"no event was confirmed for 0.2 s and its queue is full"):
        sink.write(stream(100))
    assert counts(sink) == (0, 10, 90)
    with pytest.raises(SinkError, match="10 events"):
        sink.close()
    assert counts(sink) == (0, 0, 100)


def test_behind_the_queue_made_is_delivered_queued_and_dropped(cluster, monkeypatch):
    """Two threads write as in a live capture, while the brokers go, come back, and go for good."""
    monkeypatch.setattr("dataplane.sinks.queued.TICK_S", 0.02)
    monkeypatch.setattr(kafka, "CLOSE_S", 0.3)
    queued = Queued(open_on(cluster, FAST + "&message.timeout.ms=600"), drop=True)
    end = threading.Event()

    def write(begin):
        for k in range(10_000):
            if end.is_set():
                break
            queued.write(stream(10, begin + 10 * k))
            time.sleep(0.005)

    writers = [threading.Thread(target=write, args=(begin,)) for begin in (0, 10**6)]
    for writer in writers:
        writer.start()
    seen = []  # whether the counts add up

    def more(which):
        """Wait until there are more of these."""
        begin = getattr(queued.counts(), which)
        until(lambda: seen.append(balanced(queued)) or getattr(queued.counts(), which) > begin)

    more("delivered")
    cluster.down()
    more("dropped")
    cluster.up()
    more("delivered")
    cluster.down()
    more("dropped")
    end.set()
    for writer in writers:
        writer.join()
    queued.close(5)
    last = queued.counts()
    assert all([*seen, balanced(queued)])
    assert last.queued == 0
    cluster.up()
    messages, _ = kept(cluster, cluster.read(TOPIC))
    assert len(messages) >= last.delivered
    assert len({m.value() for m in messages}) == len(messages)


def test_no_broker_at_the_start_is_one_sentence():
    with pytest.raises(SinkError, match=r"kafka://127.0.0.1:1/t: no broker answers \(.*Connection refused\); start it"):
        open_sink("kafka://127.0.0.1:1/t", DETECTORS)


def test_librdkafka_is_silent_unless_asked(cluster, capfd):
    open_on(cluster).close()
    assert capfd.readouterr() == ("", "")
    open_on(cluster, FAST + "&debug=broker&log_level=7").close()
    assert "%7|" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (UNKNOWN_TOPIC_OR_PART, "there is no topic events: create it"),
        (TOPIC_AUTHORIZATION_FAILED, "Topic authorization failed; let this user describe and write the topic"),
    ],
)
def test_a_topic_that_cannot_be_written_is_said_at_the_start(cluster, code, sentence):
    cluster.refuse(TOPIC, code)
    with pytest.raises(SinkError, match=sentence):
        open_on(cluster)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("kafka:h:9092/t", "write a Kafka output as kafka://HOST:9092"),
        ("kafka://user:pw@h/t", "kafka://***@h/t: credentials have no place in an address: write it into a file"),
        ("kafka://h:99999/t", "write a Kafka output as"),
        ("kafka://h:/t?sasl.password=x pw@", "kafka://h:/t?***: write a Kafka output as"),
        ("kafka://user:pw@/x@h/t", "kafka://***: credentials"),
        ("kafka://h:9092", "kafka://h:9092: there must be the name of a topic"),
        ("kafka://h/a b", "kafka://h/a b: there must be the name of a topic"),
        ("kafka://h/t?pw@", "kafka://h/t?***: a setting behind the ? is no name=value"),
        ("kafka://user:12/pw@h:9092/t", "kafka://***: there must be the name of a topic"),
        ("kafka://h/t?sasl.password=x", "kafka://h/t?***: sasl.password is a secret: write it into a file"),
        ("kafka://h/t?lingr.ms=1", 'No such configuration property: "lingr.ms"'),
        ("kafka://h/t?linger.ms=soon", "Invalid value for configuration property"),
        ("kafka://h/t?acks=1", "`acks` must be set to `all`"),
        ("kafka://h/t?transactional.id=x", "transactional.id cannot be set here"),
        ("kafka://h/t?config=/nowhere/file", "/nowhere/file: cannot be read"),
        ("kafak://h/t", "addresses begin with kafka://, http://, https://"),
    ],
)
def test_a_bad_address_is_one_sentence(spec, sentence):
    with pytest.raises(SinkError, match=re.escape(sentence)) as error:
        open_sink(spec, DETECTORS)
    assert "\n" not in str(error.value)
    assert "pw@" not in str(error.value)


def test_what_librdkafka_repeats_of_a_setting_is_not_told():
    error = SimpleNamespace(str=lambda: "Unrecognized sasl.oauthbearer.config beginning at: hush")
    assert kafka.reason(error) == "Unrecognized sasl.oauthbearer.config"


def test_addresses_may_be_several_and_of_either_family():
    address = kafka.parse("kafka://a.b:9092,[::1]:9093,c/my.topic_1-x?linger.ms=5&config=/f")
    assert address == ("a.b:9092,[::1]:9093,c", "my.topic_1-x", {"linger.ms": "5"}, "/f", address.name)
    assert address.name == "kafka://a.b:9092,[::1]:9093,c/my.topic_1-x?***"
    assert sink_name("kafka://a:9092/t.jsonl") == ("kafka", "kafka://a:9092/t.jsonl")


def test_settings_come_from_the_file_then_from_the_address(tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("# ours\nsasl.username = me\nsasl.password=a=b#c\n\nlinger.ms=7\nbootstrap.servers=other:1\n")
    settings = kafka.settings_of(kafka.parse(f"kafka://h:1/t?linger.ms=9&config={file}"))
    want = {"sasl.username": "me", "sasl.password": "a=b#c", "linger.ms": "9", "bootstrap.servers": "h:1"}
    assert settings == kafka.DEFAULTS | want


@pytest.mark.parametrize(("data", "sentence"), [(b"nonsense\n", "line 1 is no name=value"), (b"a=\xff", "no UTF-8")])
def test_a_bad_file_of_settings_is_one_sentence(tmp_path, data, sentence):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(SinkError, match=sentence):
        open_sink(f"kafka://h/t?config={tmp_path / 'f'}", DETECTORS)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "dataplane.sinks.kafka", raising=False)
    with pytest.raises(SinkError, match=r"pip install qoetap\[kafka\]"):
        open_sink("kafka://h/t", DETECTORS)


def test_reopen_takes_changed_settings_and_keeps_the_old_ones_where_they_are_bad(cluster, tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("client.id=one\n")
    sink = open_on(cluster, f"{FAST}&config={file}")
    first = sink.producer
    sink.write(stream(100))
    sink.reopen()
    assert sink.producer is first
    file.write_text("client.idea=two\n")
    with pytest.raises(SinkError, match="No such configuration property"):
        sink.reopen()
    assert sink.producer is first
    file.write_text("client.id=two\n")
    sink.reopen()
    assert sink.producer is not first
    assert counts(sink) == (100, 0, 0)
    sink.write(stream(100, 100))
    sink.close()
    assert counts(sink) == (200, 0, 0)
    assert flows_in_order(cluster.read(TOPIC))


FLINK_TYPES = {"BIGINT": "integer", "INT": "integer", "STRING": "string", "BOOLEAN": "boolean", "DOUBLE": "number"}


def columns(text):
    """(name, type) of each physical column in a list of Flink SQL's column definitions."""
    return re.findall(rf"`?(\w+)`? ({'|'.join(FLINK_TYPES)})\b", text)


def fits(name, flink, properties):
    assert name in properties, f"no event has {name}"
    assert FLINK_TYPES[flink] in np.atleast_1d(properties[name]["type"]), f"{name} is no {flink}"


def test_the_recipe_names_fields_that_exist():
    """Each column, nested field and event type of docs/kafka.md is in the schema, and each name that a query uses."""
    schema = json_schema(registry.load_all().values())
    sql = "\n".join(re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
    table = re.search(r"CREATE TABLE events \((.*?)\n\)", sql, re.DOTALL)[1]
    common = columns(re.sub(r"\w+ ROW<.*?>", "", table))
    assert len(common) >= 7
    for name, flink in common:
        fits(name, flink, schema["properties"])
    types = re.findall(r"event_type = '([\w.]+)'", sql)
    assert sorted(types) == ["iqn.stall_start", "ptp.delay"]
    nested = dict(re.findall(r"(\w+) ROW<(.*?)>", table))
    for event_type in types:
        name = event_type.partition(".")[0]
        own = schema["$defs"][event_type]["properties"][name]["properties"]
        fields = columns(nested[name])
        for field, flink in fields:
            fits(field, flink, own)
        used = re.findall(rf"\be\.{name}\.`?(\w+)", sql)
        assert set(used) <= {field for field, _ in fields}
        assert used
    assert f"'{SCHEMA_VERSION.partition('.')[0]}.%'" in sql


def test_the_document_tells_the_settings():
    text = DOCUMENT.read_text()
    assert [f"{n}={v}" for n, v in kafka.DEFAULTS.items() if f"`{n}={v}`" not in text] == []

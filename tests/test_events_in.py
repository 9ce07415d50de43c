"""Events from files, pipes and Kafka: each line arrives once, whatever becomes of file, writer, broker or state."""

import os
import time
from concurrent.futures import Future

import pytest

from controlplane.database import Busy
from controlplane.ingest import LINE_MAX_bytes
from qoetap import events_in
from qoetap.events_in import Lines, open_source
from qoetap.exits import Exit
from tests.load_events import SECOND, SETTINGS, event, lines, serving

WAIT_seconds = 30


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(events_in, "LOOK_seconds", 0.01)
    monkeypatch.setattr(events_in, "AGAIN_seconds", 0.01)
    monkeypatch.setattr(events_in, "LEAVE_seconds", 0.05)


@pytest.fixture
def service(tmp_path):
    with serving(tmp_path / "state", SETTINGS, time.time_ns()) as found:
        yield found


@pytest.fixture
def opened(service):
    """Opens a source for `service`, which is closed at the end."""
    sources = []

    def opening(spec):
        sources.append(open_source(str(spec), service))
        return sources[-1]

    yield opening
    for source in sources:
        source.close()
        assert not source.thread.is_alive()


def some(first, count):
    """Events number first, first + 1, ..."""
    now = time.time_ns()
    return lines(*(event(now - 1000 * SECOND + at * SECOND, request_id=at) for at in range(first, first + count)))


def until(condition):
    deadline = time.monotonic() + WAIT_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def accepted(service, count):
    until(lambda: service.counts["accepted"] >= count)
    return service.counts["accepted"] == count and not service.counts["duplicates"]


def test_lines_of_parts():
    found = Lines()
    assert [found.feed(part) for part in (b"a", b"b\nc", b"\n\nd\ne")] == [b"", b"ab\n", b"c\n\nd\n"]
    assert found.end() == b"e" and found.end() == b""


@pytest.mark.parametrize("size", [500, LINE_MAX_bytes, 10**6])
def test_a_line_that_is_too_long_is_cut_and_passed_over(size):
    """Its memory is bounded; the lines around it are whole."""
    text = b"first\n" + b"x" * (3 * LINE_MAX_bytes) + b"\nlast\n"
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    found = Lines()
    out = []
    for part in parts:
        out += found.feed(part).splitlines()
        assert len(found.rest) <= LINE_MAX_bytes
    assert out[0] == b"first" and out[-1] == b"last" and len(out) == 3 and len(out[1]) > LINE_MAX_bytes


def test_a_file_is_read_and_followed(service, opened, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(some(0, 10) + some(10, 1)[:-5])
    opened(path)
    assert accepted(service, 10)
    with path.open("ab") as file:
        file.write(some(10, 1)[-5:] + some(11, 2))
    until(lambda: service.counts["accepted"] + service.counts["rejected.bad_json"] >= 13)
    assert accepted(service, 13) and not service.counts["rejected.bad_json"]


def test_a_file_that_is_exchanged_or_cut_is_read_anew(service, opened, tmp_path):
    path = tmp_path / "events.jsonl"
    source = opened(path)
    until(lambda: source.trouble and "cannot be read (No such file or directory)" in source.trouble)
    path.write_bytes(some(0, 10))
    assert accepted(service, 10)
    path.rename(tmp_path / "events.jsonl.1")
    path.write_bytes(some(10, 5))
    assert accepted(service, 15) and source.trouble is None
    path.write_bytes(some(15, 1))  # shorter than before
    assert accepted(service, 16)


def test_a_writer_that_has_not_noticed_yet_loses_nothing(service, opened, tmp_path, monkeypatch):
    """As between logrotate's rename and the signal to whoever writes."""
    monkeypatch.setattr(events_in, "LEAVE_seconds", 1000)
    path = tmp_path / "events.jsonl"
    path.write_bytes(some(0, 10))
    opened(path)
    assert accepted(service, 10)
    with path.open("ab") as writer:
        path.rename(tmp_path / "events.jsonl.1")
        path.write_bytes(some(10, 5))
        time.sleep(0.1)  # some looks at the name
        writer.write(some(15, 3))
    assert accepted(service, 13)
    monkeypatch.setattr(events_in, "LEAVE_seconds", 0)
    assert accepted(service, 18)


def test_writers_of_a_named_pipe_come_and_go(service, opened, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    opened(path)
    for at in range(3):
        with path.open("wb") as writer:
            writer.write(some(10 * at, 10)[:-1])  # its last line has no newline
        assert accepted(service, 10 * at + 10)


def test_what_could_not_be_written_is_tried_again(service, opened, tmp_path, monkeypatch):
    path, failed, submit = tmp_path / "events.jsonl", [], service.store.submit

    def busy(job, rows=1):
        if len(failed) < 3:
            failed.append(rows)
            raise Busy("5 rows wait to be written")
        return submit(job, rows)

    monkeypatch.setattr(service.store, "submit", busy)
    path.write_bytes(some(0, 10))
    source = opened(path)
    until(lambda: source.trouble or len(failed) == 3)
    assert accepted(service, 10) and len(failed) == 3
    until(lambda: source.trouble is None)


def test_a_source_that_breaks_says_so(service, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "take", lambda *_: 1 / 0)
    path = tmp_path / "events.jsonl"
    path.write_bytes(some(0, 1))
    source = opened(path)
    until(lambda: not source.thread.is_alive())
    assert source.trouble == f"{path}: division by zero; no more is read from it"


def test_closing_ends_it_while_nothing_can_be_written(service, opened, tmp_path, monkeypatch):
    def busy(*_):
        raise Busy("full")

    monkeypatch.setattr(service, "take", busy)
    path = tmp_path / "events.jsonl"
    path.write_bytes(some(0, 1))
    source = opened(path)
    until(lambda: source.trouble == f"{path}: full; it is tried again")
    source.close()
    assert not source.thread.is_alive()


@pytest.mark.parametrize(
    "spec, said",
    [
        ("http://x/", "events come from"),
        ("/", "is a directory"),
        ("kafka://", "kafka://HOST:9092"),
        ("kafka://h/t?sasl.password=x", "is a secret"),
        ("kafka://h/t?nonsense=1", "nonsense"),
    ],
)
def test_what_is_no_source(service, spec, said):
    with pytest.raises(Exit, match=said) as told:
        open_source(spec, service)
    assert "output" not in str(told.value)


@pytest.fixture
def cluster():
    kafka_mock = pytest.importorskip("tests.kafka_mock")
    with kafka_mock.MockCluster() as made:
        made.create("ptp", 2)
        yield made


def produce(cluster, text):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": cluster.bootstraps})
    for line in text.splitlines():
        producer.produce("ptp", line)
    assert producer.flush(WAIT_seconds) == 0


def committed(cluster):
    """Messages of the topic that the group is done with."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": cluster.bootstraps, "group.id": "qoetap-serve"})
    found = consumer.committed([TopicPartition("ptp", number) for number in (0, 1)], WAIT_seconds)
    consumer.close()
    return sum(max(0, partition.offset) for partition in found)


def test_offsets_wait_for_the_state_file(service, opened, cluster, monkeypatch):
    """They are committed once events are on disk. What is not comes again, what is does not."""
    spec = f"kafka://{cluster.bootstraps}/ptp?session.timeout.ms=3000&heartbeat.interval.ms=300"
    never, handed = Future(), []
    produce(cluster, some(0, 20))
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "submit", lambda job, rows=1: handed.append(rows) or never)
        source = opened(spec)
        until(lambda: handed)
        source.ending.set()
        never.set_exception(Busy("as if it were killed"))
        source.close()
    assert committed(cluster) == 0 and service.counts["accepted"] == 0
    opened(spec)
    assert accepted(service, 20)
    produce(cluster, some(20, 5) + b"nonsense\n")
    assert accepted(service, 25)
    until(lambda: committed(cluster) == 26)
    assert service.counts["rejected.bad_json"] == 1

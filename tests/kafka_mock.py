"""A Kafka cluster of brokers on loopback: librdkafka's mock cluster, driven through ctypes on the wheel's own library.

It speaks enough of the protocol for real producers and consumers. It keeps what an idempotent producer sends twice,
where a real broker drops it by its sequence number: `stored` reads these numbers, so that a test can tell.
"""

import ctypes
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import confluent_kafka
from confluent_kafka import Consumer, TopicPartition

PRODUCE, FETCH, INIT_PRODUCER_ID = 0, 1, 22  # API keys
UNKNOWN_TOPIC_OR_PART, TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED = 3, 29, 31  # error codes
OUT_OF_ORDER_SEQUENCE_NUMBER = 45
EVERY = -1  # stands for all brokers
ERROR_BYTES = 512

POINTER, TEXT, INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
SIGNATURES = {
    "rd_kafka_conf_new": (POINTER,),
    "rd_kafka_conf_set": (INT, POINTER, TEXT, TEXT, TEXT, ctypes.c_size_t),
    "rd_kafka_new": (POINTER, INT, POINTER, TEXT, ctypes.c_size_t),
    "rd_kafka_destroy": (None, POINTER),
    "rd_kafka_mock_cluster_new": (POINTER, POINTER, INT),
    "rd_kafka_mock_cluster_destroy": (None, POINTER),
    "rd_kafka_mock_cluster_bootstraps": (TEXT, POINTER),
    "rd_kafka_mock_topic_create": (INT, POINTER, TEXT, INT, INT),
    "rd_kafka_mock_topic_set_error": (None, POINTER, TEXT, INT),
    "rd_kafka_mock_partition_set_leader": (INT, POINTER, TEXT, ctypes.c_int32, ctypes.c_int32),
    "rd_kafka_mock_broker_set_down": (INT, POINTER, ctypes.c_int32),
    "rd_kafka_mock_broker_set_up": (INT, POINTER, ctypes.c_int32),
    "rd_kafka_mock_broker_set_rtt": (INT, POINTER, ctypes.c_int32, INT),
    "rd_kafka_mock_push_request_errors_array": (None, POINTER, ctypes.c_int16, ctypes.c_size_t, POINTER),
    "rd_kafka_mock_clear_request_errors": (None, POINTER, ctypes.c_int16),
}


def library():
    """librdkafka as confluent-kafka's wheel brings it."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    loaded = ctypes.CDLL(str(next(folder.glob("librdkafka*.so*"))))
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


class Stored(NamedTuple):
    """One record batch of a partition's log, by the names of the Kafka protocol (RecordBatch, magic 2)."""

    base_offset: int
    records: int
    producer_id: int
    producer_epoch: int
    base_sequence: int


class MockCluster:
    """Brokers 1 to `brokers`, each on a port of its own of 127.0.0.1."""

    def __init__(self, brokers=1):
        self.lib, error = library(), ctypes.create_string_buffer(ERROR_BYTES)
        conf = self.lib.rd_kafka_conf_new()
        self.lib.rd_kafka_conf_set(conf, b"log_level", b"0", error, ERROR_BYTES)
        self.handle = self.lib.rd_kafka_new(0, conf, error, ERROR_BYTES)
        assert self.handle, error.value
        self.cluster = self.lib.rd_kafka_mock_cluster_new(self.handle, brokers)
        self.bootstraps = self.lib.rd_kafka_mock_cluster_bootstraps(self.cluster).decode()

    def _call(self, name, *args):
        assert not getattr(self.lib, f"rd_kafka_mock_{name}")(self.cluster, *args), name

    def create(self, topic, partitions):
        """A topic with one replica of each partition, on the brokers in turn."""
        self._call("topic_create", topic.encode(), partitions, 1)

    def refuse(self, topic, code):
        """Answer with error `code` to who asks for the topic's metadata."""
        self._call("topic_set_error", topic.encode(), code)

    def lead(self, topic, partition, broker):
        """Make `broker` the leader of a partition."""
        self._call("partition_set_leader", topic.encode(), partition, broker)

    def down(self, broker=EVERY):
        """Close the connections of a broker and refuse new ones."""
        self._call("broker_set_down", broker)

    def up(self, broker=EVERY):
        self._call("broker_set_up", broker)

    def slow(self, milliseconds, broker=EVERY):
        """Answer so much later."""
        self._call("broker_set_rtt", broker, milliseconds)

    def fail(self, request, code, times=1):
        """Answer the next requests of a kind (an API key) with an error."""
        codes = (ctypes.c_int * times)(*[code] * times)
        self._call("push_request_errors_array", request, times, ctypes.cast(codes, POINTER))

    def heal(self, request):
        """Forget the errors that are still to be given to requests of a kind."""
        self._call("clear_request_errors", request)

    def read(self, topic, seconds=10):
        """All messages of the topic, each partition's in order. Fails if they do not come within the time."""
        consumer = Consumer({"bootstrap.servers": self.bootstraps, "group.id": "test", "log_level": 0})
        numbers = consumer.list_topics(topic, seconds).topics[topic].partitions
        partitions = [TopicPartition(topic, number, 0) for number in numbers]
        count = sum(consumer.get_watermark_offsets(p, seconds)[1] for p in partitions)
        consumer.assign(partitions)
        messages = consumer.consume(count, seconds) if count else []
        consumer.close()
        assert len(messages) == count
        return messages

    def stored(self, topic, partition, broker):
        """Every Stored of a partition, asked of its leader."""
        port = int(self.bootstraps.split(",")[broker - 1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            found, offset = [], 0
            while some := list(record_batches(fetch(connection, topic, partition, offset))):
                found += some
                offset = found[-1].base_offset + found[-1].records
            return found

    def close(self):
        if self.cluster:
            self.lib.rd_kafka_mock_cluster_destroy(self.cluster)
            self.lib.rd_kafka_destroy(self.handle)
            self.cluster = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def text(value):
    """STRING of the Kafka protocol."""
    return struct.pack(">h", len(value)) + value.encode()


def fetch(connection, topic, partition, offset):
    """Record batches from `offset` on, as they are stored (Fetch, version 4); none: empty."""
    body = struct.pack(">iiiib", -1, 100, 1, 1 << 20, 0)  # replica, max wait ms, min and max bytes, isolation level
    body += struct.pack(">i", 1) + text(topic) + struct.pack(">iiqi", 1, partition, offset, 1 << 20)
    request = struct.pack(">hhi", FETCH, 4, 1) + text("test") + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    answer = receive(connection, struct.unpack(">i", receive(connection, 4))[0])
    at = 4 + 4 + 4 + 2 + len(topic) + 4  # correlation id, throttle time, topics, the topic's name, partitions
    _index, code, _high, _stable, aborted = struct.unpack_from(">ihqqi", answer, at)
    assert code == 0, code
    at += 26 + 16 * max(aborted, 0)
    return answer[at + 4 : at + 4 + max(struct.unpack_from(">i", answer, at)[0], 0)]


def receive(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        assert more, "the broker hung up"
        data += more
    return data


def record_batches(data):
    """Each record batch's Stored (RecordBatch of magic 2: baseOffset, batchLength, ... producerId at byte 43)."""
    at = 0
    while at + 61 <= len(data):
        base_offset, length = struct.unpack_from(">qi", data, at)
        producer_id, epoch, sequence, records = struct.unpack_from(">qhii", data, at + 43)
        yield Stored(base_offset, records, producer_id, epoch, sequence)
        at += 12 + length

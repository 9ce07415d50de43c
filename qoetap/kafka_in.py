"""Events from a Kafka topic, for `qoetap serve`: a consumer group, whose offsets are committed once events are on disk.

So after a crash some events come again, and count once. Needs confluent-kafka.
"""

from dataplane.sinks.base import SinkError
from qoetap.events_in import Source
from qoetap.exits import USAGE, Exit

try:
    from confluent_kafka import Consumer, KafkaException

    from dataplane.sinks.kafka import BROKERS, Silence, parse, read_settings, reason
except (ImportError, SinkError) as missing:
    raise Exit(USAGE, "Kafka input needs confluent-kafka: pip install qoetap[kafka]") from missing

BATCH_messages = 5000
WAIT_seconds = 0.25
DEFAULTS = {
    "client.id": "qoetap",
    "group.id": "qoetap-serve",
    "auto.offset.reset": "earliest",
    "session.timeout.ms": "10000",  # after a kill, another one gets the partitions
    "log_level": "0",  # trouble is told by `trouble`
}
FIXED = {"enable.auto.commit": "false"}  # offsets are committed here


class Topic(Source):
    """The topic of kafka://HOST/TOPIC?name=value&..., whose settings are librdkafka's."""

    def __init__(self, spec, service):
        try:
            address = parse(spec)
            settings = DEFAULTS | (read_settings(address.file) if address.file else {}) | address.settings | FIXED
            settings = {n: v for n, v in settings.items() if n not in BROKERS} | {"bootstrap.servers": address.brokers}
            self.consumer = Consumer(settings | {"error_cb": self._heard}, logger=Silence())
        except SinkError as error:
            raise Exit(USAGE, f"serve.events: {str(error).replace('Kafka output', 'Kafka input')}") from error
        except (KafkaException, TypeError, ValueError) as error:
            what = reason(error.args[0]) if isinstance(error, KafkaException) else error
            raise Exit(USAGE, f"serve.events: {spec.partition('?')[0]}: {what}") from error
        self.consumer.subscribe([address.topic])
        super().__init__(address.name, service)

    def step(self):
        try:
            messages = self.consumer.consume(BATCH_messages, WAIT_seconds)
            self._take([message for message in messages if not message.error()])
            for message in messages:
                if message.error():
                    self._heard(message.error())
        except KafkaException as error:
            self._heard(error.args[0])
            return WAIT_seconds
        return 0

    def _take(self, messages):
        lines = b"\n".join(message.value() or b"" for message in messages)
        if messages and self.take(lines):
            self.consumer.commit(asynchronous=False)

    def _heard(self, error):
        self.trouble = f"{self.name}: {reason(error)}; it is tried again"

    def shut(self):
        self.consumer.close()

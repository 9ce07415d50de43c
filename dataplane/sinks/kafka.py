"""Kafka, through librdkafka: each event is a record, its value the JSON line, its key the flow (docs/kafka.md).

An event counts as `queued` until the brokers have confirmed or librdkafka has given it up. All callbacks come from
`poll` and `flush`, so in the thread that calls the sink.
"""

import re
import time
from typing import NamedTuple
from urllib.parse import parse_qsl

from dataplane.events import COMMON, Renderer, escape_json, json_line
from dataplane.sinks.base import Sink, SinkError
from dataplane.sinks.names import redacted

try:
    from confluent_kafka import KafkaError, KafkaException, Producer
except ImportError as missing:
    raise SinkError("Kafka output needs confluent-kafka: pip install qoetap[kafka]") from missing

FORM = "write a Kafka output as kafka://HOST:9092,HOST2:9092/TOPIC, with ?name=value&... for librdkafka's settings"
CONFIG = "write it into a file and name that with ?config=FILE"
BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)
TOPIC = re.compile(r"[\w.-]{1,249}", re.ASCII)  # org.apache.kafka.common.internals.Topic
SECRET = re.compile(r"password|secret|\.pem$|oauthbearer\.config")
BROKERS = ("bootstrap.servers", "metadata.broker.list")
RESERVED = ("transactional.id", "delivery.report.only.error")

DEFAULTS = {
    "client.id": "qoetap",
    "enable.idempotence": "true",  # acks=all; what is sent again is stored once and in order
    "linger.ms": "20",
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # that of Kafka's Java clients
    "queue.buffering.max.kbytes": "65536",
    "log_level": "0",  # trouble is told by `trouble`
}

PROBE_S = 5  # at the start, for a broker to answer
ASK_S = 0.5  # for one answer
POLL_S = 0.1
PATIENCE_S = 10  # for room in a full queue, while no event is settled
CLOSE_S = 7  # for what waits at the end
PURGE_S = 1
CALM_S = 5  # without a refused event, and refusals count as over

ADVICE = {
    KafkaError._AUTHENTICATION: "correct the credentials in the file that ?config= names",
    KafkaError.SASL_AUTHENTICATION_FAILED: "correct the credentials in the file that ?config= names",
    KafkaError._SSL: "correct security.protocol and ssl.ca.location",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "let this user describe and write the topic",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "let this user write idempotently (IdempotentWrite)",
    KafkaError.TOPIC_EXCEPTION: "give another topic",
}  # each is final: asking again does not help
NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)

PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # by us, after something went wrong

FLOW_ID = next(column for column in COMMON if column.name == "flow_id")
KEY_BYTES = 16  # of a flow_id
OPEN = ord("{")


class Address(NamedTuple):
    """What the spec of a Kafka output says."""

    brokers: str
    topic: str
    settings: dict
    file: str  # of further settings, or ""
    name: str  # what the output is called in a sentence


def parse(spec):
    """Address of a spec. SinkError says what is wrong with it."""
    scheme, _, rest = spec.partition("://")
    place, mark, query = rest.partition("?")
    brokers, _, topic = place.partition("/")
    name = redacted(spec)
    if "@" in brokers:
        raise SinkError(f"{name}: credentials have no place in an address: {CONFIG}")
    if scheme != "kafka" or not all(map(is_broker, brokers.split(","))):
        raise SinkError(f"{name}: {FORM}")
    if not TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise SinkError(f"{name}: there must be the name of a topic (letters, digits, . _ -); {FORM}")
    try:
        settings = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark)))
    except ValueError:
        raise SinkError(f"{name}: a setting behind the ? is no name=value; {FORM}") from None
    file = settings.pop("config", "")
    for secret in filter(SECRET.search, settings):
        raise SinkError(f"{name}: {secret} is a secret: {CONFIG}")
    return Address(brokers, topic, settings, file, name)


def is_broker(text):
    found = BROKER.fullmatch(text)
    return bool(found) and int((found[2] or ":0")[1:]) < 1 << 16


def read_settings(path):
    """Settings of a file of `name=value` lines (# begins a comment line). SinkError if it cannot be read."""
    settings = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                name, equals, value = line.partition("=")
                if equals and not line.lstrip().startswith("#"):
                    settings[name.strip()] = value.strip()
                elif line.strip() and not line.lstrip().startswith("#"):
                    raise SinkError(f"{path}: line {number} is no name=value")
    except OSError as error:
        raise SinkError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SinkError(f"{path}: is no UTF-8 text") from error
    return settings


def settings_of(address):
    """librdkafka's settings: the defaults, the file's, those of the spec; the address names the brokers."""
    settings = DEFAULTS | (read_settings(address.file) if address.file else {}) | address.settings
    for name in filter(settings.__contains__, RESERVED):
        raise SinkError(f"{address.name}: {name} cannot be set here: leave it out")
    return {n: v for n, v in settings.items() if n not in BROKERS} | {"bootstrap.servers": address.brokers}


def keyed_lines(_detectors):
    """Layout of the flow's id, where there is a flow, and the JSON line behind it."""

    def line(template, detector, event_type):
        template.add(FLOW_ID, detector.event)
        json_line(template, detector, event_type)

    return line, escape_json


def records(text, ends, agent):
    """(key, value) of each event of a rendered chunk; `agent` is the key of those without a flow."""
    data, start = bytes(text), 0
    for end in ends.tolist():
        at = start if data[start] == OPEN else start + KEY_BYTES
        yield data[start:at] or agent, data[at : end - 1]
        start = end


def reason(error):
    """What a KafkaError says, without librdkafka's names and times and what it repeats of a setting."""
    said = error.str().partition(" beginning at")[0]
    return re.sub(r" \(after [^()]*\)|^\S+/\S+: |\b(Local|Broker): ", "", said).rstrip(".")


class Silence:
    """Takes librdkafka's log, which else goes to stderr: what matters is told to `error_cb` too."""

    def log(self, *_):
        pass


class Kafka(Sink):
    """`trouble` is that no broker answers or that events are refused, until one answers and events are taken again."""

    def __init__(self, spec, detectors):
        super().__init__()
        self.address = parse(spec)
        self.path = self.address.name
        self.renderer = Renderer(detectors, keyed_lines)
        self.complaint = self.unreachable = self.refused = None  # KafkaErrors: what was heard, no answer, a lost event
        self.delivered_then = self.calm_at = 0  # at the latest refusal, and when it may be forgotten
        self.broken = False  # whether the producer has failed for good
        self.settings = settings_of(self.address)
        self.producer = self._open(self.settings)
        self._probe()

    @property
    def trouble(self):
        if self.unreachable is not None:
            return f"{self._sentence(self.unreachable)}; events wait, and are dropped and counted in the end"
        return f"{self._refusal(self.refused)}; events are dropped and counted" if self.refused is not None else None

    def _open(self, settings):
        """A producer. SinkError if librdkafka refuses the settings."""
        log = {} if "debug" in settings else {"logger": Silence()}
        try:
            return Producer(settings | {"error_cb": self._heard, "on_delivery": self._settle}, **log)
        except KafkaException as error:
            raise SinkError(f"{self.path}: {reason(error.args[0])}") from error
        except (TypeError, ValueError) as error:
            raise SinkError(f"{self.path}: {error}") from error

    def _probe(self):
        """Wait until a broker answers and knows the topic. SinkError if none does or it refuses."""
        deadline, error = time.monotonic() + PROBE_S, self._ask()
        while error is not None and error.code() not in ADVICE and time.monotonic() < deadline:
            self._serve(POLL_S)
            error = self._ask()
        if error is not None:
            self.producer = None
            raise SinkError(self._sentence(error))

    def _ask(self):
        """None if a broker answers and knows the topic, else the KafkaError that tells most."""
        try:
            found = self.producer.list_topics(self.address.topic, ASK_S)
        except KafkaException as error:
            self._fail(error.args[0])
            self._serve(0)
            return self.complaint or error.args[0]
        self.complaint = None
        return found.topics[self.address.topic].error

    def _sentence(self, error):
        if error.code() in NO_TOPIC:
            return f"{self.path}: there is no topic {self.address.topic}: create it"
        if error.code() in ADVICE or error.fatal():
            return self._refusal(error)
        return f"{self.path}: no broker answers ({reason(error)}); start it or correct address and security.protocol"

    def _serve(self, seconds, wait=Producer.poll):
        """Run callbacks for so long. A fatal error comes from here, as an exception."""
        try:
            wait(self.producer, seconds)
        except KafkaException as error:
            self._fail(error.args[0])

    def _fail(self, error):
        """Note an error that was raised: after a fatal one `tick` makes another producer."""
        if not self.broken and (error.fatal() or error.code() == KafkaError._FATAL):
            self.broken = True
            self._lose(error)

    def _heard(self, error):
        """An error of the client: `tick` finds out whether it matters."""
        if self.complaint is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.complaint = error

    def _settle(self, error, _message):
        """A delivery report."""
        self.queued -= 1
        if error is None:
            self.delivered += 1
        else:
            self.dropped += 1
            if error.code() not in PURGED:
                self._lose(error)

    def _lose(self, error):
        """Note why events are lost: the latest reason, unless only an earlier one has a remedy."""
        if self.refused is None or error.code() in ADVICE or self.refused.code() not in ADVICE:
            self.refused = error
        self.delivered_then, self.calm_at = self.delivered, time.monotonic() + CALM_S

    def _refusal(self, error):
        advice = f"; {ADVICE[error.code()]}" if error.code() in ADVICE else ""
        return f"{self.path}: {reason(error)}{advice}"

    def put(self, events):
        """Hand Events to librdkafka. SinkError if it takes some not, which then are dropped."""
        agent = events.agent_id.encode("utf-8", "replace")
        for text, ends in self.renderer.chunks(events):
            for key, value in records(text, ends, agent):
                self._send(key, value)
            self._serve(0)

    def _send(self, key, value):
        while True:
            try:
                self.producer.produce(self.address.topic, value, key)
            except BufferError:
                self._make_room()
            except KafkaException as error:
                self._serve(0)  # may tell why it is broken
                self._fail(error.args[0])
                if not self.broken:
                    self._lose(error.args[0])
                raise SinkError(self._refusal(self.refused)) from error
            else:
                self.queued += 1
                return

    def _make_room(self):
        """Serve delivery reports until there is one. SinkError if none comes for PATIENCE_S."""
        waiting, deadline = self.queued, time.monotonic() + PATIENCE_S
        while self.queued == waiting:
            if time.monotonic() > deadline:
                raise SinkError(f"{self.path}: no event was confirmed for {PATIENCE_S} s and its queue is full")
            self._serve(POLL_S)

    def tick(self):
        """Serve callbacks, look after what they complained of, forget refusals that are over."""
        self._serve(0)
        if self.broken:
            self._renew(self.settings, 0)
        if self.complaint or self.unreachable or self.refused:  # asking also renews what librdkafka knows of the topic
            self.unreachable = self._ask()
        if self.refused is not None and self.delivered > self.delivered_then and time.monotonic() > self.calm_at:
            self.refused = None

    def reopen(self):
        """Read the file of settings anew, since credentials change. SinkError if it is wrong: the old ones stay."""
        settings = settings_of(self.address)
        if settings != self.settings:
            self._renew(settings, CLOSE_S)

    def _renew(self, settings, seconds):
        """Go on with another producer, once what waits has gone out or been dropped."""
        producer = self._open(settings)
        self._end(seconds)
        self.producer, self.settings, self.broken = producer, settings, False

    def _end(self, seconds):
        """Let go of the producer: number of events that were not confirmed in time."""
        dropped = self.dropped
        self._serve(seconds, Producer.flush)
        if self.queued:
            self.producer.purge()
            self._serve(PURGE_S, Producer.flush)
        self.producer, self.dropped, self.queued = None, self.dropped + self.queued, 0
        return self.dropped - dropped

    def close(self):
        """Deliver what waits within CLOSE_S and drop the rest. SinkError if there is a rest."""
        lost = self._end(CLOSE_S) if self.producer is not None else 0
        if lost and self.refused is not None:
            raise SinkError(f"{self._refusal(self.refused)}; {lost} events at the end were dropped")
        if lost:
            raise SinkError(f"{self.path}: {lost} events were not confirmed within {CLOSE_S} s and count as dropped")


SINK = Kafka

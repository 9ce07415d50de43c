"""Parquet (pyarrow): the common columns, then `detector.field` of every detector, typed; null where there is no value.

Event rows are gathered and written a row group at a time, so memory is bounded. The file is readable once closed: until
then its events count as queued, and one that fails is lost.
"""

import contextlib
import os
from typing import NamedTuple

import numpy as np

from dataplane import render as r
from dataplane.events import COMMON, PROTOCOL_NAMES, SCHEMA_VERSION, Renderer, one_value, own_columns, renamed
from dataplane.flowid import ICMP, ICMPV6, SCTP, TCP, UDP
from dataplane.records import EVENT, NO_TIME
from dataplane.sinks.base import Sink, SinkError, sink_error

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    raise SinkError("Parquet output needs pyarrow: pip install qoetap[parquet]") from missing

GROUP_ROWS = 65_536
HEAD = np.dtype(EVENT, align=True)
CATEGORY = pa.dictionary(pa.int32(), pa.string())
TEXT_FORMS = (r.ADDRESS, r.FLOW_ID, r.COMMUNITY_ID, r.HEX)
TYPES = {
    r.TIME: pa.timestamp("ns", tz="UTC"),
    r.BOOL: pa.bool_(),
    r.FLOAT: pa.float64(),
    r.COUNT: pa.int64(),
    **dict.fromkeys(TEXT_FORMS, pa.string()),
}


def arrow_type(column, dtype):
    """Arrow type of a column whose source is a field of the event row `dtype`."""
    if column.form == r.INT:
        return pa.from_numpy_dtype(dtype[column.source])
    return TYPES.get(column.form, CATEGORY)


class Group(NamedTuple):
    """The rows of a row group."""

    words: np.ndarray  # event rows, as in Events.flat
    at: np.ndarray  # byte offset of each
    detector: np.ndarray  # index of its detector
    head: dict  # common field: its values

    def field(self, dtype, name, chosen=slice(None)):
        """Values of one field of `dtype` in the chosen rows."""
        kind, offset = dtype.fields[name][:2]
        at = self.at[chosen] + offset
        return (self.words[at >> 3] >> ((at & 7) << 3)).astype(f"u{kind.itemsize}").view(kind)


def gather(batches):
    """A Group of batches (words, at, detector)."""
    words, at, detector = zip(*batches, strict=True)
    bases = np.cumsum([0] + [8 * len(w) for w in words[:-1]])
    at = [a + base for a, base in zip(at, bases, strict=True)]
    group = Group(np.concatenate(words), np.concatenate(at), np.concatenate(detector), {})
    group.head.update({n: group.field(HEAD, n) for n in HEAD.names if n not in ("src", "dst")})
    return group


def present(group, column):
    """Which rows have what a common column needs."""
    head = group.head
    if column.need == r.ALWAYS:
        return np.ones(len(group.at), bool)
    if column.need == r.NONZERO:
        return head[column.source] != 0
    ports = (head["sport"] != 0) | (head["dport"] != 0) | (column.need != r.PORTS)
    protocols = {r.PORTS: (TCP, UDP, SCTP), r.ICMP_MESSAGE: (ICMP, ICMPV6), r.IP: range(256)}[column.need]
    return ports & (head["ip_version"] != 0) & np.isin(head["proto"], list(protocols))


def category(index, names, valid):
    """Dictionary array of names[index]."""
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32(), mask=~valid), pa.array(names, pa.string()))


def typed(values, form, arrow, valid):
    """Array of numbers, times or flags; NaN and records.NO_TIME are null."""
    if form == r.FLOAT:
        values, valid = values.astype(np.float64), valid & np.isfinite(values)
    elif form == r.BOOL:
        values = values != 0
    elif values.dtype == np.int64:
        valid = valid & (values != NO_TIME)
    return pa.array(values, mask=~valid).cast(arrow)


def spread(array, valid):
    """`array`, whose values belong to the rows that are valid, with nulls for the others."""
    return array.take(pa.array(np.cumsum(valid) - 1, pa.int64(), mask=~valid))


class Parquet(Sink):
    """The file cannot be gone on with: `append` is refused."""

    def __init__(self, path, detectors, append=False):
        super().__init__()
        if append:
            stem, suffix = os.path.splitext(path)
            raise SinkError(
                f"{path}: Parquet can be read only once its file is finished, so write one after the other, named by "
                f"the time: -o '{stem}-%Y%m%dT%H%M%S{suffix}'"
            )
        self.path, self.detectors = path, detectors
        self.index = {d.name: i for i, d in enumerate(detectors)}
        self.own = [(d, c) for d in detectors for c in own_columns(d)]
        self.batches, self.held, self.latest, self.renderers = [], 0, None, {}  # held: rows in batches
        self.schema = self._schema()
        try:
            self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        except OSError as error:
            raise sink_error(path, error) from error

    def _schema(self):
        fields = [pa.field(c.name, arrow_type(c, HEAD), metadata={"help": c.help}) for c in COMMON]
        for d, c in self.own:
            fields.append(pa.field(f"{d.name}.{c.name}", arrow_type(c, d.event), metadata={"help": c.help}))
        return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION})

    @staticmethod
    def mend(fd):
        """True if a file that its writer did not finish can be read: then only its name was missing."""
        try:
            with os.fdopen(os.dup(fd), "rb") as file:
                return pq.read_metadata(file).num_rows > 0
        except (pa.ArrowInvalid, OSError):
            return False

    def put(self, events):
        if self.writer is None:
            raise SinkError(f"{self.path} could not be finished")
        self._learn(events.parts)
        words, at = events.flat()
        detector = np.array([self.index[d.name] for d, _ in events.parts])[events.order[:, 0]]
        self.batches.append((words.copy() if len(events.parts) == 1 else words, at, detector))
        self.latest = events._replace(parts=[], order=None)
        self.queued += len(at)
        self.held += len(at)
        if self.held >= GROUP_ROWS:
            with self._or_lost():
                self._write_group()

    def _learn(self, parts):
        """Take over names that a detector has declared since."""
        for detector, _ in parts:
            at = self.index[detector.name]
            if renamed(detector, self.detectors[at].events):
                self.detectors = (*self.detectors[:at], detector, *self.detectors[at + 1 :])
                self.own = [(d, c) for d in self.detectors for c in own_columns(d)]

    @contextlib.contextmanager
    def _or_lost(self):
        """What fails inside loses the file: without its footer it cannot be read."""
        try:
            yield
        except Exception:
            self.dropped, self.queued, self.batches = self.dropped + self.queued, 0, []
            writer, self.writer = self.writer, None
            with contextlib.suppress(Exception):
                writer.close()
            raise

    def _write_group(self):
        group = gather(self.batches)
        common = [self._common(group, c) for c in COMMON]
        own = [self._own(group, d, c) for d, c in self.own]
        self.writer.write_table(pa.Table.from_arrays(common + own, schema=self.schema))
        self.batches, self.held = [], 0

    def _common(self, group, column):
        valid = present(group, column)
        if column.form in TEXT_FORMS:
            return spread(self._text(group, self.detectors[0], column, valid), valid)
        if column.form == r.TEXT:
            return self._label(group, column)
        if column.form in (r.AGENT, r.FILE, r.COUNT):
            return self._origin(group, column)
        if column.form == r.NAME:
            return category(group.head[column.source], PROTOCOL_NAMES, valid)
        return typed(group.head[column.source], column.form, arrow_type(column, HEAD), valid)

    def _label(self, group, column):
        """event_type and schema_version."""
        every = np.ones(len(group.at), bool)
        if column.name != "event_type":
            return category(np.zeros(len(every)), [SCHEMA_VERSION], every)
        first = np.cumsum([0] + [len(d.events) for d in self.detectors])
        index = first[group.detector] + group.head["code"] - 1
        return category(index, [t.name for d in self.detectors for t in d.events], every)

    def _origin(self, group, column):
        """agent_id, pcap_file and pcap_cnt."""
        if column.form == r.AGENT:
            return category(np.zeros(len(group.at)), [self.latest.agent_id], np.ones(len(group.at), bool))
        files = tuple(self.latest.files)  # the engine appends to it
        first = np.array([seq for seq, _ in files], np.int64)
        file = np.searchsorted(first, group.head["seq"], side="right") - 1
        if column.form == r.FILE:
            return category(file, [str(path) for _, path in files], file >= 0)
        count = group.head["seq"] - (first[file] if len(first) else 0) + 1
        return typed(count, r.COUNT, pa.int64(), file >= 0)

    def _own(self, group, detector, column):
        """A detector's field, of the events whose type has it."""
        has = np.zeros(256, bool)
        has[1 : len(detector.events) + 1] = [column.name in [f.name for f in t.fields] for t in detector.events]
        valid = (group.detector == self.index[detector.name]) & has[group.head["code"]]
        if column.form == r.HEX:
            return spread(self._text(group, detector, column, valid), valid)
        values = group.field(detector.event, column.source, valid)
        every = np.ones(len(values), bool)
        if column.form == r.NAME:
            known = (values >= 0) & (values < len(column.names))
            return spread(category(values, column.names, known), valid)
        return spread(typed(values, column.form, arrow_type(column, detector.event), every), valid)

    def _text(self, group, detector, column, valid):
        """String array of the rows chosen, rendered as in the other sinks."""
        key = (detector.name, column.name)
        if key not in self.renderers:
            self.renderers[key] = Renderer((detector,), one_value(column))
        renderer = self.renderers[key]
        renderer.name_origins(self.latest)
        lines = np.zeros(
            (int(valid.sum()), r.LINE_COLUMNS), np.int64
        )  # the first program of its type: all are the same
        lines[:, r.ROW] = group.at[valid]
        ends, texts, size = [np.zeros(1, np.int64)], [], 0
        for text, stops in renderer.texts(group.words, lines):
            texts.append(bytes(text))
            ends.append(stops + size)
            size += len(text)
        offsets = np.concatenate(ends).astype(np.int32)
        return pa.StringArray.from_buffers(len(lines), pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)))

    def close(self):
        if self.writer is None:
            return
        try:
            with self._or_lost():
                if self.batches:
                    self._write_group()
                self.writer.close()
        except OSError as error:
            raise sink_error(self.path, error) from error
        self.delivered, self.queued, self.writer = self.delivered + self.queued, 0, None


SINK = Parquet

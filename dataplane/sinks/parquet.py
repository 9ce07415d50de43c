"""Parquet (pyarrow): the common columns, then `detector.field` of every detector, typed; null where there is no value.

Event rows are gathered and written a row group at a time, so memory is bounded. The file is readable once closed.
"""

import numpy as np

from dataplane import render as r
from dataplane.events import COMMON, SCHEMA_VERSION, Renderer, one_value, own_columns
from dataplane.records import EVENT, NO_TIME
from dataplane.sinks.base import Sink, SinkError, sink_error

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as missing:
    raise SinkError("Parquet needs pyarrow: pip install qoetap[parquet]") from missing

GROUP_ROWS = 65_536
PORT_PROTOCOLS, ICMP_PROTOCOLS = (r.TCP, r.UDP, r.SCTP), (r.ICMP, r.ICMPV6)
HEAD = np.dtype(EVENT, align=True)
CATEGORY = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("ns", tz="UTC")
TEXT_FORMS = (r.ADDRESS, r.FLOW_ID, r.COMMUNITY_ID, r.HEX)
TYPES = {r.TIME: TIME, r.BOOL: pa.bool_(), r.FLOAT: pa.float64(), r.COUNT: pa.int64()} | dict.fromkeys(TEXT_FORMS, pa.string())


def arrow_type(column, dtype):
    """Arrow type of a column of the event rows `dtype`."""
    if column.form in TYPES:
        return TYPES[column.form]
    return pa.from_numpy_dtype(dtype[column.source]) if column.form == r.INT else CATEGORY


def values_of(words, rows, field):
    """Values of a field, (dtype, offset), of the event rows at byte offsets `rows`."""
    dtype, at = field[0], rows + field[1]
    bits = (words[at >> 3] >> ((at & 7) << 3)).astype(f"u{dtype.itemsize}")
    return bits.view(dtype)


class Group(dict):
    """Rows of a row group being gathered: words, byte offsets, index of the detector, event code."""

    def __init__(self, batches):
        sizes = np.cumsum([0] + [8 * len(words) for words, *_ in batches])
        self.words = np.concatenate([words for words, *_ in batches])
        self.rows = np.concatenate([rows + base for (_, rows, _), base in zip(batches, sizes, strict=False)])
        self.detector = np.concatenate([detector for *_, detector in batches])
        self.head = {n: values_of(self.words, self.rows, HEAD.fields[n]) for n in HEAD.names if n not in ("src", "dst")}

    def present(self, column):
        """Which rows have what the column needs."""
        head = self.head
        if column.need == r.ALWAYS:
            return np.ones(len(self.rows), bool)
        if column.need == r.NONZERO:
            return head[column.source] != 0
        wanted = {r.PORTS: PORT_PROTOCOLS, r.ICMP_MESSAGE: ICMP_PROTOCOLS, r.IP: range(256)}[column.need]
        return (head["ip_version"] != 0) & np.isin(head["proto"], list(wanted))


class Parquet(Sink):
    def __init__(self, path, detectors):
        super().__init__()
        self.path, self.detectors = path, detectors
        self.index = {d.name: i for i, d in enumerate(detectors)}
        self.types = [t.name for d in detectors for t in d.events]
        self.first_type = np.cumsum([0] + [len(d.events) for d in detectors])
        self.own = [(i, d, c) for i, d in enumerate(detectors) for c in own_columns(d)]
        self.renderers, self.batches, self.latest = {}, [], None
        self.schema = self._schema()
        try:
            self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        except OSError as error:
            raise sink_error(path, error) from error

    def _schema(self):
        fields = [pa.field(c.name, arrow_type(c, HEAD), metadata={"help": c.help}) for c in COMMON]
        for _, detector, c in self.own:
            fields.append(pa.field(f"{detector.name}.{c.name}", arrow_type(c, detector.event), metadata={"help": c.help}))
        return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION})

    def put(self, events):
        count = len(events.order)
        if not count:
            return
        parts = [rows.view(np.ndarray).view(np.int64) for _, rows in events.parts]
        bases = np.cumsum([0] + [8 * len(p) for p in parts[:-1]])
        sizes = np.array([d.event.itemsize for d, _ in events.parts])
        part, row = events.order[:, 0], events.order[:, 1]
        detector = np.array([self.index[d.name] for d, _ in events.parts])[part]
        self.batches.append((np.concatenate(parts), bases[part] + row * sizes[part], detector))
        self.latest = events
        self.queued += count
        if self.queued >= GROUP_ROWS:
            self.flush()

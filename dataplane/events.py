"""Event rows to bytes: what an event's columns are, and the templates by which `render` writes them.

Knows detectors by their declarations only. A template is compiled once per event type; rendering a batch is one call.
"""

import json
import os
from typing import NamedTuple

import numpy as np

from dataplane import render as r
from dataplane.kernels import Kernel
from dataplane.records import EVENT

SCHEMA_VERSION = "1.0"  # a field renamed or removed raises the major number
BUFFER_BYTES = 1 << 20  # text made at a time
CODES = 256  # EVENT.code is one byte

_HEAD = np.dtype(EVENT, align=True).fields

# IP protocol numbers by the names that Suricata writes (its util-proto-name.c); others are written as the number
PROTOCOLS = {
    0: "HOPOPT", 1: "ICMP", 2: "IGMP", 4: "IP-in-IP", 6: "TCP", 8: "EGP", 17: "UDP", 33: "DCCP", 41: "IPv6",
    43: "IPv6-Route", 44: "IPv6-Frag", 46: "RSVP", 47: "GRE", 50: "ESP", 51: "AH", 58: "IPv6-ICMP", 59: "IPv6-NoNxt",
    60: "IPv6-Opts", 88: "EIGRP", 89: "OSPF", 97: "ETHERIP", 98: "ENCAP", 103: "PIM", 108: "IPComp", 112: "VRRP",
    115: "L2TP", 132: "SCTP", 135: "Mobility", 136: "UDPLite", 137: "MPLS-in-IP",
}  # fmt: skip
PROTOCOL_NAMES = tuple(PROTOCOLS.get(n, str(n)) for n in range(256))


class Events(NamedTuple):
    """Events in delivery order, as the engine hands them to a sink.

    parts: (detector, recarray of its event rows); order: int64 (n, 2), part and row of each event; files: (seq of its
    first packet, path) of every file so far, ascending, none in live capture. The rows are the engine's: a sink that
    keeps them copies them.
    """

    parts: list
    order: np.ndarray
    files: list
    agent_id: str

    def copy(self):
        return self._replace(parts=[(d, rows.copy()) for d, rows in self.parts], order=self.order.copy())

    def flat(self):
        """The event rows as one array of int64 words, and the byte offset in it of each event's row."""
        words = [rows.view(np.ndarray).view(np.int64) for _, rows in self.parts]
        bases = np.cumsum([0] + [8 * len(w) for w in words[:-1]])
        sizes = np.array([detector.event.itemsize for detector, _ in self.parts])
        part, row = self.order[:, 0], self.order[:, 1]
        return words[0] if len(words) == 1 else np.concatenate(words), bases[part] + row * sizes[part]


class Column(NamedTuple):
    """One column of every event, or one field of a detector's. `form` and `need` are those of render.OP."""

    name: str
    form: int
    source: str  # field of the event row
    need: int
    json: str  # JSON Schema type
    help: str
    names: tuple = ()
    pattern: str = ""


COMMON = (
    Column("timestamp", r.TIME, "ts", r.ALWAYS, "string", "time of the event, RFC 3339 with nine decimals, UTC",
           pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$"),
    Column("ts_ns", r.INT, "ts", r.ALWAYS, "integer", "the same in nanoseconds since 1970"),
    Column("event_type", r.TEXT, "", r.ALWAYS, "string", "detector.what"),
    Column("schema_version", r.TEXT, "", r.ALWAYS, "string", "version of this schema; its major number tells breaks"),
    Column("agent_id", r.AGENT, "", r.ALWAYS, "string", "who saw it"),
    Column("flow_id", r.FLOW_ID, "", r.IP, "string", "flow, the same both ways: first 8 bytes of community_id's SHA-1",
           pattern="^[0-9a-f]{16}$"),
    Column("community_id", r.COMMUNITY_ID, "", r.IP, "string", "Community ID version 1 with seed 0",
           pattern="^1:[0-9A-Za-z+/]{27}=$"),
    Column("src_ip", r.ADDRESS, "src", r.IP, "string", "source address"),
    Column("src_port", r.INT, "sport", r.PORTS, "integer", "source port; TCP, UDP and SCTP"),
    Column("dest_ip", r.ADDRESS, "dst", r.IP, "string", "destination address"),
    Column("dest_port", r.INT, "dport", r.PORTS, "integer", "destination port; TCP, UDP and SCTP"),
    Column("icmp_type", r.INT, "sport", r.ICMP_MESSAGE, "integer", "type of the flow's first message; ICMP and ICMPv6"),
    Column("icmp_code", r.INT, "dport", r.ICMP_MESSAGE, "integer", "code of the flow's first message"),
    Column("proto", r.NAME, "proto", r.IP, "string", "IP protocol: Suricata's name, else the number", PROTOCOL_NAMES),
    Column("vlan", r.INT, "vlan", r.NONZERO, "array", "outermost VLAN id"),
    Column("pcap_file", r.FILE, "", r.ALWAYS, "string", "capture that holds the packet; offline only"),
    Column("pcap_cnt", r.COUNT, "", r.ALWAYS, "integer", "number of the packet in it, from 1"),
)  # fmt: skip

_FORMS = {"int": (r.INT, "iu", "integer"), "float": (r.FLOAT, "f", "number"), "bool": (r.BOOL, "iub", "boolean"),
          "hex": (r.HEX, "u", "string")}  # fmt: skip


def own_column(detector, field):
    """Column of a detector's field. ValueError if its form does not fit its type."""
    named = isinstance(field.form, tuple)  # an empty one: names that differ from run to run
    names = field.form if named else ()
    form, kinds, json_type = (r.NAME, "iu", "string") if named else _FORMS.get(field.form, (r.END, "", ""))
    if np.dtype(field.type).kind not in kinds:
        raise ValueError(f"{detector.name}.{field.name}: a {np.dtype(field.type)} cannot be written as {field.form!r}")
    pattern = "^[0-9a-f]{16}$" if form == r.HEX else ""
    return Column(field.name, form, field.name, r.ALWAYS, json_type, field.help, names, pattern)


def own_columns(detector):
    """Columns of all its fields, in the order in which its event types name them first."""
    return list({f.name: own_column(detector, f) for t in detector.events for f in t.fields}.values())


def escape_json(text):
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "replace")


def escape_csv(text):
    """A field by RFC 4180: quoted where it must be."""
    if any(c in text for c in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text.encode("utf-8", "replace")


class Template:
    """Programs under construction: OP tuples and the text that they point into."""

    def __init__(self, escape):
        self.escape, self.ops, self.text, self.at = escape, [], bytearray(), {}
        self.literal, self.longest = b"", 0  # text not yet part of an OP; of the longest line

    def pool(self, data):
        """Position and length of `data` in the text."""
        if data not in self.at:
            self.at[data] = len(self.text)
            self.text += data
        return self.at[data], len(data)

    def names(self, names):
        """Table of names: position, bytes per name, names."""
        names = [self.escape(n) for n in names]
        stride = r.PREFIX_BYTES + max(map(len, names), default=0)
        table = b"".join((len(n).to_bytes(r.PREFIX_BYTES, "little") + n).ljust(stride, b"\0") for n in names)
        return self.pool(table)[0], stride, len(names)

    def add(self, column, dtype, key=b"", tail=b"", null=b""):
        """Append one value of an event row of `dtype`; `null` stands for all of it where there is none."""
        key, null, self.literal = self.literal + key, self.literal + null, b""
        at = width = 0
        if column.source:
            field, at = dtype.fields[column.source][:2]
            width = -field.itemsize if field.kind == "i" else field.itemsize
        table = self.names(column.names) if column.names else (0, 0, 0)
        texts = [x for data in (key, tail, null) for x in self.pool(data)]
        self.ops.append((column.form, column.need, at, width, *texts, *table))
        self.longest += len(key) + len(tail) + len(null) + r.LONGEST.get(column.form, table[1])

    def end(self):
        self.add(Column("", r.END, "", r.ALWAYS, "", ""), None)


def text_of(column, event_type):
    """What a TEXT column of COMMON says."""
    return event_type.name if column.name == "event_type" else SCHEMA_VERSION


_QUOTES = {"string": (b'"', b'"'), "array": (b"[", b"]")}


def _json_value(template, column, dtype, key, null):
    before, after = _QUOTES.get(column.json, (b"", b""))
    template.add(column, dtype, key + before, after, null)


def json_line(template, detector, event_type):
    """A JSON object and a newline. Common columns without a value are left out, a detector's own are null."""
    for i, column in enumerate(COMMON):
        key = (b"," if i else b"{") + b'"%s":' % column.name.encode()
        if column.form == r.TEXT:
            template.literal += key + b'"' + escape_json(text_of(column, event_type)) + b'"'
        else:
            _json_value(template, column, detector.event, key, key + b"null" if column.source == "ts" else b"")
    for i, field in enumerate(event_type.fields):
        key = (b"," if i else b',"%s":{' % detector.name.encode()) + b'"%s":' % field.name.encode()
        _json_value(template, own_column(detector, field), detector.event, key, key + b"null")
    template.literal += b"}}\n" if event_type.fields else b',"%s":{}}\n' % detector.name.encode()


def json_lines(_detectors):
    return json_line, escape_json


def csv_header(detectors):
    own = [f"{d.name}.{c.name}" for d in detectors for c in own_columns(d)]
    return ",".join([c.name for c in COMMON] + own).encode() + b"\n"


def csv_lines(detectors):
    """A line of the common columns and of every detector's fields, empty where they do not apply."""

    def line(template, detector, event_type):
        comma = b""
        for column in COMMON:
            if column.form == r.TEXT:
                template.literal += comma + escape_csv(text_of(column, event_type))
            else:
                template.add(column, detector.event, key=comma, null=comma)
            comma = b","
        written = {f.name for f in event_type.fields}
        for other in detectors:
            own = other.name == detector.name
            for column in own_columns(detector if own else other):
                if own and column.name in written:
                    template.add(column, detector.event, key=comma, null=comma)
                    comma = b","
                else:
                    comma += b","
        template.literal += comma[:-1] + b"\n"

    return line, escape_csv


def one_value(column):
    """Bare text of one column, empty where an event has none."""

    def value(template, detector, _event_type):
        if column.source in ("", *detector.event.names):
            template.add(column, detector.event)

    return lambda detectors: (value, str.encode)


def renamed(detector, events):
    """Whether a detector declares its events in another way than `events` does."""
    return detector.events is not events and detector.events != events


class Renderer:
    """Writes events by templates compiled once, into a buffer that it uses again.

    layout(detectors) gives (line, escape): line(template, detector, event_type) adds one event's OPs, and escape makes
    bytes of a name. Events of a detector whose declaration has got more names than it had are written by the new one.
    """

    def __init__(self, detectors, layout):
        self.line, self.escape = layout(detectors)
        self.detectors = {}
        self.kernel, self.out, self.known = Kernel(r.render), np.empty(0, np.uint8), None
        self.names, self.origins = [], None
        self._learn(detectors)

    def _learn(self, detectors):
        """Compile all templates, with what these detectors declare now."""
        self.detectors |= {detector.name: detector for detector in detectors}
        self.template, self.longest = Template(self.escape), 0
        self.starts = {name: self._compile(self.line, detector) for name, detector in self.detectors.items()}
        self.ops, self.known = np.array(self.template.ops, np.int64), None

    def _compile(self, line, detector):
        """Index of the first OP by event code."""
        starts = np.zeros(CODES, np.int64)
        for code, event_type in enumerate(detector.events, 1):
            starts[code], self.template.longest = len(self.template.ops), 0
            line(self.template, detector, event_type)
            self.template.end()
            self.longest = max(self.longest, self.template.longest)
        return starts

    def name_origins(self, events):
        """Refresh names that detectors declare, the agent's name and paths of files, when there are new ones."""
        if new := [d for d, _ in events.parts if renamed(d, self.detectors[d.name].events)]:
            self._learn(new)
        files = tuple(events.files)  # the engine appends to it
        known = (events.agent_id, len(files))
        if known == self.known:
            return
        names = [events.agent_id, *(os.fsencode(p).decode("utf-8", "replace") for _, p in files)]
        names = [self.template.escape(n) for n in names]
        sizes = np.array([r.PREFIX_BYTES + len(n) for n in names])
        text = bytes(self.template.text) + b"".join(len(n).to_bytes(r.PREFIX_BYTES, "little") + n for n in names)
        self.origins = np.zeros((len(names), r.ORIGIN_COLUMNS), np.int64)
        self.origins[1:, r.FIRST] = [seq for seq, _ in files]
        self.origins[:, r.PATH] = len(self.template.text) + np.cumsum(sizes) - sizes
        self.text = np.frombuffer(text, np.uint8).copy()
        line_bytes = self.longest + 2 * int(sizes.max())
        self.batch = max(1, BUFFER_BYTES // line_bytes)
        if len(self.out) < self.batch * line_bytes:
            self.out = np.empty(self.batch * line_bytes, np.uint8)
        self.known = known

    def lines(self, events):
        """(words, lines) of render, STOP not filled in."""
        words, at = events.flat()
        lines = np.empty((len(at), r.LINE_COLUMNS), np.int64)
        lines[:, r.ROW] = at
        starts = np.array([self.starts[d.name] for d, _ in events.parts])
        lines[:, r.START] = starts[events.order[:, 0], words.view(np.uint8)[at + _HEAD["code"][1]]]
        return words, lines

    def chunks(self, events):
        """Yield (text, ends): a memoryview that holds until the next one, and the end of each event's text in it."""
        if len(events.order):
            self.name_origins(events)
            yield from self.texts(*self.lines(events))

    def texts(self, words, lines):
        """The same for `words` and `lines`, whose origins must be known."""
        for start in range(0, len(lines), self.batch):
            some = lines[start : start + self.batch]
            size = self.kernel(words, some, self.ops, self.origins, self.text, self.out)
            yield memoryview(self.out)[:size], some[:, r.STOP]


def _property(column):
    """JSON Schema of one column's value."""
    schema = {"type": column.json, "description": column.help}
    if column.json == "array":
        schema["items"] = {"type": "integer"}
    if column.pattern:
        schema["pattern"] = column.pattern
    if column.names and column.names is not PROTOCOL_NAMES:
        schema["enum"] = list(column.names)
    return schema


def _or_null(schema):
    schema["type"] = [schema["type"], "null"]
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _event_schema(detector, event_type):
    own = {f.name: _or_null(_property(own_column(detector, f))) for f in event_type.fields}
    return {
        "description": event_type.help,
        "properties": {
            "event_type": {"const": event_type.name},
            detector.name: {"type": "object", "properties": own, "required": list(own)},
        },
        "required": ["event_type", detector.name],
    }


def json_schema(detectors):
    """JSON Schema (2020-12) of one line, as a dict: the common columns, and one of the detectors' event types."""
    properties = {c.name: _property(c) for c in COMMON}
    for name in ("timestamp", "ts_ns"):
        properties[name] = _or_null(properties[name])
    properties["schema_version"]["pattern"] = rf"^{SCHEMA_VERSION.split('.', maxsplit=1)[0]}\.\d+$"
    required = [c.name for c in COMMON if c.need == r.ALWAYS and c.form not in (r.FILE, r.COUNT)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"qoetap event {SCHEMA_VERSION}",
        "type": "object",
        "properties": properties,
        "required": required,
        "oneOf": [{"$ref": f"#/$defs/{t.name}"} for d in detectors for t in d.events],
        "$defs": {t.name: _event_schema(d, t) for d in detectors for t in d.events},
    }

"""Frames to PACKET rows for tests, rows as the twin tests/naive/wire.py writes them, events as rows."""

import ipaddress
import os

import numpy as np

import detectors as registry
from dataplane import records
from dataplane.batch import Batch, new_clock, set_clock
from dataplane.capture import Block, open_capture
from dataplane.engine import Engine
from dataplane.records import FRAME, KINDS, NO_TIME, rows
from dataplane.wire import REASONS, TUNNELS, decode_options
from qoetap.replay import engine_parts
from tests.helpers import settings_for

SECRET = b"a secret of the tests"
COMMON = (
    "ip_version", "proto", "sport", "dport", "tos", "ttl", "tcp_flags", "first_byte", "vlan", "payload_len",
)  # fmt: skip
RTP_FIELDS = ("rtp_ssrc", "rtp_time", "rtp_seq", "rtp_type", "rtp_marker")
BY_LIST = {
    "echo": ("icmp_id", "icmp_seq"),
    "ptp": (
        "ptp_clock", "ptp_requesting_clock", "ptp_correction", "ptp_time", "ptp_port", "ptp_requesting_port", "ptp_seq",
        "ptp_flags", "ptp_type", "ptp_version", "ptp_domain", "ptp_interval", "ptp_sdo",
    ),
}  # fmt: skip
PROBE_FIELDS = tuple(f"probe_{name}" for name in ("session", "sent", "d", "round", "seq", "ttl", "role"))
FLAGS = {
    name: getattr(records, name)
    for name in (
        "REVERSE", "VLAN", "PPPOE", "MPLS", "SNAP", "OPTIONS", "FRAGMENT_FIRST", "FRAGMENT_LATER", "FRAGMENT_ATOMIC",
        "TUNNEL", "PORTS", "UDP_LENGTH", "TCP_HEADER", "VERSION_MISMATCH", "OUT_OF_SCOPE", "RTP", "PROBE", "SELF",
    )
}  # fmt: skip


def tunnel_bits(names):
    return sum(1 << TUNNELS.index(name) for name in names)


def block_of(frames, gap=b"", ts=None):
    """Block of (bytes, length on the wire, link type[, captured length]), with `gap` before and after each frame."""
    made, parts, at = rows(FRAME, len(frames)), [gap], len(gap)
    for i, (data, length, linktype, *caplen) in enumerate(frames):
        row = made[i]
        row.offset, row.len, row.linktype = at, length, linktype
        row.caplen = caplen[0] if caplen else len(data)
        row.ts = i if ts is None else ts[i]
        parts += [data, gap]
        at += len(data) + len(gap)
    return Block(np.frombuffer(bytearray(b"".join(parts)), np.uint8), made)


def fill(block, tunnels=(), secret=SECRET, clock=None, first_seq=0):
    """A Batch of the block."""
    clock = new_clock() if clock is None else clock
    batch = Batch(max(1, len(block.frames)))
    now = set_clock(block.frames, clock)
    batch.fill(block, decode_options(secret, tunnel_bits(tunnels)), first_seq, now)
    return batch


def lists_of(batch):
    """Names of the lists that each row is in."""
    found = [{"ip"} if hashed else set() for hashed in (batch.packets["hash"] != 0).tolist()]
    for kind, name in enumerate(KINDS[1:], 1):
        for i in batch.views[kind][: batch.numbers[kind]]:
            found[i].add(name)
    return found


def decoded(frames, tunnels=(), gap=b"", secret=SECRET):
    """Each frame (bytes, length, link type[, captured length]) decoded, as naive.wire.decode writes it."""
    return as_dicts(fill(block_of(frames, gap), tunnels, secret))


def as_dicts(batch):
    names = {name for fields in BY_LIST.values() for name in fields} | {*COMMON, *RTP_FIELDS, *PROBE_FIELDS}
    columns = {name: batch.packets[name].tolist() for name in (*names, "flags", "reason", "addr")}
    return [as_dict(columns, i, lists, batch.buf) for i, lists in enumerate(lists_of(batch))]


def as_dict(columns, i, lists, buf):
    flags = {name for name, bit in FLAGS.items() if columns["flags"][i] & bit}
    names = list(COMMON) + [name for kind in lists for name in BY_LIST.get(kind, ())]
    names += RTP_FIELDS if "RTP" in flags else PROBE_FIELDS if "PROBE" in flags else ()
    found = {name: columns[name][i] for name in names}
    found.update(reason=REASONS[columns["reason"][i]], flags=flags, lists=lists, src=None, dst=None)
    if found.get("ptp_time") == NO_TIME:
        found["ptp_time"] = None
    at, size = columns["addr"][i], 4 if found["ip_version"] == 4 else 16
    if at >= 0:
        found.update(src=bytes(buf[at : at + size]), dst=bytes(buf[at + size : at + 2 * size]))
    return found


def address(text):
    return ipaddress.ip_address(text).packed


class Keep:
    """A sink that keeps (detector name, event row, order of delivery)."""

    def __init__(self):
        self.events, self.batches, self.delivered = [], [], 0

    def write(self, events):
        self.batches.append(events)
        for part, row in events.order:
            detector, found = events.parts[part]
            self.events.append((detector.name, found[row]))
        self.delivered += len(events.order)


def run_rows(paths, **options):
    """(engine, Keep) of a replay; options as for tests.helpers.replay_bytes. Its ledger is settled and balanced."""
    known = registry.load_all()
    settings = settings_for(known, options)
    parts, decode = engine_parts(settings, known)
    keep = Keep()
    engine = Engine(parts, keep, decode, settings.workers, settings.batch_rows, settings.agent_id)
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        engine.run(open_capture(path, engine.block_frames, engine.hold))
    engine.end()
    engine.ledger.delivered = keep.delivered
    assert not engine.ledger.imbalance()
    return engine, keep

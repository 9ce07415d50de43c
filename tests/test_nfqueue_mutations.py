"""Messages of NFQUEUE: bytes in, rows out; verdict rows in, bytes out; any bytes, no harm."""

import random
import struct

import numpy as np
import pytest

from dataplane.capture import nfnetlink
from dataplane.capture.nfnetlink import PACKET, VERDICT, VERDICT_BATCH, VERDICT_ONE
from dataplane.capture.nfqueue import Counts, counts_of
from dataplane.memory import memory
from dataplane.records import FRAME, META, NF_ACCEPT, NF_DROP, rows

NOW = 1_700_000_000_000_000_000
SLOT_bytes = 768
STATE = np.dtype(nfnetlink.WALK, align=True)
COUNTERS = ("packets", "damaged", "foreign", "overruns", "gone", "refused")
PAYLOAD = bytes.fromhex("4500001e000100004011000a0a0001020a000202") + bytes(range(10))
NUMBERS = np.array([5, 700], np.int32)


def attribute(kind, data):
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind, body, length=None):
    return struct.pack("IHHII", 16 + len(body) if length is None else length, kind, 0, 0, 0) + body


def packet(packet_id=1, queue=5, attributes=b"", payload=PAYLOAD):
    """NFQNL_MSG_PACKET as the kernel makes it: the payload comes last."""
    head = struct.pack(">BBH", 2, 0, queue) + attribute(1, struct.pack(">IHB", packet_id, 0x0800, 2))
    return message(PACKET, head + attributes + (b"" if payload is None else attribute(10, payload)))


def answer(error):
    """NLMSG_ERROR to a verdict, with NETLINK_CAP_ACK."""
    return message(2, struct.pack("i", -error) + bytes(16))


class Walked:
    """The rows and counters that datagrams give, `most` rows at a time."""

    def __init__(self, *datagrams, most=64):
        self.buf, lengths = np.zeros(SLOT_bytes * len(datagrams), np.uint8), np.zeros(len(datagrams), np.int64)
        for i, data in enumerate(datagrams):
            self.buf[i * SLOT_bytes :][: len(data)] = np.frombuffer(data, np.uint8)
            lengths[i] = len(data)
        state = rows(STATE, 1)
        state[0].slot_bytes, state[0].got = SLOT_bytes, len(datagrams)
        self.frames, self.metas, self.parts = [], [], []
        frames, metas = rows(FRAME, most), rows(META, most)
        for row in (frames, metas):  # what was there before must not show
            row.view(np.uint8)[:] = 0xAA
        while count := nfnetlink.walk(memory(self.buf), lengths, NUMBERS, frames, metas, state[0], NOW):
            self.parts.append(count)
            self.frames += [dict(zip(FRAME.names, row.item())) for row in frames[:count].view(np.ndarray)]
            self.metas += [dict(zip(META.names, row.item())) for row in metas[:count].view(np.ndarray)]
        assert state[0].slot == len(datagrams)
        self.counters = {name: int(state[0][name]) for name in COUNTERS if state[0][name]}
        self.error = int(state[0].error)

    def payload(self, i):
        return bytes(self.buf[self.frames[i]["offset"] :][: self.frames[i]["caplen"]])


def test_a_packet_with_all_that_the_kernel_says():
    more = b"".join(
        attribute(kind, struct.pack(">" + form, *values))
        for kind, form, values in [
            (3, "I", (0xFEDCBA98,)),
            (4, "QQ", (1_600_000_000, 999_999)),
            (5, "I", (2,)),
            (6, "I", (3,)),
            (9, "HH8s", (6, 0, bytes(8))),
            (13, "I", (1500,)),
        ]
    )
    found = Walked(packet(0xFFFFFFFF, 700, more))
    expected = {"id": 0xFFFFFFFF, "mark": 0xFEDCBA98, "indev": 2, "outdev": 3, "queue": 1, "hook": 2}
    assert found.metas == [expected]
    frame = found.frames[0]
    assert (frame["ts"], frame["len"], frame["caplen"]) == (1_600_000_000_999_999_000, 1500, len(PAYLOAD))
    assert (frame["linktype"], frame["flags"], frame["nsec"]) == (101, 0, 0)
    assert found.payload(0) == PAYLOAD and found.counters == {"packets": 1}


def test_what_is_not_said_is_nothing():
    found = Walked(packet(7, payload=None))
    assert found.metas == [{"id": 7, "mark": 0, "indev": 0, "outdev": 0, "queue": 0, "hook": 2}]
    assert (found.frames[0]["ts"], found.frames[0]["len"], found.frames[0]["caplen"]) == (NOW, 0, 0)


@pytest.mark.parametrize("time", [(2**33, 0), (2**64 - 1, 0), (1, 1_000_000)])
def test_a_time_that_is_none(time):
    assert Walked(packet(attributes=attribute(4, struct.pack(">QQ", *time)))).frames[0]["ts"] == NOW


def test_several_messages_in_several_datagrams_come_in_order_also_in_parts():
    datagrams = [b"".join(packet(10 * i + j) for j in range(3)) for i in range(4)]
    for most, parts in ((64, [12]), (5, [5, 5, 2]), (1, [1] * 12)):
        found = Walked(*datagrams, most=most)
        assert [meta["id"] for meta in found.metas] == [10 * i + j for i in range(4) for j in range(3)]
        assert found.parts == parts and found.counters == {"packets": 12}


def test_what_is_no_packet_of_ours_is_counted():
    found = Walked(packet(queue=6), message(2 << 8, bytes(4)), message(1, b""), message(4, b""), packet())
    assert found.counters == {"packets": 1, "foreign": 3, "overruns": 1}


def test_answers_are_counted():
    found = Walked(answer(0), answer(2), answer(22), answer(2) + packet(), message(2, b"\0\0"))
    assert found.counters == {"packets": 1, "gone": 2, "refused": 1, "damaged": 1} and found.error == 22


@pytest.mark.parametrize("cut", range(16, len(packet()) - 1))
def test_a_packet_cut_short_is_there_as_soon_as_its_id_is(cut):
    """Or it would wait for ever."""
    found = Walked(packet(9)[:cut])
    assert found.counters["damaged"] == 1 and len(found.metas) == (cut >= 20 + 4 + 7)
    if found.metas:
        assert found.metas[0]["id"] == 9 and found.payload(0) == PAYLOAD[: max(0, cut - 36)]


@pytest.mark.parametrize(
    "data",
    [b"\1", bytes(15), bytes(16), message(PACKET, b"", 15), message(PACKET, b""), message(PACKET, bytes(3))]
    + [message(PACKET, struct.pack(">BBH", 2, 0, 5) + struct.pack("HH", length, 1)) for length in (0, 3, 4, 65535)],
)
def test_lengths_that_do_not_fit(data):
    found = Walked(data, packet())
    assert found.counters == {"packets": 1, "damaged": 1}


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes(seed):
    rng = random.Random(seed)
    datagrams = []
    for _ in range(30):
        data = bytearray(packet(rng.randrange(2**32)) + answer(2) + packet(attributes=attribute(3, bytes(4))))
        for _ in range(rng.randrange(6)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 4, 127, 255, rng.randrange(256)))
        datagrams.append(bytes(data[: rng.randrange(len(data) + 1)]))
    datagrams += [rng.randbytes(rng.randrange(SLOT_bytes + 1)) for _ in range(10)]
    found = Walked(*datagrams, most=7)
    assert found.counters["packets"] == len(found.frames) and found.counters["damaged"] > 0
    for frame, meta in zip(found.frames, found.metas):
        slot = frame["offset"] // SLOT_bytes
        assert frame["offset"] + frame["caplen"] <= slot * SLOT_bytes + len(datagrams[slot])
        assert frame["len"] >= frame["caplen"] >= 0 and meta["queue"] in (0, 1)


def test_a_full_slot_at_the_end_of_the_buffer():
    data = packet(payload=bytes(SLOT_bytes - 36))
    assert len(data) == SLOT_bytes
    found = Walked(data)
    assert found.counters == {"packets": 1} and found.frames[0]["caplen"] == SLOT_bytes - 36


# Verdicts


def verdicts(*values):
    """VERDICT rows of dicts."""
    made = rows(VERDICT, len(values))
    for row, fields in zip(made, values):
        for name, value in fields.items():
            row[name] = value
    return made


def written(made, source=b"", room=1000):
    """The messages of all rows, a list of bytes for each sending."""
    out, parts, first = np.zeros(room + 8, np.uint8), [], 0
    data = memory(kept := np.frombuffer(source.ljust(8, b"\0"), np.uint8).copy())
    while first < len(made):
        size, first = nfnetlink.write_verdicts(memory(out), room, made, first, NUMBERS, data)
        parts.append(bytes(out[:size]))
    del kept
    return parts


def verdict(packet_id, what, queue=5, attributes=b""):
    head = struct.pack(">BBH", 0, 0, queue) + attribute(2, struct.pack(">II", what, packet_id))
    data = bytearray(message(VERDICT_ONE, head + attributes))
    data[6] = 1  # NLM_F_REQUEST
    return bytes(data)


def test_accept_drop_and_mark():
    made = verdicts(
        dict(id=0xFFFFFFFE, what=NF_ACCEPT),
        dict(id=1, what=NF_DROP, queue=1),
        dict(id=2, what=NF_ACCEPT, mark=0xFEDCBA98, set_mark=1),
        dict(id=3, what=NF_ACCEPT, mark=9),
    )
    expected = [
        verdict(0xFFFFFFFE, 1),
        verdict(1, 0, 700),
        verdict(2, 1, attributes=attribute(3, bytes.fromhex("fedcba98"))),
        verdict(3, 1),
    ]
    assert written(made) == [b"".join(expected)]


@pytest.mark.parametrize("size", [20, 21, 22, 23, 24, 27, 200])
def test_another_packet_in_its_place(size):
    source = random.Random(size).randbytes(5 + size)
    made = verdicts(
        dict(id=1, what=1, offset=5, bytes=size), dict(id=2, what=1, mark=7, set_mark=1, offset=5, bytes=size)
    )
    expected = (
        verdict(1, 1, attributes=attribute(10, source[5:])),
        verdict(2, 1, attributes=attribute(3, bytes.fromhex("00000007")) + attribute(10, source[5:])),
    )
    pieces = written(made, source)[0]
    # What is between a packet and the next multiple of four does not matter
    found, at = [], 0
    for wanted in expected:
        found.append(pieces[at : at + len(wanted)])
        at += len(wanted)
    pad = -size % 4
    assert len(pieces) == at and [data[: len(data) - pad] for data in found] == [w[: len(w) - pad] for w in expected]


def test_what_can_be_no_packet_takes_no_place():
    assert written(verdicts(*(dict(id=1, what=1, bytes=size) for size in (-1, 0, 19, 65532)))) == [verdict(1, 1) * 4]


def test_many_go_in_parts():
    made = verdicts(*(dict(id=i, what=1, set_mark=i % 2) for i in range(100)))
    parts = written(made, room=200)
    assert max(map(len, parts)) <= 200 and len(parts) == 20  # five of 32 or 40 bytes each
    assert b"".join(parts) == written(made, room=10_000)[0]


def test_a_verdict_on_all():
    out = np.zeros(32, np.uint8)
    nfnetlink.write_plain(memory(out), 0, VERDICT_BATCH, 5, NF_ACCEPT, 77)
    wanted = bytearray(verdict(77, 1))
    wanted[4:6] = struct.pack("H", VERDICT_BATCH)
    assert bytes(out) == bytes(wanted)


def test_the_kernels_table():
    line = "    5   2436     1 2   256     3     4       99  1\n"
    assert counts_of(line) == {5: Counts(1, 3, 4, 99, 2436)} and counts_of("") == {}

"""The compiled decode against its slow twin: sample captures, the corpus, mutants, every frame cut at every length."""

import random
import struct

import numpy as np
import pytest

from dataplane.capture import CaptureError, open_capture
from dataplane.records import JIT, PACKET, REVERSE
from dataplane.wire import REASONS, TUNNELS
from pcaps.cases import CASES
from tests import packets as make
from tests.naive import wire as naive
from tests.rows import as_dicts, block_of, decoded, fill
from tests.test_wire_layers import LAYERS

LINK_TYPES = (0, 1, 12, 14, 101, 108, 113, 228, 229, 276, 147, 65535)
MUTANTS = 20_000
TRIES = MUTANTS // 4000
GARBAGE = random.Random(5).randbytes(64)


def compare(frames, tunnels=(), gap=GARBAGE):
    """Hold frames (bytes, length, link type[, captured length]) against the twin."""
    found = decoded(frames, tunnels, gap)
    for frame, ours in zip(frames, found, strict=True):
        data, length, linktype, caplen = (*frame, len(frame[0]))[:4]
        assert ours == naive.decode(data[:caplen], length, linktype, tunnels), (data[:caplen].hex(), length, linktype)


def story_frames():
    """Every frame of the sample captures that are written whole, as (bytes, length, link type)."""
    frames = []
    for case in CASES:
        story = case()
        linktype = getattr(story.write, "keywords", {}).get("linktype", 1)
        interfaces = getattr(story.write, "keywords", {}).get("interfaces", ())
        for record in story.records():
            kind = interfaces[record.interface].linktype if interfaces else linktype
            frames.append((record.data, len(record.data) if record.length is None else record.length, kind))
    return frames


STORIES = story_frames()


@pytest.mark.parametrize("tunnels", [(), TUNNELS, ("gre", "vxlan"), ("ipip", "gtpu"), ("6in4", "geneve")])
def test_sample_captures(tunnels):
    compare(STORIES if not tunnels or JIT else STORIES[::7], tunnels)


def corpus_files(corpus):
    return sorted(path for path in (corpus / "pcaps").rglob("*") if path.suffix in (".pcap", ".pcapng", ".cap", ".bin"))


def test_corpus(corpus):
    compared = 0
    for path in corpus_files(corpus)[:: 1 if JIT else 3]:
        try:
            source = open_capture(path, 512)
        except CaptureError:
            continue
        if not JIT and "ptp-real" in path.parts and "udp6" not in path.name:
            continue  # interpreted, one file of the many alike will do
        for block in source.blocks():
            for tunnels in ((), TUNNELS) if JIT else ((),):
                found = as_dicts(fill(block, tunnels))
                for frame, ours in zip(block.frames, found, strict=True):
                    at = int(frame["offset"])
                    data = bytes(block.buf[at : at + int(frame["caplen"])])
                    assert ours == naive.decode(data, int(frame["len"]), int(frame["linktype"]), tunnels), path.name
            compared += len(block.frames)
    assert compared > (28_000 if JIT else 4_000)


def mutant(rng, data):
    """The frame with some bytes changed, cut, doubled or inserted: most often in its headers."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(min(len(data), rng.choice((24, 60, 2000))) or 1)
        how = rng.randrange(6)
        if how == 0:
            data[at : at + 1] = bytes([rng.choice((0, 1, 4, 6, 0x45, 0x60, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
        elif how == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            data[at : at + 2] = rng.choice(
                (b"\x08\0", b"\x86\xdd", b"\x81\0", b"\x88\x64", b"\x88\x47", b"\0\0", b"\xff\xff")
            )
        elif how == 3:
            data[at:at] = data[at : at + rng.randrange(40)]
        elif how == 4:
            del data[at : at + rng.randrange(8)]
        else:
            data[at:] = data[at : at + rng.randrange(80)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(TRIES))
def test_mutants(seed):
    rng = random.Random(seed)
    bases = STORIES + [(data, len(data), linktype) for _, linktype, _, data, _ in LAYERS] * 20
    frames = []
    for _ in range(MUTANTS // TRIES):
        data, length, linktype = rng.choice(bases)
        length = rng.choice((length, length, len(data), 0, 65_600, 2**31 - 1, 2**31, 2**32 - 1))
        frames.append((mutant(rng, data), length, linktype if rng.random() < 0.9 else rng.choice(LINK_TYPES)))
    compare(frames[::2], TUNNELS)
    compare(frames[1::2])


@pytest.mark.parametrize("layer", LAYERS, ids=[layer[0] for layer in LAYERS])
def test_cut_at_every_length(layer):
    """What follows the captured bytes is first the rest of the frame, then nothing: neither may be read.

    Where accesses are checked, the latter would raise; interpreted they always are.
    """
    _, linktype, tunnels, data, _ = layer
    for length in (len(data), 0) if JIT else ():
        compare([(data, length, linktype, size) for size in range(len(data))], tunnels)
    for size in range(len(data)):
        compare([(data[:size], len(data), linktype)], tunnels, gap=b"")


def test_every_reason_is_met():
    reasons = set()
    for _, linktype, tunnels, data, _ in LAYERS:
        reasons |= {
            row["reason"] for row in decoded([(data, len(data), linktype, n) for n in range(len(data) + 1)], tunnels)
        }
    assert reasons == set(REASONS) - {"filtered"}  # that is met in test_filters.py


def test_rows_are_filled_anew():
    """A row shows nothing of what it held before."""
    frames = [(data, len(data), linktype) for _, linktype, _, data, _ in LAYERS]
    block = block_of(frames)
    clean, dirty = fill(block), fill(block)
    dirty.packets.view(np.uint8)[:] = 0xFF
    dirty.fill(block, *options(), 0, 0)
    for ours, expected in zip(as_dicts(dirty), as_dicts(clean), strict=True):
        assert ours == expected
    for name in ("hash", "clock", "seq", "ts"):
        assert (dirty.packets[name] == clean.packets[name]).all()


def options():
    from dataplane.wire import decode_options
    from tests.rows import SECRET

    return (decode_options(SECRET),)


def test_time_and_number_of_a_row():
    block = block_of([(b"", 0, 1)] * 3, ts=[5, 9, 7])
    packets = fill(block, first_seq=40).packets
    assert packets["ts"].tolist() == [5, 9, 7]
    assert packets["clock"].tolist() == [5, 9, 9]
    assert packets["seq"].tolist() == [40, 41, 42]


def test_length_on_the_wire():
    lengths = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    packets = fill(block_of([(b"", length, 1) for length in lengths])).packets
    assert packets["len"].tolist() == lengths


# --- flow hash


def udp4(a, sport, b, dport, proto=17):
    body = struct.pack(">HHHH", sport, dport, 8, 0)
    return make.eth(make.ipv4_part(make.address(a), make.address(b), proto, body, (0, 0, 0, 64)))


def udp6(a, sport, b, dport):
    return make.eth(make.ipv6(a, b, make.udp(sport, dport)))


def packets_of(frames, secret=b"one"):
    return fill(block_of([(bytes(frame), len(frame), 1) for frame in frames]), secret=secret).packets


ENDS = [
    ("10.0.0.1", 5, "10.0.0.2", 6),
    ("10.0.0.2", 5, "10.0.0.1", 6),
    ("10.0.0.1", 5, "10.0.0.1", 6),
    ("10.0.0.1", 5, "10.0.0.1", 5),
    ("255.255.255.255", 65535, "0.0.0.0", 0),
    ("2001:db8::1", 5, "2001:db8::2", 6),
    ("2001:db8::1", 5, "2001:db8::1", 6),
    ("::1:0:0:0:1", 5, "::2:0:0:0:0", 6),
    ("ffff::", 5, "::", 6),
    ("::ffff:0:0", 5, "::ffff:0:1", 6),
]


def frame_of(a, sport, b, dport):
    return (udp6 if ":" in a else udp4)(a, sport, b, dport)


@pytest.mark.parametrize("ends", ENDS)
def test_both_directions_have_one_hash(ends):
    a, sport, b, dport = ends
    there, back = packets_of([frame_of(a, sport, b, dport), frame_of(b, dport, a, sport)])
    assert there["hash"] == back["hash"] != 0
    higher = (make.address(a), sport) > (make.address(b), dport)
    lower = (make.address(a), sport) < (make.address(b), dport)
    assert bool(there["flags"] & REVERSE) == higher
    assert bool(back["flags"] & REVERSE) == lower


def test_other_flows_have_other_hashes():
    hashes = packets_of([frame_of(*ends) for ends in ENDS])["hash"].tolist()
    hashes += packets_of([udp4("10.0.0.1", 5, "10.0.0.2", 6, proto) for proto in (6, 132, 47)])["hash"].tolist()
    assert len(set(hashes)) == len(hashes)


def test_type_and_code_are_no_part_of_a_flow():
    kinds = [make.icmp_echo(8, 1, 1), make.icmp_echo(0, 1, 1), make.icmp(3, 1, bytes(4))]
    hashes = packets_of([make.eth(make.ipv4("10.0.0.1", "10.0.0.2", kind)) for kind in kinds])["hash"]
    assert len(set(hashes.tolist())) == 1


def test_the_secret_changes_every_hash():
    frames = [frame_of(*ends) for ends in ENDS]
    assert packets_of(frames)["hash"].tolist() == packets_of(frames)["hash"].tolist()
    assert not set(packets_of(frames)["hash"].tolist()) & set(packets_of(frames, b"two")["hash"].tolist())


def test_no_address_no_hash():
    packets = packets_of([bytes(60), make.eth(make.Layer(b"", 0x0806)), udp4("1.1.1.1", 1, "2.2.2.2", 2)[:30]])
    assert packets["hash"].tolist() == [0, 0, 0]


FLOWS = 16_384 if JIT else 2048
STRUCTURES = {
    "clients": lambda i: (f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}", 40000, "192.0.2.1", 443),
    "ports": lambda i: ("10.0.0.1", 1024 + i, "192.0.2.1", 443),
    "both ends": lambda i: (f"10.0.{i & 127}.1", 1024 + (i >> 7), f"10.1.{i & 127}.1", 443),
    "high bytes": lambda i: (f"{i & 255}.{i >> 8}.0.1", 443, "192.0.2.1", 443),
    "one sum": lambda i: (f"10.0.{i >> 8}.{i & 255}", 443, f"10.1.{255 - (i >> 8)}.{255 - (i & 255)}", 443),
    "subnets": lambda i: (f"2001:db8:{i:x}::1", 443, "2001:db8::1", 443),
    "hosts": lambda i: (f"2001:db8::{i + 2:x}", 443, "2001:db8::1", 443),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("secret", [b"a", b"b", b"c"] if JIT else [b"a"])
def test_structured_addresses_spread_evenly(name, secret):
    """Chi-square over 256 groups of slots (flowtable takes bits 20 and up), 8 standard deviations."""
    frames = [frame_of(*STRUCTURES[name](i)) for i in range(FLOWS)]
    hashes = packets_of(frames, secret)["hash"]
    assert len(np.unique(hashes)) == FLOWS
    groups = 256
    for shift in (20, 26, 32):
        found = np.bincount((hashes >> np.uint64(shift)).astype(np.int64) & (groups - 1), minlength=groups)
        chi_square = ((found - FLOWS / groups) ** 2 / (FLOWS / groups)).sum()
        assert chi_square < groups - 1 + 8 * np.sqrt(2 * (groups - 1))


# --- what else is keyed: the pooling key of a client, the pair of a PTP exchange


def test_client_of_a_datagram_from_port_443():
    ends = [("192.0.2.1", 443, "10.0.0.1", 5), ("192.0.2.2", 443, "10.0.0.1", 6), ("192.0.2.1", 443, "10.0.0.2", 5)]
    ends += [("2001:db8::1", 443, "2001:db8::9", 5), ("2001:db8::2", 443, "2001:db8::9", 7)]
    a, b, c, six, same = packets_of([frame_of(*e) for e in ends])["quic_client"].tolist()
    assert a == b and six == same
    assert len({a, c, six, 0}) == 4


def test_lists_do_not_spoil_each_other():
    """A datagram from port 443 that looks like RTP, a probe or PTP keeps its client."""
    bodies = [b"\0" * 60, make.rtp(1, 2, 3, bytes(40)), make.probe(make.Probe(make.STREAM, 7))]
    ports = [(443, 5), (443, 5), (443, 5), (443, 319)]
    bodies.append(make.sync(make.Clock(1), 1))
    frames = [
        make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.udp(*p, body))) for p, body in zip(ports, bodies, strict=True)
    ]
    clients = packets_of(frames)["quic_client"].tolist()
    assert clients == clients[:1] * 4


def test_pair_of_a_ptp_exchange():
    message = make.sync(make.Clock(1), 1)
    ends = [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("10.0.0.1", "10.0.0.3"), ("10.0.0.1", make.PTP_GROUP4)]
    frames = [make.eth(make.ipv4(a, b, make.udp(319, 319, message))) for a, b in ends]
    frames += [make.eth(message, make.MAC_A, make.MAC_B), make.eth(message, make.MAC_B, make.MAC_A)]
    frames += [
        make.eth(message, make.MAC_A, make.PTP_MAC),
        make.eth(make.ipv6("::1", make.PTP_GROUP6, make.udp(319, 320, message))),
    ]
    there, back, other, group, mac, mac_back, mac_group, group6 = packets_of(frames)["ptp_pair"].tolist()
    assert there == back and mac == mac_back
    assert len({there, other, mac, 0}) == 4
    assert group == mac_group == group6 == 0


def test_row_has_no_gap_for_secrets():
    """Two cache lines; the first one holds what every packet has."""
    assert PACKET.itemsize == 128
    assert PACKET.fields["vlan"][1] + 2 <= 64

"""detectors/iqn.py against its twin, the labelled data, ordinary QUIC and bursts made by hand."""

import random
import struct

import numpy as np
import pytest

from dataplane import wire
from dataplane.capture import open_capture
from dataplane.engine import Engine
from dataplane.records import JIT, rows
from detectors.iqn import DETECTOR, END_EVENT, START_EVENT, TIME_END_NS
from tests.naive import iqn as naive
from tests.naive.runner import drive, packets, params, params_rows

MS, S = 10**6, 10**9
P = 200 * MS
UNGUARDED = {"guard_bulk": False, "guard_handshake": False}
START, END = START_EVENT, END_EVENT


def pkt(ts, size=1200, flow=64, first_byte=0x40, client=7, **more):
    """PACKET fields of a server's datagram with `size` bytes of payload."""
    fields = {"proto": 17, "sport": 443, "dport": 50000, "payload_len": size, "first_byte": first_byte}
    return {"ts": ts, "hash": flow, "quic_client": client, **fields, **more}


def burst(ts, size=1200, count=4, **more):
    return [pkt(ts + i * MS, size, **more) for i in range(count)]


def bulk(ts, size, count, gap=MS, **more):
    return [pkt(ts + i * gap, size, **more) for i in range(count)]


def run(made, **options):
    made = [dict(p) for p in made]
    for p in made:
        p.setdefault("ts", 0)
    return drive(DETECTOR, params(DETECTOR, **options), packets(*made))


def in_time(*groups):
    return sorted((p for group in groups for p in group), key=lambda p: p["ts"])


def stalls(events):
    return [naive.Stall(int(e.start_ns), int(e.end_ns), int(e.candidates)) for e in events if e.code == END]


def codes(events):
    return [int(e.code) for e in events]


def signal(start, bursts, **more):
    return [p for i in range(bursts) for p in burst(start + i * P, **more)]


# --- the labelled data


EXPECTED = (  # genre, options, matched, missed, false, MAE, RMSE
    ("news", {"window": "trailing"}, 80, 1, 1, 264.6, 319.4),
    ("news", {"correction": False}, 80, 1, 1, 216.2, 262.7),
    ("news", {}, 80, 1, 0, 148.4, 176.4),
    ("news", {"pool": "client"}, 80, 1, 0, 148.4, 176.4),
    ("example", {"window": "trailing"}, 9, 1, 1, 378.2, 445.6),
    ("example", {"correction": False}, 9, 1, 1, 312.0, 448.8),
    ("example", {}, 9, 1, 1, 211.2, 340.9),
)


@pytest.mark.parametrize("genre, options, matched, missed, false, mae, rmse", EXPECTED)
def test_labelled_data(corpus, genre, options, matched, missed, false, mae, rmse):
    folder = corpus / "data" / "iqn" / genre
    found = stalls(run([pkt(t) for t in naive.load_arrivals(folder)], **options))
    result = naive.score(naive.load_truth(folder), found)
    assert result[:3] == (matched, missed, false)
    assert result.mae == pytest.approx(mae, abs=0.1) and result.rmse == pytest.approx(rmse, abs=0.1)


@pytest.mark.parametrize("genre", ("news", "example"))
@pytest.mark.parametrize("guards", ({}, UNGUARDED))
def test_labelled_data_twin(corpus, genre, guards):
    arrivals = naive.load_arrivals(corpus / "data" / "iqn" / genre)
    made, text = [pkt(t) for t in arrivals], naive.forward(arrivals)
    assert stalls(run(made, window="trailing", **guards)) == naive.trailing(arrivals)
    assert stalls(run(made, correction=False, **guards)) == text
    assert stalls(run(made, **guards)) == [naive.corrected(s, arrivals) for s in text]


class Collect:
    """A sink that keeps the detector's event rows."""

    def __init__(self):
        self.rows, self.counts = [], {}

    def write(self, events):
        self.rows += [array for _, array in events.parts]

    def events(self):
        made = np.concatenate(self.rows) if self.rows else np.zeros(0, DETECTOR.event)
        table = rows(DETECTOR.event, len(made))
        table[:] = np.sort(made, order=["order", "by_packet", "cause"])
        return table


def replay(paths, **options):
    """Events of whole captures, each a run of its own, through decoding, table and wheel."""
    sink = Collect()
    for path in paths:
        engine = Engine([(DETECTOR, params_rows(DETECTOR, **options), 1024)], sink, wire.decode_options(b"test"))
        engine.run(open_capture(path))
        engine.end()
    return sink.events()


def frame(server, port, size):
    """Ethernet, IPv4 and UDP with a short-header datagram of `size` bytes, captured to 96."""
    client = bytes([192, 0, 2, 1])
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + size, 0, 0, 64, 17, 0, bytes([203, 0, 113, server]), client)
    udp = struct.pack(">HHHH", 443, port, 8 + size, 0)
    return (b"\2" * 12 + b"\x08\0" + ip + udp + b"\x40" + bytes(size))[:96], 42 + size


def news_capture(folder, path):
    """The genre's candidates, sizes from the whole range, beside bulk video of three flows: 40 datagrams every 5 s."""
    rng = random.Random("news")
    arrivals = naive.load_arrivals(folder)
    sent = [(t, frame(1, 50000, rng.randint(1138, 1246))) for t in arrivals]
    for i, size in enumerate((1200, 1232, 1250)):
        for chunk in range(arrivals[0] + i * 300 * MS, arrivals[-1], 5 * S):
            sent += [(chunk + k * 500_000, frame(10 + i, 50001 + i, size)) for k in range(40)]
    sent.sort(key=lambda record: record[0])
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        out.writelines(struct.pack("<IIII", ts // S, ts % S, len(data), length) + data for ts, (data, length) in sent)


@pytest.mark.parametrize(
    "options, false, mae, rmse",
    (({}, 0, 148, 176), ({"window": "trailing"}, 1, 264, 319), ({"correction": False}, 1, 216, 263)),
)
@pytest.mark.skipif(not JIT, reason="slow; the labelled data and its twin are interpreted too")
def test_news_beside_video(corpus, tmp_path, options, false, mae, rmse):
    folder = corpus / "data" / "iqn" / "news"
    news_capture(folder, tmp_path / "news.pcap")
    result = naive.score(naive.load_truth(folder), stalls(replay([tmp_path / "news.pcap"], **options)))
    assert result[:3] == (80, 1, false)
    assert result.mae == pytest.approx(mae, abs=2) and result.rmse == pytest.approx(rmse, abs=2)


@pytest.mark.parametrize(
    "options, most",
    (
        ({}, 0),
        ({"basis": "frame_v4"}, 0),
        ({"basis": "payload"}, 1),
        (UNGUARDED, 4),
        ({"basis": "payload", **UNGUARDED}, 15),
    ),
)
def test_false_stalls(corpus, options, most):
    captures = sorted(path for path in (corpus / "pcaps").iterdir() if ".pcap" in path.name or path.suffix == ".cap")
    assert codes(replay(captures[:: 1 if JIT else 6], **options)).count(START) <= most


# --- windows


def test_start_is_known_at_the_nth_candidate():
    first = run(signal(0, 3), **UNGUARDED)
    assert codes(first) == [START, END]
    assert first[0].ts == 3 * MS and first[0].candidates == 4 and first[0].start_ns == -P // 2


def test_end_needs_no_packet():
    made = [*signal(0, 2), pkt(10 * S, size=1100, flow=128)]
    end = run(made, correction=False, **UNGUARDED)[1]
    assert (end.start_ns, end.end_ns, end.duration_ns, end.candidates) == (0, P + MS, P + MS, 8)
    assert end.ts == P + MS + 4 * P and end.ended_by == 0
    assert run(made[:-1], **UNGUARDED)[1].ended_by == 1


def test_same_end_by_deadline_and_by_packet():
    late = run([*signal(0, 2), pkt(30 * S)], correction=False, **UNGUARDED)
    just_after = run([*signal(0, 2), pkt(P + MS + 4 * P + 1)], correction=False, **UNGUARDED)
    assert stalls(late) == stalls(just_after) and just_after[1].by_packet == 1


def test_default_estimate():
    start, end = run(signal(S, 3))
    assert start.start_ns == end.start_ns == S - P // 2
    assert end.duration_ns == 2 * P + MS + P and end.end_ns == end.start_ns + end.duration_ns
    assert end.seq == 11


def test_gap_beyond_w_s_counts_as_w_s():
    end = run([*signal(S, 2), *burst(S + 3 * P)], **UNGUARDED)[1]
    assert end.duration_ns == (P + 3 * MS) + P * 3 // 2 + MS + P


@pytest.mark.parametrize("window", ("forward", "trailing"))
@pytest.mark.parametrize("seed", range(6))
def test_random_arrivals(window, seed):
    rng = random.Random(seed)
    ts, arrivals = 0, []
    for _ in range(400):
        ts += rng.choice((1, MS, 40 * MS, 190 * MS, 300 * MS, 420 * MS, 800 * MS, 801 * MS, 2 * S))
        arrivals.append(ts)
    n = rng.randint(2, 8)
    options = {"n": n, "p": f"{rng.choice((100, 200))}ms", "window": window, "correction": False, **UNGUARDED}
    set_p = params(DETECTOR, **options)
    twin = getattr(naive, window)(arrivals, n, int(set_p.w_s), int(set_p.w_e))
    assert stalls(run([pkt(t) for t in arrivals], **options)) == twin


@pytest.mark.parametrize("window", ("forward", "trailing"))
def test_reordering(window):
    made = [p for i in range(5) for p in reversed(burst(S + i * P))]
    inferred, in_order = (stalls(run(m, window=window)) for m in (made, in_time(made)))
    assert len(inferred) == len(in_order) == 1
    assert abs(inferred[0].start - in_order[0].start) <= 3 * MS and abs(inferred[0].end - in_order[0].end) <= 3 * MS


@pytest.mark.parametrize("window", ("forward", "trailing"))
def test_time_base_goes_back(window):
    for later in (200 * S, 90 * S + 3 * P):  # after the first stall's end, and within it
        made = [*signal(100 * S, 3), *[{**p, "clock": p["ts"] + later} for p in signal(10 * S, 3)]]
        events = run(made, window=window)
        assert codes(events) == [START, END, START, END]
        assert events[1].start_ns >= 99 * S and events[3].end_ns < 12 * S


@pytest.mark.parametrize("window", ("forward", "trailing"))
@pytest.mark.parametrize("pool", ("flow", "client"))
def test_any_times(window, pool):
    rng = random.Random(window)
    made, clock = [], 0
    for _ in range(3000):
        clock += rng.choice((0, MS, 60 * MS, 900 * MS))
        ts = rng.choice((clock, clock - 5 * MS, rng.randrange(TIME_END_NS), rng.randrange(-S, S), -(2**63), 2**63 - 1))
        size = rng.choice((0, 65527, 1100, 1200, 1250, 1239))
        first_byte = rng.choice((0x40, 0x40, 0x40, 0xC0))
        made.append(pkt(ts, size, 64 * rng.randint(1, 12), first_byte, clock=clock))
    seen = codes(run(made, window=window, pool=pool, p=rng.choice(("1ms", "200ms"))))
    assert seen.count(START) >= seen.count(END)


@pytest.mark.parametrize("window", ("forward", "trailing"))
def test_window_shorter_than_the_wheel(window):
    """A stall is over before its flow is known: still one event a packet, start before end."""
    made = [*burst(S), *burst(S + 14 * MS), *burst(2 * S), pkt(3 * S)]
    events = run(made, w_s="10ms", w_e="10ms", window=window)
    assert codes(events)[:2] == [START, END] and codes(events)[0::2] == [START] * (len(events) // 2)
    assert events[0].by_packet and events[0].start_ns == events[1].start_ns


# --- what counts


def test_selects_packets_from_the_server_in_range():
    def reacts(**changes):
        return START in codes(run([{**p, **changes} for p in signal(0, 3)]))

    assert reacts()
    assert not reacts(proto=6) and not reacts(sport=50000, dport=443) and not reacts(hash=0)
    for basis, low, high in (("frame", 1138, 1246), ("payload", 1180, 1288), ("frame_v4", 1138, 1246)):
        for size in (low - 1, low, high, high + 1):
            seen = START in codes(run(signal(0, 3, size=size), basis=basis))
            assert seen == (low <= size <= high), (basis, size)
    for basis, high in (("frame", 1226), ("frame_v4", 1246), ("payload", 1288)):
        for size in (high, high + 1):
            seen = START in codes(run(signal(0, 3, size=size, ip_version=6), basis=basis))
            assert seen == (size == high), (basis, size)


def test_small_sizes_can_be_chosen():
    assert codes(run(signal(0, 3, size=300), basis="payload", size_low=250, size_high=350)) == [START, END]


# --- guards


@pytest.mark.parametrize("count", (4, 9))
def test_handshakes_never_count(count):
    made = bulk(S, 1200, count, gap=MS // 10, first_byte=0xC0)
    assert codes(run(made)) == []
    assert START in codes(run(made, guard_handshake=False, guard_bulk=False))


@pytest.mark.parametrize("size", (1200, 1204, 1230, 1232))
@pytest.mark.parametrize("gap_ms", (0.05, 1, 5, 8))
def test_bulk_of_candidate_size(size, gap_ms):
    """From the first datagram on, without a handshake: 17 and more, 1.2 Mbit/s and up, in chunks or not."""
    chunks = [bulk(S + k * 4 * S, size, 60, gap=int(gap_ms * MS)) for k in range(6)]
    made = in_time(*chunks)
    assert codes(run(made)) == []
    assert START in codes(run(made, guard_bulk=False))


def test_short_answers_of_the_size_of_the_handshake():
    made = [pkt(0, first_byte=0xC0), *[p for k in range(9) for p in bulk(S + k * S, 1200, 8)]]
    assert codes(run(made)) == []


def test_bulk_of_all_sizes_from_1000_on():
    rng = random.Random(1)
    made = [pkt(S + i * MS, rng.randint(1000, 1300)) for i in range(2000)]
    assert codes(run(made)) == []


@pytest.mark.parametrize("pool", ("flow", "client"))
@pytest.mark.parametrize("size", (1200, 1230, 1232, 1250, 1252))
def test_signal_beside_bulk(pool, size):
    """The client's video in another flow takes nothing away and adds nothing."""
    video = [bulk(k * S, size, 50, gap=MS // 2, flow=128) for k in range(12)]
    made = in_time(signal(3 * S, 5), signal(8 * S, 9), *video)
    assert stalls(run(made, pool=pool)) == stalls(run(in_time(signal(3 * S, 5), signal(8 * S, 9)), pool=pool))


@pytest.mark.parametrize("size", (1230, 1250))
def test_signal_after_a_page_in_its_flow(size):
    """40 large packets are forgiven within a second; their size stays out, the signal's does not."""
    made = in_time(bulk(0, size, 40), signal(2 * S, 5), bulk(4 * S, size, 10), signal(5 * S, 3))
    assert codes(run(made)) == [START, END, START, END]


def test_first_stall_of_a_flow_waits_for_proof():
    first, _, second, _ = run([*signal(0, 3), *signal(5 * S, 3)])
    assert first.ts == P * 3 // 2 and first.by_packet == 0
    assert second.ts == 5 * S + 3 * MS


def test_pooled_flows_make_one_stall():
    made = [{**p, "hash": 64 * (1 + i % 2)} for i, p in enumerate(signal(0, 4))]
    assert codes(run(made, pool="client")) == [START, END]
    apart = [{**p, "hash": 64 * (1 + i % 4), "quic_client": 7 + i % 4} for i, p in enumerate(burst(0))]
    assert codes(run(apart, pool="client")) == []


@pytest.mark.parametrize("seed", range(12))
def test_guards_twin(seed):
    rng = random.Random(seed)
    ts, made = S, []
    for _ in range(120):
        ts += rng.choice((10 * MS, P, P, P, S, 4 * S))
        size = rng.choice((1200, 1200, 1210, 1230, 1250))
        count = rng.choice((3, 4, 4, 4, 5, 16, 40, 200))
        long = rng.random() < 0.03
        for _ in range(3 if long else count):
            made.append(naive.Packet(ts, 64, size if rng.random() < 0.9 else rng.randint(900, 1300), long))
            ts += rng.choice((MS // 10, MS, 7 * MS)) if count > 5 else MS
    arrivals, moments = naive.guarded(made)
    twin = naive.watched(arrivals, moments, made[-1].ts)
    found = run([pkt(p.ts, p.size, first_byte=0xC0 if p.long else 0x40) for p in made], correction=False)
    assert stalls(found) == twin


# --- options


@pytest.mark.parametrize(
    "options, names",
    (({"n": 1}, "iqn.n"), ({"n": 9}, "iqn.n"), ({"w_s": "1s", "w_e": "1ms"}, "w_s"), ({"size_low": 1300}, "size_low")),
)
def test_contradictions_are_refused(options, names):
    with pytest.raises(ValueError, match=names):
        params(DETECTOR, **options)


def test_windows_follow_p():
    row = params(DETECTOR, p="100ms")
    assert (row.w_s, row.w_e) == (150 * MS, 400 * MS)
    assert params(DETECTOR, w_s="1ms").w_s == MS

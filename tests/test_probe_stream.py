"""detectors/probe_stream.py: RFC 3550 by hand, trouble of every kind, the twin on random streams, tshark."""

import ipaddress
import random
import re
import subprocess

import pytest

from dataplane import wire
from dataplane.capture import open_capture
from dataplane.engine import Engine
from dataplane.records import JIT, NO_TIME, PROBE, REVERSE, RTP
from detectors.probe_stream import DETECTOR, KINDS
from tests.captures import pcap
from tests.naive.probe_stream import streams
from tests.naive.runner import drive, packets, params, params_rows, wheel_ns
from tests.packets import eth, ipv4, udp
from tests.packets import rtp as message

MS, S = 10**6, 10**9
START = 1_700_000_000 * S
PCMU, PCMA, COMFORT_NOISE, H263, DYNAMIC = 0, 8, 13, 34, 96


def rtp(ts, seq, time=None, ssrc=0xC0FFEE, kind=PCMU, **more):
    """A packet of RTP; its timestamp follows its number, 20 ms of 8 kHz, if not given."""
    time = (seq * 160 if time is None else time) % 2**32
    fields = {"rtp_seq": seq % 2**16, "rtp_time": time, "rtp_ssrc": ssrc, "rtp_type": kind}
    return {"ts": ts, "hash": 77, "flags": RTP, "proto": 17, **fields, **more}


def probe(ts, seq, sent, session=5, **more):
    fields = {"probe_seq": seq % 2**32, "probe_sent": sent, "probe_session": session, "probe_role": 4}
    return {"ts": ts, "hash": 77, "flags": PROBE, "proto": 17, **fields, **more}


def call(numbers, begin=START, step=20 * MS, **more):
    """RTP packets that come at an even pace, in the order of `numbers`."""
    return [rtp(begin + i * step, n, **more) for i, n in enumerate(numbers)]


def paced(numbers):
    """RTP packets that come when they are due."""
    return [rtp(START + n * 20 * MS, n) for n in numbers]


def run(pkts, **options):
    return drive(DETECTOR, params(DETECTOR, **options), packets(*pkts))


def final(pkts, **options):
    """The one stream's last report."""
    events = [e for e in run(pkts, **options) if e.final]
    assert len(events) == 1
    return events[0]


# --- jitter


def test_jitter_of_the_facts():
    """Transit times 50, 60, 45 ms give J = 0.625 ms, then 1.5234375 ms."""
    pkts = [rtp(START + i * 20 * MS + transit * MS, i) for i, transit in enumerate((50, 60, 45))]
    assert final(pkts[:2]).jitter_ns == 625_000
    assert final(pkts).jitter_ns == 1_523_438
    assert final(pkts).total_jitter_max_ns == 1_523_438
    assert final(pkts).total_jitter_mean_ns == (625_000 + 1_523_437.5) // 2 + 1


def test_jitter_of_probes_does_not_see_a_constant_clock_offset():
    for offset in (0, 3600 * S, -3600 * S):
        times = [(START + i * 50 * MS, transit * MS) for i, transit in enumerate((50, 60, 45))]
        pkts = [probe(sent + transit, i, sent + offset) for i, (sent, transit) in enumerate(times)]
        assert final(pkts).jitter_ns == 1_523_438


@pytest.mark.parametrize(("kind", "units"), [(PCMU, 160), (9, 160), (6, 320), (11, 882), (17, 441), (H263, 1800)])
def test_clock_by_payload_type(kind, units):
    """Timestamps of 20 ms at the right clock leave no jitter."""
    assert final([rtp(START + i * 20 * MS, i, i * units, kind=kind) for i in range(50)]).total_jitter_max_ns <= 1


def test_unknown_clock_gives_no_jitter_unless_set():
    pkts = [rtp(START + i * 20 * MS, i, i * 960, kind=DYNAMIC) for i in range(50)]
    assert final(pkts).jitter_ns == final(pkts).total_jitter_mean_ns == final(pkts).total_jitter_max_ns == NO_TIME
    assert final(pkts, dynamic_clock_hz=48000).jitter_ns == 0


def test_timestamps_wrap():
    assert final([rtp(START + i * 20 * MS, i, 2**32 - 800 + i * 160) for i in range(50)]).jitter_ns == 0


def test_telephone_events_do_not_touch_the_reference_timestamp():
    pkts = call(range(10)) + [rtp(START + 200 * MS, 10, 9 * 160, kind=101)] + call(range(11, 20), START + 220 * MS)
    assert final(pkts).jitter_ns < 2 * MS


def test_pauses_are_no_part_of_mean_and_maximum():
    """The marker starts a talkspurt, comfort noise ends one: a step in time there is not the network's."""
    late = START + 200 * MS + 900 * MS
    pkts = call(range(10)) + [rtp(late, 10, rtp_marker=1)]
    assert final(pkts).total_jitter_max_ns == 0
    assert final(pkts).jitter_ns == 900 * MS / 16
    pkts = call(range(10)) + [rtp(late, 10, kind=COMFORT_NOISE), rtp(late + 20 * MS, 11)]
    assert final(pkts).total_jitter_max_ns == 0


def test_a_leap_of_the_senders_clock_is_no_jitter():
    pkts = call(range(10)) + [rtp(START + (10 + i) * 20 * MS, 10 + i, 2**31 + i * 160) for i in range(10)]
    assert final(pkts).jitter_ns == 0


# --- sequence


def counts(event):
    names = ("packets", "expected", "lost", "duplicates", "reordered", "discarded", "restarts")
    return tuple(int(event[f"total_{name}"]) for name in names)


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        (range(100), (100, 100, 0, 0, 0, 0, 0)),
        ([*range(50), *range(60, 100)], (90, 100, 10, 0, 0, 0, 0)),
        ([0, 1, 2, 2, 2, 3], (6, 4, 0, 2, 0, 0, 0)),
        ([0, 1, 3, 2, 4], (5, 5, 0, 0, 1, 0, 0)),
        ([1, 0, 2, 3], (4, 4, 0, 0, 1, 0, 0)),
        ([5, 6, 2, 7], (4, 6, 2, 0, 1, 0, 0)),
        ([*range(65500, 65600)], (100, 100, 0, 0, 0, 0, 0)),
        ([65534, 65535, 65537, 65536, 65538], (5, 5, 0, 0, 1, 0, 0)),
        ([0, 1, *range(64, 70), 2, 5, 6], (11, 70, 61, 0, 1, 2, 0)),
        ([0, 1, 2, 20000, 3, 4], (6, 5, 0, 0, 0, 1, 0)),
        ([0, 1, 2, 20000, 20001, 20002], (6, 5, 0, 0, 0, 1, 1)),
        ([0, 1, 2, 65535 + 30000, 65536 + 30000], (5, 4, 0, 0, 0, 1, 1)),
        ([7, 2999 + 7, 2999 + 8], (3, 3001, 2998, 0, 0, 0, 0)),
    ],
)
def test_sequence(numbers, wanted):
    assert counts(final(call(numbers))) == wanted


def test_probes_wrap_at_2_to_the_32():
    pkts = [probe(START + i * 50 * MS, 2**32 - 5 + i, START + i * 50 * MS) for i in range(10)]
    assert counts(final(pkts)) == (10, 10, 0, 0, 0, 0, 0)


def test_what_shows_no_sequence_is_no_stream():
    rng = random.Random(1)
    assert run(call([7])) == []
    assert run(call([7, 7, 7])) == []
    assert run(call([7, 9, 11])) == []
    noise = [[rng.randrange(2**bits) for bits in (16, 32, 32)] for _ in range(300)]
    assert run([rtp(START + i * MS, *fields) for i, fields in enumerate(noise)]) == []


def test_packets_before_the_sequence_count():
    assert counts(final(call([7, 9, 11, 12]))) == (4, 6, 2, 0, 0, 0, 0)
    assert counts(final(call([7, 30007, 30008]))) == (2, 2, 0, 0, 0, 0, 0)


def test_a_probe_is_a_stream_at_once():
    assert counts(final([probe(START, 3, START - 5)])) == (1, 1, 0, 0, 0, 0, 0)


def test_streams_are_told_apart_by_direction_and_source():
    a, b, c = call(range(5)), call(range(5), ssrc=9), call(range(5), flags=RTP | REVERSE)
    pkts = sorted(a + b + c, key=lambda p: p["ts"])
    assert [int(e.total_packets) for e in run(pkts)] == [5, 5, 5]


# --- intervals


def test_a_report_every_interval_and_at_the_end():
    events = run(paced(n for n in range(1250) if n != 700))
    assert [(int(e.interval), bool(e.final)) for e in events] == [(0, False), (1, False), (2, True)]
    assert [int(e.packets) for e in events] == [500, 499, 250]
    assert [int(e.lost) for e in events] == [0, 1, 0]
    assert [round(float(e.loss), 6) for e in events] == [0, 0.002, 0]
    assert [int(e.total_lost) for e in events] == [0, 1, 1]
    assert [KINDS[e.stream] for e in events] == ["rtp"] * 3
    assert events[0].first_ns == START
    assert events[0].last_ns == START + 499 * 20 * MS


def test_reports_come_a_second_after_their_interval():
    events = run(call(range(1250)))
    assert [e.order for e in events[:2]] == [wheel_ns(START + 11 * S), wheel_ns(START + 21 * S)]


def test_a_late_packet_belongs_to_its_interval_for_a_second():
    kept = paced(n for n in range(560) if n != 490)
    soon = rtp(START + 10 * S + 900 * MS, 490)
    late = rtp(START + 11 * S + 50 * MS, 490)
    events = run(sorted([*kept, soon], key=lambda p: p["ts"]))
    assert [(int(e.packets), int(e.lost), int(e.reordered)) for e in events] == [(500, 0, 1), (60, 0, 0)]
    events = run(sorted([*kept, late], key=lambda p: p["ts"]))
    assert [(int(e.packets), int(e.lost), int(e.discarded)) for e in events] == [(499, 1, 0), (61, 0, 1)]


def test_silence_ends_a_stream():
    events = run(call(range(100)) + call(range(900, 1000), START + 100 * S))
    assert [(int(e.interval), bool(e.final), int(e.packets), int(e.total_packets)) for e in events] == [
        (0, False, 100, 100),
        (1, True, 0, 100),
        (0, True, 100, 100),
    ]
    assert events[1].first_ns == events[1].jitter_ns == NO_TIME
    assert events[1].total_first_ns == START


def test_intervals_add_up():
    rng = random.Random(3)
    events = run(trouble(rng, START, 3000))
    for name in ("packets", "received", "expected", "lost", "duplicates", "reordered", "discarded"):
        assert sum(int(e[name]) for e in events) == events[-1][f"total_{name}"], name
    assert all(e.packets == e.received + e.duplicates + e.discarded for e in events)


def test_one_way_delay():
    delays = [30 * MS, 20 * MS, 70 * MS, 40 * MS]
    pkts = [probe(START + i * 50 * MS + d, i, START + i * 50 * MS) for i, d in enumerate(delays)]
    event = final([*pkts, {**pkts[-1], "ts": pkts[-1]["ts"] + 5 * MS}])
    assert (event.owd_min_ns, event.owd_mean_ns, event.owd_max_ns) == (20 * MS, 40 * MS, 70 * MS)
    assert event.total_owd_mean_ns == 40 * MS
    assert event.duplicates == 1
    assert final(call(range(5))).owd_min_ns == NO_TIME


def test_impossible_send_times_are_left_out():
    sent = [START, 2**63 - 1, -(2**63), -1, START + 1]
    pkts = [probe(START + 100 * MS + i * 50 * MS, i, s) for i, s in enumerate(sent)]
    event = final(pkts)
    assert (event.packets, event.owd_min_ns, event.owd_max_ns) == (5, 100 * MS, 300 * MS - 1)
    assert final([rtp(ts, i, clock=START) for i, ts in enumerate((-(2**63), 2**63 - 1, START, START))]).packets == 4


# --- the twin


def trouble(rng, begin, count, **more):
    """A call with loss, copies, overtaking, pauses, jumps of number and of time, and other payload types."""
    made, number, time, at = [], rng.randrange(2**16), rng.randrange(2**32), begin
    for _ in range(count):
        number, time, at = number + 1, time + 160, at + 20 * MS
        fate = rng.random()
        if fate < 0.001:
            number += rng.choice((500, 2990, 3100, 20000, -200))
        elif fate < 0.002:
            at += rng.choice((1, 3, 12)) * S
        elif fate < 0.003:
            time += rng.choice((10**6, -(10**6), 2**31))
        kind = rng.choice((PCMU,) * 30 + (COMFORT_NOISE, 101, PCMA))
        late = rng.randrange(15 * MS) + (rng.randrange(1500 * MS) if rng.random() < 0.03 else 0)
        for copy in range(rng.choice((0,) + (1,) * 30 + (2,))):
            made.append(rtp(at + late + copy * MS, number, time, kind=kind, rtp_marker=rng.random() < 0.03, **more))
    return sorted(made, key=lambda p: p["ts"])


def probes(rng, begin, count):
    made = []
    for i in range(count):
        sent = begin + i * 50 * MS + (i // 300) * 3 * S
        for copy in range(rng.choice((0,) + (1,) * 20 + (2,))):
            late = rng.randrange(40 * MS) + (rng.randrange(2 * S) if rng.random() < 0.02 else 0)
            made.append(probe(sent + 7 * S + late + copy * MS, 2**32 - 300 + i, sent, hash=78))
    return sorted(made, key=lambda p: p["ts"])


def test_any_packets():
    """Whatever the fields hold: intervals add up and no number is negative but where it may be."""
    rng = random.Random(4)
    extreme = (0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63), START)
    made = []
    for clock in sorted(START + rng.randrange(90 * S) for _ in range(1500)):
        seq, ts, sent = rng.choice((0, 1, 2, 5, 65535, 2**32 - 1, 40000)), rng.choice(extreme), rng.choice(extreme)
        one = probe(ts, seq, sent) if rng.random() < 0.5 else rtp(ts, seq, sent, kind=rng.randrange(128))
        made.append({**one, "clock": clock})
    events = run(made, interval="2s", idle="2s")
    assert sum(int(e.packets) for e in events if KINDS[e.stream] == "probe") == sum(p["flags"] == PROBE for p in made)
    assert all(e.packets == e.received + e.duplicates + e.discarded and 0 <= e.lost <= e.expected for e in events)
    assert all(e.jitter_ns >= 0 or e.jitter_ns == NO_TIME for e in events)


def told(event):
    """An event row as the twin tells it; NO_TIME is None."""
    fields = [f.name for f in DETECTOR.events[0].fields][4:]
    return {name: None if event[name] == NO_TIME else event[name].item() for name in fields}


def check(pkts, interval="10s", idle="60s", hz=0):
    """The detector's reports are the twin's, numbers in ns within 1."""
    given = params(DETECTOR, interval=interval, idle=idle, dynamic_clock_hz=hz)
    wanted = [r for made in streams(pkts, int(given.interval), int(given.idle), hz).values() for r in made]
    found = [told(e) for e in drive(DETECTOR, given, pkts)]
    for made in (wanted, found):
        made.sort(key=lambda r: (r["total_first_ns"], r["interval"], r["final"], r["total_packets"]))
    assert [{**r, "final": bool(r["final"])} for r in found] == [near(w) for w in wanted]
    return found


def near(report):
    return {name: pytest.approx(x, abs=1, rel=1e-9) if isinstance(x, float) else x for name, x in report.items()}


@pytest.mark.parametrize("seed", range(12 if JIT else 4))
def test_twin_on_random_streams(seed):
    rng = random.Random(seed)
    made = trouble(rng, START, 1500) + trouble(rng, START + 11 * MS, 1200, ssrc=4) + probes(rng, START + 5 * MS, 700)
    pkts = packets(*sorted(made, key=lambda p: p["ts"]))
    assert len(check(pkts)) > 5
    check(pkts, interval="2s", idle="4s", hz=8000)


# --- tshark

# Captures with RTP: streams, and tunnels to enter
CORPUS = {
    "sipp-g711a.pcap": (1, ()),
    "ndpi-rtp.pcapng": (5, ()),
    "ndpi-KakaoTalk_talk.pcap": (4, ()),
    "ndpi-FAX-Call-t38-CA-TDM-SIP-FB-1.pcap": (2, ()),
    "ndpi-skype-conference-call.pcap": (1, ()),
    "ndpi-stun_google_meet.pcapng": (6, ()),
    "ndpi-teams.pcap": (1, ()),
    "arkime-gtp-iphone.pcap": (2, ("gtpu",)),
}
ROW = re.compile(
    r"^ *[\d.]+ +[\d.]+ +(\S+) +(\d+) +(\S+) +(\d+) +(0x\w{8}) +.+? +(\d+) +(-?\d+) \(-?[\d.]+%\)"
    r" +\S+ +\S+ +\S+ +(-?[\d.]+) +([\d.]+) +([\d.]+)"
)


class Kept:
    """A sink that keeps the rows."""

    def __init__(self):
        self.rows = []

    def write(self, events):
        self.rows += [row for _, part in events.parts for row in part]


def replay(path, tunnels=()):
    """Final reports of a capture: {(source, port, destination, port, ssrc): row}."""
    options = wire.decode_options(b"test", sum(1 << wire.TUNNELS.index(name) for name in tunnels))
    kept = Kept()
    engine = Engine([(DETECTOR, params_rows(DETECTOR), DETECTOR.capacity)], kept, options)
    engine.run(open_capture(path))
    engine.end()
    return {ends(row): row for row in kept.rows if row.final}


def ends(row):
    size = 4 if row.ip_version == 4 else 16
    src, dst = (str(ipaddress.ip_address(bytes(address[:size]))) for address in (row.src, row.dst))
    return src, int(row.sport), dst, int(row.dport), int(row.ssrc)


def tshark_streams(tshark, path, ports):
    """{ends: (packets, lost, least, mean and largest jitter in ms)} by `tshark -z rtp,streams`.

    Without call signalling, which would make it take later RTP for what an earlier call was about (T.38), and with RTP
    forced at `ports`, since its heuristic skips odd destination ports and packets that other heuristics claim.
    """
    force = [x for port in sorted(ports) for x in ("-d", f"udp.port=={port},rtp")]
    options = ["--enable-heuristic", "rtp_udp", "--disable-protocol", "sip", "--disable-protocol", "sdp", *force]
    command = [tshark, "-n", "-q", "-r", str(path), *options, "-z", "rtp,streams"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for row in filter(None, map(ROW.match, text.splitlines())):
        src, sport, dst, dport, ssrc, count, lost, *jitters = row.groups()
        src, dst = str(ipaddress.ip_address(src)), str(ipaddress.ip_address(dst))
        found[src, int(sport), dst, int(dport), int(ssrc, 16)] = int(count), int(lost), *map(float, jitters)
    return found


def as_tshark(row):
    """The same numbers from a final report; tshark gives -1, 0, 0 for jitter where it knows no clock."""
    if row.total_jitter_mean_ns == NO_TIME:
        return int(row.total_packets), int(row.total_lost), 0, 0
    return int(row.total_packets), int(row.total_lost), row.total_jitter_mean_ns / MS, row.total_jitter_max_ns / MS


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_streams_agree_with_tshark(name, corpus, tshark):
    streams_wanted, tunnels = CORPUS[name]
    path = corpus / "pcaps" / name
    ours = replay(path, tunnels)
    theirs = tshark_streams(tshark, path, {port for key in ours for port in (key[1], key[3])})
    theirs = {key: numbers for key, numbers in theirs.items() if numbers[0] > 1}
    assert set(ours) == set(theirs)
    assert len(ours) == streams_wanted
    for key, (count, lost, least, *jitters) in theirs.items():
        assert as_tshark(ours[key]) == (count, lost, *(pytest.approx(j, abs=0.0005001) for j in jitters)), key
        assert (ours[key].total_jitter_max_ns == NO_TIME) == (least == -1), key


def test_no_other_capture_of_the_corpus_has_streams(corpus):
    paths = [p for p in sorted((corpus / "pcaps").iterdir()) if p.suffix in (".pcap", ".pcapng", ".cap")]
    paths = paths[:: 1 if JIT else 4]
    expected = {name for name, (_, tunnels) in CORPUS.items() if not tunnels}
    assert {p.name for p in paths if replay(p)} == expected & {p.name for p in paths}


def test_trouble_agrees_with_tshark(tmp_path, tshark):
    """Loss, copies, overtaking, wraps, markers, comfort noise and telephone events, by a capture of our own."""
    rng, path, frames = random.Random(5), tmp_path / "trouble.pcap", []
    number, time, at = 65000, 2**32 - 50_000, 0
    for _ in range(1500):
        number, time, at = number + 1 + 3 * (rng.random() < 0.01), time + 160, at + 20 * MS
        late = rng.randrange(25 * MS)
        kind, marker = rng.choice((PCMU,) * 40 + (COMFORT_NOISE, 101)), rng.random() < 0.02
        payload = message(7, number, time, bytes(160), kind, marker)
        for copy in range(1 + (rng.random() < 0.01)):
            frames.append((at + late + copy * MS, eth(ipv4("192.0.2.1", "198.51.100.1", udp(5004, 5006, payload)))))
    frames.sort()
    records = [(START // S + ts // S, ts % S, frame, len(frame)) for ts, frame in frames]
    path.write_bytes(pcap(records, magic=0xA1B23C4D))
    ((key, row),) = replay(path).items()
    count, lost, _, *jitters = tshark_streams(tshark, path, {5004})[key]
    assert row.total_reordered > 10 < row.total_duplicates
    assert row.total_packets == count
    assert row.total_expected - row.total_packets == lost  # tshark counts copies as if they replaced lost packets
    assert as_tshark(row)[2:] == tuple(pytest.approx(j, abs=0.0005001) for j in jitters)

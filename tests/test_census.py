"""What `--stats` counts, against what tshark counted of the capture corpus."""

import json

import numpy as np
import pytest

from dataplane.census import Census, packets_kernel
from dataplane.records import JIT
from tests import captures as write
from tests import packets as make
from tests.helpers import run
from tests.naive import pcapfile
from tests.rows import block_of, fill

MALFORMED = "malformed/"
OUTCOMES = (0, 4)  # done; input cut short

# Where we differ and are right. tshark shows the last address of a source route as ip.dst (packet-ip.c), so that it
# finds three TCP flows; the destination in all eight IPv4 headers is 13.14.15.16. tshark 4.0 takes an IPv6 payload
# length of 0 without a jumbo option (Linux BIG TCP) as no payload, so it finds neither UDP header nor flow.
PROVEN = {
    "suricata-detect-ipopts.pcap": {"flows.tcp": (3, 1)},
    "tcpdump-bigtcp-ipv6-vxlan-ipv6.pcap": {
        "counts.udp": (0, 1),
        "counts.udp_unfragmented": (0, 1),
        "flows.udp": (0, 1),
    },
}


def counted(paths, folder):
    """What --stats says of each file."""
    out = folder / "stats.json"
    done = run("replay", *paths, "--detectors", "icmp_loop", "-o", "null", "--stats", out)
    assert done.status in OUTCOMES, done.err
    stats = json.loads(out.read_text())
    assert stats["ledger"]["balanced"]
    return stats


def numbers(facts):
    """The numbers of a file that both sides name alike, flat; what the oracle leaves out is 0."""
    flat = {"packets": facts["packets"]}
    for part in ("time", "flows", "iqn_size"):
        flat.update((f"{part}.{name}", value) for name, value in facts[part].items())
    flat.update((f"counts.{name}", value) for name, value in facts["counts"].items() if value)
    flat.update((f"ipv4_protocols.{name}", value) for name, value in facts["ipv4_protocols"].items())
    for part in ("icmp_echo", "icmpv6_echo"):
        flat.update((f"{part}.{name}", facts[part][name]) for name in ("requests", "replies", "key_pairs"))
    flat["ptp.messages"] = facts["ptp"]["messages"]
    flat.update((f"ptp.{name}", value) for name, value in facts["ptp"]["by_version_transport_type"].items())
    flat.pop("flows.uncounted_packets", None)
    return flat


def differences(ours, oracle):
    """{name: (the oracle's number, ours)} where they are not the same."""
    a, b = numbers(oracle), numbers(ours)
    return {name: (a.get(name, 0), b.get(name, 0)) for name in a | b if a.get(name, 0) != b.get(name, 0)}


def oracle_of(corpus, name="oracle.json"):
    return json.loads((corpus / "pcaps" / name).read_text())["files"]


def test_every_well_formed_capture(corpus, tmp_path):
    oracle = {name: facts for name, facts in oracle_of(corpus).items() if not name.startswith(MALFORMED)}
    assert len(oracle) == 91
    found = {}
    for name in list(oracle)[:: 1 if JIT else 4]:
        path = str(corpus / "pcaps" / name)
        found[name] = differences(counted([path], tmp_path)["files"][path], oracle[name])
    assert {name: diff for name, diff in found.items() if diff} == {n: PROVEN[n] for n in PROVEN if n in found}


def test_ptp_captures(corpus, tmp_path):
    oracle = oracle_of(corpus, "oracle-ptp-real.json")
    assert len(oracle) == 20
    for name, facts in list(oracle.items())[:: 1 if JIT else 7]:
        path = str(corpus / "pcaps" / name)
        assert differences(counted([path], tmp_path)["files"][path], facts) == {}, name


def test_malformed_captures(corpus, tmp_path):
    """As many packets as tshark where it read to the end."""
    found, expected = {}, {}
    for name, facts in oracle_of(corpus).items():
        if name.startswith(MALFORMED) and facts["tshark"]["rc"] == 0:
            path = str(corpus / "pcaps" / name)
            expected[name] = facts["packets"]
            found[name] = counted([path], tmp_path)["files"][path]["packets"]
    assert len(found) > 30
    assert found == expected


def test_several_files_are_counted_apart(corpus, tmp_path):
    """Echo pairs among them, which are known only later."""
    oracle = oracle_of(corpus)
    names = ["zeek-icmp.pcap", "suricata-icmpv4-ping.pcap", "ndpi-ptpv2.pcap", "zeek-icmp6-ping.pcap", "arkime-v6.pcap"]
    paths = [str(corpus / "pcaps" / name) for name in names]
    stats = counted(paths, tmp_path)
    for name, path in zip(names, paths, strict=True):
        assert differences(stats["files"][path], oracle[name]) == {}, name
    assert stats["ledger"]["packets"]["seen"] == sum(oracle[name]["packets"] for name in names)


# --- proof of the differences: the headers themselves


def frames_of(path):
    return pcapfile.read(path.read_bytes())[0]


def test_all_source_routed_packets_have_one_destination(corpus):
    destinations = {data[16:20] for data, _, _, _ in frames_of(corpus / "pcaps" / "suricata-detect-ipopts.pcap")}
    assert destinations == {bytes([13, 14, 15, 16])}


def test_the_big_tcp_packet_has_a_udp_header(corpus):
    """Payload length 0, next header UDP, and a datagram to the VXLAN port follows."""
    ((data, _, length, _),) = frames_of(corpus / "pcaps" / "tcpdump-bigtcp-ipv6-vxlan-ipv6.pcap")
    assert data[12:14] == b"\x86\xdd" and data[18:20] == b"\0\0" and data[20] == 17
    assert int.from_bytes(data[56:58], "big") in (4789, 8472)
    assert length > 65_535


# --- times and limits, without the corpus

SECONDS = 1_700_000_000
FRAME = make.eth(make.ipv4("10.0.0.1", "10.0.0.2", make.udp(443, 5, bytes(1200))))


def stats_of(data, folder):
    path = folder / "x.pcapng"
    path.write_bytes(data)
    return counted([str(path)], folder)["files"][str(path)]


def test_times_run_back_and_are_missing(tmp_path):
    frames = [write.enhanced((SECONDS + s) * 10**6, FRAME) for s in (5, 3, 9)]
    time = stats_of(
        write.section() + write.interface() + frames[0] + write.simple(FRAME, 99) + b"".join(frames[1:]), tmp_path
    )["time"]
    times = {name: time[name] - SECONDS * 10**9 for name in ("first_ns", "last_ns", "min_ns", "max_ns")}
    assert times == {"first_ns": 5 * 10**9, "last_ns": 9 * 10**9, "min_ns": 3 * 10**9, "max_ns": 9 * 10**9}
    assert (time["without_timestamp"], time["monotonic"]) == (1, False)


def test_no_times_at_all(tmp_path):
    time = stats_of(write.section() + write.interface() + write.simple(FRAME, 99), tmp_path)["time"]
    assert time == dict(first_ns=None, last_ns=None, min_ns=None, max_ns=None, without_timestamp=1, monotonic=True)


@pytest.mark.parametrize("offset", [2**34, -(2**34)])
def test_times_beyond_int64(tmp_path, offset):
    data = write.section() + write.interface(resolution=9, offset=offset)
    time = stats_of(data + write.enhanced(7, FRAME) + write.enhanced(5, FRAME), tmp_path)["time"]
    assert (time["first_ns"], time["min_ns"], time["monotonic"]) == (offset * 10**9 + 7, offset * 10**9 + 5, False)


def test_a_set_of_flows_that_is_full_counts_what_it_left_out():
    frames = [make.eth(make.ipv4("10.0.0.1", "10.0.0.2", make.udp(port, 5))) for port in range(1, 41)]
    block = block_of([(frame, len(frame), 1) for frame in frames * 2])
    batch = fill(block)
    census = Census()
    census.slots = np.zeros(32, np.uint64)
    packets_kernel(batch.packets, block.frames, census.protocols, census.counts, census.others, census.slots)
    assert census.others[0].udp_flows == 24
    assert census.others[0].uncounted == 32

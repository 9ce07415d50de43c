"""`qoetap decode`: the digest of every capture of the corpus, and the formats against each other."""

import hashlib
import ipaddress
import json

import pytest

from dataplane.listing import COLUMNS
from dataplane.records import JIT
from tests import captures as write
from tests import packets as make
from tests.helpers import run

MALFORMED = "malformed/"


def digest_line(line):
    """A tab-separated line as the corpus defines it: numbers as they are, addresses as hex."""
    values = line.rstrip("\n").split("\t")
    for i in (5, 6):
        values[i] = ipaddress.ip_address(values[i]).packed.hex() if values[i] else ""
    return "|".join(values) + "\n"


def digest(lines):
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decoded(path, folder, form="tsv", *options):
    """(exit status, text) of qoetap decode."""
    out = folder / "decoded"
    return run("decode", path, "--format", form, "-o", out, *options).status, out.read_text()


@pytest.fixture(scope="session")
def oracle(corpus):
    return json.loads((corpus / "pcaps" / "oracle.json").read_text())["files"]


def as_source_routed(lines):
    """tshark shows the last address of a source route as the destination (packet-ip.c); the header has the next hop."""
    route_ends = {2: "05060708", 7: "08080808"}
    return [line.replace("0d0e0f10", route_ends.get(int(line.split("|")[0]), "0d0e0f10")) for line in lines]


def as_empty_jumbogram(lines):
    """tshark 4.0 takes IPv6's payload length of 0 as no payload, so it finds no UDP (RFC 2675, 4)."""
    return ["|".join([*line.split("|")[:7], "-", "", "", ""]) + "\n" for line in lines]


OF_TSHARK = {  # captures where we differ and are right: what makes tshark's lines of ours
    "suricata-detect-ipopts.pcap": as_source_routed,
    "tcpdump-bigtcp-ipv6-vxlan-ipv6.pcap": as_empty_jumbogram,
}


def test_digest_of_every_well_formed_capture(corpus, oracle, tmp_path):
    named = {name: facts["digest"] for name, facts in oracle.items() if not name.startswith(MALFORMED)}
    assert len(named) == 91
    named = {name: named[name] for name in list(named)[:: 1 if JIT else 4]}
    found = {}
    for name in named:
        lines = list(map(digest_line, decoded(corpus / "pcaps" / name, tmp_path)[1].splitlines()))
        found[name] = digest(OF_TSHARK.get(name, list)(lines))
    assert found == named


def test_packets_of_every_malformed_capture(corpus, oracle, tmp_path):
    """As many as tshark where it read to the end."""
    named = {
        n: facts["packets"] for n, facts in oracle.items() if n.startswith(MALFORMED) and not facts["tshark"]["rc"]
    }
    found = {name: len(decoded(corpus / "pcaps" / name, tmp_path)[1].splitlines()) for name in named}
    assert found == named


FRAMES = (  # frame, columns from ip_version on
    (
        make.eth(make.ipv4("10.0.0.1", "192.168.255.2", make.udp(1, 65535, b"abc"))),
        "4 10.0.0.1 192.168.255.2 udp 1 65535 11",
    ),
    (make.eth(make.ipv6("2001:db8::1", "::", make.udp(53, 53))), "6 2001:db8::1 :: udp 53 53 8"),
    (
        make.eth(make.ipv6("::ffff:1.2.3.4", "fe80::1:0:0:1", make.udp(9, 8))),
        "6 ::ffff:1.2.3.4 fe80::1:0:0:1 udp 9 8 8",
    ),
    (make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.tcp(80, 1024, "S"))), "4 1.1.1.1 2.2.2.2 tcp 80 1024 "),
    (make.eth(make.ipv6("fe80::1", "ff02::2", make.icmpv6(133, 0))), "6 fe80::1 ff02::2 icmpv6 133 0 "),
    (make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.sctp(5, 6))), "4 1.1.1.1 2.2.2.2 -   "),
    (make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.icmp(3, 1))), "4 1.1.1.1 2.2.2.2 icmp 3 1 "),
    (
        make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.icmp(3, 1)))[:35],
        "4 1.1.1.1 2.2.2.2 icmp 3  ",
    ),  # the code is cut off
    (make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.udp(7, 7)))[:39], "4 1.1.1.1 2.2.2.2 -   "),  # the length is cut off
    (bytes(12) + b"\x08\x06" + bytes(28), "-   -   "),
)
SECONDS = 1_700_000_000
COLUMN_SEPARATOR = "\t"


def small(path):
    path.write_bytes(write.pcap([(SECONDS + i, i, frame, 1500 + i) for i, (frame, _) in enumerate(FRAMES)]))
    return path


def test_every_column(tmp_path):
    status, text = decoded(small(tmp_path / "x.pcap"), tmp_path)
    expected = []
    for i, (frame, rest) in enumerate(FRAMES):
        ts_ns = (SECONDS + i) * 10**9 + i * 1000
        expected.append([str(n) for n in (i + 1, ts_ns, len(frame), 1500 + i)] + rest.split(" "))
    assert status == 0
    assert [line.split(COLUMN_SEPARATOR) for line in text.splitlines()] == expected


def typed(name, text):
    if text in ("-", ""):
        return None
    return text if name in ("src", "dst", "proto") else int(text)


def test_formats_say_the_same(tmp_path):
    path = small(tmp_path / "x.pcap")
    rows = [line.split(COLUMN_SEPARATOR) for line in decoded(path, tmp_path)[1].splitlines()]
    objects = [{name: typed(name, value) for name, value in zip(COLUMNS, row, strict=True)} for row in rows]
    assert [json.loads(line) for line in decoded(path, tmp_path, "jsonl")[1].splitlines()] == objects
    table = decoded(path, tmp_path, "table")[1].splitlines()
    assert table[0].split() == list(COLUMNS)
    assert [line.split() for line in table[1:]] == [[value or "-" for value in row] for row in rows]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path, out = small(tmp_path / "x.pcap"), tmp_path / "x.parquet"
    assert run("decode", path, "--format", "parquet", "-o", out).status == 0
    lines = decoded(path, tmp_path, "jsonl")[1].splitlines()
    assert parquet.read_table(out).to_pylist() == [json.loads(line) for line in lines]


WIDE = [(2**34, 5), (-(2**34), 5), (-(2**34), 0), (9_223_372_036, 854_775_807)]


@pytest.mark.parametrize(("seconds", "nsec"), WIDE)
def test_times_beyond_int64(tmp_path, seconds, nsec):
    options = dict(resolution=9, offset=seconds)
    path = tmp_path / "x.pcapng"
    path.write_bytes(write.section() + write.interface(**options) + write.enhanced(nsec, FRAMES[0][0]))
    assert decoded(path, tmp_path)[1].split(COLUMN_SEPARATOR)[1] == str(seconds * 10**9 + nsec)


def test_tunnels_on_request(tmp_path):
    inner = make.ipv4("10.0.0.1", "10.0.0.2", make.udp(1, 2))
    path = tmp_path / "x.pcap"
    path.write_bytes(write.pcap([(SECONDS, 0, make.eth(make.ipv4("1.1.1.1", "2.2.2.2", make.gre(inner))), 99)]))
    assert "1.1.1.1" in decoded(path, tmp_path)[1]
    assert "10.0.0.2\tudp\t1\t2" in decoded(path, tmp_path, "tsv", "--tunnels", "gre")[1]
    assert "10.0.0.2\tudp\t1\t2" in decoded(path, tmp_path, "tsv", "--tunnels", "all")[1]


def test_a_cut_file_gives_what_is_there(tmp_path):
    path = small(tmp_path / "x.pcap")
    path.write_bytes(path.read_bytes()[:-1])
    status, text = decoded(path, tmp_path)
    assert (status, len(text.splitlines())) == (4, len(FRAMES) - 1)

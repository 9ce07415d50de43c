"""Who reads the interface in `python -m bench.live`: how each is started, and what it says that it has counted."""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from bench.live_parts import ROOT
from bench.peers import found, version_of

MIB = 1 << 20
BEGINS = "qoetap: listening"  # its sockets are there before


class Counted(NamedTuple):
    """What a reader says of itself: packets taken, packets that the kernel dropped, whether its ledger is exact."""

    captured: int
    dropped: int
    exact: bool = True


def qoetap(interface, ring_mib, stats, *options):
    """`qoetap live` with all detectors, events discarded unless `options` say otherwise; ring_mib None: its default."""
    out = [] if "-o" in options else ["-o", "null"]
    ring = ["--set", f"live.ring_size={ring_mib}MiB"] if ring_mib else []
    return [sys.executable, "-m", "qoetap", "live", "-i", interface, *out, "--stats", stats, *ring, *options]


def ledger(text, stats):
    """seen = processed + filtered + undecoded + dropped, by its own numbers and as it says itself."""
    told = json.loads(Path(stats).read_text())["ledger"]
    packets, dropped = told["packets"], sum(told["packets"]["dropped"].values())
    parts = packets["processed"] + packets["filtered"] + sum(packets["undecoded"].values()) + dropped
    return Counted(packets["seen"] - dropped, dropped, told["balanced"] and packets["seen"] == parts)


def tcpdump(interface, ring_mib, stats):
    return ["tcpdump", "-i", interface, "-n", "-B", ring_mib * 1024, "-Z", "root", "-w", "/dev/null"]


def tcpdump_256(interface, ring_mib, stats):
    """As many bytes of a packet as qoetap takes by default (live.snaplen)."""
    return [*tcpdump(interface, ring_mib, stats), "-s", 256]


def tcpdump_counted(text, stats):
    return Counted(found(r"(\d+) packets? captured", text), found(r"(\d+) packets? dropped by kernel", text))


def dumpcap(interface, ring_mib, stats):
    return ["dumpcap", "-i", interface, "-q", "-B", ring_mib, "-w", "/dev/null"]


def dumpcap_counted(text, stats):
    return Counted(found(r"Packets captured: (\d+)", text), found(r"\(pcap:(\d+)", text))


def loop(interface, ring_mib, stats):
    return [sys.executable, "-I", "-S", ROOT / "bench" / "recv_loop.py", interface, ring_mib * MIB]


def loop_counted(text, stats):
    told = json.loads(text.strip().splitlines()[-1])
    return Counted(told["packets"], told["dropped"])


def own_version():
    text = (ROOT / "qoetap" / "__init__.py").read_text()
    return f"qoetap {re.search(r'__version__ = .([0-9.]+)', text)[1]}"


class Contender(NamedTuple):
    """A row of the table. argv(interface, MiB of ring, file for statistics); counted(what it printed, that file)."""

    argv: object
    counted: object
    version: object  # -> text; raises bench.peers.Missing
    begins: str = ""  # what it says when it has begun to take packets, if not with its socket


READERS = {
    "qoetap": Contender(qoetap, ledger, own_version, BEGINS),
    "tcpdump": Contender(tcpdump, tcpdump_counted, lambda: version_of(["tcpdump", "--version"])),
    "tcpdump-s256": Contender(tcpdump_256, tcpdump_counted, lambda: version_of(["tcpdump", "--version"])),
    "dumpcap": Contender(dumpcap, dumpcap_counted, lambda: version_of(["dumpcap", "--version"])),
    "loop": Contender(loop, loop_counted, lambda: "Python loop around socket.recv_into"),
}

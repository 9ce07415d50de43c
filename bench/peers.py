"""The peers: one function each, which runs a peer over a file in a child process and says what it cost and counted.

A peer that is not installed raises Missing. `loop_s` is the time of the packet loop alone where the peer is a Python
library (interpreter start and imports are in `wall_s`); for commands it is the same as `wall_s`.
"""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IDLE_S, ACTIVE_S = (120, 1800)  # of every flow peer; the captures are shorter, so no flow expires in any of them
FLOWS_LIMIT = 1 << 21  # softflowd's default of 8192 would evict all the time


class Missing(Exception):
    """The peer is not installed; the text says what is missing."""


class Run(NamedTuple):
    """One run of one contender over one file."""

    packets: int  # counted by the contender itself, or the file's number where it does not tell
    loop_s: float
    wall_s: float
    cpu_s: float  # user and system, of the child and its children
    rss_bytes: int  # largest of the child and its children
    flows: int = 0  # as the contender counts them, 0 where it does not


def launch(argv, env=None):
    """Run a command to its end: (wall s, cpu s, peak bytes, output). Raises Missing, or RuntimeError if it fails."""
    if shutil.which(str(argv[0])) is None:
        raise Missing(f"{argv[0]} is not installed")
    with tempfile.NamedTemporaryFile("r") as cost:
        argv = [sys.executable, "-I", "-S", ROOT / "bench" / "launch.py", cost.name, *argv]
        command = [str(a) for a in argv]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=env)
        text = done.stdout.decode(errors="replace")
        if done.returncode:
            raise RuntimeError(f"{command[5]} ended with {done.returncode}: {text.strip()[-400:]}")
        told = json.load(cost)
    return told["wall_s"], told["cpu_s"], told["rss_bytes"], text


def found(pattern, text):
    """The number that a tool printed, summed over all places where it did."""
    numbers = re.findall(pattern, text)
    if not numbers:
        raise RuntimeError(f"no {pattern!r} in the output: {text[-300:]}")
    return sum(int(n) for n in numbers)


def version_of(argv):
    """Name and version, as a tool prints them when asked."""
    if shutil.which(argv[0]) is None:
        raise Missing(f"{argv[0]} is not installed")
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    number = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return f"{argv[0]} {number[0] if number else 'of unknown version'}"


# Commands


def tcpdump(path, packets):
    wall, cpu, rss, _ = launch(["tcpdump", "-r", path, "-w", "/dev/null"])
    return Run(packets, wall, wall, cpu, rss)


def softflowd(path, packets):
    """No export target: flows are tracked, expired at the end and counted. -6: IPv6 too."""
    timeouts = ["-t", f"udp={IDLE_S}", "-t", f"tcp={IDLE_S}", "-t", f"general={IDLE_S}", "-t", f"maxlife={ACTIVE_S}"]
    wall, cpu, rss, text = launch(["softflowd", "-d", "-6", "-m", FLOWS_LIMIT, *timeouts, "-r", path])
    return Run(found(r"Packets processed: (\d+)", text), wall, wall, cpu, rss, found(r"Flows expired: (\d+)", text))


def nfpcapd(path, packets):
    """Writes its flow files (uncompressed) to a temporary folder; reads, meters and writes in three threads."""
    with tempfile.TemporaryDirectory() as out:
        wall, cpu, rss, text = launch(["nfpcapd", "-r", path, "-w", out, "-e", f"{ACTIVE_S},{IDLE_S}"])
    return Run(found(r"Total: Processed: (\d+)", text), wall, wall, cpu, rss, found(r"Flows: (\d+)", text))


def ndpi(path, packets):
    wall, cpu, rss, text = launch(["ndpiReader", "-i", path, "-v", "0"])
    return Run(found(r"IP packets:\s+(\d+)", text), wall, wall, cpu, rss, found(r"Unique flows:\s+(\d+)", text))


def tshark(path, packets):
    """Full dissection, three fields printed."""
    fields = ["-T", "fields", "-e", "frame.number", "-e", "frame.len", "-e", "_ws.col.Protocol"]
    wall, cpu, rss, text = launch(["tshark", "-n", "-r", path, *fields])
    return Run(len(re.findall(r"(?m)^\d+\t", text)), wall, wall, cpu, rss)


# Python libraries: `in_child` runs `<name>_loop` of this file in a fresh interpreter


def in_child(name, path):
    if importlib.util.find_spec(name) is None:
        raise Missing(f"{name} is not installed")
    wall, cpu, rss, text = launch([sys.executable, "-m", "bench.peers", name, path])
    told = json.loads(text.strip().splitlines()[-1])
    return Run(told["packets"], told["loop_s"], wall, cpu, rss, told["flows"])


def dpkt(path, packets):
    return in_child("dpkt", path)


def scapy(path, packets):
    return in_child("scapy", path)


def pyshark(path, packets):
    return in_child("pyshark", path)


def nfstream(path, packets):
    """One meter: a child process reads the file and meters, the parent takes the flows from a queue."""
    return in_child("nfstream", path)


def dpkt_loop(path):
    import dpkt

    with open(path, "rb") as file:
        start, packets, ports = time.perf_counter(), 0, 0
        for _, data in dpkt.pcap.Reader(file):
            packets += 1
            ip = dpkt.ethernet.Ethernet(data).data
            if isinstance(ip, (dpkt.ip.IP, dpkt.ip6.IP6)) and isinstance(ip.data, (dpkt.udp.UDP, dpkt.tcp.TCP)):
                ports += ip.data.sport != ip.data.dport
        return packets, time.perf_counter() - start, 0


def scapy_loop(path):
    from scapy.layers.inet import IP, TCP, UDP  # noqa: F401  binds the layers to Ethernet
    from scapy.layers.inet6 import IPv6  # noqa: F401
    from scapy.layers.l2 import Ether
    from scapy.utils import RawPcapReader

    start, packets = time.perf_counter(), 0
    for data, _ in RawPcapReader(path):
        Ether(data)
        packets += 1
    return packets, time.perf_counter() - start, 0


def pyshark_loop(path):
    import pyshark

    start = time.perf_counter()
    capture = pyshark.FileCapture(path, keep_packets=False)
    packets = sum(1 for _ in capture)
    elapsed = time.perf_counter() - start
    capture.close()
    return packets, elapsed, 0


def nfstream_loop(path):
    from nfstream import NFStreamer

    start, packets, flows = time.perf_counter(), 0, 0
    options = {"n_dissections": 0, "statistical_analysis": False, "decode_tunnels": False, "n_meters": 1}
    for flow in NFStreamer(source=path, idle_timeout=IDLE_S, active_timeout=ACTIVE_S, **options):
        packets += flow.bidirectional_packets
        flows += 1
    return packets, time.perf_counter() - start, flows


LOOPS = {"dpkt": dpkt_loop, "scapy": scapy_loop, "pyshark": pyshark_loop, "nfstream": nfstream_loop}


class Peer(NamedTuple):
    """A row of the table of peers. `most_packets`: a slower peer gets that many from the head of the file."""

    run: object
    version: object  # -> text
    most_packets: int
    does: str


def package(name):
    """A function that gives the version of a Python package."""

    def version():
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError as error:
            raise Missing(f"{name} is not installed") from error

    return version


ALL = 1 << 62
PEERS = {
    "nfstream": Peer(nfstream, package("nfstream"), ALL, "flow records; C engine, n_dissections=0, n_meters=1"),
    "softflowd": Peer(softflowd, lambda: version_of(["softflowd", "-h"]), ALL, "flow records, not exported"),
    "nfpcapd": Peer(nfpcapd, lambda: version_of(["nfpcapd", "-V"]), ALL, "flow records to disk; three threads"),
    "tcpdump": Peer(tcpdump, lambda: version_of(["tcpdump", "--version"]), ALL, "copies records to /dev/null"),
    "ndpiReader": Peer(ndpi, lambda: version_of(["ndpiReader", "-h"]), ALL, "flows and their applications"),
    "dpkt": Peer(dpkt, package("dpkt"), 400_000, "decodes Ethernet, IP, TCP or UDP"),
    "tshark": Peer(tshark, lambda: version_of(["tshark", "--version"]), 100_000, "full dissection"),
    "scapy": Peer(scapy, package("scapy"), 20_000, "RawPcapReader and Ether()"),
    "pyshark": Peer(pyshark, package("pyshark"), 1_000, "tshark's dissection as Python objects"),
}


def main():
    """Child side of `in_child`: NAME FILE."""
    packets, loop_s, flows = LOOPS[sys.argv[1]](sys.argv[2])
    print(json.dumps({"packets": packets, "loop_s": loop_s, "flows": flows}))


if __name__ == "__main__":
    main()

"""Send UDP datagrams from a socket to many ports in turn, at a rate or as fast as one process can, and count them.

    python -m bench.udp_sender --to 10.0.2.2 --ports 100 --rate 13000 --seconds 10 --json

Unlike senders.py it goes through the kernel's UDP, which finds the way to a router. One sendmmsg(2) sends what is due;
the messages are written once, for only the port differs. With --before packets go one by one instead.
"""

import argparse
import ipaddress
import json
import math
import socket
import sys
import time

import numpy as np

from bench.senders import MESSAGE, VECTOR, Bucket, MESSAGE_bytes, may_begin, sendmmsg
from qoetap.timerslack import wake_exactly

FIRST_PORT = 9000
HEADERS_bytes = 28  # IPv4 and UDP
BATCH_packets = 64  # of one sendmmsg
ADDRESS = np.dtype([("family", np.uint16), ("port", ">u2"), ("host", "4u1"), ("zero", "8u1")])  # sockaddr_in, ip(7)


class UdpSender:
    """Datagrams of `length` bytes with their IP header, to `ports` ports of `host` in turn."""

    def __init__(self, sock, host, ports, length):
        self.sock, self.host, self.stopped, self.at = sock, host, False, 0
        self.data = np.zeros(length - HEADERS_bytes, np.uint8)
        count = ports * math.ceil(BATCH_packets / ports)  # a whole number of turns
        self.addresses = np.zeros(count, ADDRESS)
        self.addresses["family"], self.addresses["host"] = socket.AF_INET, list(ipaddress.IPv4Address(host).packed)
        self.addresses["port"] = FIRST_PORT + np.arange(count) % ports
        self.vector = np.array([(self.data.ctypes.data, self.data.size)], VECTOR)
        self.messages = np.zeros(count, MESSAGE)
        self.messages["name"] = self.addresses.ctypes.data + np.arange(count) * ADDRESS.itemsize
        self.messages["name_length"] = ADDRESS.itemsize
        self.messages["vectors"], self.messages["vector_count"] = self.vector.ctypes.data, 1

    def send(self, most):
        """Send up to `most`; how many the kernel took. OSError: it takes none."""
        count = min(most, BATCH_packets, self.messages.size - self.at)
        took = sendmmsg(self.sock.fileno(), self.messages.ctypes.data + self.at * MESSAGE_bytes, count, 0)
        if took <= 0:
            took = self._again()
        self.at = (self.at + took) % self.messages.size
        return took

    def _again(self):
        """Send the next alone, to hear why it was not taken."""
        row = self.addresses[self.at]
        self.sock.sendto(self.data, (str(ipaddress.IPv4Address(bytes(row["host"]))), int(row["port"])))
        return 1

    def run(self, seconds, rate=None):
        """Send for so long, or until `stopped`; what was sent, as a dict."""
        start = now = time.perf_counter()
        bucket, sent = Bucket(rate, now), 0
        while now < start + seconds and not self.stopped:
            left = bucket.take(now, BATCH_packets)
            if not left:
                time.sleep(bucket.wait)
            while left:
                took = self.send(left)
                sent, left = sent + took, left - took
            now = time.perf_counter()
        return {"sent": sent, "seconds": now - start}

    def run_evenly(self, seconds, rate, before):
        """Send one by one at even distances; what was sent, as a dict. The first `before` seconds, to the port below
        FIRST_PORT, do not count: they are for caches and clocks to be warm when classes begin.
        """
        wake_exactly()
        start, sent = time.perf_counter() + before, -round(before * rate)
        while sent < seconds * rate and not self.stopped:
            if (early := start + sent / rate - time.perf_counter()) > 0:
                time.sleep(early)
            if sent < 0:
                self.sock.sendto(self.data, (self.host, FIRST_PORT - 1))
            else:
                self.send(1)
            sent += 1
        return {"sent": max(0, sent), "seconds": time.perf_counter() - start}

    def stop(self, *_):
        """As a signal handler: send no more."""
        self.stopped = True


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.udp_sender", description=__doc__.splitlines()[0])
    parser.add_argument("--to", required=True, help="IPv4 address")
    parser.add_argument("--ports", type=int, default=1, help=f"how many, from {FIRST_PORT} on (default 1)")
    parser.add_argument("--length", type=int, default=500, help="bytes with the IP header (default 500)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--rate", type=float, help="packets a second (default: as many as can be)")
    parser.add_argument("--before", type=float, help="one by one; for so many seconds to a port that does not count")
    parser.add_argument("--wait", action="store_true", help="say `ready`, then wait for a line on standard input")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    args = parser.parse_args(argv)
    if not 1 <= args.ports <= 65536 - FIRST_PORT or (args.rate is not None and args.rate <= 0):
        parser.error(f"--ports must be from 1 to {65536 - FIRST_PORT}, --rate more than 0")
    if args.before is not None and (args.before < 0 or args.rate is None):
        parser.error("--before must not be negative, and needs --rate")
    if not HEADERS_bytes < args.length <= 1500:
        parser.error(f"--length must be from {HEADERS_bytes + 1} to 1500")
    return args


def main(argv=None):
    """Exit 0; 1 with one sentence if the kernel does not send, and where --wait was for nothing."""
    args = arguments(argv)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sender = UdpSender(sock, args.to, args.ports, args.length)
            if not may_begin(sender, args.wait):
                return 1  # whoever started it has ended
            if args.before is None:
                told = sender.run(args.seconds, args.rate)
            else:
                told = sender.run_evenly(args.seconds, args.rate, args.before)
    except (OSError, ValueError) as error:
        print(f"bench.udp_sender: {args.to}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    print(json.dumps(told) if args.json else "{sent:,} packets in {seconds:.1f} s".format(**told))
    return 0


if __name__ == "__main__":
    sys.exit(main())

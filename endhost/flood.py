"""A hostile pair: a host that fills a UDP flow as fast as it is told and feigns stalls in it, and one that counts.

Nobody makes an attacker speak QUIC. The flow comes from port 443; its filler is just too small to count as bulk
transfer, and its signals are those of an agent that sees the spinner for SIGNAL_seconds, then not for
SILENCE_seconds, and so on without end, so that one feigned stall after the other begins.
"""

import asyncio
import socket
import time

from endhost.report import begin_at, tell
from endhost.web import PORT

CLIENT_PORT = 40443
FILLER_bytes, SIGNAL_bytes = 999, 1188  # of UDP payload
TOGGLES, SCREENSHOT_seconds = 4, 0.2
SIGNAL_seconds, SILENCE_seconds = 3.0, 1.2
STEP_seconds = 0.005
BEHIND_seconds = 0.05  # what a busy machine may make up for
SAMPLE_seconds = 0.5
SHORT_HEADER = b"\x40"  # first byte, RFC 9000, 17.3


async def flood(address, client, begin_ns, seconds, rate_bps):
    """The role of the host: rate_bps of UDP payload, signals among it, for `seconds` from begin_ns on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, PORT))
        await begin_at(begin_ns)
        began = last = due = time.monotonic()
        credit = 0.0
        while (now := time.monotonic()) - began < seconds:
            credit += min(now - last, BEHIND_seconds) * rate_bps / 8
            last = now
            if now >= due:
                due = max(due + SCREENSHOT_seconds, now)
                if (now - began) % (SIGNAL_seconds + SILENCE_seconds) < SIGNAL_seconds:
                    credit -= send(sock, client, SIGNAL_bytes, TOGGLES)
            credit -= send(sock, client, FILLER_bytes, max(0, int(credit // FILLER_bytes)))
            await asyncio.sleep(STEP_seconds)


def send(sock, client, size, count):
    """Send datagrams; bytes of them. The socket is not connected, so that it hears nothing of a port that closes."""
    for _ in range(count):
        sock.sendto(SHORT_HEADER + bytes(size - 1), (client, CLIENT_PORT))
    return size * count


async def count(address, begin_ns, seconds):
    """The role of the client: tells the bytes received so far now and then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, CLIENT_PORT))
        sock.setblocking(False)
        await begin_at(begin_ns)
        received, due = 0, time.time()
        while (now := time.time()) < begin_ns / 1e9 + seconds:
            received += drained(sock)
            if now >= due:
                due += SAMPLE_seconds
                tell(received=received)
            await asyncio.sleep(STEP_seconds)


def drained(sock):
    """Bytes of all that has come."""
    received = 0
    while True:
        try:
            received += len(sock.recv(1 << 16))
        except BlockingIOError:
            return received

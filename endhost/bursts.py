"""Load that queues as traffic does: bursts of UDP packets at random moments, together as many bytes as were asked for.

Bursts begin at moments drawn uniformly from each slot of a second, so that the gaps between them are exponential; the
number of packets in a burst is geometric around BURST_packets, their sizes are drawn from SIZES. The bytes of each slot
are exactly the load's share of the capacity: the last packet is cut to fit, or its rest is carried over. Load counts
whole frames, as tc-tbf(8) does. Moments are absolute: what a busy machine delays is sent later, and not left out.
"""

import socket
import time

import numpy as np

from endhost.report import begin_at, tell

PORT = 9  # discard, RFC 863
SLOT_seconds = 1.0
BURST_packets = 4.0
HEADERS_bytes = 42  # Ethernet, IPv4, UDP
LEAST_bytes = HEADERS_bytes + 12
SIZES = ((0.4, 54, 114), (0.1, 114, 1514), (0.5, 1514, 1514))  # share, frames from, to; bytes
NAP_seconds = 50e-6  # what is due in less is sent at once: waiting takes as long
BUFFER_bytes = 1 << 20
LEVEL_MAX = 1.5  # load, at most


def sizes_of(rng, count):
    """So many frame lengths, bytes."""
    shares, lows, highs = map(np.array, zip(*SIZES, strict=True))
    kinds = rng.choice(len(SIZES), size=count, p=shares)
    return rng.integers(lows[kinds], highs[kinds] + 1)


def slot(rng, target_bytes, burst_packets=BURST_packets):
    """(moments, frame lengths) of one slot: moments rise from 0 to 1, lengths add up to target_bytes, but for what is
    less than a packet.
    """
    count = max(8, int(target_bytes / 400))
    sizes = sizes_of(rng, count)
    while sizes.sum() < target_bytes:
        sizes = np.concatenate([sizes, sizes_of(rng, count)])
    kept = int(np.searchsorted(np.cumsum(sizes), target_bytes))
    sizes = sizes[: kept + 1]
    sizes[kept] -= sizes.sum() - target_bytes
    if sizes[kept] < LEAST_bytes:
        sizes = sizes[:kept]
    lengths = rng.geometric(1 / burst_packets, size=len(sizes))
    bursts = int(np.searchsorted(np.cumsum(lengths), len(sizes))) + 1
    return np.repeat(np.sort(rng.random(bursts)), lengths[:bursts])[: len(sizes)], sizes


def slots(seed, steps, capacity_bps, burst_packets=BURST_packets):
    """(load, seconds since the beginning, frame lengths) of each slot. steps: (load, seconds), whole slots each."""
    rng, carried, began = np.random.default_rng(seed), 0.0, 0.0
    for load, seconds in steps:
        for _ in range(round(seconds / SLOT_seconds)):
            wanted = load * capacity_bps / 8 * SLOT_seconds + carried
            moments, sizes = slot(rng, int(wanted), burst_packets) if wanted >= LEAST_bytes else ((), np.empty(0, int))
            carried = wanted - sizes.sum()
            yield load, began + SLOT_seconds * np.asarray(moments), sizes
            began += SLOT_seconds


async def bursts(address, begin_ns, capacity_bps, steps, seed, burst_packets=BURST_packets):
    """The role: send to PORT of the address. Tells after each slot the load asked for, bytes and packets sent, and how
    late the latest packet was.
    """
    target = (address, PORT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_bytes)
        await begin_at(begin_ns)
        # The wall clock is asked once: when it is set meanwhile, moments stay where they were
        start = time.monotonic() + begin_ns / 1e9 - time.time()
        for number, (load, moments, sizes) in enumerate(slots(seed, steps, capacity_bps, burst_packets)):
            late = send(sock, target, (start + moments).tolist(), (sizes - HEADERS_bytes).tolist())
            tell(load=load, slot=number, bytes=int(sizes.sum()), packets=len(sizes), late_s=round(late, 6))


def send(sock, target, moments, payloads):
    """Send each packet at its moment, of time.monotonic; how late the latest one was, seconds."""
    content, late, sendto, clock = memoryview(bytes(1 << 16)), 0.0, sock.sendto, time.monotonic
    for moment, size in zip(moments, payloads, strict=True):
        left = moment - clock()
        if left > NAP_seconds:
            time.sleep(left)
        elif left < late:
            late = left
        sendto(content[:size], target)
    return -late

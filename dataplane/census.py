"""What a capture holds, counted file by file: packets, times, headers, distinct flows, PTP messages. For --stats.

A packet counts as UDP, TCP or ICMP if it is no later fragment and its ports (UDP: and length field; ICMP: type) were
captured. What a filter did not let pass does not count at all.
"""

import numpy as np
from numba import njit

from dataplane.kernels import Kernel
from dataplane.records import (
    FRAGMENT_ATOMIC,
    FRAGMENT_FIRST,
    FRAGMENT_LATER,
    MPLS,
    NO_TIME,
    OPTIONS,
    OUT_OF_SCOPE,
    PORTS,
    PPPOE,
    PTP,
    TCP_HEADER,
    TIME_NONE,
    TIME_RANGE,
    UDP_LENGTH,
    UNWANTED,
    VERSION_MISMATCH,
    VLAN,
    rows,
)

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HTTPS_PORT = 443
IQN_LOW_BYTES, IQN_HIGH_BYTES = 1180, 1288
ECHO_REQUEST, ECHO_REPLY, ECHO_REQUEST_V6, ECHO_REPLY_V6 = 8, 0, 128, 129
PTP_TRANSPORTS = {0: "l2", 4: "udp4", 6: "udp6"}
NS_PER_S = 1_000_000_000

COUNTS = np.dtype(
    [
        (name, np.int64)
        for name in (
            "ipv4", "ipv6", "version_mismatch", "ip_behind_out_of_scope_l2", "vlan_tagged", "pppoe_session", "mpls",
            "caplen_below_len", "ipv4_with_options", "ipv6_with_extension", "ipv4_fragment_first",
            "ipv4_fragment_later", "ipv6_fragment_first", "ipv6_fragment_later", "ipv6_fragment_atomic",
            "udp", "udp_unfragmented", "tcp", "tcp_unfragmented", "tcp_full_header",
            "icmp", "icmp_unfragmented", "icmpv6", "icmpv6_unfragmented",
        )
    ]
)  # fmt: skip
OTHERS = np.dtype(
    [
        (name, np.int64)
        for name in (
            "any_port", "either_443", "src_443", "dst_443", "udp_flows", "tcp_flows", "iqn_flows", "uncounted",
            "requests", "replies", "requests_v6", "replies_v6",
        )
    ]
)  # fmt: skip

FLOW_SLOTS = 1 << 21  # distinct flows are counted exactly up to three quarters of this; 16 MiB


@njit(nogil=True, cache=True)
def times_of(frames):
    """(first, last, least, greatest timestamp; frames without one, steps back, frames whose time does not fit)."""
    first = last = least = greatest = NO_TIME
    without = back = wide = 0
    for i in range(frames.size):
        frame = frames[i]
        if frame.flags & UNWANTED:
            continue
        if frame.flags & TIME_NONE:
            without += 1
        elif frame.flags & TIME_RANGE:
            wide += 1
        elif first == NO_TIME:
            first = last = least = greatest = frame.ts
        else:
            back += frame.ts < last
            last = frame.ts
            least = min(least, last)
            greatest = max(greatest, last)
    return first, last, least, greatest, without, back, wide


def wide_times_of(frames):
    """The same where some times do not fit, by Python's integers."""
    frames = frames[frames["flags"] & UNWANTED == 0]
    known = frames[frames["flags"] & TIME_NONE == 0]
    ns = [
        int(ts) * NS_PER_S + int(nsec) if flags & TIME_RANGE else int(ts)
        for ts, nsec, flags in zip(known["ts"], known["nsec"], known["flags"], strict=True)
    ]
    back = sum(b < a for a, b in zip(ns, ns[1:], strict=False))
    return ns[0], ns[-1], min(ns), max(ns), len(frames) - len(ns), back, 0


@njit
def count_layers(pkt, counts):
    flags = np.int64(pkt.flags)
    four, six = pkt.ip_version == 4, pkt.ip_version == 6
    counts.ipv4 += four
    counts.ipv6 += six
    counts.version_mismatch += flags & VERSION_MISMATCH != 0
    counts.ip_behind_out_of_scope_l2 += flags & OUT_OF_SCOPE != 0
    counts.vlan_tagged += flags & VLAN != 0
    counts.pppoe_session += flags & PPPOE != 0
    counts.mpls += flags & MPLS != 0
    counts.ipv4_with_options += four and flags & OPTIONS != 0
    counts.ipv6_with_extension += six and flags & OPTIONS != 0
    counts.ipv4_fragment_first += four and flags & FRAGMENT_FIRST != 0
    counts.ipv4_fragment_later += four and flags & FRAGMENT_LATER != 0
    counts.ipv6_fragment_first += six and flags & FRAGMENT_FIRST != 0
    counts.ipv6_fragment_later += six and flags & FRAGMENT_LATER != 0
    counts.ipv6_fragment_atomic += flags & FRAGMENT_ATOMIC != 0


@njit
def count_transport(pkt, counts, others):
    """0 if the packet is of no flow that is counted, else 1 UDP, 2 TCP, 3 UDP of candidate size from port 443."""
    flags = np.int64(pkt.flags)
    whole = flags & FRAGMENT_FIRST == 0
    if pkt.proto == TCP:
        counts.tcp += 1
        counts.tcp_unfragmented += whole
        counts.tcp_full_header += flags & TCP_HEADER != 0
        return 2
    if pkt.proto == UDP:
        if not flags & UDP_LENGTH:
            return 0
        counts.udp += 1
        counts.udp_unfragmented += whole
        return 3 if count_iqn_size(pkt, others) else 1
    if pkt.proto == ICMP:
        counts.icmp += 1
        counts.icmp_unfragmented += whole
        others.requests += pkt.sport == ECHO_REQUEST
        others.replies += pkt.sport == ECHO_REPLY
    elif pkt.proto == ICMPV6:
        counts.icmpv6 += 1
        counts.icmpv6_unfragmented += whole
        others.requests_v6 += pkt.sport == ECHO_REQUEST_V6
        others.replies_v6 += pkt.sport == ECHO_REPLY_V6
    return 0


@njit
def count_iqn_size(pkt, others):
    """Whether the datagram has a candidate's size and comes from port 443."""
    if not IQN_LOW_BYTES <= pkt.payload_len <= IQN_HIGH_BYTES:
        return False
    others.any_port += 1
    others.either_443 += pkt.sport == HTTPS_PORT or pkt.dport == HTTPS_PORT
    others.src_443 += pkt.sport == HTTPS_PORT
    others.dst_443 += pkt.dport == HTTPS_PORT
    return pkt.sport == HTTPS_PORT


@njit
def is_new(slots, key, others):
    """Put `key` into the set; whether it was not there. A set that is full counts what it could not take."""
    at = np.int64(key >> np.uint64(20)) & (slots.size - 1)
    while slots[at] != np.uint64(0):
        if slots[at] == key:
            return False
        at = (at + 1) & (slots.size - 1)
    if others.udp_flows + others.tcp_flows + others.iqn_flows >= slots.size * 3 // 4:
        others.uncounted += 1
        return False
    slots[at] = key
    return True


@njit(nogil=True, cache=True)
def count_packets(packets, frames, protocols, counts, others, slots):
    """Add the packets of `frames` to all counts; `protocols` (256,): IPv4 by number, later fragments among them."""
    c, o = counts[0], others[0]
    for i in range(frames.size):
        pkt, frame = packets[i], frames[i]
        count_layers(pkt, c)
        c.caplen_below_len += frame.caplen < frame.len and frame.flags & UNWANTED == 0
        if pkt.ip_version == 4:
            protocols[pkt.proto] += 1
        kind = count_transport(pkt, c, o) if np.int64(pkt.flags) & PORTS else 0
        if kind and is_new(slots, pkt.hash, o):
            if kind == 2:
                o.tcp_flows += 1
            else:
                o.udp_flows += 1
        if kind == 3 and is_new(slots, ~pkt.hash, o):  # the complement marks a flow that had a candidate
            o.iqn_flows += 1


times_kernel, packets_kernel = Kernel(times_of), Kernel(count_packets)


class Census:
    """Counts of one file. `watch` takes each batch with its block, in order."""

    def __init__(self):
        self.packets = self.without = self.back = 0
        self.first = self.last = self.least = self.greatest = None  # ns
        self.counts, self.others = rows(COUNTS, 1), rows(OTHERS, 1)
        self.protocols, self.slots = np.zeros(256, np.int64), np.zeros(FLOW_SLOTS, np.uint64)
        self.ptp, self.pairs = {}, {4: 0, 6: 0}

    def watch(self, batch, block):
        """Count a batch and the frames that it was made of."""
        self.packets += batch.size - np.count_nonzero(block.frames["flags"] & UNWANTED)
        self.watch_times(block.frames)
        packets_kernel(batch.packets, block.frames, self.protocols, self.counts, self.others, self.slots)
        if batch.numbers[PTP]:
            self.watch_ptp(batch.packets[batch.views[PTP][: batch.numbers[PTP]]])

    def watch_times(self, frames):
        first, last, least, greatest, without, back, wide = times_kernel(frames)
        if wide:
            first, last, least, greatest, without, back, _ = wide_times_of(frames)
        self.without += without
        if first == NO_TIME:
            return
        self.back += back + (self.last is not None and first < self.last)
        self.first, self.last = first if self.first is None else self.first, last
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)

    def watch_ptp(self, packets):
        for version, ip, kind in zip(packets["ptp_version"], packets["ip_version"], packets["ptp_type"], strict=True):
            name = f"v{version}/{PTP_TRANSPORTS[int(ip)]}/{kind}"
            self.ptp[name] = self.ptp.get(name, 0) + 1

    def as_dict(self):
        """The counts, named as the capture corpus names what tshark counted."""
        counts, others = self.counts[0], self.others[0]
        return {
            "packets": self.packets,
            "time": {
                "first_ns": self.first,
                "last_ns": self.last,
                "min_ns": self.least,
                "max_ns": self.greatest,
                "without_timestamp": self.without,
                "monotonic": self.back == 0,
            },
            "counts": {name.replace("_later", "_non-first"): int(counts[name]) for name in COUNTS.names},
            "ipv4_protocols": {str(n): int(self.protocols[n]) for n in np.flatnonzero(self.protocols)},
            "flows": {
                "udp": int(others["udp_flows"]),
                "tcp": int(others["tcp_flows"]),
                "uncounted_packets": int(others["uncounted"]),
            },
            "iqn_size": {
                **{name: int(others[name]) for name in ("any_port", "either_443", "src_443", "dst_443")},
                "flows_src_443": int(others["iqn_flows"]),
            },
            "icmp_echo": self._echo("", 4),
            "icmpv6_echo": self._echo("_v6", 6),
            "ptp": {"messages": sum(self.ptp.values()), "by_version_transport_type": dict(sorted(self.ptp.items()))},
        }

    def _echo(self, suffix, version):
        requests, replies = (int(self.others[0][name + suffix]) for name in ("requests", "replies"))
        return {"requests": requests, "replies": replies, "key_pairs": self.pairs[version]}


def count_pairs(events, starts, censuses):
    """Add the answered echo requests among `events` (dataplane.events.Events) to the censuses of their files.

    starts: number of the first packet of each file, one for each census.
    """
    for detector, part in events.parts:
        if detector.name != "icmp_loop":
            continue
        answered = part[part["code"] == 1 + [t.name for t in detector.events].index("icmp.rtt")]
        places = np.searchsorted(starts, answered["seq"], side="right") - 1
        for place, version in zip(places.tolist(), answered["ip_version"].tolist(), strict=True):
            censuses[place].pairs[version] += 1

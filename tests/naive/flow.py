"""Slow twin of detectors.flow: flow records of decoded frames, from the definition. Knows no table and no wheel.

A flow is {(address, port), (address, port)} and the protocol. Its record ends with the first deadline that has come
before a packet of the flow, or before the end of the input: `idle` after the last packet, `active` after the first,
`tcp_close` after the packet with a RST or the second FIN. Deadlines are rounded up to multiples of 2**24 ns.
"""

from typing import NamedTuple

from tests.naive import wire
from tests.naive.clock import clocks

TICK_NS = 1 << 24
FIN, RST = 1, 4
NO_PORTS = (1, 58)  # ICMP


class Packet(NamedTuple):
    ts: int
    clock: int
    length: int
    decoded: dict


def packets_of(frames):
    """Packets of (data, time or None, length, link type)."""
    times = [ts if ts is not None and -(2**63) < ts < 2**63 else None for _, ts, _, _ in frames]
    found = []
    for (data, _, length, linktype), ts, clock in zip(frames, times, clocks(times)[0], strict=True):
        found.append(Packet(clock if ts is None else ts, clock, length, wire.decode(data, length, linktype)))
    return found


def ends(p):
    ports = (0, 0) if p["proto"] in NO_PORTS else (p["sport"], p["dport"])
    return (p["src"], ports[0]), (p["dst"], ports[1])


def records(packets, idle, active, tcp_close):
    """Set of (source, destination, protocol, first, last, packets there and back, bytes, TCP flags, reason)."""
    open_flows, done = {}, []
    for packet in packets:
        if packet.decoded["src"] is None:
            continue
        source, target = ends(packet.decoded)
        key = frozenset((source, target)), packet.decoded["proto"]
        flow = open_flows.get(key)
        if flow and flow.is_over(packet.clock):
            done.append(open_flows.pop(key).record())
        open_flows.setdefault(key, Flow(source, target, packet)).add(packet, source, idle, active, tcp_close)
    end = packets[-1].clock if packets else 0
    for flow in open_flows.values():
        flow.reason = flow.reason if flow.is_over(end) else "end_of_input"
        done.append(flow.record())
    return sorted(done)


class Flow:
    def __init__(self, source, target, packet):
        self.source, self.target, self.proto = source, target, packet.decoded["proto"]
        self.first = self.last = packet.ts
        self.packets, self.bytes, self.flags = [0, 0], [0, 0], [0, 0]
        self.due, self.reason = None, None

    def add(self, packet, source, idle, active, tcp_close):
        side = 0 if source == self.source else 1
        self.last = max(self.last, packet.ts)
        self.packets[side] += 1
        self.bytes[side] += packet.length
        self.flags[side] |= packet.decoded["tcp_flags"]
        if self.reason == "tcp_end":
            return
        both = self.flags[0] & self.flags[1]
        if (self.flags[0] | self.flags[1]) & RST or both & FIN:
            self.due, self.reason = packet.clock + tcp_close, "tcp_end"
        else:
            left = active - (packet.ts - self.first)
            self.reason = "idle" if idle <= left else "active"
            self.due = packet.clock + max(1, min(idle, left))

    def is_over(self, clock):
        return -(-self.due // TICK_NS) * TICK_NS <= clock

    def record(self):
        return (
            self.source, self.target, self.proto, self.first, self.last,
            *self.packets, *self.bytes, *self.flags, self.reason,
        )  # fmt: skip

"""Slow twin of dataplane.capture: whole capture files read with struct, from the formats' definitions.

A frame is (data, time, len, linktype) with the time in ns as a Python int, None where there is none.
"""

import struct
from fractions import Fraction

MAX_CAPLEN = 262144


class Stopped(Exception):
    """Reading stopped; args[0] is the offset of the record or block that could not be read."""


def read(data):
    """(frames, offset at which reading stopped or None). ValueError: the first header is no good."""
    frames = []
    pcapng = data[:4] == b"\n\r\r\n"
    try:
        for frame in blocks(data) if pcapng else records(data):
            frames.append(frame)  # noqa: PERF402, keeps what came before it stopped
    except Stopped as stopped:
        if pcapng and stopped.args[0] == 0:
            raise ValueError("section header") from None
        return frames, stopped.args[0]
    return frames, None


def records(data):
    """Frames of a pcap file."""
    layouts = {0xA1B2C3D4: (1000, 16), 0xA1B23C4D: (1, 16), 0xA1B2CD34: (1000, 24)}
    for order in "<>":
        if len(data) >= 4 and struct.unpack(order + "I", data[:4])[0] in layouts:
            break
    else:
        raise ValueError("magic")
    if len(data) < 24:
        raise ValueError("header")
    magic, major, minor, _, _, _, network = struct.unpack(order + "IHHIIII", data[:24])
    if major != 2 or network & 0x03FF0000:
        raise ValueError("header")
    unit, size = layouts[magic]
    at = 24
    while at < len(data):
        if at + size > len(data):
            raise Stopped(at)
        seconds, fraction, caplen, length = struct.unpack(order + "IIII", data[at : at + 16])
        if minor < 3 or minor == 3 and caplen > length:
            caplen, length = length, caplen
        if caplen > MAX_CAPLEN or at + size + caplen > len(data):
            raise Stopped(at)
        yield data[at + size : at + size + caplen], seconds * 10**9 + fraction * unit, length, network & 0xFFFF
        at += size + caplen


def check_options(body, order):
    """{code: value} of the last option of each code; None if one does not fit."""
    found, at = {}, 0
    while at + 4 <= len(body):
        code, length = struct.unpack(order + "HH", body[at : at + 4])
        if at + 4 + length > len(body):
            return None
        if code == 0:
            break
        found[code] = body[at + 4 : at + 4 + length]
        at += 4 + -(-length // 4) * 4
    return found


def blocks(data):
    """Frames of a pcapng file."""
    at, order, interfaces = 0, "<", []
    while at < len(data):
        if at + 12 > len(data):
            raise Stopped(at)
        kind = struct.unpack(order + "I", data[at : at + 4])[0]
        if kind == 0x0A0D0D0A:
            order = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}.get(data[at + 8 : at + 12])
            if order is None:
                raise Stopped(at)
        length = struct.unpack(order + "I", data[at + 4 : at + 8])[0]
        size = -(-length // 4) * 4
        if length < 12 or size > 16 << 20 or at + size > len(data):
            raise Stopped(at)
        if struct.unpack(order + "I", data[at + size - 4 : at + size])[0] != length:
            raise Stopped(at)
        body = data[at + 8 : at + size - 4]
        if kind == 0x0A0D0D0A:
            if length < 28 or struct.unpack(order + "H", body[4:6])[0] != 1 or check_options(body[16:], order) is None:
                raise Stopped(at)
            interfaces = []
        elif kind == 1:
            interfaces.append(interface(body, length, order) or stop(at))
        elif kind in (2, 3, 6):
            yield packet(kind, body, size, order, interfaces) or stop(at)
        at += size


def stop(at):
    raise Stopped(at)


def interface(body, length, order):
    """(linktype, snaplen, units of a second, offset in s), None where the block is damaged."""
    if length < 20:
        return None
    found = check_options(body[8:], order)
    if found is None:
        return None
    linktype, _, snaplen = struct.unpack(order + "HHI", body[:8])
    resolution = found[9][0] if len(found.get(9, b"")) == 1 else 6
    base, power = (2, resolution - 128) if resolution >= 128 else (10, resolution)
    if base**power >= 2**64:
        return None
    offset = struct.unpack(order + "q", found[14])[0] if len(found.get(14, b"")) == 8 else 0
    return linktype, snaplen or MAX_CAPLEN, base**power, offset


def packet(kind, body, size, order, interfaces):
    """The frame of a packet block, None where it is damaged."""
    if size < (16 if kind == 3 else 32):
        return None
    if kind == 3:
        number, start, room = 0, 4, size - 16
        wire = struct.unpack(order + "I", body[:4])[0]
    else:
        number, high, low, caplen, wire = struct.unpack(order + "IIIII" if kind == 6 else order + "HxxIIII", body[:20])
        start, room = 20, size - 32
    if number >= len(interfaces):
        return None
    linktype, snaplen, units, offset = interfaces[number]
    time = None
    if kind == 3:
        caplen = min(wire, snaplen)
    else:
        time = int(Fraction((high << 32) | low, units) * 10**9) + offset * 10**9
    if caplen > room or caplen > MAX_CAPLEN:
        return None
    return body[start : start + caplen], time, wire, linktype

"""Writer of capture files for tests, byte by byte; shares no code with dataplane."""

import struct


def pcap(packets, order="<", magic=0xA1B2C3D4, version=(2, 4), network=1):
    """File of (seconds, fraction, data, len) tuples."""
    more = b"\1\0\0\0\x08\0\0\0" if magic == 0xA1B2CD34 else b""
    out = [struct.pack(order + "IHHiIII", magic, *version, 0, 0, 65535, network)]
    for seconds, fraction, data, length in packets:
        lengths = (length, len(data)) if version < (2, 3) else (len(data), length)
        out += [struct.pack(order + "IIII", seconds, fraction, *lengths), more, data]
    return b"".join(out)


def block(kind, body, order="<"):
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(code, value, order="<"):
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order="<", version=(1, 0), options=b""):
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, *version, -1) + options, order)


def interface(order="<", linktype=1, snaplen=0, resolution=None, offset=None):
    options = b"" if resolution is None else option(9, bytes([resolution]), order)
    options += b"" if offset is None else option(14, struct.pack(order + "q", offset), order)
    options += option(0, b"", order) if options else b""
    return block(1, struct.pack(order + "HHI", linktype, 0, snaplen) + options, order)


def enhanced(count, data, length=None, number=0, order="<", options=b""):
    head = struct.pack(order + "IIIII", number, count >> 32, count & 0xFFFFFFFF, len(data), length or len(data))
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


def simple(data, length, order="<"):
    return block(3, struct.pack(order + "I", length) + data, order)


def obsolete(count, data, number=0, order="<"):
    head = struct.pack(order + "HHIIII", number, 7, count >> 32, count & 0xFFFFFFFF, len(data), len(data))
    return block(2, head + data, order)

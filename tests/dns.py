"""What tests of the DNS share: questions and answers by dnslib, which are no more than bytes to what is tested."""

import socket
import struct

from dnslib import EDNS0, DNSRecord, EDNSOption

ECS = 8
WAIT_seconds = 20.0  # on a busy machine


def subnet(text, source, scope=0, family=None):
    """Data of the option Client Subnet: only the bytes that `source` bits need."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    family = family if family is not None else 2 if ":" in text else 1
    return struct.pack("!HBB", family, source, scope) + packed[: (source + 7) // 8]


def question(name="video.example.com", kind="A", ecs=None, edns=None, **header):
    """A query as DNSRecord. ecs: data of the option; edns: keywords of EDNS0."""
    made = DNSRecord.question(name, kind)
    for key, value in header.items():
        setattr(made.header, key, value)
    if ecs is not None or edns is not None:
        options = [EDNSOption(ECS, ecs)] if ecs is not None else []
        made.add_ar(EDNS0(opts=options, **{"udp_len": 1232} | (edns or {})))
    return made


def opt(record):
    """The OPT record, None without."""
    return next((rr for rr in record.ar if rr.rtype == 41), None)


def ecs_of(record):
    """(source, scope) of the option Client Subnet; None without."""
    found = [option.data for option in opt(record).rdata if option.code == ECS] if opt(record) else []
    return (found[0][2], found[0][3]) if found else None


def addresses(record):
    return [str(rr.rdata) for rr in record.rr]


def ask(where, record, tcp=False):
    """The reply of a server, parsed."""
    data = record.pack() if isinstance(record, DNSRecord) else record
    reply = DNSRecord.parse(over_tcp(where, data)[0] if tcp else over_udp(where, data))
    assert reply.header.qr == 1
    return reply


def over_udp(where, data):
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_seconds)
        sock.connect(where)
        sock.send(data)
        return sock.recv(65535)


def over_tcp(where, *packets):
    """The replies to packets that are sent at once over one connection."""
    with socket.create_connection(where, WAIT_seconds) as sock, sock.makefile("rb") as file:
        sock.sendall(b"".join(struct.pack("!H", len(packet)) + packet for packet in packets))
        return [framed(file) for _ in packets]


def framed(file):
    """The next message of a stream; b"" at its end."""
    size = file.read(2)
    return file.read(int.from_bytes(size)) if size else b""

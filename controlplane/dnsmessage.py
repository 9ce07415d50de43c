"""DNS messages: what a query asks, and the replies to it. Pure: bytes in, bytes out; nothing that comes in raises.

RFC 1035 (messages), RFC 6891 (EDNS), RFC 7871 (Client Subnet), RFC 2308 (no data), RFC 8482 (ANY).
"""

import ipaddress
import struct
from typing import NamedTuple

from dnslib import AAAA, CLASS, EDNS0, QTYPE, RR, SOA, A, DNSHeader, DNSQuestion, DNSRecord, EDNSOption

from controlplane.dnsnames import LABEL_bytes, NAME_bytes
from controlplane.prefixes import USER_bits

HEADER_bytes = 12
QUERY_MAX_bytes = 4096
PLAIN_bytes = 512  # of a reply over UDP without EDNS (RFC 1035, 4.2.1)
EDNS_bytes = 1232  # of one with it at most: no fragments (DNS flag day 2020)
TCP_bytes = 65535
ADDITIONAL_MAX = 4  # records: OPT and a signature are what there may be
CLIENT_SUBNET = 8  # option code
QR, OPCODE_shift, RD, CD = 0x8000, 11, 0x0100, 0x0010
QUERY = 0
NOERROR, FORMERR, NOTIMP, REFUSED, BADVERS = 0, 1, 4, 5, 16
TRANSFERS = (QTYPE.IXFR, QTYPE.AXFR)
VERSION_OF = {QTYPE.A: 4, QTYPE.AAAA: 6}
SERIAL, REFRESH_seconds, RETRY_seconds, EXPIRE_seconds = 1, 3600, 600, 86400


class Subnet(NamedTuple):
    """The option Client Subnet of a query (RFC 7871, section 6)."""

    family: int
    source: int  # bits
    address: bytes  # the leading ones, whole bytes
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None  # None: the user does not want to be told apart


class Query(NamedTuple):
    """A query. An rcode above 0: this is the reply, there is nothing to look up."""

    number: int  # its id
    flags: int
    rcode: int = NOERROR
    question: DNSQuestion | None = None  # None: it could not be read
    edns: bool = False
    wants_dnssec: bool = False  # the bit DO: a reply repeats it
    size_bytes: int = PLAIN_bytes  # what the asker takes over UDP
    subnet: Subnet | None = None

    @property
    def name(self):
        """Labels in lower case: names are the same in any case (RFC 4343)."""
        return tuple(label.lower() for label in self.question.qname.label)


class Dropped(NamedTuple):
    """What is not replied to."""

    reason: str


def read(packet, ecs=True):
    """The Query of a packet, or Dropped. ecs: whether the option Client Subnet counts; else it is not looked at."""
    if len(packet) < HEADER_bytes:
        return Dropped("short")
    number, flags, questions, answers, authority, additional = struct.unpack("!6H", packet[:HEADER_bytes])
    query = Query(number, flags)
    if flags & QR:
        return Dropped("response")  # to reply to one could go on for ever
    if flags >> OPCODE_shift & 15 != QUERY:
        return query._replace(rcode=NOTIMP)
    if questions != 1 or answers or authority or additional > ADDITIONAL_MAX or len(packet) > QUERY_MAX_bytes:
        return query._replace(rcode=FORMERR)
    try:
        record = DNSRecord.parse(_plain(packet, additional))
        return _with_edns(query._replace(question=record.q), record, ecs)
    except Exception:  # the parser has errors of many kinds
        return query._replace(rcode=FORMERR)


def _plain(packet, additional):
    """The query without records that are not OPT, so that its parser sees nothing that takes long. ValueError,
    IndexError or struct.error if it is cut short, or its names are compressed or too long."""
    question_end = at = _name_end(packet, HEADER_bytes) + 4
    kept = []
    for _ in range(additional):
        fields = _name_end(packet, at)
        kind, length = struct.unpack_from("!H6xH", packet, fields)
        at, start = fields + 10 + length, at
        if kind == QTYPE.OPT:
            kept.append(packet[start:at])
    if at > len(packet):
        raise ValueError("it is cut short")
    return packet[:10] + struct.pack("!H", len(kept)) + packet[HEADER_bytes:question_end] + b"".join(kept)


def _name_end(packet, at):
    """Where what follows a name begins. There is nothing in a query that a name could point to."""
    start = at
    while packet[at]:
        if packet[at] > LABEL_bytes:
            raise ValueError("no label is so long, or it is a pointer")
        at += 1 + packet[at]
    if at - start > NAME_bytes + 1:
        raise ValueError("no name is so long")
    return at + 1


def _with_edns(query, record, ecs):
    found = [rr for rr in record.ar if rr.rtype == QTYPE.OPT]
    if not found:
        return query
    query = query._replace(edns=True)
    if len(found) > 1 or found[0].rname.label:
        return query._replace(rcode=FORMERR)
    opt = found[0]
    size = min(max(opt.edns_len, PLAIN_bytes), EDNS_bytes)
    query = query._replace(wants_dnssec=bool(opt.edns_do), size_bytes=size)
    if opt.edns_ver:
        return query._replace(rcode=BADVERS)
    try:
        subnets = [subnet_of(option.data) for option in opt.rdata if ecs and option.code == CLIENT_SUBNET]
    except ValueError:
        return query._replace(rcode=FORMERR)
    return query._replace(subnet=subnets[0] if subnets else None)


def subnet_of(data):
    """Subnet of an option's data. ValueError if it is malformed, which is a FORMERR (RFC 7871, section 7.1.2)."""
    family, source, scope = struct.unpack("!HBB", data[:4].ljust(4, b"\xff"))
    version = {0: 0, 1: 4, 2: 6}.get(family)
    bits = {0: 0, 4: 32, 6: 128}.get(version, -1)
    address = data[4:]
    if scope or source > bits or len(address) != (source + 7) // 8:
        raise ValueError("its lengths do not fit")
    if not source:
        return Subnet(family, source, address, None)
    whole = ipaddress.ip_address(address.ljust(bits // 8, b"\0"))
    return Subnet(family, source, address, ipaddress.ip_network((whole, source)))  # bits behind it: ValueError


# --- replies


def refusal(query, rcode=None):
    """Reply without records; the rcode is the query's own, or REFUSED and the like."""
    return _packed(_reply(query, query.rcode if rcode is None else rcode), TCP_bytes)


def addresses_reply(query, addresses, ttl_seconds, tcp):
    """Reply with the addresses of the kind that was asked for, of one kind to ANY; no data if there are none."""
    every = [ipaddress.ip_address(address) for address in addresses]
    version = VERSION_OF.get(query.question.qtype) or min((address.version for address in every), default=4)
    chosen = [address for address in every if address.version == version]
    if not chosen:
        return no_data(query, ttl_seconds)
    reply = _reply(query, NOERROR, scope_of(query.subnet))
    for address in chosen:
        kind, data = (QTYPE.A, A) if address.version == 4 else (QTYPE.AAAA, AAAA)
        reply.add_answer(RR(query.question.qname, kind, ttl=ttl_seconds, rdata=data(str(address))))
    return _packed(reply, TCP_bytes if tcp else query.size_bytes)


def scope_of(subnet):
    """For what part of the user's address the addresses of a reply hold, bits (RFC 7871, section 7.2.1)."""
    return USER_bits[subnet.network.version] if subnet and subnet.network else 0


def no_data(query, ttl_seconds):
    """The name is ours, but has no such record: SOA in the authority section (RFC 2308, 2.2)."""
    reply = _reply(query, NOERROR)
    add = reply.add_answer if query.question.qtype == QTYPE.SOA else reply.add_auth
    add(_soa(query.question.qname, ttl_seconds))
    return _packed(reply, TCP_bytes)


def truncated(query):
    """Reply that makes the asker come again over TCP."""
    reply = _reply(query, NOERROR)
    reply.header.tc = 1
    return _packed(reply, TCP_bytes)


def _soa(name, ttl_seconds):
    """Each name is a zone of its own."""
    times = (SERIAL, REFRESH_seconds, RETRY_seconds, EXPIRE_seconds, ttl_seconds)
    return RR(name, QTYPE.SOA, ttl=ttl_seconds, rdata=SOA(name, name, times))


def _reply(query, rcode, scope=0):
    opcode = query.flags >> OPCODE_shift & 15
    header = DNSHeader(id=query.number, bitmap=QR | opcode << OPCODE_shift | query.flags & (RD | CD) | rcode & 15)
    header.aa = rcode == NOERROR
    reply = DNSRecord(header, q=query.question)
    if query.edns:
        subnet = query.subnet
        options = [EDNSOption(CLIENT_SUBNET, _subnet_data(subnet, scope))] if subnet else []
        flags = "do" if query.wants_dnssec else ""
        reply.add_ar(EDNS0("", ext_rcode=rcode >> 4, flags=flags, udp_len=EDNS_bytes, opts=options))
    return reply


def _subnet_data(subnet, scope):
    return struct.pack("!HBB", subnet.family, subnet.source, scope) + subnet.address


def _packed(reply, limit_bytes):
    """Bytes; if there are too many, without answers and with TC (RFC 2181, section 9)."""
    data = bytes(reply.pack())
    if len(data) <= limit_bytes:
        return data
    reply.rr, reply.header.tc = [], 1
    return bytes(reply.pack())


def refuses(query):
    """Whether nobody gets what is asked for: another class than the Internet's, a whole zone."""
    return query.question.qclass != CLASS.IN or query.question.qtype in TRANSFERS


def wants_addresses(query):
    return query.question.qtype in (*VERSION_OF, QTYPE.ANY)

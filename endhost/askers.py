"""Users who ask the DNS for an address: new ones from prefixes drawn at random, and some who ask again and again.

Each query carries its user's prefix as EDNS Client Subnet (RFC 7871), as a resolver would tell it.
"""

import random
import socket
import time

from dnslib import EDNS0, DNSRecord, EDNSOption

from endhost.report import begin_at, tell

ECS = 8  # option code
TIMEOUT_seconds = 1.0
REPLY_bytes = 4096
NETWORK = 10  # users are of 10.0.0.0/8
REGULARS = 10


def query(name, user):
    """A DNSRecord that asks for the address of a name, for a user of the /24, three numbers."""
    asked = DNSRecord.question(name)
    asked.add_ar(EDNS0(udp_len=1232, opts=[EDNSOption(ECS, bytes([0, 1, 24, 0, *user]))]))
    return asked


def ask(sock, server, name, user):
    """The first address that the server answers with, None if it does not in time or with none."""
    asked = query(name, user)
    sock.sendto(asked.pack(), server)
    limit = time.monotonic() + TIMEOUT_seconds
    while (left := limit - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            reply = DNSRecord.parse(sock.recv(REPLY_bytes))
        except TimeoutError:
            break
        if reply.header.id == asked.header.id:
            return next((str(record.rdata) for record in reply.rr), None)
    return None


async def askers(server, domain_name, begin_ns, seconds, every_s, seed):
    """The role: a query every_s, in turn of a new user and of one of REGULARS, for `seconds`; tells each answer.

    server: (address, port).
    """
    rng = random.Random(seed)
    regulars = [(NETWORK, 255, number) for number in range(REGULARS)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(round(seconds / every_s)):
            await begin_at(begin_ns, number * every_s)
            turn, is_regular = divmod(number, 2)
            user = regulars[turn % REGULARS] if is_regular else (NETWORK, rng.randrange(255), rng.randrange(256))
            tell(user=user, regular=bool(is_regular), address=ask(sock, tuple(server), domain_name, user))

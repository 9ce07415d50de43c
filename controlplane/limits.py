"""Bounds, so that no client holds up the service: requests in a second, bytes of a body. Pure; time is an argument."""

import zlib
from collections import OrderedDict

CLIENTS_MAX = 10_000  # whose requests are counted; the one that asked longest ago is forgotten
MEMBERS_MAX = 16  # of gzip data
GZIP = 16 + zlib.MAX_WBITS  # zlib's sign for the gzip format


class TooLarge(Exception):
    """More bytes than may be."""


class Buckets:
    """A token bucket for each client: `rate` requests a second, and as many at once."""

    def __init__(self, rate):
        self.rate, self.buckets = rate, OrderedDict()

    def wait_s(self, client, now_s):
        """0 if the client may ask now, which counts; else the seconds until it may."""
        left, since = self.buckets.pop(client, (self.rate, now_s))
        left = min(self.rate, left + max(0.0, now_s - since) * self.rate)
        self.buckets[client] = (left - 1 if left >= 1 else left, now_s)
        if len(self.buckets) > CLIENTS_MAX:
            self.buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


def gunzip(data, most_bytes):
    """What gzip data (RFC 1952, members one after the other) unpacks to. TooLarge; ValueError if it is none."""
    found = bytearray()
    for _ in range(MEMBERS_MAX):
        unpacker = zlib.decompressobj(GZIP)
        try:
            found += unpacker.decompress(data, most_bytes + 1 - len(found))
        except zlib.error as error:
            raise ValueError("the body is no gzip data") from error
        if len(found) > most_bytes:
            raise TooLarge
        if not unpacker.eof:
            raise ValueError("the body ends within its gzip data")
        data = unpacker.unused_data
        if not data:
            return bytes(found)
    raise ValueError(f"the body has more than {MEMBERS_MAX} gzip members")

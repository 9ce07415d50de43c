"""Bulk transfer over the kernel's TCP: a source that sends without end to whoever connects, and who fetches from it."""

import asyncio
import contextlib
import time

from endhost.report import begin_at, tell

PORT = 5001
CHUNK_bytes = 1 << 16
SAMPLE_seconds = 0.5


async def source(address):
    """The role: send to each connection until it is closed."""

    async def send(_, writer):
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(CHUNK_bytes))
                await writer.drain()

    await asyncio.start_server(send, address, PORT)


class Fetched:
    """Bytes of all connections so far."""

    total = 0


async def fetch_one(address, begin_ns, delay_s, fetched):
    await begin_at(begin_ns, delay_s)
    reader, _ = await asyncio.open_connection(address, PORT)
    while chunk := await reader.read(CHUNK_bytes):
        fetched.total += len(chunk)


async def fetch(address, begin_ns, seconds, delays_s):
    """The role: one connection for each of delays_s, begun so long after begin_ns; all end `seconds` after it. Tells
    the bytes received so far now and then.
    """

    async def sample():
        await begin_at(begin_ns)
        while True:
            tell(received=fetched.total)
            await asyncio.sleep(SAMPLE_seconds)

    fetched = Fetched()
    flows = [fetch_one(address, begin_ns, delay_s, fetched) for delay_s in delays_s]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(sample(), *flows), begin_ns / 1e9 + seconds - time.time())
    tell(received=fetched.total)

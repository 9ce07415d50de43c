"""The DNS server: sockets, and what a query goes through. `dnsmessage` reads and writes, `redirect` decides.

Over UDP an asker who comes too often, and a reply that is too large, get TC: over TCP nobody can ask in another's name.
Replies are at most about as long as the addresses of a data centre, so there is little to amplify.
"""

import asyncio
import contextlib
import socket
from typing import NamedTuple

from controlplane import dnsmessage
from controlplane.dnscounts import Counts, RateLimit, asker_prefix
from controlplane.prefixes import cut

WAITING_MAX = 2048  # queries over UDP that wait for the service; more are answered without it
CONNECTIONS_MAX, CONNECTIONS_OF_ONE_MAX = 256, 32  # TCP
IDLE_seconds = 10.0  # a connection without a query is closed (RFC 7766, section 6.2.3)
LENGTH_bytes = 2
DRAIN_seconds, DRAIN_CHECK_seconds = 2.0, 0.02
RCODES = {0: "NOERROR", 1: "FORMERR", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}


class Item(NamedTuple):
    """A name that is answered."""

    content: str
    fallback: tuple  # addresses, text


class Settings(NamedTuple):
    items: dict  # {labels in lower case: Item}
    ttl_seconds: int
    ecs: bool  # whether Client Subnet counts
    rate: float  # queries over UDP that an asker's prefix may send in a second


class Responder:
    """Replies to packets, whatever brought them."""

    def __init__(self, settings, redirector, clock):
        self.settings, self.redirector, self.clock = settings, redirector, clock
        self.counts, self.limit, self.ending = Counts(), RateLimit(settings.rate), False

    def configure(self, settings):
        self.settings, self.limit.rate = settings, settings.rate

    def begin(self, packet, host, tcp):
        """Bytes of the reply, None if there is to be none, or a coroutine of them that waits for the service."""
        self.counts.received["TCP" if tcp else "UDP"] += 1
        if self.ending:
            return self._drop("ending")
        query = dnsmessage.read(packet, self.settings.ecs)
        if isinstance(query, dnsmessage.Dropped):
            return self._drop(query.reason)
        if not tcp and not self.limit.allows(asker_prefix(host), self.clock()):
            return self._reply("TC", dnsmessage.truncated(query))
        item = self.settings.items.get(query.name) if not query.rcode else None
        if item is None or dnsmessage.refuses(query):
            rcode = query.rcode or dnsmessage.REFUSED
            return self._reply(RCODES[rcode], dnsmessage.refusal(query, rcode))
        if not dnsmessage.wants_addresses(query):
            return self._reply("NOERROR", dnsmessage.no_data(query, self.settings.ttl_seconds))
        return self._look_up(query, item, host, tcp)

    def _look_up(self, query, item, host, tcp):
        prefix = self._user(query, host)
        answer = self.redirector.at_hand(prefix, item)
        if answer is None and not tcp and self.counts.waiting > WAITING_MAX:
            answer = self.redirector.without(prefix, item)
        if answer is None:
            return self._wait(query, item, prefix, tcp)
        return self._answer(query, answer, tcp)

    def _user(self, query, host):
        """The prefix whose data centre counts, as text."""
        network = query.subnet.network if query.subnet else None
        return str(cut(network)) if network else asker_prefix(host)

    async def _wait(self, query, item, prefix, tcp):
        return self._answer(query, await self.redirector.answer(prefix, item), tcp)

    def _answer(self, query, answer, tcp):
        self.counts.origins[answer.origin] += 1
        reply = dnsmessage.addresses_reply(query, answer.addresses, self.settings.ttl_seconds, tcp)
        return self._reply("NOERROR", reply)

    def _reply(self, kind, data):
        self.counts.replied[kind] += 1
        return data

    def _drop(self, reason):
        self.counts.dropped[reason] += 1


class Datagrams(asyncio.DatagramProtocol):
    """The UDP side."""

    def __init__(self, responder):
        self.responder, self.transport, self.tasks = responder, None, set()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        reply = self.responder.begin(data, address[0], tcp=False)
        if asyncio.iscoroutine(reply):
            task = asyncio.ensure_future(self._later(reply, address))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif reply is not None:
            self.transport.sendto(reply, address)

    async def _later(self, reply, address):
        self.transport.sendto(await reply, address)

    def error_received(self, _):
        """Nothing: an asker has gone (ICMP)."""


class Streams:
    """The TCP side: a query after the other on each connection."""

    def __init__(self, responder):
        self.responder, self.open = responder, {}  # {task: prefix of who asks}

    async def serve(self, reader, writer):
        host, task = writer.get_extra_info("peername")[0], asyncio.current_task()
        asker, others = asker_prefix(host), list(self.open.values())
        try:
            if len(others) < CONNECTIONS_MAX and others.count(asker) < CONNECTIONS_OF_ONE_MAX:
                self.open[task] = asker
                await self._converse(reader, writer, host)
        except (OSError, EOFError, TimeoutError):
            pass  # the other side has gone, or is idle or slow
        finally:
            await _closed(writer)
            self.open.pop(task, None)

    async def _converse(self, reader, writer, host):
        while True:
            async with asyncio.timeout(IDLE_seconds):
                length = int.from_bytes(await reader.readexactly(LENGTH_bytes))
                packet = await reader.readexactly(length) if length <= dnsmessage.QUERY_MAX_bytes else b""
            reply = self.responder.begin(packet, host, tcp=True)
            if asyncio.iscoroutine(reply):
                reply = await reply
            if reply is None:
                return  # who sends such a packet gets no more
            writer.write(len(reply).to_bytes(LENGTH_bytes) + reply)
            async with asyncio.timeout(IDLE_seconds):
                await writer.drain()


async def _closed(writer):
    """Close a connection: who does not take what was written within IDLE_seconds does not get it."""
    writer.close()
    try:
        async with asyncio.timeout(IDLE_seconds):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass  # the other side has gone, or does not read
    finally:
        writer.transport.abort()


class Server:
    """UDP and TCP on pairs of sockets."""

    def __init__(self, responder):
        self.responder, self.streams = responder, Streams(responder)
        self.datagrams, self.listeners = [], []

    async def start(self, pairs):
        """Serve pairs of bound sockets (UDP, TCP; the latter listening)."""
        loop = asyncio.get_running_loop()
        for udp, tcp in pairs:
            _, protocol = await loop.create_datagram_endpoint(lambda: Datagrams(self.responder), sock=udp)
            self.datagrams.append(protocol)
            self.listeners.append(await asyncio.start_server(self.streams.serve, sock=tcp))

    async def stop(self):
        """Take nothing new, reply to what waits, without the service after DRAIN_seconds, end."""
        for listener in self.listeners:
            listener.close()
        self.responder.ending = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_seconds):
                while self.responder.counts.waiting:
                    await asyncio.sleep(DRAIN_CHECK_seconds)
        if self.responder.counts.waiting:
            self.responder.redirector.give_up()
            await asyncio.sleep(DRAIN_CHECK_seconds)
        for task in [*(task for protocol in self.datagrams for task in protocol.tasks), *self.streams.open]:
            task.cancel()
        for protocol in self.datagrams:
            protocol.transport.close()


def bind(family, where):
    """(UDP, TCP) sockets on a socket address; OSError."""
    udp, tcp = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (udp, tcp):
            one.setblocking(False)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tcp.bind(where)
        udp.bind((where[0], tcp.getsockname()[1], *where[2:]))  # port 0: the same for both
        tcp.listen()
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp

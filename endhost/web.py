"""HTTP/3 over QUIC by aioquic: a server that answers with as many bytes as asked for, and a client of it.

`GET /N` and `POST /N` are answered with N bytes. An answer of some 1200 bytes or less leaves as one datagram of about
N + 45 bytes, as the service's answer to a toggle does (docs/iqn.md).
"""

import asyncio
import datetime
import ssl

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PORT = 443
DATAGRAM_bytes = 1300
IDLE_seconds = 3600.0  # an agent has nothing to say while all goes well
NAME = "video.invalid"  # RFC 2606


def certificate():
    """(certificate, key) for NAME, signed by itself, for a day."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    return made.sign(key, hashes.SHA256()), key


class Answering(QuicConnectionProtocol):
    """The server's end of a connection."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.http, self.asked = None, {}

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        for found in self.http.handle_event(event) if self.http else ():
            if isinstance(found, HeadersReceived):
                self.asked[found.stream_id] = int(dict(found.headers)[b":path"].strip(b"/"))
            if isinstance(found, (HeadersReceived, DataReceived)) and found.stream_ended:
                self.answer(found.stream_id, self.asked.pop(found.stream_id))

    def answer(self, stream, size):
        self.http.send_headers(stream, [(b":status", b"200")])
        self.http.send_data(stream, bytes(size), end_stream=True)
        self.transmit()


async def listen(address):
    """Answer at PORT of the address from now on."""
    settings = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN, idle_timeout=IDLE_seconds)
    settings.max_datagram_size = DATAGRAM_bytes
    settings.certificate, settings.private_key = certificate()
    await serve(address, PORT, configuration=settings, create_protocol=Answering)


class Asking(QuicConnectionProtocol):
    """The client's end. `received`: bytes of answers so far."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.http, self.waiting, self.received = H3Connection(self._quic), {}, 0

    def ask(self, method, size):
        """Send a request at once, in a datagram of its own; a future that ends with the answer."""
        stream = self._quic.get_next_available_stream_id()
        names = {":method": method, ":scheme": "https", ":authority": NAME, ":path": f"/{size}"}
        self.http.send_headers(stream, [(k.encode(), v.encode()) for k, v in names.items()], end_stream=True)
        found = self.waiting[stream] = asyncio.get_running_loop().create_future()
        self.transmit()
        return found

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            for future in self.waiting.values():
                future.cancel(f"the connection ended: {event.reason_phrase}")
        for found in self.http.handle_event(event):
            if isinstance(found, DataReceived):
                self.received += len(found.data)
            if isinstance(found, (HeadersReceived, DataReceived)) and found.stream_ended:
                self.over(found.stream_id)

    def over(self, stream):
        """The answer is complete; perhaps nobody waits for it any more."""
        waiting = self.waiting.pop(stream)
        if not waiting.done():
            waiting.set_result(None)


def asking(address):
    """A context with an Asking to the server at the address."""
    settings = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, idle_timeout=IDLE_seconds)
    settings.server_name = NAME
    settings.verify_mode = ssl.CERT_NONE  # it vouches for itself
    return connect(address, PORT, configuration=settings, create_protocol=Asking)

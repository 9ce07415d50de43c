"""What every request passes: rate, token, size of its body; and what every reply is given. ASGI, around the API.

Bodies are read here, whole and bounded, and unpacked, so that no route has to think of it.
"""

import asyncio
import base64
import hmac
import ipaddress
import math
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders

from controlplane.limits import Buckets, TooLarge, gunzip
from controlplane.problems import Refused, later, reply

BODY_seconds = 10.0  # for a body to come
BODIES_MAX = 16  # as large as may be, at a time
DISCARDED = 8  # times as much as may be is read of a body that is too large, so that its sender reads the reply
BIG_bytes = 1 << 15  # unpacked in another thread
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
CHALLENGES = ('Basic realm="qoetap"', 'Bearer realm="qoetap"')  # a header each: chromium reads one


class Guard:
    """The API behind bounds. token: what every request must bring, None: nothing."""

    def __init__(self, app, token, body_bytes, requests):
        self.app, self.token, self.body_bytes = app, token, body_bytes
        self.buckets, self.refused, self.coming_bytes = Buckets(requests), 0, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        held = [0]
        try:
            try:
                headers = Headers(scope=scope)
                self._admit(scope, headers)
                receive = await self._body(headers, receive, held)
            except Refused as error:
                self.refused += 1
                await challenging(reply(error))(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            self.coming_bytes -= held[0]

    def _admit(self, scope, headers):
        """Refused if this client must not ask, or not now."""
        client = (scope.get("client") or ("",))[0]
        wait_s = self.buckets.wait_s(client, time.monotonic())
        if wait_s:
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"more than {self.buckets.rate} requests in a second",
                {"Retry-After": str(math.ceil(wait_s))},
            )
        if self.token is not None and not given(headers.get("authorization", ""), self.token):
            detail = "this needs the token: send Authorization: Bearer TOKEN"
            raise Refused(HTTPStatus.UNAUTHORIZED, detail)
        if self.token is None and not by_address(headers.get("host", "localhost")):
            raise Refused(HTTPStatus.FORBIDDEN, "name this server by its address or localhost, or set a token")

    async def _body(self, headers, receive, held):
        """A `receive` that gives the whole body. Refused if it is too large, too slow or cannot be unpacked."""
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            detail = f"Content-Encoding {encoding[:20]!r} is not known: send gzip, or none"
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, {"Accept-Encoding": "gzip"})
        try:
            async with asyncio.timeout(BODY_seconds):
                body = await self._read(receive, held)
            body = body if encoding == "identity" or not body else await self._unpacked(body, held)
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come in {BODY_seconds:g} s") from None
        except TooLarge:
            detail = f"a body has at most {self.body_bytes} bytes, unpacked"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail) from None
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        return _replayed(body, receive)

    async def _read(self, receive, held):
        """The body as it was sent. TooLarge, when what is too much has been read too, within reason."""
        parts, size, more = [], 0, True
        while more and size <= self.body_bytes * DISCARDED:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ValueError("the client went away")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self.body_bytes:
                self._hold(len(part), held)
                parts.append(part)
        if size > self.body_bytes:
            raise TooLarge
        return b"".join(parts)

    async def _unpacked(self, body, held):
        if len(body) < BIG_bytes:
            found = gunzip(body, self.body_bytes)
        else:
            found = await asyncio.to_thread(gunzip, body, self.body_bytes)
        self._hold(len(found), held)
        return found

    def _hold(self, size, held):
        """Count bytes that are held in memory. Refused if these are too many."""
        if self.coming_bytes + size > self.body_bytes * BODIES_MAX:
            raise later("too many large bodies at a time")
        self.coming_bytes += size
        held[0] += size


def challenging(answer):
    """A response that says how to bring the token, if it is about that."""
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        for challenge in CHALLENGES:
            answer.headers.append("WWW-Authenticate", challenge)
    return answer


def given(authorization, token):
    """Whether the header brings the token: as such (RFC 6750), or as the password of Basic (RFC 7617)."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() == "bearer":
        value = value.strip().encode("latin-1")  # the bytes that were sent
    else:
        return False
    return hmac.compare_digest(value, token.encode())


def by_address(host):
    """Whether no name of somebody else's was resolved to us: else a page in a browser could ask (DNS rebinding)."""
    bare = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if bare.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(bare.strip("[]"))
    except ValueError:
        return False
    return True


def _replayed(body, receive):
    """A `receive` that first gives the body; after that, it tells when the client goes away."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return first.pop() if first else await receive()

    return replay


def _with_headers(send):
    """A `send` that adds the headers which a reply has not got."""

    async def sending(message):
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending

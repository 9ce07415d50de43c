"""A web server for page loads over HTTP/1.1 (RFC 9112): a page of 2.5 MB with 27 objects, and a file of 30 MB.

Each answer has a Content-Length and the connection is kept. `GET /` is the HTML, which names the objects.
"""

import asyncio
import contextlib
import random

PORT = 8080
PAGE_bytes, OBJECTS, FILE_bytes = 2_500_000, 27, 30_000_000
HTML_bytes = 40_000  # of PAGE_bytes
SEED = 27
ELEMENTS = (("css", '<link rel="stylesheet" href="/{}">'), ("js", '<script src="/{}"></script>'))
IMAGE = ("jpg", '<img src="/{}" alt="">')
TYPES = {"": "text/html", "css": "text/css", "js": "text/javascript", "jpg": "image/jpeg", "bin": "application/x-data"}
HEAD_bytes = 1 << 16  # of a request, at most


def site():
    """{path: content} of all that is served. Sizes of objects are drawn once and for all, exponentially."""
    rng = random.Random(SEED)
    shares = [rng.expovariate(1) + 0.05 for _ in range(OBJECTS)]
    sizes = [int((PAGE_bytes - HTML_bytes) * share / sum(shares)) for share in shares]
    sizes[-1] += PAGE_bytes - HTML_bytes - sum(sizes)
    kinds = [ELEMENTS[0]] * 2 + [ELEMENTS[1]] * 5 + [IMAGE] * (OBJECTS - 7)
    names = [f"{number}.{kind}" for number, (kind, _) in enumerate(kinds, 1)]
    body = "\n".join(text.format(name) for name, (_, text) in zip(names, kinds, strict=True))
    html = f"<!DOCTYPE html><title>page</title>\n{body}\n".encode()
    files = {f"/{name}": bytes(size) for name, size in zip(names, sizes, strict=True)}
    return {"/": html + b" " * (HTML_bytes - len(html)), **files, "/file.bin": bytes(FILE_bytes)}


def answer(files, request):
    """(head, content) for the first line of a request."""
    words = request.split()
    path = words[1] if len(words) == 3 and words[0] == "GET" else None
    content = files.get(path)
    if content is None:
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b""
    kind = TYPES[path.rpartition("/")[2].rpartition(".")[2]]
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode(), content


async def webpages(address, port=PORT):
    """The role: answer from now on."""
    files = site()

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").partition("\r\n")[0]
                for part in answer(files, request):
                    writer.write(part)
                await writer.drain()
        writer.close()

    await asyncio.start_server(serve, address, port, limit=HEAD_bytes)

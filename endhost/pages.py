"""A page-load prober: fetches a page and all the objects that it names, as a browser does, and tells how long it took.

It runs no scripts and draws nothing: what a script would fetch does not count. Over HTTP/1.1 with CONNECTIONS to a
host, as browsers have, opened anew for each page.
"""

import asyncio
import contextlib
import time
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import httpx

from endhost.report import begin_at, tell

CONNECTIONS = 6
TIMEOUT_seconds = 120.0
SOURCES = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LINKED = {"stylesheet", "icon", "preload"}  # rel of what a browser fetches by itself


class Loaded(NamedTuple):
    """A page, or a file, that was loaded."""

    seconds: float
    bytes: int
    parts: int  # the page itself and its objects


class Named(HTMLParser):
    """Collects in `urls` what the page names, each once, relative to `base`."""

    def __init__(self, base):
        super().__init__()
        self.base, self.urls = base, {}

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        url = found.get(SOURCES.get(tag))
        if tag == "link" and LINKED & set((found.get("rel") or "").lower().split()):
            url = found.get("href")
        with contextlib.suppress(ValueError):  # it is no URL
            whole = urljoin(self.base, (url or "").strip()).partition("#")[0]
            if url and urlsplit(whole).scheme in ("http", "https"):
                self.urls[whole] = None


def objects_of(url, html):
    """URLs of the objects that the page names, in their order."""
    named = Named(url)
    named.feed(html)
    return list(named.urls)


async def load(url):
    """Load it with all that it names. httpx.HTTPError: it does not answer, or answers with an error."""
    began = time.monotonic()
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_seconds, trust_env=False) as client:
        first, size = await fetched(client, url)
        is_page = first.headers.get("content-type", "").startswith("text/html")
        names = objects_of(str(first.url), first.text) if is_page else []
        rest = await asyncio.gather(*(fetched(client, name) for name in names))
    return Loaded(time.monotonic() - began, size + sum(more for _, more in rest), 1 + len(rest))


async def fetched(client, url):
    """(response, its length in bytes)"""
    response = await client.get(url, follow_redirects=True)
    response.raise_for_status()
    return response, len(response.content)


async def pages(url, begin_ns, every_s, count, report=None):
    """The role: load the page `count` times, every_s apart or one after the other if that takes longer, and tell each.

    report: {url, path, content} if POST /v1/page-loads of a service at that URL is to be told too.
    """
    for number in range(count):
        await begin_at(begin_ns, number * every_s)
        began = time.time_ns()
        loaded = await load(url)
        tell(began_ns=began, **loaded._asdict())
        if report:
            await post(**report, seconds=loaded.seconds, ts_ns=began, bytes=loaded.bytes)


async def post(url, **page_load):
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.post(url, json=[page_load])).raise_for_status()

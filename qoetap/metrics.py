"""The server that Prometheus asks: /metrics, made of one snapshot of the agent's numbers, and /healthz."""

import os
import threading
from http import HTTPStatus

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from qoetap import serving
from qoetap.families import FAMILIES

PLACE = serving.Place("live.metrics", "127.0.0.1:9464", "QOETAP_METRICS_TOKEN")
TEXT = "text/plain; charset=utf-8"


def read_token(environ=os.environ):
    """The token of the environment, as of serving.read_token."""
    return serving.read_token(PLACE, environ)


class AgentCollector:
    """All families of one snapshot, which is taken for each scrape."""

    def __init__(self, snapshot, families=FAMILIES):
        self.snapshot, self.families = snapshot, families

    def collect(self):
        snapshot = self.snapshot()
        return [family.of(snapshot) for family in self.families]


class Handler(serving.Handler):
    """One request."""

    def do_GET(self):
        pages = {"/metrics": self.server.metrics, "/healthz": self.server.health}
        page = pages.get(self.path.partition("?")[0])
        if not self.may_ask():
            text = "this needs the token: send Authorization: Bearer TOKEN\n"
            self.answer(HTTPStatus.UNAUTHORIZED, text, TEXT)
        elif page is None:
            self.answer(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz\n", TEXT)
        else:
            self.answer(*self.made(page))

    do_HEAD = do_GET

    def made(self, page):
        """(status, text, type) of a page. Whatever goes wrong with it, the agent must live."""
        try:
            return page(self.headers.get("Accept"))
        except Exception as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"no numbers: {type(error).__name__}: {error}\n", TEXT


class Server(serving.Server):
    """Answers with what `snapshot()` tells."""

    def __init__(self, family, where, snapshot, token, families):
        self.snapshot, self.asking = snapshot, threading.Lock()
        self.registry = CollectorRegistry()
        self.registry.register(AgentCollector(self.take, families))
        ProcessCollector(registry=self.registry)
        super().__init__(family, where, Handler, token)

    def take(self):
        """A snapshot, one at a time."""
        with self.asking:
            return self.snapshot()

    def metrics(self, accept):
        encode, kind = choose_encoder(accept)
        return HTTPStatus.OK, encode(self.registry), kind

    def health(self, _):
        snapshot = self.take()
        why = snapshot["why"]
        if snapshot["healthy"]:
            return HTTPStatus.OK, f"ok, but {why}\n" if why else "ok\n", TEXT
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n", TEXT


class Exporter(serving.Service):
    """Serves the numbers of `snapshot()` on `address` (HOST:PORT; port 0: any that is free) until `close`.

    token: what requests must bring, None: nothing; families: of which metrics. `address` then says where. Exit if that
    cannot be.
    """

    def __init__(self, address, snapshot, token=None, families=FAMILIES):
        family, where = serving.endpoint(address, PLACE, token)
        server = serving.made(lambda: Server(family, where, snapshot, token, families), address, PLACE)
        super().__init__(server, "qoetap-metrics")

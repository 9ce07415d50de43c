"""The real service in this process, on a port of loopback, at a time that the test sets."""

import numpy as np

from controlplane import api, load, selection
from controlplane.centres import Selection
from controlplane.page_routes import page_routes
from controlplane.service import LoadService, Settings
from controlplane.store import Store
from qoetap import config
from qoetap.serve import Server, bound
from tests.pages import MODEL, NS, NOW_ns, events


class Site:
    """names: {agent: path}; model: document for all paths, or None; section: `serve` of the configuration."""

    def __init__(self, folder, names=None, model=MODEL, section=None, token=None):
        self.now_ns, self.store = NOW_ns, Store(str(folder / "state.sqlite"))
        named = {(agent, f"{0:016x}", 0): name for agent, name in (names or {}).items()}
        settings = Settings(10**6 * NS, 4 * NS, named, model=model and load.from_document(model))
        self.service = LoadService(self.store, settings, NOW_ns)
        serve = config.load([config.Layer("the test", {"serve": section or {}})], {}).serve
        self.selection = Selection(self.service.reading_of, self.service.load_at, self.store, serve)
        pages = page_routes(self.service, self.clock, lambda: self.selection.in_force(self.now_ns))
        routers = (pages, selection.router(self.selection, self.clock))
        app, self.streams = api.make(self.service, api.Limits(token), routers=routers, clock=self.clock)
        self.server = Server(app, bound("127.0.0.1:0", None))
        self.url = f"http://{self.server.address}/"

    def clock(self):
        return self.now_ns

    def hear(self, agent, load, *, until_ns=NOW_ns):
        """Take events of an agent whose path has this load, 4 s apart, the last one at until_ns; or these loads."""
        delays_ns = MODEL["a_ns"] * np.exp(MODEL["b"] * np.broadcast_to(load, np.shape(load) or 50))
        taken = self.service.take(events(agent, delays_ns.astype(int).tolist(), until_ns), until_ns)
        assert taken["accepted"] and not taken["rejected"]

    def close(self):
        self.streams.ending = True
        self.server.close()

"""`qoetap serve`: events in, loads out over HTTP, until told to end. Puts state, service, API and inputs together.

The server runs in a thread of its own, so that this one hears signals: TERM and INT end it once what was begun is
answered, HUP reads paths and models anew.
"""

import contextlib
import json
import logging
import signal
import socket
import sys
import threading
import time

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

import detectors as registry
from controlplane import api, load, selection
from controlplane.centres import Selection
from controlplane.database import Busy, StateError
from controlplane.page_routes import page_routes
from controlplane.service import LoadService, Settings
from controlplane.store import Store
from qoetap import __version__, config, serving
from qoetap.events_in import open_source
from qoetap.exits import DONE, RUN_ERROR, USAGE, Exit
from qoetap.notify import Notifier
from qoetap.say import say
from qoetap.signals import Signals, put_off

PLACE = serving.Place("serve.listen", "127.0.0.1:9470", "QOETAP_SERVE_TOKEN")
LOOK_seconds = 0.25
TIDY_seconds = 1.0
DRAIN_seconds = 3  # for requests that were begun
END_seconds = 4.0  # for the server, all in all; inputs have theirs before, so that it is less than 10 s together
CONNECTIONS_MAX = 1024
SWITCH_seconds = 0.001  # between threads; with Python's 5 ms, p99 beside large batches is 2.5 to 6 times as long
KEEP_ALIVE_seconds = 30  # agents post once a second or so
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ENDING = (signal.SIGTERM, signal.SIGINT)
FIXED = ("listen", "state", "events", "body", "requests")  # of the section: they take a restart


def layers(args):
    """Layers of the configuration, the command line's last."""
    found = [config.read_file(args.config)] if args.config else []
    found += [config.assignment(text) for text in args.set]
    given = {"--listen": ("listen", args.listen), "--state": ("state", args.state), "--model": ("model", args.model)}
    given["-r"] = ("events", args.read)
    return found + [config.Layer(option, {"serve": {key: value}}) for option, (key, value) in given.items() if value]


def settings_of(args):
    """The section `serve`. Exit if something is wrong with the configuration."""
    known = registry.load_all()
    serve = config.load(layers(args), known).serve
    for key, values in (
        ("name", [path.name for path in serve.paths]),
        ("agent, master_clock and domain", [whose(path) for path in serve.paths]),
    ):
        if len(set(values)) < len(values):
            raise Exit(USAGE, f"serve.paths: two have the same {key}")
    return serve


def whose(path):
    return path.agent, path.master_clock, path.domain


def read_model(path, key):
    """Model of a file. Exit if it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return load.from_document(json.load(file))
    except OSError as error:
        raise Exit(USAGE, f"{key}: {path} cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise Exit(USAGE, f"{key}: {path} is no JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise Exit(USAGE, f"{key}: {path}: {error}") from error


def service_settings(serve):
    """Settings of the LoadService. Exit if a model's file is not right."""
    return Settings(
        serve.keep,
        serve.interval,
        {whose(path): path.name for path in serve.paths},
        {path.name: path.interval for path in serve.paths if path.interval},
        {path.name: read_model(path.model, f"serve.paths: {path.name}") for path in serve.paths if path.model},
        read_model(serve.model, "serve.model") if serve.model else None,
    )


def bound(address, token):
    """A socket that listens on HOST:PORT. Exit if that cannot be."""
    family, where = serving.endpoint(address, PLACE, token)
    try:
        listener = socket.create_server(where, family=family, backlog=CONNECTIONS_MAX)
    except OSError as error:
        raise Exit(USAGE, f"{PLACE.key}: cannot listen on {address} ({error.strerror}): give another") from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the end of an answer waits 40 ms for an ACK
    return listener


class Connection(AutoHTTPProtocol):
    """Of a client. Closed if no whole head of a request comes for KEEP_ALIVE_seconds; uvicorn sees to that only where
    nothing at all comes after an answer, so that strangers could hold all connections."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self):
        super().on_response_complete()
        self.patience.cancel()
        self._wait()

    def connection_lost(self, error):
        self.patience.cancel()
        super().connection_lost(error)

    def _wait(self):
        self.patience = self.loop.call_later(KEEP_ALIVE_seconds, self._give_up)

    def _give_up(self):
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server:
    """The API on a socket, in a thread, until `close`."""

    def __init__(self, app, listener):
        self.listener = listener
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        logging.getLogger("uvicorn").propagate = False
        settings = uvicorn.Config(
            app, http=Connection, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
            proxy_headers=False, limit_concurrency=CONNECTIONS_MAX, timeout_keep_alive=KEEP_ALIVE_seconds,
            timeout_graceful_shutdown=DRAIN_seconds,
        )  # fmt: skip
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), name="qoetap-api", daemon=True)
        self.thread.start()

    @property
    def address(self):
        host, port = self.listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self):
        """Answer what was begun, and end."""
        self.server.should_exit = True
        self.thread.join(END_seconds)


class Serve:
    """A running `qoetap serve`."""

    def __init__(self, args, serve):
        self.args, self.serve, self.sources, self.troubles = args, serve, [], {}
        token, settings = serving.read_token(PLACE), service_settings(serve)
        listener = bound(serve.listen, token)
        try:
            self.store = Store(serve.state)
            self.service = LoadService(self.store, settings, time.time_ns())
            self.selection = Selection(self.service.reading_of, self.service.load_at, self.store, serve)
        except StateError as error:
            raise Exit(USAGE, f"serve.state: {error}") from error
        limits = api.Limits(token, serve.body, serve.requests)
        app, self.streams = api.make(self.service, limits, __version__, self._routers())
        self.server, self.notifier, self.tidied = Server(app, listener), Notifier(), time.monotonic()

    def _routers(self):
        """Routes of other parts of the control plane: one line each."""
        pages = page_routes(self.service, time.time_ns, lambda: self.selection.in_force(time.time_ns()))
        return pages, selection.router(self.selection, time.time_ns)

    def run(self, signals):
        """Until a signal ends it. Exit if the server does."""
        for spec in dict.fromkeys(self.serve.events):
            self.sources.append(open_source(spec, self.service))
        self.notifier.ready()
        self._announce()
        while (heard := signals.next(LOOK_seconds)) not in ENDING:
            if heard == signal.SIGHUP:
                self.reload()
            self._look()

    def end(self):
        """Answer what was begun, take no more, and write everything."""
        self.notifier.stopping()
        self.streams.ending = True
        for source in self.sources:
            source.ending.set()  # of all first: one that takes long keeps no other from it
        for source in self.sources:
            source.close()
        self.server.close()
        self.store.close()

    def _announce(self):
        known, counts = self.service.known, self.service.counts
        say(
            f"http://{self.server.address}, state in {self.serve.state}: {len(known)} paths, "
            f"{counts['accepted']:,} samples, {len(self.service.models)} models; TERM or INT ends it, "
            "HUP reads paths and models anew"
        )

    def _look(self):
        if not self.server.thread.is_alive():
            raise Exit(RUN_ERROR, "the server ended by itself")
        if time.monotonic() - self.tidied >= TIDY_seconds:
            self.tidied = time.monotonic()
            with contextlib.suppress(Busy):  # what waits goes first
                self.service.tidy(time.time_ns())
            self.notifier.status(f"{len(self.service.known)} paths, {self.service.counts['accepted']:,} samples")
        for who in (self.store, *self.sources):
            trouble = who.trouble  # another thread sets it
            if trouble and trouble != self.troubles.get(who):
                say(trouble)
            self.troubles[who] = trouble
        self.notifier.feed(self.store.thread.is_alive())

    def reload(self):
        """HUP: paths and models are taken over; a bad file changes nothing."""
        self.notifier.reloading()
        try:
            serve = settings_of(self.args)
            self.service.configure(service_settings(serve), time.time_ns())
            self.selection.configure(serve)
        except (Exit, Busy, StateError) as error:
            say(f"reload: {error}; going on as before")
        else:
            fixed = [key for key in FIXED if getattr(serve, key) != getattr(self.serve, key)]
            say("reload: done" + (f"; what takes a restart stays as it was: {', '.join(fixed)}" if fixed else ""))
        self.notifier.ready()


def serve(args):
    """The command; its exit status."""
    put_off((signal.SIGHUP,))
    sys.setswitchinterval(SWITCH_seconds)
    settings = settings_of(args)
    with Signals(SIGNALS) as signals:
        running = Serve(args, settings)
        try:
            running.run(signals)
        finally:
            signals.last(ENDING)  # a second one ends it at once
            running.end()
    return DONE

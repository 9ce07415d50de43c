"""`qoetap dns`: names of the configuration are answered with the data centre that the load service chooses."""

import asyncio
import contextlib
import ipaddress
import signal
import time
from urllib.parse import urlsplit

import detectors as registry
from controlplane.dnsnames import labels_of
from controlplane.dnsserver import Item, Responder, Server, Settings, bind
from controlplane.redirect import Redirector
from controlplane.selectclient import SelectClient
from qoetap import config
from qoetap.exits import DONE, PRIVILEGE, USAGE, Exit
from qoetap.notify import Notifier
from qoetap.say import say
from qoetap.serving import Place, endpoint, read_token

PLACE = Place("dns.listen", "127.0.0.1:5300", "QOETAP_SERVE_TOKEN")
OPEN = ""  # no token for askers: the DNS has none
LOOK_seconds = 0.25
STATUS_seconds = 10.0
SECOND_ns = 10**9
ENDING = (signal.SIGTERM, signal.SIGINT)
AT_ONCE = ("names", "ttl", "ecs", "rate")  # what HUP takes over


def settings_of(args):
    """The section `dns`. Exit if something is wrong with the configuration."""
    known = registry.load_all()
    found = [config.read_file(args.config)] if args.config else []
    found += [config.assignment(text) for text in args.set]
    given = {"listen": args.listen, "service": args.service}
    found += [config.Layer(f"--{key}", {"dns": {key: value}}) for key, value in given.items() if value]
    dns = config.load(found, known).dns
    if not dns.names:
        raise Exit(USAGE, "dns.names: give the names that are to be answered, in a file named by -c")
    if not dns.listen:
        raise Exit(USAGE, f"dns.listen: give an address, such as {PLACE.example}")
    return dns


def answered(dns):
    """dnsserver.Settings of the section."""
    items = {labels_of(item.name): Item(item.content, tuple(item.fallback)) for item in dns.names}
    return Settings(items, dns.ttl // SECOND_ns, dns.ecs, dns.rate)


def require_service(url, token):
    """Exit if that cannot be asked, or must not be told the token (RFC 6750, section 5.3)."""
    parts = urlsplit(url)
    try:
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment:
        raise Exit(USAGE, f"dns.service: {url!r} is no address of a service, write it as http://127.0.0.1:9470")
    if token and parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise Exit(USAGE, f"dns.service: a token is only sent over https, or to loopback: not to {url}")


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def sockets(listen):
    """Pairs of sockets (UDP, TCP). Exit if one cannot be had."""
    found = []
    for address in listen:
        family, where = endpoint(address, PLACE, OPEN)
        try:
            found.append(bind(family, where))
        except PermissionError as error:
            raise Exit(PRIVILEGE, f"{PLACE.key}: {address} needs root or CAP_NET_BIND_SERVICE") from error
        except OSError as error:
            raise Exit(USAGE, f"{PLACE.key}: cannot listen on {address} ({error.strerror}): give another") from error
    return found


def where(pair):
    host, port = pair[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Running:
    """A running `qoetap dns`."""

    def __init__(self, args, dns, token):
        self.args, self.dns, self.notifier = args, dns, Notifier()
        wait = dns.timeout / SECOND_ns
        self.client = SelectClient(dns.service, wait, token)
        redirector = Redirector(self.client.ask, wait, time.monotonic)
        self.responder = Responder(answered(dns), redirector, time.monotonic)
        self.ending, self.told = asyncio.Event(), 0.0

    async def run(self, pairs):
        """Until TERM or INT."""
        loop, server = asyncio.get_running_loop(), Server(self.responder)
        for number in ENDING:
            loop.add_signal_handler(number, self.ending.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        await server.start(pairs)
        self.notifier.ready()
        count = f"{len(self.dns.names)} name" + "s" * (len(self.dns.names) > 1)
        said = f"answering {count} on {', '.join(map(where, pairs))}"
        say(f"{said}; TERM or INT ends it, HUP reads them anew")
        while not self.ending.is_set():
            self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), LOOK_seconds)
        self.notifier.stopping()
        for number in ENDING:
            loop.remove_signal_handler(number)  # a second one ends it at once
            signal.signal(number, signal.SIG_DFL)
        await server.stop()

    def _look(self):
        self.notifier.feed(True)
        now = time.monotonic()
        if now - self.told >= STATUS_seconds:
            self.told = now
            self.notifier.status(self.responder.counts.sentence())

    def reload(self):
        """HUP: the names are taken over; a bad file changes nothing."""
        self.notifier.reloading()
        try:
            dns = settings_of(self.args)
        except Exit as error:
            say(f"reload: {error}; going on as before")
        else:
            fixed = [f"dns.{key}" for key in type(dns).model_fields if key not in AT_ONCE and self._differs(dns, key)]
            self.responder.configure(answered(dns))
            say("reload: done" + (f"; what takes a restart stays as it was: {', '.join(fixed)}" if fixed else ""))
        self.notifier.ready()

    def _differs(self, dns, key):
        return getattr(dns, key) != getattr(self.dns, key)


async def serve(args, dns, token, pairs):
    running = Running(args, dns, token)
    try:
        await running.run(pairs)
    finally:
        running.client.close()
        say(running.responder.counts.sentence())


def dns(args):
    """The command; its exit status."""
    section = settings_of(args)
    token = read_token(PLACE)
    require_service(section.service, token)
    asyncio.run(serve(args, section, token, sockets(section.listen)))
    return DONE

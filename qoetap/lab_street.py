"""`qoetap lab street`: the street with `qoetap inline` in its router, for one's own traffic, until INT ends it."""

import contextlib
import signal

from qoetap.lab_site import CLIENT, SERVER, LINK_bps, QUEUE_ms, Site
from qoetap.say import say


def open_street(folder, options):
    """Keep it open; where things are goes to stdout. options: words for `qoetap inline`; events go to `folder`."""
    with Site(folder) as site:
        site.run_inline(options)
        for line in places(site):
            print(line, flush=True)
        say(f"{LINK_bps / 1e6:g} Mbit/s towards the receiver, a queue of {QUEUE_ms} ms; INT ends it")
        with contextlib.suppress(KeyboardInterrupt):
            site.inline.process.wait()
            raise site.inline.failed()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        site.inline.stop()


def places(site):
    """How to reach each namespace, and where the events are."""
    street = site.street
    for name, end, what in (
        ("sender", street.sender, SERVER), ("router", street.router, "r0 to the sender, r1 to the receiver"),
        ("receiver", street.receiver, CLIENT),
    ):  # fmt: skip
        yield f"{name:<9} {what:<38} ip netns exec {end.namespace} COMMAND"
    yield f"{'events':<9} {site.events}"

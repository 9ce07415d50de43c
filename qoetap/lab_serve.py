"""`qoetap serve` in the lab: a process at the aggregation point, and questions to it from there."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request

from qoetap.exits import RUN_ERROR, Exit

LISTEN = "127.0.0.1:9470"
READY = "TERM or INT ends it"
ANSWER_seconds = 10
SAMPLES_seconds = 60  # for ptp4l to find its master, and for a batch of events to come
PROXYLESS = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Service:
    """The service at the receivers of `paths`, a lab_ptp.Paths, started with these further words. Ends with them."""

    def __init__(self, paths, words):
        self.end = paths.sides[0].receiver
        state = paths.folder / "state.sqlite"
        for name in (state, *(state.with_name(state.name + suffix) for suffix in ("-wal", "-shm"))):
            name.unlink(missing_ok=True)  # of an earlier run
        words = ["-m", "qoetap", "serve", "--listen", LISTEN, "--state", state, *words]
        self.process = paths.start(self.end, words, "serve")
        self.process.await_text(self.process.err, READY)

    def url(self, place, **query):
        return f"http://{LISTEN}{place}" + (f"?{urllib.parse.urlencode(query)}" if query else "")

    def get(self, place, **query):
        """The JSON that a GET is answered with. Exit: it is not answered, or refused."""
        try:
            return self.end.inside(_get, self.url(place, **query))
        except (OSError, urllib.error.URLError) as error:
            raise Exit(RUN_ERROR, f"qoetap serve does not answer GET {place}: {error}") from error

    def path_names(self, count):
        """Names of the paths, so many. Exit: there are others."""
        names = [reading["path"] for reading in self.get("/v1/paths")]
        if len(names) != count:
            raise Exit(RUN_ERROR, f"qoetap serve knows {len(names)} paths in place of {count}")
        return names

    def await_samples(self, count=1):
        """Wait until so many paths have samples. Exit: they do not come."""
        limit = time.monotonic() + SAMPLES_seconds
        while sum(reading["samples"] > 0 for reading in self.get("/v1/paths")) < count:
            if time.monotonic() > limit:
                raise Exit(RUN_ERROR, f"no samples came in {SAMPLES_seconds} s (-o FOLDER keeps what was said)")
            time.sleep(0.2)


def _get(url):
    with PROXYLESS.open(url, timeout=ANSWER_seconds) as answer:
        return json.load(answer)

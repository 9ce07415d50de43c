"""The page in a real browser: each state as it is drawn, narrow and dark, with hostile names, refreshing itself."""

import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from controlplane import page
from tests.browser import Browser
from tests.conftest import require
from tests.pages import MODEL, NOW_ns, reading, samples, totals

BAR = "document.querySelector('.paths .bar').getBoundingClientRect().toJSON()"


class Standin(BaseHTTPRequestHandler):
    """Answers with the readings of its server; a stream that tells of each change."""

    def do_GET(self):
        if self.path.startswith("/v1/load/stream"):
            return self.stream()
        readings = self.server.readings
        given = {one["path"]: samples() for one in readings}, {one["path"]: MODEL for one in readings}
        text = page.render(readings, *given, totals(), NOW_ns, host=self.headers["Host"]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", page.policy())
        self.end_headers()
        self.wfile.write(text)

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        while not self.server.ended.is_set():
            if self.server.changed.wait(0.2):
                self.server.changed.clear()
                self.wfile.write(b"data: {}\n\n")
                self.wfile.flush()

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Standin)
    server.daemon_threads, server.block_on_close = True, False
    server.readings, server.changed, server.ended = [], threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    found = shutil.which("chromium")
    require(found, "chromium is not installed (apt install chromium)")
    with Browser(found, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def colour(name, scheme="light"):
    """Of the style, red green blue."""
    css = page.TEMPLATES.joinpath("page.css").read_text().split("@media")[scheme == "dark"]
    text = re.search(rf"--{name}: #(\w{{6}})", css)[1]
    return np.array([int(text[i : i + 2], 16) for i in (0, 2, 4)])


def shares(browser, name, scheme="light"):
    """How much of the first bar has the class's colour, the interval's part of it counted too, along its upper edge."""
    box, picture = browser.value(BAR), browser.picture()
    line = picture[round(box["y"]) + 2, round(box["x"]) + 3 : round(box["x"] + box["width"]) - 3]
    return float(np.mean(np.abs(line - colour(name, scheme)).max(axis=1) < 12))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("load", "name"), [(0.12, "low"), (0.53, "normal"), (0.97, "congested")])
def test_a_bar_shows_the_load_in_the_colour_of_its_class(chromium, site, scheme, load, name):
    site.readings = [reading("north", load)]
    chromium.look(scheme=scheme)
    chromium.open(site.url)
    assert shares(chromium, name, scheme) == pytest.approx(load, abs=0.06)
    assert f"{load:.0%}".replace("%", " %") in chromium.text()
    assert not chromium.troubles

"""The page in a real browser: each state as it is drawn, narrow and dark, with hostile names, refreshing itself."""

import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations

import numpy as np
import pytest

from controlplane import page
from tests.browser import Browser
from tests.conftest import require
from tests.pages import HOSTILE, MODEL, NOW_ns, reading, samples, stale, totals

BAR = "document.querySelector('.paths .bar').getBoundingClientRect().toJSON()"


class Standin(BaseHTTPRequestHandler):
    """Answers with the readings of its server; a stream that tells of each change."""

    def do_GET(self):
        if self.path.startswith("/v1/load/stream"):
            return self.stream()
        readings = self.server.readings
        given = {one["path"]: samples() for one in readings}, {one["path"]: MODEL for one in readings}
        text = page.render(readings, *given, totals(), NOW_ns, page.View(host=self.headers["Host"])).encode()
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


class Site(ThreadingHTTPServer):
    """The stand-in, serving until it is closed."""

    daemon_threads, block_on_close = True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Standin)
        self.readings, self.changed, self.ended = [], threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self):
        self.ended.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture
def site():
    made = Site()
    yield made
    made.close()


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


def share(browser, name, scheme="light"):
    """How much of the first path's bar has the colour of the class, along its upper edge."""
    box, picture = browser.value(BAR), browser.picture()
    line = picture[round(box["y"]) + 2, round(box["x"]) + 3 : round(box["x"] + box["width"]) - 3]
    return float(np.mean(np.abs(line - colour(name, scheme)).max(axis=1) < 12))


def seen(browser, site, *readings, **look):
    """Picture of the page with these readings; nothing on the way was refused or failed."""
    site.readings = list(readings)
    browser.look(**look)
    browser.open(site.url)
    picture = browser.picture()
    assert not browser.troubles
    return picture


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("load", "name"), [(0.12, "low"), (0.53, "normal"), (0.97, "congested")])
def test_a_bar_shows_the_load_in_the_colour_of_its_class(chromium, site, scheme, load, name):
    seen(chromium, site, reading("north", load), scheme=scheme)
    assert share(chromium, name, scheme) == pytest.approx(load, abs=0.06)
    others = {"low", "normal", "congested"} - {name}
    assert all(share(chromium, other, scheme) == 0 for other in others)
    assert chromium.value("document.querySelector('.paths .word').innerText") == name
    assert chromium.value("document.querySelector('.paths .meter').innerText").strip() == f"{100 * load:.0f} %"


def test_a_stale_path_has_an_empty_bar_and_says_why(chromium, site):
    seen(chromium, site, stale())
    assert all(share(chromium, name) == 0 for name in ("low", "normal", "congested"))
    words = chromium.value("document.querySelector('.paths tbody tr').innerText")
    assert all(word in words for word in ("unknown", "stale", "load is not known", "1 min"))


def test_without_paths_there_is_the_command_and_no_bar(chromium, site):
    seen(chromium, site)
    assert f"qoetap live -i eth0 --detectors ptp -o {site.url}v1/events" in chromium.text()
    assert chromium.value("document.querySelectorAll('.bar').length") == 0


def test_no_state_looks_like_another_or_like_nothing(chromium, site):
    states = {"fresh": [reading()], "stale": [stale()], "congested": [reading(load=0.98)], "empty": []}
    pictures = {name: seen(chromium, site, *readings) for name, readings in states.items()}
    for name, picture in pictures.items():
        assert picture.std() > 5, f"{name} is blank"
        assert np.abs(picture - colour("ground")).max(axis=2).min() < 3
    for one, other in combinations(pictures, 2):
        differing = np.mean(np.abs(pictures[one] - pictures[other]).max(axis=2) > 30)
        assert differing > 0.002, f"{one} looks like {other}"


def test_dark_is_dark(chromium, site):
    light, dark = (seen(chromium, site, reading(), scheme=scheme).mean() for scheme in ("light", "dark"))
    assert dark < 64 < 192 < light


@pytest.mark.parametrize("path", ["north", "a" * 128, "<img src=x onerror=alert(1)>" * 4])
def test_nothing_is_cut_off_on_a_phone(chromium, site, path):
    seen(chromium, site, reading(path, agent_id=path), stale("south"), width=360, height=780)
    assert chromium.value("document.documentElement.scrollWidth") <= 360
    seen(chromium, site, reading(path, agent_id=path), width=360, height=780)
    assert chromium.value("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_agents_is_text_and_runs_nothing(chromium, site, text):
    seen(chromium, site, reading(text, agent_id=text, master_clock=text))
    assert chromium.value("document.querySelector('.paths th bdi').textContent") == text
    assert chromium.value("document.scripts.length") == 1
    assert chromium.value("document.querySelectorAll('img, b:not(.meter b), textarea').length") == 0


def test_the_policy_stops_what_the_page_does_not_bring(chromium, site):
    """Were text ever to become markup, its script would still not run."""
    seen(chromium, site, reading())
    script = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    chromium.value(script)
    assert chromium.value("window.ran") is None
    assert "Content Security Policy" in "".join(chromium.troubles)


def test_the_page_changes_when_an_event_comes(chromium, site):
    seen(chromium, site, reading("north", 0.53), reading("south", 0.4))
    chromium.value("waited = -1e9")  # no refresh by the clock
    chromium.value("document.getElementById('to-south').focus()")
    site.readings = [reading("north", 0.98), reading("south", 0.4)]
    site.changed.set()
    chromium.until("document.querySelector('.paths .word').innerText === 'congested'")
    assert share(chromium, "congested") > 0.9
    assert chromium.value("document.activeElement.id") == "to-south"
    assert chromium.value("document.getElementById('live').innerText") == "live"
    assert not chromium.troubles


def test_the_page_changes_without_events_too(chromium, site):
    """A path that falls silent makes no event."""
    seen(chromium, site, reading())
    site.readings = [stale()]
    chromium.value("waited = 4")  # s, of 5
    chromium.until("document.querySelector('.paths .word').innerText === 'unknown'")


def test_the_page_changes_without_script(chromium, site):
    seen(chromium, site, reading(), script=False)
    site.readings = [stale()]
    chromium.until("document.querySelector('.paths .word').innerText === 'unknown'")


def test_a_page_whose_service_is_gone_says_so(chromium, site):
    seen(chromium, site, reading())
    site.close()
    chromium.value("waited = 5")
    chromium.until("document.getElementById('live').innerText === 'service does not answer'")

"""The page of the real service in a real browser: each state as it is drawn, narrow and dark, refreshing itself."""

import json
import re
import shlex
import shutil
import subprocess
from itertools import combinations
from urllib.parse import quote

import numpy as np
import pytest

from controlplane import page
from tests.browser import Browser
from tests.conftest import require
from tests.page_site import Site
from tests.pages import HOSTILE, MODEL, NS

BAR = "document.querySelector('.paths .bar').getBoundingClientRect().toJSON()"
WORD = "document.querySelector('.paths .word')?.innerText"
LIVE = "document.getElementById('live').innerText"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    found = shutil.which("chromium")
    require(found, "chromium is not installed (apt install chromium)")
    with Browser(found, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def site(chromium, tmp_path, request):
    made = Site(tmp_path, **getattr(request, "param", {}))
    yield made
    chromium.open("about:blank")  # ends its stream, which the server would wait for
    made.close()
    made.store.close()


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


def seen(browser, site, path="", **look):
    """Picture of the page, or of a path's; nothing on the way was refused or failed."""
    browser.look(**look)
    browser.open(site.url + path)
    picture = browser.picture()
    assert not browser.troubles
    return picture


@pytest.mark.parametrize(("load", "shown", "name"), [(0.12, 12, "low"), (0.53, 53, "normal"), (0.97, 100, "congested")])
def test_a_bar_shows_the_load_in_the_colour_of_its_class(chromium, site, load, shown, name):
    site.hear("tap", load)
    for scheme in ("light", "dark"):
        seen(chromium, site, scheme=scheme)
        assert share(chromium, name, scheme) == pytest.approx(shown / 100, abs=0.06)
        others = {"low", "normal", "congested"} - {name}
        assert all(share(chromium, other, scheme) == 0 for other in others)
    assert chromium.value(WORD) == name
    assert chromium.value("document.querySelector('.paths .meter').innerText").strip() == f"{shown} %"


def test_a_stale_path_has_an_empty_bar_and_says_why(chromium, site):
    site.hear("tap", 0.53)
    site.now_ns += 100 * NS
    seen(chromium, site)
    assert all(share(chromium, name) == 0 for name in ("low", "normal", "congested"))
    words = chromium.value("document.querySelector('.paths tbody tr').innerText")
    assert all(word in words for word in ("unknown", "stale", "load is not known", "1 min"))


def test_without_paths_there_is_the_command_and_no_bar(chromium, site):
    seen(chromium, site)
    assert f"qoetap live -i eth0 --detectors ptp -o {site.url}v1/events" in chromium.text()
    assert chromium.value("document.querySelectorAll('.bar').length") == 0


def test_no_state_looks_like_another_or_like_nothing(chromium, site):
    pictures = {"empty": seen(chromium, site)}
    site.hear("tap", 0.53)
    pictures["fresh"] = seen(chromium, site)
    site.now_ns += 100 * NS
    pictures["stale"] = seen(chromium, site)
    site.hear("tap", 0.98, until_ns=site.now_ns)
    pictures["congested"] = seen(chromium, site)
    for name, picture in pictures.items():
        assert picture.std() > 5, f"{name} is blank"
    for one, other in combinations(pictures, 2):
        differing = np.mean(np.abs(pictures[one] - pictures[other]).max(axis=2) > 30)
        assert differing > 0.002, f"{one} looks like {other}"


def test_the_detail_draws_the_samples_and_the_model(chromium, site):
    site.hear("tap", 0.53)
    site.hear("tip", 0.97)
    seen(chromium, site, f"?path=tip:{0:016x}:0")
    assert chromium.value("document.querySelectorAll('#detail .dot').length") == 50
    assert chromium.value("document.querySelectorAll('#detail .median').length") == len(MODEL["levels"])
    assert chromium.value("getComputedStyle(document.querySelector('#detail .now')).fill") == "rgb(191, 54, 12)"
    assert chromium.value("document.querySelector('[aria-current] th a').innerText") == f"tip:{0:016x}:0"
    chromium.open(site.url + "?path=none")
    assert "There is no path none" in chromium.text()


@pytest.mark.parametrize("site", [{"model": None}], indirect=True)
def test_the_command_that_the_page_shows_sets_a_model(chromium, site, tmp_path):
    require(shutil.which("curl"), "curl is not installed (apt install curl)")
    site.hear("tap", 0.53)
    seen(chromium, site)
    assert chromium.value("document.querySelector('.paths td.class').innerText").split() == ["unknown", "no", "model"]
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    _, command = chromium.value("document.querySelector('#detail pre').innerText").strip().splitlines()
    subprocess.run([*shlex.split(command), "--fail", "--silent"], cwd=tmp_path, check=True, timeout=60)
    seen(chromium, site)
    assert chromium.value(WORD) == "normal"


def test_dark_is_dark(chromium, site):
    site.hear("tap", 0.53)
    light, dark = (seen(chromium, site, scheme=scheme).mean() for scheme in ("light", "dark"))
    assert dark < 64 < 192 < light


@pytest.mark.parametrize("agent", ["north", "a" * 128, HOSTILE[1]])
def test_nothing_is_cut_off_on_a_phone(chromium, site, agent):
    site.hear(agent, 0.53)
    seen(chromium, site, width=360, height=780)
    assert chromium.value("document.documentElement.scrollWidth") <= 360
    site.hear("other", 0.98)
    seen(chromium, site, width=360, height=780)
    assert chromium.value("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("site", [{"names": {text: text for text in HOSTILE}}], indirect=True)
def test_text_from_agents_is_text_and_runs_nothing(chromium, site):
    for text in HOSTILE:
        site.hear(text, 0.53)
    seen(chromium, site, "?path=" + quote(HOSTILE[0]))
    for part in ("th a bdi", "th .small bdi"):
        found = chromium.value(f"[...document.querySelectorAll('.paths {part}')].map(found => found.textContent)")
        assert sorted(found) == sorted(HOSTILE)
    assert chromium.value("document.scripts.length") == 1
    assert chromium.value("document.querySelectorAll('img, b:not(.meter b), textarea').length") == 0


def test_the_policy_stops_what_the_page_does_not_bring(chromium, site):
    """Were text ever to become markup, its script would still not run."""
    seen(chromium, site)
    script = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    chromium.value(script)
    assert chromium.value("window.ran") is None
    assert "Content Security Policy" in "".join(chromium.troubles)


def test_the_page_changes_when_an_event_comes(chromium, site):
    site.hear("north", 0.53)
    site.hear("south", 0.53)
    seen(chromium, site)
    chromium.value("waited = -1e9")  # no refresh by the clock
    chromium.value(f"document.getElementById('to-south:{0:016x}:0').focus()")
    site.now_ns += 200 * NS
    site.hear("north", 1.2, until_ns=site.now_ns)
    chromium.until(f"{WORD} === 'congested'")
    assert share(chromium, "congested") > 0.9
    assert chromium.value("document.activeElement.id") == f"to-south:{0:016x}:0"
    assert chromium.value(LIVE) == "live"
    assert not chromium.troubles


@pytest.mark.parametrize("site", [{"token": "a-token"}], indirect=True)
def test_a_browser_brings_the_token_as_a_password(chromium, site):
    site.hear("north", 0.53)
    chromium.look()
    chromium.open(site.url)
    assert "north" not in chromium.text()
    assert "401" in "".join(chromium.troubles)
    chromium.open(site.url.replace("//", "//anybody:a-token@"))
    chromium.value("waited = -1e9")
    site.now_ns += 200 * NS
    site.hear("north", 1.2, until_ns=site.now_ns)
    chromium.until(f"{WORD} === 'congested'")
    assert chromium.value(LIVE) == "live"


def test_the_page_changes_without_events_too(chromium, site):
    """What falls silent makes no event, and streams may end."""
    site.hear("north", 0.53)
    seen(chromium, site)
    chromium.value("stream.close(), news = false")
    site.now_ns += 100 * NS
    chromium.value("waited = 4")  # s, of 5
    chromium.until(f"{WORD} === 'unknown'")
    assert chromium.value(LIVE) == "every 5 s"


def test_the_page_changes_without_script(chromium, site):
    site.hear("north", 0.53)
    seen(chromium, site, script=False)
    site.now_ns += 100 * NS
    chromium.until(f"{WORD} === 'unknown'")


def test_a_page_whose_service_is_gone_says_so(chromium, site):
    site.hear("north", 0.53)
    seen(chromium, site)
    site.close()
    chromium.value("waited = 5")
    chromium.until(f"{LIVE} === 'service does not answer'")

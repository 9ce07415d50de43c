"""The picture of the page in the documentation, of made-up samples: python -m tests.page_picture docs/serve-page.png"""

import io
import ipaddress
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.browser import Browser
from tests.page_site import Site
from tests.pages import MODEL, NS

COUNT = 150  # samples of a path: ten minutes
LOADS = {"frankfurt-1": 0.5, "frankfurt-2": 1.05, "zurich-1": 0.13, "zurich-2": 0.71, "vienna-1": 0.4}
STALE = "vienna-1"
WALK, NOISE = 0.02, 0.03  # of the load from sample to sample, and of one sample
COLOURS = 96  # keep the file small
SPREAD = {  # of single estimates: 0.1 around the load, more below the threshold
    "load": [0.0, 0.1, 0.2, 0.5, 0.9, 1.0], "mean": [0.05, 0.1, 0.2, 0.5, 0.9, 1.0],
    "low": [0.0, 0.0, 0.1, 0.4, 0.8, 0.9], "high": [0.2, 0.25, 0.3, 0.6, 1.0, 1.0], "persistence": 0.7, "margin": 0.03,
}  # fmt: skip
SECTION = {
    "aggregations": [{"name": "basel", "prefixes": ["10.1.0.0/16"]}, {"name": "mainz", "prefixes": ["10.2.0.0/16"]}],
    "data_centres": [
        {"name": "frankfurt", "addresses": ["192.0.2.1"], "paths": {"basel": "frankfurt-2", "mainz": "frankfurt-1"}},
        {"name": "zurich", "addresses": ["192.0.2.2"], "paths": {"basel": "zurich-1", "mainz": "zurich-2"}},
    ],
}  # fmt: skip
USERS = (("10.1.0.0/24", "page"), ("10.1.0.0/24", "file"), ("10.2.0.0/24", "page"))


def model(chance):
    """MODEL with medians beside its curve."""
    levels = [{**level, "delay_ns": level["delay_ns"] * np.exp(chance.normal(0, 0.12))} for level in MODEL["levels"]]
    return {**MODEL, "levels": levels, "spread": SPREAD}


def fill(site, chance):
    """Ten minutes of samples of each path, that of one path having ended."""
    for name, target in LOADS.items():
        walk = np.cumsum(chance.normal(0, WALK, COUNT))
        loads = target + 0.3 * (walk - walk[-1]) + chance.normal(0, NOISE, COUNT)
        site.hear(name, loads, until_ns=site.now_ns - (95 if name == STALE else 2) * NS)
    for client, content in USERS:
        site.selection.select(ipaddress.ip_network(client), content, site.now_ns)


def main(target):
    chance = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder, Browser(shutil.which("chromium"), f"{folder}/chromium") as browser:
        site = Site(Path(folder), {name: name for name in LOADS}, model(chance), SECTION)
        fill(site, chance)
        browser.look()
        browser.open(f"{site.url}?path=frankfurt-1")
        browser.until("document.body.dataset.live === 'live'")
        picture = Image.open(io.BytesIO(browser.png(whole=True))).convert("RGB")
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
        browser.open("about:blank")
        site.close()
        site.store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

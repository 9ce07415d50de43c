"""The operator's page: plain values in, HTML out. It reads no clock and asks nobody.

Whatever agents send (names above all) is untrusted text: it is escaped by the templates, and characters that cannot be
seen are shown as U+FFFD. The page has one style and one script, inline, and the policy names their hashes: a browser
runs nothing else.
"""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from controlplane import charts, choice, load

TEMPLATES = Path(__file__).parent / "templates"
ROWS_MAX = 200  # of the table; worst first
TEXT_MAX = 128  # characters of a name
NS = 10**9
TROUBLE = {"congested": 0, "unknown": 1}  # order of the table; all else comes after, by name
CLASSES = ("low", "normal", "congested", "unknown")
REASONS = {
    "no_samples": "no sample yet",
    "no_model": "no model",
    "stale": "stale",
    None: "",
}
UNITS_ns = ((NS, "s"), (10**6, "ms"), (10**3, "µs"), (1, "ns"))
AGE_seconds = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class View(NamedTuple):
    """What else the page shows. path: in detail. choices: answers of GET /v1/select. host: where agents send to."""

    path: str | None = None
    choices: tuple = ()
    host: str = "HOST:PORT"


def render(readings, samples, models, totals, now_ns, view=View()):
    """The page as text.

    readings: items of GET /v1/paths. samples: {path: [(ts_ns, delay_ns)]} in order of time, of any paths.
    models: {path: model document} of any paths. totals: {"accepted", "duplicates", "late", "ignored",
    "rejected": {reason: number}}.
    """
    path = detailed(readings, view.path)
    chosen = next((reading for reading in readings if reading["path"] == path), None)
    return _ENVIRONMENT.get_template("page.html").render(
        rows=[row(reading, samples.get(reading["path"], ())) for reading in listed(readings)],
        counts={name: sum(reading["class"] == name for reading in readings) for name in CLASSES},
        paths=len(readings),
        path=path,
        detail=chosen and detail(chosen, samples.get(path, ()), models.get(path), now_ns),
        totals=totals,
        choices=view.choices,
        host=view.host,
        now_ns=now_ns,
    )


def listed(readings):
    """The readings that the table shows, in its order."""
    return sorted(readings, key=lambda reading: (TROUBLE.get(reading["class"], 2), reading["path"]))[:ROWS_MAX]


def detailed(readings, path):
    """Name of the path shown in detail: the one asked for, or the only one there is; None without."""
    return readings[0]["path"] if path is None and len(readings) == 1 else path


def row(reading, samples):
    """What a line of the table shows."""
    return {
        **reading,
        "bar": charts.bar(reading, reading["model"]),
        "spark": charts.spark(samples),
        "why": REASONS.get(reading["reason"], reading["reason"]),
    }


def detail(reading, samples, document, now_ns):
    """What the detail of a path shows."""
    model = load.from_document(document) if document and reading["model"] else None
    curve = model and (lambda share: float(load.delay_at(model, share)))
    levels = [(level.load, level.delay_ns) for level in model.levels] if model else []
    return {
        **row(reading, ()),
        "history": charts.history(samples, curve, reading, now_ns),
        "fit": curve and charts.fit(levels, curve, reading),
    }


def policy():
    """The Content-Security-Policy that the page needs, and nothing beyond."""
    script, style = (_hash(_source(name)) for name in ("live.js", "page.css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source(name):
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def plain(value):
    """Text without characters that cannot be seen or that turn the writing around; other values as they are."""
    if isinstance(value, Markup) or not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else "\ufffd" for c in value)


def short(text):
    """TEXT_MAX characters of it at most."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def delay_text(delay_ns):
    """Three digits and a unit: 36.1 µs."""
    size, unit = next(((s, u) for s, u in UNITS_ns if abs(delay_ns) >= s), UNITS_ns[-1])
    value = delay_ns / size
    digits = 0 if size == 1 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f} {unit}"


def tick_text(delay_ns):
    """As delay_text, for a round number."""
    size, unit = next(((s, u) for s, u in UNITS_ns if delay_ns >= s), UNITS_ns[-1])
    return f"{delay_ns / size:g} {unit}"


def age_text(seconds):
    """The largest unit that fits: 3 s, 5 min."""
    size, unit = next(((s, u) for s, u in AGE_seconds if seconds >= s), AGE_seconds[-1])
    return f"{int(seconds / size)} {unit}"


def percent(share):
    return f"{100 * share:.0f}"


def count(number):
    return f"{number:,}"


def clock(ts_ns):
    return datetime.fromtimestamp(ts_ns // NS, UTC).strftime("%Y-%m-%d %H:%M:%S")


def quoted(path):
    """As a part of an address."""
    return Markup(quote(path, safe=":", errors="replace"))


def _environment():
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        delay=delay_text, tick=tick_text, age=age_text, percent=percent, count=count, clock=clock, short=short,
        quoted=quoted,
    )  # fmt: skip
    made.globals.update(
        style=Markup(_source("page.css")),
        script=Markup(_source("live.js")),
        classes=CLASSES,
        charts=charts,
        reasons=choice.REASONS,
    )
    return made


_ENVIRONMENT = _environment()

"""What tests of the page share: readings and models as plain values, and a parser that tells what a page holds."""

import json
import math
from html.parser import HTMLParser

NS = 10**9
NOW_ns = 1_700_000_000 * NS
MODEL = {
    "format": "qoetap-load-model", "version": 1, "kind": "exponential", "a_ns": 36100.0, "b": 6.218, "low": 0.2,
    "congested": 0.95, "r2": 0.89, "w": 0.87, "interval_s": 4.0,
    "levels": [{"load": x / 10, "samples": 100, "delay_ns": 36100 * math.exp(0.6218 * x)} for x in range(10)],
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><svg onload=alert(1)>",
    "</title></textarea></script><b>",
    "{{ 7*7 }}{% raw %}&amp;&#60;",
    "javascript:alert(1)",
)
VOID = {"meta", "link", "br", "hr", "img", "input"}


def reading(path="north", load=0.53, *, wide=0.06, **changes):
    """A reading of a fresh path with MODEL; `load` None for one of unknown class."""
    delay = int(MODEL["a_ns"] * math.exp(MODEL["b"] * (load if load is not None else 0.5)))
    name = "unknown" if load is None else "low" if load <= 0.2 else "congested" if load >= 0.95 else "normal"
    low, high = (None, None) if load is None else (max(load - wide, 0), min(load + wide, 1))
    model = {key: MODEL[key] for key in ("kind", "a_ns", "b", "low", "congested", "r2")}
    model |= {"version": 3, "spread_known": False}
    return {
        "path": path, "agent_id": "tap-1", "master_clock": "001122fffe334455", "domain": 0, "load": load,
        "load_low": low, "load_high": high, "class": name, "raw_load": load, "delay_ns": delay, "samples": 12345,
        "late": 2, "last_ns": NOW_ns - 3 * NS, "age_s": 3.0, "stale": False, "interval_s": 4.0, "w": 0.87,
        "model": model, "reason": None, **changes,
    }  # fmt: skip


def stale(path="north"):
    return reading(path, None, age_s=95.0, last_ns=NOW_ns - 95 * NS, stale=True, reason="stale")


def totals(**changes):
    return {"accepted": 12345, "duplicates": 6, "late": 2, "ignored": 7, "rejected": {}, **changes}


def samples(count=100, interval_s=4, delay_ns=800_000):
    """Delays that end 3 s before NOW_ns."""
    first = NOW_ns - 3 * NS - (count - 1) * interval_s * NS
    return [(first + i * interval_s * NS, int(delay_ns * (1 + 0.3 * math.sin(i)))) for i in range(count)]


def events(agent, delays_ns, until_ns):
    """JSON lines of an agent's events `ptp.delay`, 4 s apart, the last one at until_ns."""
    lines = []
    for at, delay_ns in enumerate(reversed(delays_ns)):
        ts_ns = until_ns - at * 4 * NS
        ptp = {
            "master_clock": f"{0:016x}", "slave_clock": f"{1:016x}", "domain": 0, "request_id": ts_ns // NS % 65536,
            "mean_path_delay_ns": delay_ns,
        }  # fmt: skip
        lines.append(json.dumps({"event_type": "ptp.delay", "agent_id": agent, "ts_ns": ts_ns, "ptp": ptp}))
    return "\n".join(lines).encode()


class Parsed(HTMLParser):
    """Tags with their attributes, and the text, of a page; fails on tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, **wanted):
        """Attributes of the tags with these attributes; class_ for class, _ for -."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in wanted.items()}
        return [have for name, have in self.tags if name == tag and wanted.items() <= have.items()]

"""Events of path delay as agents send them, and a service in this process to send them to."""

import json
from contextlib import contextmanager

from controlplane.load import Model
from controlplane.service import LoadService, Settings
from controlplane.store import Store

SECOND = 10**9
NOW = 1_750_000_000 * SECOND
MASTER, SLAVE = "020000fffe000105", "020000fffe000106"
MODEL = Model(a_ns=36_100.0, b=6.218, low=0.2, congested=0.95)
PATH = f"tap:{MASTER}:0"
KEEP = 7 * 86_400 * SECOND
SETTINGS = Settings(KEEP, 4 * SECOND, model=MODEL)


def event(ts_ns=NOW, delay_ns=808_591, request_id=1, agent="tap", **ptp):
    """A ptp.delay event; a field of ptp that is None is left out."""
    fields = {
        "mechanism": "e2e", "domain": 0, "master_clock": MASTER, "slave_clock": SLAVE, "request_id": request_id,
        "mean_path_delay_ns": delay_ns, **ptp,
    }  # fmt: skip
    told = {key: value for key, value in fields.items() if value is not None}
    return {"ts_ns": ts_ns, "event_type": "ptp.delay", "schema_version": "1.0", "agent_id": agent, "ptp": told}


def lines(*events):
    """JSON lines."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


def series(count, step_ns=SECOND, **fields):
    """Events of a path, the last one now."""
    return [event(NOW - (count - 1 - at) * step_ns, request_id=at, **fields) for at in range(count)]


@contextmanager
def serving(path, settings=SETTINGS, now_ns=NOW):
    """A LoadService on the state file."""
    store = Store(path)
    try:
        yield LoadService(store, settings, now_ns)
    finally:
        store.close()

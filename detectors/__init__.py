"""The registry of detectors: a name and the module with its DETECTOR, imported when it is asked for.

Others register theirs as entry points of the group `qoetap.detectors`: the name, and the Detector. Where several
detectors have events at the same instant, they are delivered in this order.
"""

import importlib
from importlib.metadata import entry_points

import dataplane  # noqa: F401  names the kernel cache before numba is imported

GROUP = "qoetap.detectors"
DETECTORS = {
    "iqn": "detectors.iqn",
    "icmp_loop": "detectors.icmp_loop",
    "ptp": "detectors.ptp",
    "sandwich": "detectors.sandwich",
    "probe_stream": "detectors.probe_stream",
    "flow": "detectors.flow",
}


def _others():
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    return {name: found[name] for name in sorted(found) if name not in DETECTORS}


def load_all():
    """Every Detector by its name, in the order of delivery."""
    known = {name: importlib.import_module(module).DETECTOR for name, module in DETECTORS.items()}
    known.update((name, entry.load()) for name, entry in _others().items())
    return known

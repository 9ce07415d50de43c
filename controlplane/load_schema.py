"""JSON Schema of a load model's document, for the API's own document. load_document reads it, and checks more than a
schema can say: that low lies below congested, and that curves rise.
"""

from controlplane.load_document import (
    FORMAT,
    LEVELS_MAX,
    MADE_MAX,
    VERSION,
    DELAY_LIMIT_ns,
    INTERVAL_MAX_seconds,
)
from controlplane.load_model import KINDS, SHAPES, HISTORY_samples

SHARE = {"type": "number", "minimum": 0, "maximum": 1}


def _number(minimum, maximum, about=None):
    found = {"type": "number", "minimum": minimum, "maximum": maximum}
    return found | {"description": about} if about else found


def _whole(minimum, maximum):
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def _object(properties, required, about, optional=False):
    found = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    found = {"anyOf": [found, {"type": "null"}]} if optional else found
    return found | {"description": about}


def _list(items):
    return {"type": "array", "items": items, "minItems": 2, "maxItems": LEVELS_MAX}


FILTER = {"percentile": _number(0, 100), "samples": _whole(1, HISTORY_samples)}
CURVE = {"shape": {"enum": list(SHAPES)}, "load": _list(SHARE), "delay_ns": _list(_number(1, DELAY_LIMIT_ns))}
COLUMNS = {name: _list(SHARE) for name in ("load", "mean", "low", "high")}
SPREAD = {**COLUMNS, "persistence": SHARE, "margin": SHARE}
LEVEL = {"load": SHARE, "samples": _whole(1, 10**12), "delay_ns": _number(0, DELAY_LIMIT_ns)}
REQUIRED = ("format", "version", "kind", "a_ns", "b", "low", "congested")
FIELDS = {
    "format": {"const": FORMAT},
    "version": {"type": "integer", "const": VERSION},
    "kind": {"enum": list(KINDS)},
    "a_ns": _number(1e-9, DELAY_LIMIT_ns, "delay without load, of y = a e^(b x)"),
    "b": _number(1e-9, 1000, "of the same"),
    "low": SHARE | {"description": "load below which delay tells nothing"},
    "congested": SHARE | {"description": "load from which delay jumps"},
    "congestion_found": {"type": "boolean"},
    "r2": {"anyOf": [{"type": "number", "maximum": 1}, {"type": "null"}]},
    "w": _number(0, 0.9999, "weight of the past for samples interval_s apart"),
    "interval_s": _number(1e-3, INTERVAL_MAX_seconds),
    "filter": _object(FILTER, FILTER, "load is told from this percentile of so many delays", optional=True),
    "curve": _object(CURVE, CURVE, "of the kind monotone", optional=True),
    "spread": _object(SPREAD, COLUMNS, "how single estimates scatter at known loads", optional=True),
    "levels": {
        "type": "array",
        "items": _object(LEVEL, LEVEL, "medians that it was fitted to"),
        "maxItems": LEVELS_MAX,
    },
    "made": {"type": "string", "maxLength": MADE_MAX},
}
SCHEMA = _object(FIELDS, REQUIRED, "A load model, as `qoetap load learn` writes it.") | {"title": "Model"}

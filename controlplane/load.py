"""Load of a path from its PTP delay: model, document, estimate, learning. Pure: no clock, no files, no state.

What others use of it; the parts are the modules load_*.
"""

from controlplane.load_document import from_document, to_document
from controlplane.load_estimate import Estimate, estimate
from controlplane.load_fitting import Fit, HELD_seconds, learn
from controlplane.load_levels import BadSample, check_samples
from controlplane.load_model import (
    CLASSES,
    KINDS,
    UNKNOWN,
    DELAY_MAX_ns,
    HISTORY_samples,
    Model,
    class_of,
    classify,
    delay_at,
    inverse,
    thresholds_ns,
)
from controlplane.load_scores import rmse_by_class, trace_classes, trace_loads

__all__ = [
    "CLASSES", "DELAY_MAX_ns", "HISTORY_samples", "KINDS", "UNKNOWN", "BadSample", "Estimate", "Fit", "HELD_seconds",
    "Model", "check_samples", "class_of", "classify", "delay_at", "estimate", "from_document", "inverse", "learn",
    "rmse_by_class", "thresholds_ns", "to_document", "trace_classes",
    "trace_loads",
]  # fmt: skip

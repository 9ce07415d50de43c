"""Load of a path from its PTP delay: model, document, estimate. Pure: no clock, no files, no state; time is in the data.

What others use of it; the parts are load_model, load_document, load_estimate.
"""

from controlplane.load_document import from_document, to_document
from controlplane.load_estimate import Estimate, estimate
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
)  # fmt: skip

__all__ = [
    "CLASSES", "DELAY_MAX_ns", "HISTORY_samples", "KINDS", "UNKNOWN", "Estimate", "Model", "class_of", "classify",
    "delay_at", "estimate", "from_document", "inverse", "thresholds_ns", "to_document",
]  # fmt: skip

"""The picture of `qoetap load learn`: delay against load, the fit, the thresholds."""

import numpy as np

from controlplane import load as loads
from qoetap.exits import USAGE, Exit

SIZE_inches, DOTS = (8.0, 5.0), 100
DRAWN_MAX = 5000  # of the delays; more make a file larger, not clearer
POINTS = 200


def plot(fit, delay_ns, load, path):
    """Write the picture of a Fit and the samples it is from. Exit if it cannot be written."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=SIZE_inches)
    draw_samples(panel, np.asarray(delay_ns, float), np.asarray(load, float))
    draw_fit(panel, fit.model)
    panel.plot(
        [row.load for row in fit.levels],
        [row.delay_ns / 1e3 for row in fit.levels],
        "o",
        color="tab:red",
        label="median",
    )
    panel.set(yscale="log", xlabel="load", ylabel="mean path delay, us", xlim=(-0.02, 1.02))
    panel.set_title(title(fit.model), fontsize="small")
    panel.legend(fontsize="small", loc="upper left")
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=DOTS)
    except OSError as error:
        raise Exit(USAGE, f"--plot {path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def draw_samples(panel, delay_ns, load):
    kept = np.unique(np.linspace(0, len(load) - 1, DRAWN_MAX).astype(int))
    delay_us = np.maximum(delay_ns[kept], 1.0) / 1e3
    panel.plot(load[kept], delay_us, ".", color="tab:gray", alpha=0.3, markersize=3, label="delays")


def draw_fit(panel, model):
    """The curve up to the congestion point, the exponential too where another curve is used, and the thresholds."""
    at = np.linspace(0.0, model.congested, POINTS)
    panel.plot(at, loads.delay_at(model, at) / 1e3, color="tab:blue", label=f"fit, {model.kind}")
    if model.curve is not None:
        exponential = model.a_ns * np.exp(model.b * at)
        panel.plot(at, exponential / 1e3, "--", color="tab:blue", linewidth=0.8, label="exponential")
    panel.axvline(model.low, color="tab:green", linestyle=":", label=f"low, {model.low:.2f}")
    found = "" if model.congestion_found else " (not seen)"
    panel.axvline(model.congested, color="tab:orange", linestyle=":", label=f"congested, {model.congested:.2f}{found}")


def title(model):
    return f"y = {model.a_ns:.4g} ns exp({model.b:.3f} x), R2 of the {model.kind} fit {model.r2:.3f}, w {model.w:.2f}"

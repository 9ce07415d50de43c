"""The picture of `qoetap lab load`: load and estimate over time, and against each other, at each rate."""

from qoetap.bitrates import rate_text
from qoetap.lab_estimate import CONCERNED, score
from qoetap.lab_plot import save

WIDTH_inches, ROW_inches, DOTS = 12.0, 3.2, 80


def plot(runs, path):
    """Write the picture of lab_estimate.Runs. Exit if it cannot be written."""
    from matplotlib import pyplot

    size = (WIDTH_inches, ROW_inches * len(runs) + 0.3)
    figure, rows = pyplot.subplots(
        len(runs), 2, figsize=size, squeeze=False, gridspec_kw={"width_ratios": (3.2, 1)}, layout="constrained"
    )
    for (wide, square), run in zip(rows, runs, strict=True):
        over_time(wide, run)
        against(square, run)
    rows[-1][0].set_xlabel("seconds")
    rows[-1][1].set_xlabel("load sent")
    save(figure, path, DOTS)


def over_time(panel, run):
    found, model = score(run), run.fit.model
    told = [point for point in run.points if point.load is not None]
    at = [point.at_s for point in told]
    panel.fill_between(
        at, [point.low for point in told], [point.high for point in told], color="tab:blue", alpha=0.2, label="interval"
    )
    for since, until, load in run.steps:
        panel.plot((since, until), (load, load), color="black", label="sent" if since == 0 else None)
    panel.plot(at, [point.load for point in told], color="tab:blue", linewidth=1.0, label="estimated")
    thresholds(panel.axhline, model)
    panel.set_title(
        f"{rate_text(run.rate_bps)}: RMSE {found.rmse_concerned:.3f} from {CONCERNED:g} on, "
        f"class right {100 * found.right:.0f} %",
        fontsize="small",
    )
    panel.set(ylim=(-0.02, 1.05), ylabel="load")
    panel.legend(fontsize="x-small", loc="lower right", ncols=3)


def against(panel, run):
    told = [point for point in run.points if point.load is not None]
    panel.plot((0, 1), (0, 1), color="black", linewidth=0.8)
    panel.plot(
        [point.sent for point in told], [point.load for point in told], ".", color="tab:blue", alpha=0.3, markersize=4
    )
    thresholds(panel.axvline, run.fit.model)
    panel.set(xlim=(-0.02, 1.05), ylim=(-0.02, 1.05), ylabel="load estimated")


def thresholds(draw, model):
    draw(model.low, color="tab:green", linestyle=":", linewidth=0.8)
    draw(model.congested, color="tab:orange", linestyle=":", linewidth=0.8)

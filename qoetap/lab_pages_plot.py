"""The picture of `qoetap lab pages`: page load time against estimated load, for each content and rate."""

from qoetap.bitrates import rate_text
from qoetap.lab_pages import CONTENTS, of_content, rank_correlation
from qoetap.lab_plot import save

PANEL_inches, DOTS = (5.5, 3.8), 90


def plot(runs, path):
    """Write the picture of lab_pages.Runs. Exit if it cannot be written."""
    from matplotlib import pyplot

    size = (PANEL_inches[0] * len(CONTENTS), PANEL_inches[1] * len(runs))
    figure, rows = pyplot.subplots(len(runs), len(CONTENTS), figsize=size, squeeze=False, layout="constrained")
    for panels, run in zip(rows, runs, strict=True):
        for panel, content in zip(panels, CONTENTS, strict=True):
            points = of_content(run, content)
            panel.plot([p.load for p in points], [p.seconds for p in points], "o", label="estimated just before")
            panel.plot([p.sent for p in points], [p.seconds for p in points], "x", color="tab:gray", label="sent")
            title = f"{content}, {rate_text(run.rate_bps)}: rank correlation {rank_correlation(points):.3f}"
            panel.set_title(title, fontsize="small")
            panel.set(xlabel="load", ylabel="seconds", xlim=(-0.02, 1.02), yscale="log")
            panel.legend(fontsize="x-small", loc="upper left")
    save(figure, path, DOTS)

"""The picture of `qoetap lab stalls`: per seed the buffer and bulk transfer, without mitigation and with it."""

from qoetap.exits import USAGE, Exit
from qoetap.lab_site import LINK_bps

STALLED, FAVOURED = "tab:red", "tab:green"
PANEL_inches, ROW_inches = 6.0, 1.9
EVERY_seconds = 2.0  # a point of bulk transfer
DOTS = 64  # an inch
LINK_Mbps = LINK_bps / 1e6


def check_plot(path):
    """Exit if the picture could not be made."""
    try:
        import matplotlib
    except ImportError as error:
        raise Exit(USAGE, "--plot needs matplotlib: pip install 'qoetap[lab]'") from error
    from matplotlib.backend_bases import FigureCanvasBase

    matplotlib.use("Agg")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise Exit(USAGE, f"--plot {path}: choose a name that ends in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise Exit(USAGE, f"--plot {path}: there is no such folder")


def rates(samples):
    """(time, Mbit/s) of (time, bytes so far), about every EVERY_seconds."""
    found, (last, before) = [], samples[0] if samples else (0.0, 0)
    for time, received in samples:
        if time - last >= EVERY_seconds:
            found.append(((time + last) / 2, (received - before) * 8e-6 / (time - last)))
            last, before = time, received
    return found


def plot(runs, path):
    """Write the picture. runs: as lab_stalls.run_all gives them. Exit if it cannot be written."""
    from matplotlib import pyplot

    seeds = len(runs) // 2
    size = (2 * PANEL_inches, ROW_inches * seeds + 0.8)
    figure, panels = pyplot.subplots(seeds, 2, figsize=size, sharex=True, squeeze=False)
    for panel, run in zip(panels.flat, runs, strict=True):
        draw(panel, run)
    for panel in panels[-1]:
        panel.set_xlabel("seconds")
    handles, labels = panels[-1][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, fontsize="small")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / size[1]))
    save(figure, path, DOTS)


def save(figure, path, dots):
    """Write a figure and forget it. Exit if it cannot be written."""
    from matplotlib import pyplot

    try:
        figure.savefig(path, dpi=dots)
    except OSError as error:
        raise Exit(USAGE, f"--plot {path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def draw(panel, run):
    """One run: buffer on the left axis, bulk transfer on the right one."""
    kind = "with" if run.mitigated else "without"
    panel.set_title(f"seed {run.seed}, {kind} mitigation: {run.stalled_s:.1f} s stalled", fontsize="small")
    panel.plot(*zip(*run.levels, strict=True), color="tab:blue", label="buffer, s")
    shade(panel, run.stalls, "stalled", color=STALLED, alpha=0.3)
    if run.mitigated:
        shade(panel, run.favours, "favoured", ymax=0.05, color=FAVOURED)
    panel.set_ylim(0, None)
    panel.set_ylabel("buffer, s", fontsize="small")
    other = panel.twinx()
    line = list(zip(*rates(run.bulk), strict=True)) or [(), ()]
    other.plot(*line, color="tab:gray", linewidth=0.8)
    panel.plot([], [], color="tab:gray", label="bulk, Mbit/s")
    other.set_ylim(0, 1.2 * LINK_Mbps)
    other.set_ylabel("bulk, Mbit/s", fontsize="small")


def shade(panel, intervals, label, **look):
    """Bands over the times; an entry in the legend in any case."""
    panel.fill([], [], label=label, **{key: look[key] for key in look if key != "ymax"})
    for since, until in intervals:
        panel.axvspan(since, until, **look)

"""The picture of `qoetap lab centres`: where new users are sent, second by second, and when the loads changed."""

from qoetap.bitrates import rate_text
from qoetap.lab_centres import CENTRES, FALLBACK, ALONE_seconds, BEFORE_seconds, LOADED_seconds, between, score, share
from qoetap.lab_plot import save

WIDTH_inches, ROW_inches, DOTS = 11.0, 2.8, 80
BIN_seconds = 2


def plot(runs, path):
    """Write the picture of lab_centres.Runs. Exit if it cannot be written."""
    from matplotlib import pyplot

    size = (WIDTH_inches, ROW_inches * len(runs) + 0.3)
    figure, rows = pyplot.subplots(len(runs), 1, figsize=size, squeeze=False, layout="constrained")
    for (panel,), run in zip(rows, runs, strict=True):
        draw(panel, run)
    rows[-1][0].set_xlabel("seconds")
    save(figure, path, DOTS)


def draw(panel, run):
    """Shares of new users, in windows side by side; addresses as users are told them."""
    new = [answer for answer in run.answers if not answer.regular]
    loaded = (BEFORE_seconds, BEFORE_seconds + LOADED_seconds)
    panel.axvspan(*loaded, color="tab:orange", alpha=0.2, label=f"load {run.case.loaded:g} on {CENTRES[0]}")
    panel.axvspan(run.killed_s, run.killed_s + ALONE_seconds, color="tab:gray", alpha=0.3, label="service killed")
    begins = range(0, int(run.answers[-1].at_s) + 1, BIN_seconds)
    windows = [between(new, begin, begin + BIN_seconds) for begin in begins]
    for address, look in ((CENTRES[0], "tab:orange"), (CENTRES[1], "tab:blue"), (FALLBACK, "black")):
        shares = [100 * share(window, address) if window else float("nan") for window in windows]
        panel.step(begins, shares, where="post", color=look, label=address + " (fallback)" * (address == FALLBACK))
    found = score(run)
    moved = "never" if found.moved_s is None else f"after {found.moved_s:.1f} s"
    title = f"{rate_text(run.rate_bps)}, {run.case.text}: moved {moved}; {found.unanswered} unanswered"
    panel.set_title(title, fontsize="small")
    panel.set(ylim=(-5, 105), ylabel="% of new users")
    panel.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))

"""How far a run is, on a terminal: packets, rate and time left. Without a terminal it says nothing."""

import sys
import time

REDRAW_SECONDS = 0.2


class Progress:
    """A line on stderr; `total_bytes` None: it cannot be known."""

    def __init__(self, total_bytes):
        self.bar, self.total_bytes, self.drawn, self.started = None, total_bytes, 0.0, time.monotonic()
        if sys.stderr.isatty():
            self._start()

    def _start(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
        self.task = self.bar.add_task("", total=self.total_bytes)
        self.bar.start()

    def show(self, packets, done_bytes):
        """Redraw, if the last time is long enough ago."""
        now = time.monotonic()
        if self.bar is None or now - self.drawn < REDRAW_SECONDS:
            return
        self.drawn = now
        rate = packets / max(now - self.started, 1e-9)
        self.bar.update(self.task, completed=done_bytes, description=f"{packets:,} packets, {rate:,.0f}/s")
        self.bar.refresh()

    def stop(self):
        if self.bar is not None:
            self.bar.stop()

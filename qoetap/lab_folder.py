"""What commands that run a lab share: where its files go, and how a signal ends it."""

import contextlib
import signal
import tempfile
from pathlib import Path

from qoetap.exits import USAGE, Exit


@contextlib.contextmanager
def results(output):
    """The folder of -o, or one that goes in the end."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="qoetap-lab-") as folder:
            yield Path(folder)
        return
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Exit(USAGE, f"-o {output}: {error.strerror}") from error
    yield folder


def end_by_signals():
    """TERM and INT end a run so that namespaces are taken away, also where a shell had INT ignored."""
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)

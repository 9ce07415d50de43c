"""`--write DIR --on EVENT,…`: when such an event is made, the last packets of its flow are written to a file in DIR.

Files are bounded in number and rate; what is left out is counted. A thread of its own writes them.
"""

import contextlib
import os
import queue
import threading
import time

import numpy as np

from dataplane.events import Renderer, json_lines
from dataplane.evidence import pcapng
from qoetap.exits import USAGE, Exit

FILES_A_SECOND = 10
WAITING = 16  # files that wait to be written at most
FILE_MOST_bytes = 4 << 20  # of packets in a file: the latest
CLOSE_seconds = 1.0


class Evidence:
    """What the events of one agent leave behind. Exit(USAGE): the folder or an event's name is wrong."""

    def __init__(self, folder, names, seconds, files_most, detectors):
        known = [t.name for d in detectors for t in d.events]
        for name in names:
            if name not in known:
                raise Exit(USAGE, f"--on: there is no event {name!r}; there are {', '.join(known)}")
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise Exit(USAGE, f"--write {folder}: cannot be written ({error.strerror})") from error
        self.folder, self.seconds_ns, self.left = folder, int(seconds), files_most
        self.codes = {d.name: {c for c, t in enumerate(d.events, 1) if t.name in names} for d in detectors}
        self.renderer, self.lock = Renderer(detectors, json_lines), threading.Lock()
        self.written = self.skipped = 0
        self.files_most, self.told, self.second, self.in_second = files_most, {}, 0, 0
        self.jobs = queue.Queue(WAITING)
        self.thread = threading.Thread(target=self._write, name="qoetap-evidence", daemon=True)
        self.thread.start()

    def look(self, events, history):
        """Take the packets of the flows that these Events speak of out of `history`; called by its worker."""
        for index, (detector, found) in enumerate(events.parts):
            codes = self.codes.get(detector.name)
            if codes:
                for row in [i for i, code in enumerate(found["code"].tolist()) if code in codes]:
                    self._keep(events, (index, row), found[row], detector, history)

    def _keep(self, events, place, event, detector, history):
        with self.lock:
            if why := self._bound():
                self._skip(why)
                return
        packets = history.packets(event, int(event["ts"]) - self.seconds_ns, FILE_MOST_bytes)
        with self.lock:
            one = events._replace(order=np.array([place]))
            text = b"".join(bytes(text) for text, _ in self.renderer.chunks(one)).decode().strip()
        name = f"{detector.events[int(event['code']) - 1].name}-{int(event['ts'])}"
        try:
            self.jobs.put_nowait((name, packets, text))
        except queue.Full:
            with self.lock:
                self._skip(f"the disk is slow, {WAITING} files wait")

    def _bound(self):
        """What keeps one more file from being written, None if nothing does."""
        second = int(time.monotonic())
        if second != self.second:
            self.second, self.in_second = second, 0
        if self.left <= 0:
            return f"no more than {self.files_most} files (live.write_files)"
        if self.in_second >= FILES_A_SECOND:
            return f"no more than {FILES_A_SECOND} files a second"
        self.left -= 1
        self.in_second += 1
        return None

    def _skip(self, why):
        """Count an event that leaves none; each reason is said once."""
        self.skipped += 1
        self.told.setdefault(why, True)

    def _write(self):
        while (job := self.jobs.get()) is not None:
            name, packets, text = job
            try:
                self._write_file(name, pcapng(packets, text))
                self.written += 1
            except OSError as error:
                with self.lock:
                    self._skip(f"{self.folder}: {error.strerror}")

    def _write_file(self, name, data):
        """Under a name that is new; a file that is there is whole."""
        path, number = os.path.join(self.folder, f"{name}.pcapng"), 0
        while os.path.exists(path):
            number += 1
            path = os.path.join(self.folder, f"{name}-{number}.pcapng")
        part = f"{path}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            os.rename(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def troubles(self):
        """Why events left none, as far as that was not told yet, as sentences."""
        with self.lock:
            new = [why for why, fresh in self.told.items() if fresh]
            self.told |= dict.fromkeys(new, False)
        return [f"evidence: {why}; what is left out is counted" for why in new]

    def summary(self):
        """What there was, None if nothing."""
        if not self.written + self.skipped:
            return None
        left = f", {self.skipped:,} events left none" if self.skipped else ""
        return f"{self.written:,} files of evidence{left}"

    def close(self):
        """Write what waits, as far as that goes quickly."""
        with contextlib.suppress(queue.Full):
            self.jobs.put(None, timeout=CLOSE_seconds)
        self.thread.join(CLOSE_seconds)

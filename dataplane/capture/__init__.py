"""Capture files: a path in, blocks of frames out. The kind of a file is told by its first bytes, never by its name.

    source = open_capture(path)
    for buf, frames in source.blocks(): ...
    source.problem  # None, or the sentence that says at which byte it stopped and why

`pcapfile` and `pcapng` know formats, `feed` and `stream` where bytes come from, `tshark` reads the rest.
"""

import errno
import os
import stat

from dataplane.capture import pcapfile, pcapng, stream
from dataplane.capture.feed import Feed
from dataplane.capture.source import Block, CaptureError, Source
from dataplane.records import TIME_NONE, TIME_RANGE

__all__ = ["Block", "CaptureError", "Source", "expand", "open_capture"]

STDIN = "-"
HEAD_bytes = 16  # enough for any magic
WHY = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "may not be read, give yourself permission (chmod u+r) or run as its owner",
    errno.EISDIR: "is a directory, name the captures in it",
}


def open_capture(path, block_frames=4096, hold=1):
    """Source of the capture at `path` ('-': standard input). CaptureError: it cannot be read at all."""
    name = str(path)
    feed = _open_feed(name, hold)
    head = _peek(feed)
    if pcapfile.byte_order(head):
        return _build(pcapfile.PcapSource, name, feed, block_frames, hold)
    if head.startswith(pcapng.SHB_BYTES):
        return _build(pcapng.PcapngSource, name, feed, block_frames, hold)
    feed.close()
    if feed.failure and not head:
        raise CaptureError(f"{name}: {feed.failure}")
    if not head:
        raise CaptureError(f"{name}: is empty")
    if name == STDIN:
        raise CaptureError("standard input holds neither pcap nor pcapng: save it to a file, so that tshark can try")
    from dataplane.capture.tshark import open_tshark

    return open_tshark(name, block_frames, hold)


def expand(paths):
    """Paths of the files to read, in order: a directory stands for its captures by the time of their first packets.

    CaptureError: a directory holds no capture.
    """
    files = []
    for path in map(str, paths):
        files += _captures_in(path) if path != STDIN and os.path.isdir(path) else [path]
    return files


def _build(kind, *args):
    try:
        return kind(*args)
    except CaptureError:
        args[1].close()
        raise


def _open_feed(name, hold):
    """Feed of the bytes of `name`, decompressed. CaptureError: it cannot be opened."""
    if name == STDIN and os.isatty(0):
        raise CaptureError("standard input is a terminal: pipe a capture into it or name a file")
    raw = None
    try:
        raw = stream.Raw(0 if name == STDIN else os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        head, status = raw.peek(stream.MAGIC_bytes), os.fstat(raw.fd)
    except OSError as error:
        if raw:
            raw.close()
        raise CaptureError(f"{name}: {WHY.get(error.errno, error.strerror)}") from error
    bytes_total = status.st_size if stat.S_ISREG(status.st_mode) else None
    for packing in stream.PACKINGS:
        if packing.is_start(head):
            return Feed(stream.Unpacked(raw, packing), hold, bytes_total)
    return Feed(raw, hold, bytes_total)


def _peek(feed):
    while feed.end < HEAD_bytes and not feed.eof:
        feed.more(0, HEAD_bytes)
    return bytes(feed.buf[: min(HEAD_bytes, feed.end)])


def _captures_in(folder):
    """Captures in `folder`, without its folders and hidden files, in time order."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    files = [path for path in (os.path.join(folder, name) for name in names) if _is_capture(path)]
    if not files:
        raise CaptureError(f"{folder}: holds no captures")
    return sorted(files, key=_first_time)


def _is_capture(path):
    """True if the first bytes of the regular file at `path`, decompressed, are those of a known format."""
    from dataplane.capture.tshark import MAGICS

    if not os.path.isfile(path):
        return False
    try:
        feed = _open_feed(path, 0)
    except CaptureError:
        return False
    head = _peek(feed)
    feed.close()
    return bool(pcapfile.byte_order(head)) or head.startswith((pcapng.SHB_BYTES, *MAGICS))


def _first_time(path):
    """Time of the first packet in ns; files without one come last."""
    try:
        block = next(open_capture(path, block_frames=1, hold=0).blocks(), None)
    except CaptureError:
        block = None
    frame = block.frames[0] if block else None
    if frame is None or frame["flags"] & TIME_NONE:
        return float("inf")
    seconds = frame["flags"] & TIME_RANGE
    return int(frame.ts) * 10**9 + int(frame.nsec) if seconds else int(frame.ts)

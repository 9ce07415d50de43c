"""Every other format: tshark turns it into pcapng on a pipe, our own reader takes it from there. Slow, and said so.

pyshark finds tshark; its packets are not used, because it reads them one at a time out of XML or JSON text (0.001
Mpps) and has no raw bytes with their link type. ERF, which pcapng wraps whole, is unwrapped here.
"""

import subprocess
import tempfile

from dataplane.capture.feed import Feed
from dataplane.capture.pcapng import PcapngSource
from dataplane.capture.source import CaptureError
from dataplane.capture.stream import Broken, Raw

LINKTYPE_ETHERNET, LINKTYPE_ERF = 1, 197
ERF_TYPE, ERF_RECORD_bytes, ERF_EXTENSION_bytes, ERF_PAD_bytes = 8, 16, 8, 2  # Endace ERF types reference
ERF_EXTENDED = 0x80
ERF_ETHERNET = (2, 11, 16, 20)  # ETH, COLOR_ETH, DSM_COLOR_ETH, COLOR_HASH_ETH

# What begins a capture file that only tshark reads: enough to know one in a directory (wiretap's file_access.c)
MAGICS = (b"snoop\0\0\0", b"GMBU", b"RTSS", b"TRSNIFF data", b"XCP\0", b"iptrace ", b"btsnoop\0", b"5Vw")


class _Output(Raw):
    """Reader of tshark's output; how tshark ended is part of it."""

    where = " of what tshark made of it"

    def __init__(self, process, errors):
        super().__init__(process.stdout.fileno())
        self._process, self._errors = process, errors

    def readinto(self, view):
        got = super().readinto(view)
        if got == 0 and self._process.wait() != 0:
            raise Broken(self.message() or f"tshark ended with status {self._process.returncode}")
        return got

    def message(self):
        """The last thing that tshark said, without the preamble about running as root."""
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
        return " ".join(line for line in said if line and not line.startswith("Running as user"))

    def close(self):
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()


class TsharkSource(PcapngSource):
    """A capture as tshark reads it; byte positions are those of its pcapng output."""

    comment = "read through tshark, slowly"

    def _fill(self, frames):
        count = super()._fill(frames)
        for frame in frames[:count]:
            if frame.linktype == LINKTYPE_ERF:
                unwrap_erf(self.feed.buf, frame)
        return count


def unwrap_erf(buf, frame):
    """Make the Ethernet frame of `frame`, an ERF record; other records stay as they are."""
    kind, head_bytes = int(buf[frame.offset + ERF_TYPE]) if frame.caplen > ERF_TYPE else 0, ERF_RECORD_bytes
    extended = kind & ERF_EXTENDED
    while extended and head_bytes < frame.caplen:
        extended = int(buf[frame.offset + head_bytes]) & ERF_EXTENDED
        head_bytes += ERF_EXTENSION_bytes
    head_bytes += ERF_PAD_bytes
    if kind & ~ERF_EXTENDED in ERF_ETHERNET and head_bytes <= frame.caplen:
        frame.offset += head_bytes
        frame.caplen -= head_bytes
        frame.len = max(int(frame.len) - head_bytes, int(frame.caplen))
        frame.linktype = LINKTYPE_ETHERNET


def tshark_path(name):
    """Where tshark is. CaptureError: it is not installed."""
    from pyshark.tshark.tshark import TSharkNotFoundException, get_process_path

    try:
        return get_process_path()
    except TSharkNotFoundException:
        why = f"{name}: neither pcap nor pcapng, and tshark, which may know it, is not installed (apt install tshark)"
        raise CaptureError(why) from None


def open_tshark(path, block_frames, hold):
    """Source of the file at `path`. CaptureError: no tshark, or it is no capture for tshark either."""
    command = [tshark_path(path), "-n", "-r", str(path), "-F", "pcapng", "-w", "-"]
    errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the source
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    output = _Output(process, errors)
    try:
        return TsharkSource(path, Feed(output, hold), block_frames, hold)
    except CaptureError:
        output.close()
        raise CaptureError(f"{path}: not a capture that qoetap or tshark can read") from None

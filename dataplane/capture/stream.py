"""Readers: bytes in order from a file descriptor, as they are or out of gzip or zstd. Memory is bounded for any input.

A reader has `readinto(view)`, which returns 0 at the end and raises Broken where that was no clean end, `bytes_done` in
the file as stored, and `where`, which says of what a byte position speaks. Sources: RFC 1952, RFC 8878.
"""

import fcntl
import os
import select
import stat
import zlib

PIPE_bytes = 1 << 20
GZIP, GZIP_CHUNK_bytes, GZIP_PIECE_bytes = b"\x1f\x8b\x08", 1 << 16, 1 << 18
ZSTD, ZSTD_SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"  # the second from the frame's second byte on
ZSTD_CHUNK_bytes = 1 << 10  # 4 bytes may stand for a block of 128 KiB: so a chunk becomes 32 MiB at most
ZSTD_WINDOW_bytes = 1 << 27  # as the zstd tool without --long=28 and more


class Broken(Exception):
    """No more bytes can be had, though this is no clean end; str() is the reason."""


class Raw:
    """Reader of a file descriptor as it is; what `peek` looked at is read first."""

    where, plain = "", True  # plain: what is read from `fd` is what `readinto` gives

    def __init__(self, fd):
        self.fd, self.bytes_done, self._head = fd, 0, b""
        self._poll = None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            try:
                fcntl.fcntl(fd, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_bytes)
            except OSError:
                pass  # beyond the user's share: a smaller pipe works too

    def peek(self, count):
        """The first `count` bytes, fewer if the input is shorter."""
        while len(self._head) < count and (more := os.read(self.fd, count - len(self._head))):
            self._head += more
        return self._head

    def read(self, count):
        """At most `count` bytes, none at the end."""
        data = bytearray(count)
        return bytes(data[: self.readinto(memoryview(data))])

    def readinto(self, view):
        """Fill `view` with what is there, waiting for the first byte only."""
        got = min(len(view), len(self._head))
        if got:
            view[:got], self._head = self._head[:got], self._head[got:]
        else:
            got = self._readv(view)
            while 0 < got < len(view) and (self._poll is None or self._poll.poll(0)):
                more = self._readv(view[got:])
                got += more
                if not more:
                    break
        self.bytes_done += got
        return got

    def _readv(self, view):
        try:
            return os.readv(self.fd, [view])
        except OSError as error:
            raise Broken(f"reading failed ({error.strerror})") from error

    def close(self):
        """Close all but standard input."""
        if self.fd > 0:
            os.close(self.fd)
        self.fd = -1


class Gzip:
    """How to unpack gzip."""

    name, chunk_bytes = "gzip", GZIP_CHUNK_bytes
    is_start = staticmethod(lambda data: data.startswith(GZIP))
    member = staticmethod(lambda: zlib.decompressobj(wbits=31))

    @staticmethod
    def step(member, data):
        """Yield decompressed pieces of `data`; Broken after what damaged data still gave."""
        while True:
            before = member.copy()
            try:
                piece = member.decompress(data, GZIP_PIECE_bytes)
            except zlib.error as error:
                yield from Gzip.rescue(before, data)
                raise Broken(f"gzip data is damaged ({error})") from error
            yield piece
            data = member.unconsumed_tail
            if member.eof or not data and len(piece) < GZIP_PIECE_bytes:
                return

    @staticmethod
    def rescue(member, data):
        """Yield what can be had of `data` before the byte at which `member` fails."""
        try:
            for at in range(len(data)):
                yield member.decompress(data[at : at + 1])
        except zlib.error:
            return


class Zstd:
    """How to unpack zstd."""

    name, chunk_bytes = "zstd", ZSTD_CHUNK_bytes
    is_start = staticmethod(lambda data: data.startswith(ZSTD) or data[1:4] == ZSTD_SKIPPABLE and data[0] >> 4 == 5)

    @staticmethod
    def member():
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_bytes).decompressobj()

    @staticmethod
    def step(member, data):
        """Yield decompressed pieces of `data`; Broken where it is damaged."""
        import zstandard

        try:
            yield member.decompress(data)
        except zstandard.ZstdError as error:
            raise Broken(f"zstd data is damaged ({error})") from error


PACKINGS = (Gzip, Zstd)
MAGIC_bytes = 4


def unpack(raw, packing):
    """Yield the decompressed bytes of `raw` in pieces, members one after the other. Broken: damage, a cut, a tail."""
    data = raw.read(packing.chunk_bytes)
    while data:
        member = packing.member()
        while not member.eof:
            data = data or raw.read(packing.chunk_bytes)
            if not data:
                raise Broken(f"{packing.name} data is cut short")
            yield from packing.step(member, data)
            data = b""
        data = _next_member(raw, member.unused_data, packing)


def _next_member(raw, data, packing):
    """Bytes from the start of the next member on, none at the end; zeros between members are padding."""
    while True:
        data = data.lstrip(b"\0")
        if len(data) >= MAGIC_bytes:
            break
        more = raw.read(packing.chunk_bytes)
        if not more:
            break
        data += more
    if data and not packing.is_start(data):
        raise Broken(f"{packing.name} data is followed by something else")
    return data


class Unpacked:
    """Reader of a compressed stream."""

    where, plain = " of the decompressed stream", False

    def __init__(self, raw, packing):
        self._raw, self._pieces = raw, unpack(raw, packing)
        self._piece, self._broken = memoryview(b""), None

    @property
    def bytes_done(self):
        return self._raw.bytes_done

    def readinto(self, view):
        """Fill `view`, to the last good byte if the stream is broken: the next call says so."""
        got = 0
        while got < len(view) and self._next_piece():
            part = self._piece[: len(view) - got]
            view[got : got + len(part)] = part
            self._piece = self._piece[len(part) :]
            got += len(part)
        if not got and self._broken:
            raise self._broken
        return got

    def _next_piece(self):
        """True if there is, or now came, a piece."""
        while not self._piece:
            try:
                self._piece = memoryview(next(self._pieces))
            except StopIteration:
                return False
            except Broken as broken:
                self._broken = broken
                return False
        return True

    def close(self):
        self._raw.close()

"""Servers on a socket in the file system, which only the user of this process may open."""

import contextlib
import os
import socket
import stat

from qoetap import serving
from qoetap.exits import USAGE, Exit

PREFIX = "unix:"
PATH_MAX_bytes = 107  # sun_path, unix(7)


def path_of(address, place):
    """The path of unix:PATH, free to be bound. Exit if it cannot be; what a dead process left behind is removed."""
    path = address.removeprefix(PREFIX)
    if not path or len(os.fsencode(path)) > PATH_MAX_bytes or "\0" in path:
        raise Exit(USAGE, f"{place.key}: {address!r} is no socket, write unix: and a path of at most 107 bytes")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Exit(USAGE, f"{place.key}: {path} exists and is no socket: give another path")
        if _listens(path):
            raise Exit(USAGE, f"{place.key}: {path} is in use by another process: give another path")
        os.unlink(path)
    return path


def _listens(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:  # it may not be opened: then it is somebody's
            return True
    return True


class UnixServer(serving.Server):
    """A Server on a path, which is removed when it is closed."""

    def __init__(self, path, handler, token):
        super().__init__(socket.AF_UNIX, path, handler, token)

    def server_bind(self):
        """The mode is set before there is a name, so nobody else can ever connect (unix_bind takes the socket's)."""
        os.fchmod(self.socket.fileno(), 0o600)
        self.socket.bind(self.server_address)
        self.bound = os.lstat(self.server_address)

    def server_close(self):
        super().server_close()
        with contextlib.suppress(FileNotFoundError, AttributeError):  # somebody removed it; it never was bound
            if os.path.samestat(os.lstat(self.server_address), self.bound):
                os.unlink(self.server_address)

"""Where compiled kernels are kept: a private folder named by a hash of all they are made from.

numba does not notice that an imported kernel changed, and its files are pickles: so each state of the sources has a
folder of its own, and a folder that somebody else could have written to is never used.
"""

import atexit
import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

KEPT_FOLDERS = 3
PREFIX = "kernels-"
TEMPORARY_PREFIX = "qoetap-kernels-"
OTHERS_MAY_WRITE = 0o022  # mode bits


def use_kernel_cache():
    """Point numba at the folder, made if need be, or at a temporary one where it cannot be trusted or written."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(os.environ.get("QOETAP_CACHE_DIR") or os.path.join(home, "qoetap"))
    folder = root / (PREFIX + sources_hash())
    try:
        for place in (root, folder):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(place):
                raise PermissionError(place)
        os.utime(folder)
        tidy(root)
    except OSError:
        folder = temporary()
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = str(folder)


def sources_hash():
    """Hash of every source of dataplane and detectors and where they are, of versions, and of bounds checks."""
    here = Path(__file__).parent
    found = hashlib.sha256(f"{here} {sys.version} {os.environ.get('NUMBA_BOUNDSCHECK', '')}".encode())
    files = [path for package in (here, here.parent / "detectors") for path in sorted(package.rglob("*.py"))]
    for name, version in (("numba", "_version.py"), ("numpy", "version.py")):
        spec = find_spec(name)
        files += [Path(spec.origin).with_name(version)] if spec else []
    for path in files:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def is_private(folder):
    status = folder.lstat()
    return status.st_uid == os.geteuid() and not status.st_mode & OTHERS_MAY_WRITE and os.access(folder, os.W_OK)


def tidy(root):
    """Remove all but the latest used folders."""
    folders = sorted(root.glob(PREFIX + "*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[KEPT_FOLDERS:]:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def temporary():
    """A private folder that lasts as long as the process."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_temporary():
    """True if what is compiled is lost when the process ends."""
    return os.path.basename(os.environ["NUMBA_CACHE_DIR"]).startswith(TEMPORARY_PREFIX)


def cold(functions):
    """Those names of jitted functions ("batch.decode_stage", "loop.stage_flow") of which nothing was compiled yet."""
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    return [name for name in functions if not next(folder.glob(f"*/{name}[-_]*.nbi"), None)]

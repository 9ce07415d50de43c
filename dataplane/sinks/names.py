"""How outputs are called: the kinds of files and addresses, and the one form in which a spec may be shown."""

import os
import re
from urllib.parse import urlsplit

FILES = ("jsonl", "csv", "parquet")  # sinks that write files
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
URLS = {"kafka": "kafka", "http": "http", "https": "http"}  # whose path is the whole address

SECRET = "***"
SCHEME = r"(?:[\w.-]+:)?[\w.+-]*"  # behind the name of a sink
ADDRESS = re.compile(rf"({SCHEME})://([^/?#]*)([^?#]*)([?#]?).*", re.DOTALL)  # RFC 3986, appendix B
HOST = r"(\[[0-9A-Za-z:.%]*\]|[\w.-]*)(:\d*)?"
HOSTS = re.compile(f"{HOST}(,{HOST})*")
NAMED = re.compile(r"([\w.-]+):")


def redacted(spec):
    """An output as everybody may see it: scheme, host and path, or the name of its file.

    *** stands for user and password, for what follows ? or #, for what a sink of others is given, and for all behind
    the scheme where no host can be told from a password, so for all of what has an @ and is neither address nor file.
    """
    if address := ADDRESS.fullmatch(spec):
        scheme, authority, path, mark = address.groups()
        user, at, host = authority.rpartition("@")
        if "@" in path or not HOSTS.fullmatch(host):
            return f"{scheme}://{SECRET}"
        return f"{scheme}://{SECRET * bool(user)}{at}{host}{path}" + (mark and f"{mark}{SECRET}")
    name = NAMED.match(spec)
    if name and name[1] not in FILES:
        return f"{name[1]}:{SECRET}"
    is_file = bool(name) or os.path.splitext(spec)[1] in SUFFIXES
    if "@" in spec and not is_file:
        return SECRET
    mark = re.search(r"\?" if is_file else "[?#]", spec)  # of an address without its ://
    return spec[: mark.end()] + SECRET if mark else spec


def output_label(spec):
    """The redacted output, and of web hooks the host only: their path may be a secret too."""
    shown = redacted(spec)
    if "://" in shown:
        url = urlsplit(shown)
        topic = url.path if url.scheme == "kafka" else ""
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{topic}"
    return shown.removesuffix(f":{SECRET}")

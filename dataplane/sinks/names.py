"""How outputs are called: the kinds of files and addresses, and the one form in which a spec may be shown."""

import re

FILES = ("jsonl", "csv", "parquet")  # sinks that write files
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
URLS = {"kafka": "kafka", "http": "http", "https": "http"}  # whose path is the whole address

SECRET = "***"
ADDRESS = re.compile(r"(.*?)://([^/?#]*)([^?#]*)([?#]?).*", re.DOTALL)  # RFC 3986, appendix B
HOST = r"(\[[0-9A-Za-z:.%]*\]|[\w.-]*)(:\d*)?"
HOSTS = re.compile(f"{HOST}(,{HOST})*")
NAMED = re.compile(r"([\w.-]+):")


def redacted(spec):
    """An output as everybody may see it: scheme, host and path, or the name of its file.

    *** stands for user and password, for what follows ? or #, for what a sink of others is given, and for all behind
    the scheme where no host can be told from a password.
    """
    if address := ADDRESS.fullmatch(spec):
        scheme, authority, path, mark = address.groups()
        user, at, host = authority.rpartition("@")
        if not HOSTS.fullmatch(host):
            return f"{scheme}://{SECRET}"
        return f"{scheme}://{SECRET * bool(user)}{at}{host}{path}" + (mark and f"{mark}{SECRET}")
    name = NAMED.match(spec)
    if name and name[1] not in FILES:
        return f"{name[1]}:{SECRET}"
    path, mark, _ = spec.partition("?")  # of an address without its ://
    return f"{path}{mark}{SECRET * bool(mark)}"

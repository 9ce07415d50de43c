"""What `qoetap doctor` finds: one fact each, whether it is as it should be, and how to mend it."""

from typing import NamedTuple

OK, MISSING, WRONG = "ok", "missing", "wrong"


class Finding(NamedTuple):
    """state: ok, missing (something optional) or wrong; `mend` says what to do."""

    name: str
    state: str
    found: str
    mend: str = ""


def judged(name, fine, found, mend, fault=WRONG):
    """A Finding that is ok if `fine`, else `fault` and to be mended."""
    return Finding(name, OK, found) if fine else Finding(name, fault, found, mend)

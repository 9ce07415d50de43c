"""`qoetap decode`: the digest of every capture of the corpus, and the formats against each other."""

import hashlib
import ipaddress
import json

import pytest

from dataplane.listing import COLUMNS
from tests import captures as write
from tests.helpers import run

MALFORMED = "malformed/"


def digest_line(line):
    """A tab-separated line as the corpus defines it: numbers as they are, addresses as hex."""
    values = line.rstrip("\n").split("\t")
    for i in (5, 6):
        values[i] = ipaddress.ip_address(values[i]).packed.hex() if values[i] else ""
    return "|".join(values) + "\n"


def digest(text):
    return hashlib.sha256("".join(map(digest_line, text.splitlines())).encode()).hexdigest()


def decoded(path, folder, form="tsv", *options):
    """(exit status, text) of qoetap decode."""
    out = folder / "decoded"
    return run("decode", path, "--format", form, "-o", out, *options).status, out.read_text()


@pytest.fixture(scope="session")
def oracle(corpus):
    return json.loads((corpus / "pcaps" / "oracle.json").read_text())["files"]


def test_digest_of_every_well_formed_capture(corpus, oracle, tmp_path):
    named = {name: facts["digest"] for name, facts in oracle.items() if not name.startswith(MALFORMED)}
    assert len(named) == 91
    found = {name: digest(decoded(corpus / "pcaps" / name, tmp_path)[1]) for name in named}
    assert found == named

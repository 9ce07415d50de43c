"""What tests need from outside: with QOETAP_REQUIRE=all a need that is not met fails instead of skipping."""

import os
import shutil
from pathlib import Path

import pytest

from qoetap.lab import Link
from qoetap.street import Street


def require(condition, reason):
    """Skip the test, or fail it where everything is required."""
    if condition:
        return
    if os.environ.get("QOETAP_REQUIRE") == "all":
        pytest.fail(f"QOETAP_REQUIRE=all, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def corpus():
    """Folder with the captures (pcaps/) and data (data/) that are no part of this repository."""
    folder = os.environ.get("QOETAP_CORPUS", "")
    require(folder and (Path(folder) / "pcaps").is_dir(), "QOETAP_CORPUS names no folder with pcaps/ in it")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tshark():
    """Path of tshark."""
    found = shutil.which("tshark")
    require(found, "tshark is not installed (apt install tshark)")
    return found


@pytest.fixture(scope="session")
def zstd():
    """Path of the zstd tool."""
    found = shutil.which("zstd")
    require(found, "zstd is not installed (apt install zstd)")
    return found


@pytest.fixture(scope="session")
def root():
    """The test may do what only root may."""
    require(os.geteuid() == 0, "this needs root")


@pytest.fixture(scope="module")
def link(root):
    """Two namespaces with a pair of interfaces between them."""
    with Link() as made:
        yield made


@pytest.fixture
def pair(root):
    """A Link whose interfaces the test may remove."""
    with Link() as made:
        yield made


@pytest.fixture(scope="module")
def street(root):
    """A sender, a router and a receiver."""
    for name in ("ip", "iptables", "ip6tables"):
        require(shutil.which(name), f"{name} is not installed (apt install iproute2 iptables)")
    with Street() as made:
        yield made

"""Packaging. Wheels only, no compiler: `pip install --only-binary :all: .`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "qoetap" / "__init__.py").read_text())[1]
README = HERE / "README.md"
PACKAGES = ("dataplane", "detectors", "controlplane", "endhost", "qoetap", "pcaps")

PLOT = ["dpkt", "matplotlib"]
LAB = ["aioquic>=1.2", "httpx", "matplotlib"]
SINKS = ["pyarrow", "confluent-kafka"]
CONTROL = ["fastapi", "uvicorn", "jinja2", "scipy>=1.12", "dnslib"]
TESTS = ["pytest", "pytest-xdist", "hypothesis", "coverage>=7.10", "ruff", "jsonschema", "httpx", "schemathesis"]
EXTRAS = {
    "inline": [],  # netlink is spoken by qoetap itself
    "parquet": ["pyarrow"],
    "kafka": ["confluent-kafka"],
    "control": CONTROL,
    "cluster": ["dask[distributed]"],
    "browser": ["selenium", "mss", "Pillow"],
    "report": ["matplotlib"],
    "lab": LAB,
    "bench": ["scapy", "nfstream", *PLOT],
    "dev": [*TESTS, *SINKS, *PLOT, *LAB, *CONTROL],
}

setup(
    name="qoetap",
    version=VERSION,
    description="Packets in, what users and clocks experience out: stalls, loops, PTP delays, probes, flows",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    author="qoetap contributors",
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={"qoetap": ["*.yaml"], "controlplane": ["templates/*"], "pcaps": ["*.expected.jsonl"]},
    install_requires=[
        "numpy>=2.0",
        "numba>=0.61",
        "prometheus-client>=0.21",
        "pyshark>=0.6",
        "PyYAML>=6.0",
        "pydantic>=2.7",
        "rich>=13.0",
        "zstandard>=0.22",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["qoetap = qoetap.cli:main"]},
)

"""Kernels compiled before a run: the children leave none to the run, and it can use what they made."""

import os
import subprocess
import sys

import pytest

from dataplane.records import CHECKED
from pcaps.make import make

COMPILE = """
from qoetap import warm
more = [name for name in warm.OTHERS if name not in ("batch.decode_stage", "chain.go")]  # which are always asked for
missing = warm.units(["flow"], *more)
warm.compile_units(missing)
print(bool(missing), warm.units(["flow"], *more))
"""

LOAD = """
import sys
from qoetap import warm
warm.compile_decode()
print("scipy.linalg" in sys.modules)
import scipy.linalg.cython_blas
"""


@pytest.mark.skipif(CHECKED, reason="stages are not compiled")
def test_kernels_load_no_scipy_and_it_can_be_loaded_later():
    pytest.importorskip("scipy")
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.skipif(CHECKED, reason="stages are not compiled")
def test_children_compile_all_units(tmp_path):
    env = {**os.environ, "QOETAP_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr
    make(tmp_path)
    files = len(list(tmp_path.rglob("*.nbc")))
    for workers in ("1", "2"):
        command = [sys.executable, "-m", "qoetap", "replay", tmp_path / "flows_tcp.pcap", "--detectors", "flow"]
        done = subprocess.run([*command, "--workers", workers], env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "flow.end" in done.stdout and "compiling" not in done.stderr, done.stderr
    assert len(list(tmp_path.rglob("*.nbc"))) == files

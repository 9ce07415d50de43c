"""Kernels compiled before a run: the children leave none to the run."""

import os
import subprocess
import sys

import pytest

from dataplane.records import CHECKED

COMPILE = """
from qoetap import warm
more = [name for name in warm.OTHERS if name != "batch.decode_stage"]  # which is always asked for
missing = warm.units(["flow"], *more)
warm.compile_units(missing)
print(bool(missing), warm.units(["flow"], *more))
"""


@pytest.mark.skipif(CHECKED, reason="stages are not compiled")
def test_children_compile_all_units(tmp_path):
    env = {**os.environ, "QOETAP_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr

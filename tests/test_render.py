"""Rendering beside threads that allocate: it must write into no memory but its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys, threading
from dataplane.events import Renderer, json_lines
from dataplane.records import JIT
from dataplane.render import SCRATCH
from tests.sinks import DETECTORS, batch

events, times = (batch(2000), 100) if JIT else (batch(20), 1)
renderer, mark, done = Renderer(DETECTORS, json_lines), bytes([7]) * (8 * SCRATCH), threading.Event()
list(renderer.chunks(events))
sys.setswitchinterval(1e-5)

def allocate():
    while not done.is_set():
        blocks = [bytearray(mark) for _ in range(50)]
        assert all(block == mark for block in blocks * 2)

other = threading.Thread(target=allocate)
other.start()
for _ in range(times):
    list(renderer.chunks(events))
done.set()
other.join()
"""
ONE_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}  # what is freed is taken at once


def test_rendering_leaves_the_memory_of_others_alone():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=os.environ | ONE_HEAP, capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")

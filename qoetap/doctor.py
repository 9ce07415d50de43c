"""`qoetap doctor`: what is there, what is missing, and how to mend it."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import dataplane  # noqa: F401  names the kernel cache
from dataplane.cache import cold, is_temporary
from qoetap.exits import DONE, RUN_ERROR

OLDEST_PYTHON = (3, 11)
MIB = 1 << 20


class Finding(NamedTuple):
    """state: ok, missing (something optional) or wrong; `mend` says what to do."""

    name: str
    state: str
    found: str
    mend: str = ""


def python():
    fine = sys.version_info >= OLDEST_PYTHON
    mend = "" if fine else "install Python 3.11 or newer"
    return Finding("python", "ok" if fine else "wrong", platform.python_version(), mend)


def package(name, mend="", needed=True):
    """Whether a Python package is there."""
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "wrong" if needed else "missing", "not installed", mend or f"pip install {name}")


def tool(name, mend):
    path = shutil.which(name)
    return Finding(name, "ok", path) if path else Finding(name, "missing", "not found", mend)


def kernel_cache():
    folder = os.environ["NUMBA_CACHE_DIR"]
    if is_temporary():
        mend = "set QOETAP_CACHE_DIR to a folder that only you can write to; until then kernels are compiled each time"
        return Finding("kernel cache", "wrong", "no folder that is private and writable", mend)
    state = (
        "kernels are compiled"
        if not cold(["batch.decode_stage"])
        else "kernels are not compiled yet, the first run does"
    )
    return Finding("kernel cache", "ok", f"{folder} ({state})")


def cores(workers):
    count = len(os.sched_getaffinity(0))
    mend = "" if workers <= count else f"set workers to {count}: more threads than cores are slower"
    return Finding("cores", "ok" if workers <= count else "wrong", f"{count}, {workers} configured", mend)


def available_bytes():
    """Memory that programs can still have, None where /proc does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def memory(most_bytes):
    there = available_bytes()
    if there is None:
        return Finding("memory", "missing", "/proc/meminfo cannot be read", "mount /proc")
    fine = most_bytes < there
    found = f"{there // MIB} MiB available, tables up to {most_bytes // MIB} MiB"
    return Finding("memory", "ok" if fine else "wrong", found, "" if fine else "lower the detectors' capacity")


def findings(args):
    """Every Finding; the packages come first, because the rest needs them."""
    found = [python(), *map(package, ("numpy", "numba", "PyYAML", "pydantic", "rich", "pyshark"))]
    found.append(package("pyarrow", "for Parquet outputs: pip install qoetap[parquet]", needed=False))
    found.append(package("zstandard", "for captures packed with zstd: pip install zstandard"))
    found.append(tool("tshark", "for inspect and rare capture formats: apt install tshark"))
    found.append(kernel_cache())
    if all(f.state == "ok" for f in found if f.name in ("numpy", "numba", "PyYAML", "pydantic")):
        import detectors as registry
        from qoetap import config
        from qoetap.replay import most_bytes

        known = registry.load_all()
        layers = [config.read_file(args.config)] if args.config else []
        settings = config.load(layers + [config.assignment(text) for text in args.set], known)
        found += [cores(settings.workers), memory(most_bytes(settings, known))]
    return found


def doctor(args):
    """Print the findings; RUN_ERROR if something is wrong. What is only missing is no fault."""
    found = findings(args)
    if args.json:
        print(json.dumps([f._asdict() for f in found], indent=1))
    else:
        width = max(len(f.name) for f in found)
        for f in found:
            print(f"{f.state:<8} {f.name:<{width}}  {f.found}" + (f"; {f.mend}" if f.mend else ""))
    return RUN_ERROR if any(f.state == "wrong" for f in found) else DONE

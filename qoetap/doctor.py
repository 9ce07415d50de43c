"""`qoetap doctor`: what is there, what is missing, and how to mend it."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import dataplane  # noqa: F401  names the kernel cache
from dataplane.cache import cold, is_temporary
from qoetap.exits import DONE, RUN_ERROR
from qoetap.findings import MISSING, OK, WRONG, Finding, judged

OLDEST_PYTHON = (3, 11)
MIB = 1 << 20
NEEDED = ("numpy", "numba", "PyYAML", "pydantic")  # to ask about the configuration


def python():
    fine = sys.version_info >= OLDEST_PYTHON
    return judged("python", fine, platform.python_version(), "install Python 3.11 or newer")


def package(name, mend="", needed=True):
    """Whether a Python package is there."""
    try:
        return Finding(name, OK, version(name))
    except PackageNotFoundError:
        return Finding(name, WRONG if needed else MISSING, "not installed", mend or f"pip install {name}")


def tool(name, mend):
    path = shutil.which(name)
    return judged(name, path, path or "not found", mend, MISSING)


def kernel_cache():
    folder = os.environ["NUMBA_CACHE_DIR"]
    if is_temporary():
        mend = "set QOETAP_CACHE_DIR to a folder that only you can write to; until then kernels are compiled each time"
        return Finding("kernel cache", WRONG, "no folder that is private and writable", mend)
    is_cold = cold(["batch.decode_stage"])
    state = "kernels are not compiled yet, the first run does" if is_cold else "kernels are compiled"
    return Finding("kernel cache", OK, f"{folder} ({state})")


def cores(workers):
    count = len(os.sched_getaffinity(0))
    mend = f"set workers to {count}: more threads than cores are slower"
    return judged("cores", workers <= count, f"{count}, {workers} configured", mend)


def available_bytes():
    """Memory that programs can still have, None where /proc does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def memory(most_bytes, there):
    if there is None:
        return Finding("memory", MISSING, "/proc/meminfo cannot be read", "mount /proc")
    found = f"{there // MIB} MiB available, tables up to {most_bytes // MIB} MiB"
    return judged("memory", most_bytes < there, found, "lower the detectors' capacity")


def software():
    """Findings about packages and tools."""
    found = [python(), *map(package, (*NEEDED, "rich", "pyshark", "prometheus-client"))]
    found.append(package("pyarrow", "for Parquet outputs: pip install qoetap[parquet]", needed=False))
    found.append(package("confluent-kafka", "for Kafka outputs: pip install qoetap[kafka]", needed=False))
    found.append(package("zstandard", "for captures packed with zstd: pip install zstandard"))
    found.append(tool("tshark", "for inspect and rare capture formats: apt install tshark"))
    found.append(kernel_cache())
    return found


def settings_of(args):
    """(settings, every detector). Exit if something is wrong with the configuration."""
    import detectors as registry
    from qoetap import config

    known = registry.load_all()
    layers = [config.read_file(args.config)] if args.config else []
    layers += [config.assignment(text) for text in args.set]
    if args.interface:
        layers.append(config.Layer("-i", {"live": {"interfaces": args.interface}}))
    return config.load(layers, known), known


def configured(settings, known):
    """Findings about what the configuration asks of the machine."""
    from qoetap.agent import ring_options
    from qoetap.findings import host, nic
    from qoetap.replay import most_bytes

    live, there = settings.live, available_bytes()
    tables = most_bytes(settings, known, settings.workers if live.interfaces else None)
    fault = WRONG if live.interfaces else MISSING
    rings = settings.workers * max(1, len(live.interfaces))
    left = None if there is None else there - tables
    found = [cores(settings.workers), memory(tables, there)]
    found.append(host.rings(ring_options(live).ring_bytes, rings, left, fault))
    found += [
        host.packet_sockets(fault),
        host.capture_privilege(fault),
        host.filters(WRONG if settings.filter else MISSING),
    ]
    if live.hardware_timestamps:
        found.append(host.timestamp_privilege())
    found += [host.clock_source(fault), host.system_clock()]
    return found + [f for name in live.interfaces for f in nic.interface(name, live.hardware_timestamps)]


def findings(args):
    """Every Finding; the packages come first, because the rest needs them."""
    found = software()
    if all(f.state == OK for f in found if f.name in NEEDED):
        found += configured(*settings_of(args))
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
    return RUN_ERROR if any(f.state == WRONG for f in found) else DONE

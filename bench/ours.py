"""qoetap's side: the whole command, its start-up, the rate of its kernels. Runs in child processes, as the peers do."""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.peers import Run, launch

ONE_FLOW_IN = {"flow": 1, "iqn": 4, "probe_stream": 16}  # of how many flows of the traffic a detector sees one
PASSES = 3  # that count, after one that compiles and brings the file and the memory
DETECTORS = ("iqn", "icmp_loop", "ptp", "sandwich", "probe_stream", "flow")


def command(path, *options, cache_dir=None, stats=None):
    """`qoetap replay` with every detector, if no option says otherwise, events discarded: start, reading and writing of
    statistics included.

    `stats`, a dict, receives what --stats wrote.
    """
    env = dict(os.environ) if cache_dir is None else {**os.environ, "QOETAP_CACHE_DIR": str(cache_dir)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stats.json"
        argv = [sys.executable, "-m", "qoetap", "replay", path, "-o", "null", "--stats", out, *options]
        wall, cpu, rss, _ = launch(argv, env)
        told = json.loads(out.read_text())
    if stats is not None:
        stats.update(told)
    return Run(sum(file["packets"] for file in told["files"].values()), wall, wall, cpu, rss)


def kernel(path, detectors=DETECTORS, workers=1, capacity=0, of=statistics.median):
    """Rate of the engine alone in packets per second, from a fresh interpreter: `of` its passes, see `qoetap_rates`."""
    request = json.dumps([str(path), list(detectors), workers, capacity])
    return of(json.loads(launch([sys.executable, "-m", "bench.ours", request])[3].strip().splitlines()[-1]))


class Discard:
    """A sink that drops all events."""

    def write(self, events):
        pass


def qoetap_rates(path, detectors, workers, capacity):
    """Packets per second of dataplane.engine over `path` in each of PASSES: compiled, page cache warm.

    A pass may be much too slow: where a machine gives free memory back to its host after two seconds, it takes 25 times
    as long to get it. `capacity` is the number of flows that the tables must hold, 0 for the default; no
    detectors: decode alone. Reading, making tables, ending every state and sorting the events count; writing them out
    does not.
    """
    import detectors as registry
    from dataplane.capture import open_capture
    from dataplane.engine import Engine
    from dataplane.wire import decode_options
    from qoetap import config

    known = registry.load_all()
    sizes = {name: {"capacity": max(known[name].capacity, capacity // part)} for name, part in ONE_FLOW_IN.items()}
    if capacity:
        sizes["flow"]["capacity"] = capacity
    settings = config.load([config.Layer("bench", {"detectors": sizes})], known)
    parts = []
    for name in detectors:
        section = getattr(settings.detectors, name)
        parts.append((known[name], config.build_params(known[name], section), section.capacity))
    rates = []
    for _ in range(1 + PASSES):
        engine = None
        gc.collect()  # the tables of one pass are not given back in the next one's time
        started = time.perf_counter()
        engine = Engine(parts, Discard(), decode_options(b"bench"), workers, settings.batch_rows)
        engine.run(open_capture(path, engine.block_frames, engine.hold))
        engine.end()
        rates.append(engine.seen / (time.perf_counter() - started))
    return rates[1:]


def main():
    """Child side of `kernel`: one JSON argument."""
    print(json.dumps(qoetap_rates(*json.loads(sys.argv[1]))))


def start_up(path, rounds, *options):
    """Seconds of the whole command on a small file: with an empty kernel cache, then with that cache filled. `options`:
    more of the command's.
    """
    with tempfile.TemporaryDirectory() as cache:
        cold = command(path, *options, cache_dir=cache)
        warm = [command(path, *options, cache_dir=cache).wall_s for _ in range(rounds)]
    return {"cold_s": cold.wall_s, "warm_s": warm, "rss_bytes": cold.rss_bytes}


if __name__ == "__main__":
    main()

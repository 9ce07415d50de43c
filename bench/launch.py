"""Run one command and write what it cost to a file as JSON: OUT COMMAND...

A process of its own, because a child's peak memory starts at its parent's: this one stays small (10 MB, the least that
can be reported). Imports nothing of the project.
"""

import json
import os
import sys
import time


def main():
    out, argv = sys.argv[1], sys.argv[2:]
    start = time.perf_counter()
    child = os.posix_spawnp(argv[0], argv, os.environ)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    cost = {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "rss_bytes": usage.ru_maxrss * 1024}
    with open(out, "w") as file:
        json.dump(cost, file)
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())

"""`qoetap load calibrate`: a model from the lab. Steps of known load over a bottleneck, ptp4l on both sides, our tap at
the slave; then `qoetap load learn` with what it saw. Options, files and what is said of the run.
"""

import json
import os
import random
import shutil
from pathlib import Path

from endhost.bursts import LEVEL_MAX
from qoetap import lab_load, load_command
from qoetap.bitrates import parse_rate, rate_text
from qoetap.exits import DONE, PRIVILEGE, RUN_ERROR, USAGE, Exit
from qoetap.lab_folder import end_by_signals, results
from qoetap.lab_plot import check_plot
from qoetap.lab_ptp import ptp4l
from qoetap.lab_site import tried
from qoetap.say import say

RATE, SEED = "10Mbit", 1
SEED_MAX = 2**31
RATE_LEAST, RATE_MOST = 1_000_000, 200_000_000  # bit/s that this machine's Python can send in bursts
SECONDS_LEAST, SECONDS_MAX = 2, 3600


def check_needs():
    """Exit if something is missing that a path of the lab needs."""
    if os.geteuid():
        raise Exit(PRIVILEGE, "making network namespaces needs root: run with sudo")
    for name, package in (("ip", "iproute2"), ("tc", "iproute2"), ("setpriv", "util-linux")):
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise Exit(RUN_ERROR, f"{name} is not installed: apt install {package}")
    ptp4l()


def rate_of(text):
    """Bit/s of --rate. Exit if it is none that the lab can do."""
    try:
        rate = parse_rate(text)
    except ValueError as error:
        raise Exit(USAGE, f"--rate {text}: {error}") from error
    if not RATE_LEAST <= rate <= RATE_MOST:
        raise Exit(USAGE, f"--rate {text}: choose {rate_text(RATE_LEAST)} to {rate_text(RATE_MOST)}")
    return rate


def levels_of(text):
    """Loads of --levels. Exit if they are none."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= level <= LEVEL_MAX for level in found):
        raise Exit(USAGE, f"--levels {text}: write loads of 0 to {LEVEL_MAX:g}, as in 0,0.3,0.6,0.9,1")
    return found


def seconds_of(name, value):
    if not SECONDS_LEAST <= value <= SECONDS_MAX:
        raise Exit(USAGE, f"{name} {value:g}: choose {SECONDS_LEAST} to {SECONDS_MAX}")
    return value


def seed_of(value, default):
    """The number of --seed. Exit if it is none."""
    if value is not None and not 0 <= value <= SEED_MAX:
        raise Exit(USAGE, f"--seed {value}: choose 0 to {SEED_MAX}")
    return default if value is None else value


def steps_of(args):
    """(load, seconds) of each step: the levels in an order drawn by the seed, or random loads."""
    seed = seed_of(args.seed, SEED)
    if args.random is not None:
        if args.levels or args.seconds is not None:
            raise Exit(USAGE, "--random draws loads and how long they are held: leave --levels and --seconds out")
        return lab_load.random_steps(seed, seconds_of("--random", args.random))
    seconds = seconds_of("--seconds", lab_load.LEVEL_seconds if args.seconds is None else args.seconds)
    levels = levels_of(args.levels) if args.levels else [*lab_load.LEVELS]
    random.Random(seed).shuffle(levels)
    return [(level, round(seconds)) for level in levels]


def check_options(args):
    """Exit if an option is of learn, or says nothing."""
    for name, value in (("FILE", args.file), ("--trace", args.trace), ("--path", args.path)):
        if value is not None:
            raise Exit(USAGE, f"{name} is for learn; calibrate makes its samples itself")
    if not (args.output or args.samples or args.plot or args.json):
        raise Exit(USAGE, "say what is wanted: --samples FILE, -o FILE, --plot FILE or --json")
    if args.plot:
        check_plot(Path(args.plot))


def write_samples(lines, path):
    """One JSON object a line. Exit if it cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise Exit(USAGE, f"--samples {path}: {error.strerror}") from error
    say(f"{len(lines):,} samples are in {path}")


def calibrate(args):
    """The command; its exit status."""
    check_options(args)
    rate, steps = rate_of(args.rate or RATE), steps_of(args)
    check_needs()
    end_by_signals()
    say(f"{len(steps)} loads over {rate_text(rate)}: {sum(length for _, length in steps):g} s")
    with results(args.folder) as folder:
        run = tried(lab_load.record, folder, rate, steps, seed_of(args.seed, SEED))
    lines = list(lab_load.labelled(run))
    say(lab_load.traffic(run.sent_bytes, run.counted))
    if args.samples:
        write_samples(lines, args.samples)
    if args.output or args.plot or args.json:
        samples = load_command.as_labelled("the lab", lines)
        load_command.finish(args, load_command.fitted(samples, None, args.kind, args.held), samples)
    return DONE

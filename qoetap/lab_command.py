"""`qoetap lab`: the data plane at work on a network of this machine's own. Options, files and what is printed."""

import contextlib
import json
import signal
import tempfile
from pathlib import Path

import detectors as registry
from qoetap import config, lab_hostile, lab_plot, lab_stalls, lab_street
from qoetap.exits import DONE, USAGE, Exit
from qoetap.lab_site import check_needs, tried
from qoetap.say import say

HERE = Path(__file__).parent
SEEDS, SEED_MAX, SECONDS_MAX = "5", 1_000_000, 3600
SECONDS = {"stalls": 120.0, "hostile": 90.0}  # unless told
LEAST = {"stalls": lab_stalls.LEAST_seconds, "hostile": lab_hostile.LEAST_seconds}
ONLY = {"seeds": ("stalls",), "plot": ("stalls",), "seconds": tuple(SECONDS), "json": tuple(SECONDS)}


def check_options(args):
    """Exit if an option says nothing to the experiment, or is out of range."""
    for name, experiments in ONLY.items():
        if getattr(args, name) is not None and getattr(args, name) is not False and args.experiment not in experiments:
            raise Exit(USAGE, f"--{name} is for {' and '.join(experiments)}")
    seeds_of(args.seeds or SEEDS)
    if args.seconds is not None and not LEAST[args.experiment] <= args.seconds <= SECONDS_MAX:
        raise Exit(USAGE, f"--seconds {args.seconds:g}: choose {LEAST[args.experiment]} to {SECONDS_MAX}")
    if args.plot:
        lab_plot.check_plot(Path(args.plot))


def seeds_of(text):
    """The seeds that `5`, 1 to 5, or `3-5` stand for. Exit if it is neither."""
    first, dash, last = text.rpartition("-")
    try:
        found = range(int(first) if dash else 1, int(last) + 1)
    except ValueError:
        found = ()
    if not found or found[0] < 1 or found[-1] > SEED_MAX:
        raise Exit(USAGE, f"--seeds {text}: write how many, or the first and the last as 3-5")
    return found


def config_of(args):
    """(words for `qoetap inline`, the section inline that they lead to). Exit if something is wrong with it."""
    path = args.config or str(HERE / f"lab_{'hostile' if args.experiment == 'hostile' else 'stalls'}.yaml")
    # The router of the lab is no service of this host
    ours = ["inline.chain=FORWARD", "inline.control=''", "live.metrics=''"]
    words = [*args.set, *ours]
    layers = [config.read_file(path), *map(config.assignment, words)]
    inline = config.load(layers, registry.load_all()).inline
    say(f"configuration: {path}")
    return ["-c", path, *(word for text in words for word in ("--set", text))], inline


@contextlib.contextmanager
def results(output):
    """The folder of -o, or one that goes in the end."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="qoetap-lab-") as folder:
            yield Path(folder)
        return
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Exit(USAGE, f"-o {output}: {error.strerror}") from error
    yield folder


def show(args, found, kind):
    """What was found, on stdout and, with -o, as a file."""
    text = json.dumps(kind.as_json(found), indent=1)
    if args.output:
        (Path(args.output) / "results.json").write_text(text + "\n")
    for line in [text] if args.json else kind.lines_of(found):
        print(line)


def lab(args):
    """The command; its exit status."""
    check_options(args)
    options, inline = config_of(args)
    check_needs()
    for ending in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # so that namespaces are taken away, also where a shell had INT ignored
        signal.signal(ending, signal.default_int_handler)
    seconds = args.seconds or SECONDS.get(args.experiment)
    with results(args.output) as folder:
        if args.experiment == "street":
            lab_street.open_street(folder, options)
        elif args.experiment == "hostile":
            show(args, tried(lab_hostile.run_once, folder, options, inline, seconds), lab_hostile)
        else:
            runs = lab_stalls.run_all(folder, options, seeds_of(args.seeds or SEEDS), seconds)
            show(args, runs, lab_stalls)
            if args.plot:
                lab_plot.plot(runs, Path(args.plot))
    return DONE

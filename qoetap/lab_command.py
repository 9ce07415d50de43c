"""`qoetap lab`: the data plane at work on a network of this machine's own. Options, files and what is printed."""

import json
from pathlib import Path

import detectors as registry
from qoetap import config, lab_hostile, lab_plot, lab_stalls, lab_street
from qoetap.exits import DONE, USAGE, Exit
from qoetap.lab_folder import end_by_signals, results
from qoetap.lab_site import check_needs, tried
from qoetap.say import say

HERE = Path(__file__).parent
SEEDS, SEED_MAX, SECONDS_MAX = "5", 1_000_000, 3600
RATES, LOAD_SEED = {"load": "10Mbit,100Mbit", "pages": "100Mbit", "centres": "10Mbit"}, 7
SECONDS = {"stalls": 120.0, "hostile": 90.0, "load": 600.0}  # unless told
LEAST = {"stalls": lab_stalls.LEAST_seconds, "hostile": lab_hostile.LEAST_seconds, "load": 60}
PTP = ("load", "pages", "centres")  # experiments with ptp4l in place of inline
INLINE = ("stalls", "hostile", "street")
ONLY = {
    "seeds": ("stalls",), "plot": ("stalls", *PTP), "seconds": tuple(SECONDS), "json": ("stalls", "hostile", *PTP),
    "rate": PTP, "seed": PTP, "kind": PTP, "config": INLINE, "set": INLINE,
}  # fmt: skip


def check_options(args):
    """Exit if an option says nothing to the experiment, or is out of range."""
    for name, experiments in ONLY.items():
        value = getattr(args, name)
        given = value is not None and value is not False and value != []  # 0 is given too
        if given and args.experiment not in experiments:
            raise Exit(USAGE, f"--{name} is for {', '.join(experiments)}")
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
    if args.experiment in PTP:
        return lab_of_load(args)
    options, inline = config_of(args)
    check_needs()
    end_by_signals()
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


def lab_of_load(args):
    """Experiments with ptp4l; the exit status."""
    from qoetap import (  # late: heavy
        calibrate,
        lab_centres,
        lab_centres_plot,
        lab_estimate,
        lab_estimate_plot,
        lab_pages,
        lab_pages_plot,
    )

    rates = [calibrate.rate_of(text) for text in (args.rate or RATES[args.experiment]).split(",")]
    seed, kind = calibrate.seed_of(args.seed, LOAD_SEED), args.kind or lab_estimate.KIND
    modules = {"load": lab_estimate, "pages": lab_pages, "centres": lab_centres}
    pictures = {"load": lab_estimate_plot, "pages": lab_pages_plot, "centres": lab_centres_plot}
    calibrate.check_needs()
    end_by_signals()
    with results(args.output) as folder:
        if args.experiment == "load":
            runs = lab_estimate.run_all(folder, rates, args.seconds or SECONDS["load"], seed, kind)
        else:
            runs = modules[args.experiment].run_all(folder, rates, seed, kind)
        show(args, runs, modules[args.experiment])
    if args.plot:
        pictures[args.experiment].plot(runs, Path(args.plot))
    return DONE

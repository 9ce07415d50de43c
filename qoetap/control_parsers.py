"""The parsers of the commands of the control plane."""

from qoetap.options import Parser, add_config, add_verbose


def serve():
    parser = Parser(
        "serve",
        "Take events of agents (over HTTP, from files, pipes and Kafka), keep what they say of each path, and answer\n"
        "over HTTP: load, models, page load times, the data centre for a user. State survives a restart.",
        (
            "qoetap serve -c site.yaml",
            "qoetap serve --listen 127.0.0.1:9470 --state load.sqlite --model model.json",
            "qoetap live -i eth0 --detectors ptp -o http://127.0.0.1:9470/v1/events",
            "tail -F events.jsonl | qoetap serve -r -",
        ),
    )
    parser.add_argument(
        "-r", "--read", metavar="FILE", action="append", default=[],
        help="events from there too, may be repeated: a file or pipe of JSON lines, -, kafka://HOST/TOPIC",
    )  # fmt: skip
    parser.add_argument("--listen", metavar="ADDRESS", help="HOST:PORT (default 127.0.0.1:9470)")
    parser.add_argument("--state", metavar="FILE", help="where state is kept (default qoetap-state.sqlite)")
    parser.add_argument("--model", metavar="FILE", help="for paths that have no model of their own")
    add_config(parser)
    add_verbose(parser)
    return parser


def load():
    parser = Parser(
        "load",
        "The model that tells a path's load from its PTP delay.\n\n"
        "  learn      fit it to samples of known load, FILE: JSON lines or CSV with delay_ns and load\n"
        "  calibrate  make such samples in the lab, with real traffic and ptp4l, and fit it to them; needs root",
        (
            "qoetap load learn samples.jsonl -o model.json --plot fit.png",
            "qoetap load learn steps.csv --trace random.csv --kind monotone -o model.json",
            "qoetap load calibrate --rate 10Mbit -o model.json --samples samples.jsonl",
            "qoetap load calibrate --rate 10Mbit --random 600 --seed 7 --samples random.jsonl",
        ),
    )
    parser.add_argument("what", metavar="WHAT", choices=("learn", "calibrate"), help="see above")
    add_learning(parser)
    add_calibrating(parser)
    add_verbose(parser)
    return parser


def add_calibrating(parser):
    """What concerns making samples in the lab."""
    group = parser.add_argument_group("calibrate")
    group.add_argument("--rate", metavar="RATE", help="of the bottleneck, 1Mbit to 200Mbit (default 10Mbit)")
    group.add_argument("--levels", metavar="A,B", help="loads, each held once, in an order drawn by the seed "
                       "(default 0 to 0.9 by 0.1, then 0.95 and 1.1)")  # fmt: skip
    group.add_argument("--seconds", metavar="S", type=float, help="each level is held (default 30)")
    group.add_argument("--random", metavar="S", type=float, help="random loads for so long in place of levels")
    group.add_argument("--seed", metavar="N", type=int, help="of the order, of random loads and of bursts (default 1)")
    group.add_argument("--samples", metavar="FILE", help="write the labelled samples there, JSON lines")
    group.add_argument("--folder", metavar="FOLDER", help="keep the events and logs of the lab there")


def add_learning(parser):
    """What concerns fitting and its results, wherever the samples come from; FILE, --trace and --path are for learn."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="learn: the labelled samples, - for stdin")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the model there, as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw delay against load with the fit: .png, .svg or .pdf")
    parser.add_argument(
        "--kind", choices=("exponential", "monotone"), default="exponential",
        help="curve of delay over load (default exponential); how well each does is told in any case",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the fit as JSON on stdout")
    parser.add_argument(
        "--trace", metavar="FILE",
        help="learn: choose filter and smoothing on these samples, whose load changes as it will in use; "
        "without it on FILE in another order",
    )  # fmt: skip
    parser.add_argument(
        "--held", metavar="SECONDS", type=float, default=60.0,
        help="how long a load stays in use, for choosing them without --trace (default 60)",
    )  # fmt: skip
    parser.add_argument("--path", metavar="NAME", help="learn: only samples with this path")


def dns():
    parser = Parser(
        "dns",
        "Answer A and AAAA queries for names of the configuration (section dns) with the addresses of the data centre\n"
        "that `qoetap serve` chooses for the user, or with the fallback addresses where it does not answer.",
        ("qoetap dns -c site.yaml", "qoetap dns -c site.yaml --listen 127.0.0.1:5300 --service http://127.0.0.1:9470"),
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS", action="append", default=[],
        help="HOST:PORT, UDP and TCP, may be repeated (default 127.0.0.1:5300)",
    )  # fmt: skip
    parser.add_argument("--service", metavar="URL", help="where `qoetap serve` answers (default http://127.0.0.1:9470)")
    add_config(parser)
    add_verbose(parser)
    return parser

"""The parsers of the commands that read packets, and of those around them."""

from qoetap.options import Parser, add_config, add_inputs, add_outputs, add_running, add_tunnels, add_verbose


def replay():
    parser = Parser(
        "replay",
        "Run the detectors over captures (pcap, pcapng, gzip, zstd; others through tshark) and write their events.\n"
        "Data goes to the outputs, everything else to stderr. INT and TERM end it early: what was read is delivered.",
        (
            "qoetap replay traffic.pcap",
            "qoetap replay day1/ day2.pcapng.zst -o events.parquet --stats stats.json",
            "qoetap replay x.pcap --detectors iqn --set detectors.iqn.p=100ms -o -",
            "qoetap replay -r traffic.pcap udp port 443",
        ),
    )
    add_inputs(parser)
    add_config(parser)
    add_outputs(parser, "table")
    add_running(parser)
    parser.add_argument("--batch", metavar="N", type=int, help="packets decoded at a time (default 4096)")
    add_tunnels(parser)
    add_verbose(parser)
    return parser


def live():
    parser = Parser(
        "live",
        "Run the detectors on interfaces and write their events as they come, until TERM or INT ends it: then what\n"
        "was taken is still delivered. HUP reads the configuration anew and reopens outputs, USR1 rotates them.\n"
        "Needs the privilege CAP_NET_RAW.",
        (
            "qoetap live -i eth0 -o events.jsonl",
            "qoetap live -i eth0 -i eth1 --workers 2 -c site.yaml udp port 443 or icmp",
            "qoetap live -i eth0 -o 'events-%Y%m%dT%H.jsonl' -o kafka://broker:9092/qoetap",
        ),
    )
    parser.add_argument("-i", "--interface", metavar="IFACE", action="append", default=[], help="may be repeated")
    parser.add_argument("expression", metavar="EXPRESSION", nargs="*", help="packets to look at, as in tcpdump (BPF)")
    add_config(parser)
    add_outputs(parser, "JSON lines on stdout")
    parser.add_argument("--write", metavar="DIR", help="evidence goes there: the flow's last packets at events of --on")
    parser.add_argument("--on", metavar="A,B", help="which events (default: iqn.stall_start,iqn.stall_end)")
    parser.add_argument("--top", action="store_true", help="show what goes on, refreshed in place")
    add_running(parser)
    add_tunnels(parser)
    add_verbose(parser)
    return parser


def inline():
    parser = Parser(
        "inline",
        "Take packets from the firewall's queues (NFQUEUE), run the detectors over them, pace them by classes of the\n"
        "configuration (section inline), and hand them on, until TERM or INT ends it: what is held is then let go.\n"
        "Needs the privilege CAP_NET_ADMIN.",
        (
            "qoetap inline -q 5 --install -c site.yaml -o events.jsonl",
            "qoetap inline --uninstall",
            "iptables -t mangle -A FORWARD -j NFQUEUE --queue-num 5 --queue-bypass; qoetap inline -q 5",
        ),
    )
    parser.add_argument("-q", "--queue", metavar="NUM", type=int, action="append", default=[], help="may be repeated")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--install", action="store_true", help="put in rules for the queues, and take them out at the end"
    )
    what.add_argument("--uninstall", action="store_true", help="take out what a killed run has left, and leave")
    add_config(parser)
    add_outputs(parser, "JSON lines on stdout")
    parser.add_argument("--seed", metavar="N", type=int, help="fix the secret keys of hashes")
    parser.add_argument("--detectors", metavar="A,B", help="run only these (default: all)")
    parser.set_defaults(workers=None)
    add_tunnels(parser)
    add_verbose(parser)
    return parser


def lab():
    parser = Parser(
        "lab",
        "Sender, router and receiver, each a network namespace of this machine, and a bottleneck from router to\n"
        "receiver. Needs root. With `qoetap inline` in the router, 10 Mbit/s:\n\n"
        "  stalls   video over QUIC beside bulk transfer, without mitigation and with it: seconds stalled, rates\n"
        "  hostile  a flow that feigns stalls without end, and what it wins\n"
        "  street   nothing but the street, for your own traffic, until INT ends it\n\n"
        "With ptp4l at sender and receiver, and `qoetap live` and `qoetap serve` at the receiver:\n\n"
        "  load     how well load is told from PTP delay: learned on one run, tested on another, at each rate\n"
        "  pages    how long a page and a large file take, against the load that is told\n"
        "  centres  two data centres, one of which gets loaded: where `qoetap dns` sends users",
        (
            "qoetap lab load --plot load.png",
            "qoetap lab stalls --plot stalls.png",
            "qoetap lab stalls -c site.yaml --seeds 1 --seconds 60 -o results/",
            "qoetap lab hostile --json",
            "qoetap lab street -c site.yaml -o results/",
        ),
    )
    experiments = ("stalls", "hostile", "street", "load", "pages", "centres")
    parser.add_argument("experiment", metavar="EXPERIMENT", choices=experiments, help="see above")
    add_config(parser)
    parser.add_argument("--seeds", metavar="N", help="of stalls: scenarios, or 3-5; each is run twice (default 5)")
    parser.add_argument("--seconds", metavar="S", type=float, help="each run (default 120, hostile 90, load 600)")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="keep results, events and logs there")
    parser.add_argument("--plot", metavar="FILE", help="stalls, load, pages, centres: draw what was found, PNG or SVG")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    group = parser.add_argument_group("load, pages and centres")
    rates = "of bottlenecks (default: load 10Mbit,100Mbit; pages 100Mbit; centres 10Mbit)"
    group.add_argument("--rate", metavar="A,B", help=rates)
    group.add_argument("--seed", metavar="N", type=int, help="of what is drawn (default 7)")
    group.add_argument("--kind", choices=("exponential", "monotone"), help="of the model (default monotone)")
    add_verbose(parser)
    return parser


def decode():
    parser = Parser(
        "decode",
        "Print what is known of each packet: number, time, lengths, addresses, protocol, a and b (ports, or ICMP type\n"
        "and code) and the UDP length field.",
        (
            "qoetap decode traffic.pcap | less -S",
            "qoetap decode traffic.pcap --format tsv > packets.tsv",
            "qoetap decode traffic.pcap --filter 'icmp or icmp6'",
        ),
    )
    add_inputs(parser)
    parser.add_argument(
        "--format", choices=("table", "tsv", "jsonl", "parquet"), default="table", help="default: table"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format jsonl")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="write there (default: stdout)")
    add_tunnels(parser)
    add_verbose(parser)
    return parser


def check():
    parser = Parser(
        "check",
        "Say whether a configuration is right: prints ok, or one sentence that names the key that is not.",
        ("qoetap check site.yaml -v", "qoetap check --defaults > site.yaml"),
    )
    parser.add_argument("path", metavar="CONFIG", nargs="?", help="a YAML file")
    add_config(parser)
    parser.add_argument(
        "--defaults", action="store_true", help="print every key, explained, with its default, and leave"
    )
    parser.add_argument("--json", action="store_true", help="print the effective configuration as JSON")
    add_verbose(parser, "print the effective configuration")
    return parser


def schema():
    parser = Parser("schema", "Print the JSON Schema of the events.", ("qoetap schema > events.schema.json",))
    add_verbose(parser)
    return parser


def inspect():
    parser = Parser(
        "inspect",
        "Show the packets around an event, dissected by tshark. An event's pcap_cnt is its packet number, its flow_id\n"
        "or community_id names its flow.",
        ("qoetap inspect traffic.pcap --packet 1234", "qoetap inspect traffic.pcap --flow 4c5ab1f0c3a5d7e2"),
    )
    parser.add_argument("file", metavar="FILE")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--flow", metavar="ID", help="packets of the flow with this flow_id or community_id")
    what.add_argument("--packet", metavar="N", type=int, help="this packet and those around it")
    parser.add_argument("--around", metavar="N", type=int, default=3, help="packets before and after (default 3)")
    parser.add_argument("--most", metavar="N", type=int, default=50, help="show at most so many of a flow (default 50)")
    add_verbose(parser, "print every field of every packet")
    return parser


def doctor():
    parser = Parser(
        "doctor",
        "Say what qoetap needs and is missing, and how to mend it.",
        ("qoetap doctor", "qoetap doctor -i eth0", "qoetap doctor -c site.yaml --json"),
    )
    parser.add_argument(
        "-i", "--interface", metavar="IFACE", action="append", default=[],
        help="can it be listened to? may be repeated (default: live.interfaces of the configuration)",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_verbose(parser)
    return parser

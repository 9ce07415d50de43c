"""Options that commands share, and what their parsers look like."""

import argparse


class Parser(argparse.ArgumentParser):
    """One command's parser; its epilogue keeps its line breaks."""

    def __init__(self, command, about, examples):
        super().__init__(
            prog=f"qoetap {command}",
            description=about,
            epilog="examples:\n" + "".join(f"  {line}\n" for line in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )


def add_inputs(parser):
    parser.add_argument(
        "files", metavar="FILE", nargs="*",
        help="capture, directory of captures, or - for stdin; with -r these words are a filter instead",
    )  # fmt: skip
    parser.add_argument(
        "-r", "--read", metavar="FILE", action="append", default=[], help="the same, as in tcpdump; may be repeated"
    )
    parser.add_argument("--filter", metavar="EXPR", help="only packets that match, as in tcpdump: 'udp port 443'")


def add_config(parser):
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file; `qoetap check --defaults` prints every key")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="override one key, for example detectors.flow.idle=60s; may be repeated",
    )  # fmt: skip


def add_outputs(parser, default):
    parser.add_argument(
        "-o", "--output", metavar="OUT", action="append", default=[],
        help="where events go, may be repeated: FILE.jsonl, FILE.csv, FILE.parquet, - (JSON lines on stdout), table, "
        f"null, kafka://…, http://…, or SINK:PATH (default: {default})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON lines on stdout, the same as -o -")
    parser.add_argument("--stats", metavar="FILE", help="write counts, ledger and timings as JSON at the end")


def add_running(parser):
    workers = "threads (default 1); in replay one decodes, the others detect"
    parser.add_argument("--workers", metavar="N", type=int, help=workers)
    parser.add_argument("--seed", metavar="N", type=int, help="fix the secret keys of hashes")
    parser.add_argument("--detectors", metavar="A,B", help="run only these (default: all)")


def add_tunnels(parser):
    parser.add_argument(
        "--tunnels", metavar="A,B", help="look into gre, ipip, 6in4, vxlan, geneve, gtpu, or all (default: none)"
    )


def add_verbose(parser, text="say more; with a traceback if something breaks"):
    parser.add_argument("-v", "--verbose", action="store_true", help=text)

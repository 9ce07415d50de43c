"""The command line: commands, their options and help. Imports nothing heavy; each command's module is imported late."""

import argparse
import importlib
import os
import sys

from qoetap import __version__, control_parsers, parsers
from qoetap.exits import DONE, RUN_ERROR, Exit
from qoetap.say import say

OVERVIEW = """\
qoetap watches packets and reports what users and clocks experience: video stalls over QUIC, forwarding loops,
PTP delays, available bandwidth and loss of probe and RTP streams, flows.

commands:
  replay   captures in, events out
  live     the same on interfaces, for months
  inline   the same on the path, with packets paced by class
  lab      the same at work between network namespaces: stalls, mitigation, a hostile client
  serve    load of paths from PTP delays, and what follows from it, over HTTP
  load     a path's model: learn it from a labelled file, or calibrate it in the lab
  dns      answer names with the data centre that serves best
  decode   the packets of a capture as a table
  check    is this configuration right?
  schema   JSON Schema of the events
  inspect  the packets around an event, dissected by tshark
  doctor   is everything there that qoetap needs?

examples:
  qoetap replay traffic.pcap                          tables of events and flows, for a person
  qoetap replay traffic.pcap -o events.jsonl          every event, one JSON object a line
  zcat x.pcap.gz | qoetap replay - -o - | jq .iqn     a pipe in, a pipe out
  qoetap replay rotated/ --detectors iqn,flow         a directory of rotated captures, in time order
  qoetap live -i eth0 -o events.jsonl                 the same, live
  qoetap check site.yaml -v                           what this configuration means

Data goes to stdout; progress, the summary and complaints go to stderr.

exit status:
  0  done
  1  an error while running
  2  wrong usage or configuration
  3  a missing privilege
  4  input unreadable or cut short; what was read is still delivered
  5  finished, but lost more than allowed (live.loss_allowed)

`qoetap COMMAND --help` tells more.
"""

COMMANDS = {  # name: its parser, module and function
    "replay": (parsers.replay, "qoetap.replay", "replay"),
    "live": (parsers.live, "qoetap.live", "live"),
    "inline": (parsers.inline, "qoetap.inline", "inline"),
    "lab": (parsers.lab, "qoetap.lab_command", "lab"),
    "decode": (parsers.decode, "qoetap.decode", "decode"),
    "check": (parsers.check, "qoetap.check", "check"),
    "schema": (parsers.schema, "qoetap.check", "schema"),
    "inspect": (parsers.inspect, "qoetap.inspect", "inspect"),
    "doctor": (parsers.doctor, "qoetap.doctor", "doctor"),
    "serve": (control_parsers.serve, "qoetap.serve", "serve"),
    "load": (control_parsers.load, "qoetap.load_command", "load"),
    "dns": (control_parsers.dns, "qoetap.dns", "dns"),
}


def parse(argv):
    """(args, module name, function name) of a command line; SystemExit with a message if it is wrong."""
    first = argparse.ArgumentParser(
        prog="qoetap",
        usage="qoetap [-h] [--version] COMMAND ...",
        description=OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    first.add_argument("--version", action="version", version=f"qoetap {__version__}")
    first.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    chosen = first.parse_args(argv[:1]).command
    parser, module, function = COMMANDS[chosen]
    return parser().parse_intermixed_args(argv[1:]), module, function


def main(argv=None):
    """Run a command; its exit status. No traceback reaches a user who did not ask for one."""
    args = None
    if sys.stderr is None:  # closed: else print would say it on standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        args, module, function = parse(sys.argv[1:] if argv is None else argv)
        status = getattr(importlib.import_module(module), function)(args)
        sys.stdout.flush()
        return status
    except Exit as error:
        sentence, status = str(error), error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has what it wanted; nothing is left to flush
        return DONE
    except KeyboardInterrupt:
        sentence, status = "interrupted", RUN_ERROR
    except MemoryError:
        sentence, status = "not enough memory: lower the detectors' capacity", RUN_ERROR
    except Exception as error:  # the last resort
        sentence = f"unexpected {type(error).__name__}: {error}; run it with -v and report what it prints"
        status = RUN_ERROR
        if getattr(args, "verbose", False):
            import traceback

            traceback.print_exc()
    say(sentence)
    return status

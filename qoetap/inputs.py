"""What the command line says of the input: which captures, and the filter that goes with them.

As in tcpdump, the words behind `-r FILE` are a filter. Without -r they name captures, and --filter has the filter.
"""

import os
import re
import shlex

from dataplane.capture import CaptureError, expand
from dataplane.capture.sieve import Sieve
from dataplane.wire import LINK_TYPES
from qoetap import config
from qoetap.exits import INPUT, USAGE, Exit

# How a filter begins, or goes on: no good name for a file, so who writes it without -r means a filter (pcap-filter(7))
FILTER_WORD = re.compile(
    r"[(!]|(not|and|or|src|dst|host|net|port|portrange|gateway|ether|link|ip|ip6|arp|rarp|tcp|udp|sctp|icmp|icmp6|igmp|"
    r"vlan|mpls|pppoes|geneve|proto|protochain|broadcast|multicast|less|greater|len|inbound|outbound)\b(?![./])"
)


def split(args):
    """(paths of captures, words of a filter)."""
    return (args.read, args.files) if args.read else (args.files, [])


def inputs(args):
    """The files to read. Exit if there are none, or if a filter stands where they do."""
    paths, _ = split(args)
    if not paths:
        raise Exit(USAGE, "name a capture, a directory of captures, or - for standard input")
    for at, word in enumerate(paths):
        if FILTER_WORD.match(word) and not os.path.exists(word):
            raise Exit(USAGE, _no_file(paths[:at], word, " ".join(paths[at:])))
    try:
        return expand(paths)
    except CaptureError as error:
        raise Exit(INPUT, str(error)) from error


def _no_file(files, word, expression):
    named = " ".join(f"-r {shlex.quote(file)}" for file in files) or "-r FILE"
    quoted = shlex.quote(expression)
    return f"{word}: there is no such file; to filter write --filter {quoted}, or as in tcpdump: {named} {quoted}"


def filter_layers(args):
    """Layers of the configuration with the filter that the command line has. Exit if it has two, or files among it."""
    _, words = split(args)
    if words and args.filter is not None:
        raise Exit(USAGE, f"two filters, --filter {shlex.quote(args.filter)} and the words behind -r: join them by and")
    if words and os.path.exists(words[0]) and not FILTER_WORD.match(words[0]):
        raise Exit(USAGE, f"{words[0]}: with -r words are a filter, so name every file by it: -r {words[0]}")
    if args.filter is not None:
        return [config.Layer("--filter", {"filter": args.filter})]
    return [config.Layer("the command line", {"filter": " ".join(words)})] if words else []


def sieve_of(settings):
    """The filter of the settings over captures, None without one."""
    return Sieve(settings.filter, LINK_TYPES) if settings.filter.strip() else None

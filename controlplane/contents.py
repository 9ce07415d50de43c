"""What users load, and how long it takes by the neutral default while no curve is learned. Pure; imports nothing heavy.

T = rounds * RTT + 8 S / (C (1 - load)), with the load capped: for ranking data centres only, since it knows nothing of
servers, loss or slow start.
"""

from typing import NamedTuple

LOAD_MAX = 0.95  # above it the formula would run away


class Content(NamedTuple):
    size_bytes: int
    rounds: int  # round trips that it takes without queues


CONTENTS = {
    # HTML and 27 objects: a handshake, the HTML, a handshake of five more connections, 27 objects over six (HTTP/1.1)
    "page": Content(2_500_000, 3 + 5),
    "file": Content(30_000_000, 2),  # a handshake, the request
}


def default_seconds(content, load, rtt_seconds, capacity_bps):
    """Time to load a Content at a load of 0 to 1, s. capacity_bps: of the path, bit/s, above 0."""
    free = 1 - min(max(load, 0.0), LOAD_MAX)
    return content.rounds * rtt_seconds + 8 * content.size_bytes / (capacity_bps * free)

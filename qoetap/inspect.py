"""`qoetap inspect`: the packets of a flow, or around one, dissected by tshark through pyshark.

Our own decoder finds which packets they are; pyshark only shows them, so its slowness does not matter.
"""

import base64
import os
import re
from datetime import UTC, datetime

import numpy as np

from dataplane.batch import BATCH_ROWS, Batch, new_clock, set_clock
from dataplane.capture import CaptureError, open_capture
from dataplane.events import COMMON, Events, Renderer, one_value
from dataplane.kernels import Kernel
from dataplane.records import rows
from dataplane.wire import decode_options
from detectors.flow import DETECTOR as FLOW
from qoetap.config import SECRET_BYTES
from qoetap.exits import DONE, INPUT, USAGE, Exit
from qoetap.say import say

ID_BYTES = 8
ICMP, ICMPV6 = 1, 58


def wanted_id(text):
    """flow_id of an ID given as flow_id or community_id. Exit if it is neither."""
    if re.fullmatch("[0-9a-fA-F]{16}", text):
        return text.lower()
    if re.fullmatch("1:[0-9A-Za-z+/]{27}=", text):
        return base64.b64decode(text[2:])[:ID_BYTES].hex()
    raise Exit(USAGE, f"--flow {text}: give a flow_id (16 hex digits) or a community_id (1:…) as events have them")


def flow_ids(buf, packets):
    """flow_id of each PACKET row, as events have it."""
    events = rows(FLOW.event, len(packets))
    for name in ("sport", "dport", "proto", "ip_version"):
        events[name] = packets[name]
    events["code"] = 1
    for i, pkt in enumerate(packets):
        size = 4 if pkt["ip_version"] == 4 else 16
        at = int(pkt["addr"])
        events["src"][i, :size] = buf[at : at + size]
        events["dst"][i, :size] = buf[at + size : at + 2 * size]
    order = np.stack((np.zeros(len(events), np.int64), np.arange(len(events))), axis=1)
    column = next(c for c in COMMON if c.name == "flow_id")
    renderer = Renderer((FLOW,), one_value(column))
    text = b"".join(bytes(chunk) for chunk, _ in renderer.chunks(Events([(FLOW, events)], order, [], "")))
    return [text[i : i + 2 * ID_BYTES].decode() for i in range(0, len(text), 2 * ID_BYTES)]


class Search:
    """Finds the packets of one flow, batch by batch."""

    def __init__(self, flow_id):
        self.flow_id, self.seen, self.hashes = flow_id, set(), set()

    def numbers(self, batch):
        """Row numbers of the batch's packets that belong to the flow."""
        packets = batch.packets[: batch.size]
        some = np.flatnonzero(packets["addr"] >= 0)
        keys = self.keys(packets[some])
        fresh = [i for i in np.unique(keys, return_index=True)[1] if int(keys[i]) not in self.seen]
        self.seen.update(int(keys[i]) for i in fresh)
        chosen = packets[some[fresh]]
        for pkt, found in zip(chosen, flow_ids(batch.buf, chosen), strict=True):
            if found == self.flow_id:
                self.hashes.add(int(pkt["hash"]))
        return np.flatnonzero((packets["addr"] >= 0) & np.isin(packets["hash"], list(self.hashes)))

    @staticmethod
    def keys(packets):
        """What decides a flow_id: the flow, with ICMP also type and code."""
        icmp = np.isin(packets["proto"], (ICMP, ICMPV6))
        message = packets["sport"].astype(np.uint64) << np.uint64(8) | packets["dport"]
        return packets["hash"] ^ np.where(icmp, (message + np.uint64(1)) << np.uint64(40), np.uint64(0))


def packets_of(path, flow_id, most):
    """Numbers (from 1) of the first `most` packets of the flow."""
    search, batch, options = Search(flow_id), Batch(BATCH_ROWS), decode_options(bytes(SECRET_BYTES))
    found, first, clock, count = [], 1, new_clock(), Kernel(set_clock)
    for block in open_capture(path, BATCH_ROWS).blocks():
        batch.fill(block, options, first - 1, count(block.frames, clock))
        found += [first + int(i) for i in search.numbers(batch)]
        first += len(block.frames)
        if len(found) >= most:
            break
    return found[:most]


def ends(packet):
    """Source and destination of the outermost layer that has addresses."""
    layer = next((packet[name] for name in ("ip", "ipv6", "eth") if name in packet), None)
    port = packet[packet.transport_layer] if packet.transport_layer else None
    sides = []
    for address, number in (("src", "srcport"), ("dst", "dstport")):
        shown = str(getattr(layer, address, "?"))
        sides.append(f"{shown} {getattr(port, number)}" if port is not None else shown)
    return " → ".join(sides)


def utc(timestamp):
    """Time of day of seconds with a fraction, given as text; as it is where no calendar has it."""
    seconds, _, fraction = timestamp.partition(".")
    try:
        return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%d %H:%M:%S}.{fraction}"
    except (ValueError, OverflowError):
        return timestamp


def line_of(packet):
    """One line: number, time, ends, layers from the link up, bytes on the wire."""
    time = utc(packet.sniff_timestamp) if hasattr(packet.frame_info, "time_epoch") else "no time"
    layers = packet.frame_info.protocols.removeprefix("eth:ethertype:")
    return f"{packet.number:>8}  {time}  {ends(packet)}  {layers}  {packet.length} bytes"


def show(path, numbers, marked, verbose):
    """Print these packets as tshark dissects them; how many there were."""
    import pyshark
    from pyshark.tshark.tshark import TSharkNotFoundException

    only, shown = ",".join(map(str, numbers)), 0
    try:
        capture = pyshark.FileCapture(path, display_filter=f"frame.number in {{{only}}}", keep_packets=False)
        for packet in capture:
            shown += 1
            if verbose:
                packet.pretty_print()
            else:
                print((">" if int(packet.number) == marked else " ") + line_of(packet))
        capture.close()
    except TSharkNotFoundException as error:
        raise Exit(USAGE, "tshark is not installed: apt install tshark") from error
    return shown


def inspect(args):
    """The command; its exit status."""
    if not os.path.isfile(args.file):
        raise Exit(INPUT, f"{args.file}: there is no such file")
    marked = args.packet
    if marked is not None:
        if marked < 1:
            raise Exit(USAGE, "--packet N: packets are numbered from 1")
        numbers = range(max(1, marked - args.around), marked + args.around + 1)
    else:
        flow_id = wanted_id(args.flow)
        try:
            numbers = packets_of(args.file, flow_id, args.most)
        except CaptureError as error:
            raise Exit(INPUT, str(error)) from error
        if not numbers:
            raise Exit(USAGE, f"{args.file}: holds no packet of flow {args.flow}")
        say(f"first {len(numbers)} packets of the flow" if len(numbers) == args.most else f"{len(numbers)} packets")
    if not show(args.file, numbers, marked, args.verbose):
        raise Exit(USAGE, f"{args.file}: holds no packet {marked}")
    return DONE

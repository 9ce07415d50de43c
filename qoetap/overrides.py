"""Which packets mitigation's overrides are for: a flow's ends become the hash that decoding gives its packets."""

import struct

import numpy as np

from dataplane.batch import Batch
from dataplane.records import FRAME, Block, rows
from dataplane.shim import OVERRIDE, SAME

RAW = 101  # LINKTYPE_RAW


def flow_hash(options, ends):
    """PACKET.hash of the flow with these mitigation.Ends; options: wire.DECODE rows. 0: it has none."""
    body = struct.pack(">HHHH", ends.sport, ends.dport, 8, 0) + bytes(24)  # UDP's header, or as much of another
    if len(ends.src) == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, ends.proto, 0)
    else:
        header = struct.pack(">IHBB", 6 << 28, len(body), ends.proto, 64)
    packet = header + ends.src + ends.dst + body
    frames, batch = rows(FRAME, 1), Batch(1)
    frames[0].len = frames[0].caplen = len(packet)
    frames[0].linktype = RAW
    batch.fill(Block(np.frombuffer(packet + bytes(8), np.uint8), frames), options, 0, 0)
    return int(batch.packets[0].hash)


def rows_of(mitigation, hash_of, numbers):
    """OVERRIDE rows of all flows that are favoured. hash_of: a flow's PACKET.hash; numbers: of classes by name."""
    flows = {flow for ruled in mitigation.ruled for flow in ruled.favours}
    found = [(flow, mitigation.override(flow)) for flow in flows]
    found = [(hash_of(flow), given) for flow, given in found if given is not None]
    made = rows(OVERRIDE, len(found))
    for row, (key, given) in zip(made, found, strict=True):
        row["hash"], row["class_index"] = key, numbers[given.class_name] if given.class_name else SAME
        row["dscp"] = SAME if given.dscp is None else given.dscp
        if given.mark is not None:
            row["mark"], row["mark_mask"] = given.mark.value, given.mark.mask
    return made

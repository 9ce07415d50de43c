"""What stands in the messages of NFQUEUE: a packet's message becomes a FRAME and a META row, a VERDICT row a message.

Netlink: header and attributes in the machine's byte order, lengths in both, all on multiples of four; what attributes
hold is big-endian (netlink(7), linux/netfilter/nfnetlink_queue.h). The walk takes any bytes: a length that does not
fit ends the message where the datagram ends, and counts it as damaged. A packet whose id can be read gets its rows all
the same, because it waits for a verdict.
"""

import errno
import sys

import numpy as np
from numba import njit

from dataplane.capture.source import u16, u32
from dataplane.memory import be16, be32, be64, byte, load64, store64

BIG = int(sys.byteorder == "big")
LINKTYPE_RAW = 101

# struct nlmsghdr: u32 length, u16 type, u16 flags, u32 sequence, u32 port; then struct nfgenmsg: u8 family, u8 version,
# big-endian u16 queue
TYPE_AT, SEQ_AT, QUEUE_AT = 4, 8, 18
HEADER_bytes, GENERIC_bytes = 16, 20
NLMSG_ERROR, NLMSG_OVERRUN = 2, 4
ERROR_AT, ERROR_bytes = 16, 20  # i32, a negative errno; then the header of the message that it answers
NLM_F_REQUEST, NLM_F_ACK = 1, 4
SUBSYS_QUEUE = 3  # linux/netfilter/nfnetlink.h, the upper byte of the type
PACKET, VERDICT_ONE, CONFIG, VERDICT_BATCH = (SUBSYS_QUEUE << 8 | kind for kind in range(4))  # NFQNL_MSG_

# struct nlattr: u16 length with these four bytes, u16 type and two flags
ATTRIBUTE_bytes, TYPE_MASK = 4, 0x3FFF
NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_MARK, NFQA_TIMESTAMP, NFQA_IFINDEX_INDEV, NFQA_IFINDEX_OUTDEV = range(1, 7)
NFQA_PAYLOAD, NFQA_CAP_LEN = 10, 13
HOOK_AT, PACKET_HDR_bytes = 6, 7  # big-endian u32 id, big-endian u16 protocol, u8 hook
SECONDS_MAX = 2**33  # later timestamps do not fit int64 ns

PLAIN_bytes, MARKED_bytes = 32, 40  # verdicts without and with a mark
LEAST_bytes, MOST_bytes = 20, 65531  # of a packet that takes another's place: an IPv4 header; what an attribute holds

VERDICT = np.dtype(
    [
        ("id", np.uint32),
        ("queue", np.int32),
        ("what", np.int32),  # NF_DROP or NF_ACCEPT
        ("mark", np.uint32),
        ("set_mark", np.int32),  # whether the packet gets `mark`
        ("bytes", np.int32),  # of a packet that takes its place, 0: none
        ("offset", np.int64),  # where that begins, in the buffer given with the rows
    ],
    align=True,
)
WALK = [  # of the row that a walk goes on with: datagrams lie in slots of one buffer
    ("slot_bytes", np.int64),
    ("got", np.int64),  # slots that hold a datagram
    ("slot", np.int64),  # the one at hand
    ("at", np.int64),  # next message in it
    ("packets", np.int64),  # counters: rows filled
    ("damaged", np.int64),  # messages whose lengths do not fit
    ("foreign", np.int64),  # messages of other kinds, packets of queues that are not ours
    ("overruns", np.int64),  # times that the kernel said it had lost messages to us
    ("gone", np.int64),  # verdicts on packets that were no longer there
    ("refused", np.int64),  # verdicts and settings that the kernel refused otherwise
    ("error", np.int64),  # errno of the last of them
]
ENOENT = errno.ENOENT


@njit
def aligned(length):
    return (length + 3) & ~3


@njit
def index_of(numbers, number):
    """Index of a queue's number, -1 if it is not ours. There are few."""
    for i in range(numbers.size):
        if numbers[i] == number:
            return i
    return -1


@njit
def take_time(mem, at, frame):
    """NFQA_TIMESTAMP: seconds and microseconds since 1970."""
    seconds, micros = be64(mem, at), be64(mem, at + 8)
    if seconds < np.uint64(SECONDS_MAX) and micros < np.uint64(1_000_000):
        frame.ts = np.int64(seconds) * 1_000_000_000 + np.int64(micros) * 1000


@njit
def take_attribute(mem, kind, at, size, frame, meta):
    """Note what an attribute of `size` bytes at `at` says of the packet; whether it was the header with its id."""
    if kind == NFQA_PACKET_HDR and size >= PACKET_HDR_bytes:
        meta.id, meta.hook = be32(mem, at), byte(mem, at + HOOK_AT)
        return True
    if kind == NFQA_PAYLOAD:
        frame.offset, frame.caplen = at, size
    elif kind == NFQA_TIMESTAMP and size >= 16:
        take_time(mem, at, frame)
    elif size < 4:
        pass
    elif kind == NFQA_MARK:
        meta.mark = be32(mem, at)
    elif kind == NFQA_IFINDEX_INDEV:
        meta.indev = be32(mem, at) & 0x7FFFFFFF
    elif kind == NFQA_IFINDEX_OUTDEV:
        meta.outdev = be32(mem, at) & 0x7FFFFFFF
    elif kind == NFQA_CAP_LEN:
        frame.len = be32(mem, at)
    return False


@njit
def clear(frame, meta, at, now):
    """What is not said: no packet bytes, `now` as its time."""
    frame.offset, frame.ts, frame.len, frame.caplen, frame.nsec = at, now, 0, 0, 0
    frame.linktype, frame.flags = LINKTYPE_RAW, 0
    meta.id = meta.mark = meta.indev = meta.outdev = meta.hook = 0


@njit
def take_packet(mem, at, end, frame, meta, row):
    """Fill the rows from the attributes in [at, end); whether there is a packet."""
    found, whole = False, True
    while end - at >= ATTRIBUTE_bytes:
        length, kind = u16(mem, at, BIG), u16(mem, at + 2, BIG) & TYPE_MASK
        whole = ATTRIBUTE_bytes <= length <= end - at
        if length < ATTRIBUTE_bytes:
            break
        size = min(length, end - at) - ATTRIBUTE_bytes
        found |= take_attribute(mem, kind, at + ATTRIBUTE_bytes, size, frame, meta)
        at += aligned(length)
    frame.len = max(np.int64(frame.len), np.int64(frame.caplen))
    row.damaged += not (found and whole)
    return found


@njit
def take_error(mem, at, end, row):
    """Count what the kernel answers."""
    if end - at < ERROR_bytes:
        row.damaged += 1
        return
    word = u32(mem, at + ERROR_AT, BIG)
    error = (word >> 31 << 32) - word  # an int32, its sign turned
    if error == ENOENT:
        row.gone += 1
    elif error:
        row.refused += 1
        row.error = error


@njit
def take_message(mem, at, end, numbers, frame, meta, row, now):
    """Look at the message in [at, end); whether the rows were filled."""
    kind = u16(mem, at + TYPE_AT, BIG)
    if kind == NLMSG_ERROR:
        take_error(mem, at, end, row)
    elif kind == NLMSG_OVERRUN:
        row.overruns += 1
    elif kind != PACKET:
        row.foreign += 1
    elif end - at < GENERIC_bytes:
        row.damaged += 1
    else:
        clear(frame, meta, at, now)
        meta.queue = index_of(numbers, be16(mem, at + QUEUE_AT))
        if meta.queue >= 0:
            return take_packet(mem, at + GENERIC_bytes, end, frame, meta, row)
        row.foreign += 1
    return False


@njit
def next_slot(row):
    row.slot += 1
    row.at = 0


@njit
def walk(mem, lengths, numbers, frames, metas, row, now):
    """Fill `frames` and `metas` from the datagrams in slots `row.slot` to `row.got`; how many rows that were.

    lengths (slots,) bytes of each datagram; numbers (queues,) of ours; now: realtime ns, for packets without a time.
    """
    count = 0
    while row.slot < row.got:
        at = row.slot * row.slot_bytes + row.at
        left = lengths[row.slot] - row.at
        if left < HEADER_bytes:
            row.damaged += left > 0
            next_slot(row)
            continue
        if count == frames.size:
            break
        length = u32(mem, at, BIG)
        if length < HEADER_bytes:
            row.damaged += 1
            next_slot(row)
            continue
        before, end = row.damaged, at + min(length, left)
        count += take_message(mem, at, end, numbers, frames[count], metas[count], row, now)
        row.damaged = max(row.damaged, before + (length > left))
        row.at += aligned(length)
    row.packets += count
    return count


# Verdicts. Words of eight bytes are put together from halves, the first of which comes first in memory


@njit
def pair(first, second):
    """Two uint32 as they follow each other in memory."""
    a, b, width = np.uint64(first), np.uint64(second), np.uint64(32)
    return a << width | b if BIG else a | b << width


@njit
def halves(first, second):
    """Two uint16, in the same way, as int64."""
    return first << 16 | second if BIG else first | second << 16


@njit
def net(value):
    """The uint32 whose bytes in memory are `value` in big-endian order, as int64."""
    v = np.int64(value)
    if BIG:
        return v
    return (v & 0xFF) << 24 | (v & 0xFF00) << 8 | (v >> 8 & 0xFF00) | v >> 24 & 0xFF


@njit
def write_plain(mem, at, kind, number, what, packet_id):
    """Write a verdict of PLAIN_bytes: on one packet of queue `number`, or with VERDICT_BATCH on all up to it."""
    store64(mem, at, pair(PLAIN_bytes, halves(kind, NLM_F_REQUEST)))
    store64(mem, at + 8, np.uint64(0))
    store64(mem, at + 16, pair(net(number), halves(12, NFQA_VERDICT_HDR)))
    store64(mem, at + 24, pair(net(what), net(packet_id)))


@njit
def copy(mem, at, source, begin, size):
    """Copy at least eight bytes."""
    for i in range(0, size - 7, 8):
        store64(mem, at + i, load64(source, begin + i))
    store64(mem, at + size - 8, load64(source, begin + size - 8))


@njit
def has_bytes(verdict):
    """Whether another packet takes the place of this."""
    return LEAST_bytes <= verdict.bytes <= MOST_bytes


@njit
def size_of(verdict):
    """Bytes of a verdict's message."""
    size = MARKED_bytes if verdict.set_mark else PLAIN_bytes
    return size + aligned(ATTRIBUTE_bytes + verdict.bytes) if has_bytes(verdict) else size


@njit
def write_verdict(mem, at, verdict, numbers, source):
    """Write a verdict's message of size_of(verdict) bytes."""
    write_plain(mem, at, VERDICT_ONE, numbers[verdict.queue], verdict.what, verdict.id)
    size = size_of(verdict)
    store64(mem, at, pair(size, halves(VERDICT_ONE, NLM_F_REQUEST)))
    at += PLAIN_bytes
    if verdict.set_mark:
        store64(mem, at, pair(halves(8, NFQA_MARK), net(verdict.mark)))
        at += MARKED_bytes - PLAIN_bytes
    if has_bytes(verdict):
        store64(mem, at, pair(halves(ATTRIBUTE_bytes + verdict.bytes, NFQA_PAYLOAD), 0))
        copy(mem, at + ATTRIBUTE_bytes, source, verdict.offset, np.int64(verdict.bytes))


@njit
def write_verdicts(mem, room, verdicts, first, numbers, source):
    """Write verdicts from number `first` on, as far as `room` bytes go; (bytes, number of the next).

    source: handle of the buffer with the packets that take another's place.
    """
    at, i = 0, first
    while i < verdicts.size and at + size_of(verdicts[i]) <= room:
        write_verdict(mem, at, verdicts[i], numbers, source)
        at += size_of(verdicts[i])
        i += 1
    return at, i

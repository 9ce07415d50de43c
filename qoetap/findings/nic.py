"""What live capture needs of an interface: that it is there, up and joined to something, and merges no packets.

All of it is asked of the kernel by ioctl, without any privilege (netdevice(7), linux/ethtool.h).
"""

import ctypes
import fcntl
import socket
import struct

from dataplane.capture import CaptureError
from dataplane.capture.interface import link_type, require
from qoetap.findings import MISSING, OK, WRONG, Finding, judged

SIOCGIFFLAGS, SIOCGIFMTU, SIOCETHTOOL = 0x8913, 0x8921, 0x8946  # linux/sockios.h
IFF_UP, IFF_RUNNING = 0x1, 0x40  # linux/if.h
GSTRINGS, GSSET_INFO, GFEATURES, GET_TS_INFO = 0x1B, 0x37, 0x3A, 0x41  # ETHTOOL_
SS_FEATURES, NAME_bytes = 4, 32
RX_HARDWARE, RAW_HARDWARE = 1 << 2, 1 << 6  # SOF_TIMESTAMPING_, linux/net_tstamp.h
FILTER_ALL = 1 << 1  # HWTSTAMP_FILTER_ALL, as a bit
# features by which several received packets become one: how `ethtool -K` calls them
MERGING = {"rx-gro": "gro", "rx-lro": "lro", "rx-gro-hw": "rx-gro-hw"}


def ask(name, code, argument=b""):
    """The 24 bytes that follow the name in the answer to an interface request. OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, code, struct.pack("16s24s", name.encode(), argument))[16:]


def ethtool(name, form, *values, room=0):
    """The answer to an ethtool request, and `room` bytes that follow it. OSError."""
    request = ctypes.create_string_buffer(struct.pack(form, *values), struct.calcsize(form) + room)
    ask(name, SIOCETHTOOL, struct.pack("P", ctypes.addressof(request)))
    return request.raw


def features(name):
    """{feature: (whether it is on, whether it is fixed)}, by the names that `ethtool -k` gives them. OSError."""
    (count,) = struct.unpack_from("16xI", ethtool(name, "IIQ", GSSET_INFO, 0, 1 << SS_FEATURES, room=4))
    strings = ethtool(name, "III", GSTRINGS, SS_FEATURES, count, room=count * NAME_bytes)[12:]
    names = [text.rstrip(b"\0").decode() for (text,) in struct.iter_unpack(f"{NAME_bytes}s", strings)]
    blocks = (count + 31) // 32
    words = list(struct.iter_unpack("4I", ethtool(name, "II", GFEATURES, blocks, room=16 * blocks)[8:]))
    found = {}
    for bit, feature in enumerate(names):
        available, _, active, never = (word >> bit % 32 & 1 for word in words[bit // 32])
        found[feature] = bool(active), bool(never or not available)
    return found


def interface(name, hardware_timestamps):
    """The findings about one interface; hardware_timestamps: whether they are asked for."""
    try:
        require(name)
        _, loopback = link_type(name)
    except CaptureError as error:
        return [Finding(name, WRONG, str(error), "name another, or make it")]
    found = [link(name), mtu(name)]
    return found + ([] if loopback else [offloads(name), timestamps(name, hardware_timestamps)])


def link(name):
    (flags,) = struct.unpack_from("H", ask(name, SIOCGIFFLAGS))
    if not flags & IFF_UP:
        return Finding(name, WRONG, "is down", f"ip link set dev {name} up")
    mend = "plug the cable in, or turn the mirror port on"
    return judged(name, flags & IFF_RUNNING, "up" if flags & IFF_RUNNING else "up, but without a carrier", mend)


def mtu(name):
    (size,) = struct.unpack_from("i", ask(name, SIOCGIFMTU))
    return Finding(f"{name} MTU", OK, f"{size} bytes; larger frames may not come through")


def offloads(name):
    """What merges packets hides their sizes and times, by which detectors know them."""
    title = f"{name} offloads"
    try:
        there = features(name)
    except OSError as error:
        return Finding(title, MISSING, f"the interface does not tell ({error.strerror})", f"see ethtool -k {name}")
    on = [feature for feature in MERGING if there.get(feature, (False, False))[0]]
    found = f"packets are merged by {', '.join(on)}" if on else "none merges packets"
    return judged(title, not on, found, "; ".join(turn_off(name, there, on)))


def turn_off(name, there, on):
    """What turns features off, those of a virtual machine's card from outside."""
    mine = [feature for feature in on if not there[feature][1]]
    if mine:
        yield f"ethtool -K {name} {' '.join(f'{MERGING[feature]} off' for feature in mine)}"
    if mine != on:
        yield "what is fixed is turned off in the hypervisor (QEMU: guest_tso4=off,guest_tso6=off), or use another card"


def offers_hardware_timestamps(name):
    """Whether the interface can stamp all packets that it receives. OSError."""
    answer = ethtool(name, "I", GET_TS_INFO, room=40)
    modes, filters = struct.unpack_from("4xI20xI", answer)
    return modes & RX_HARDWARE and modes & RAW_HARDWARE and filters & FILTER_ALL


def timestamps(name, wanted):
    try:
        offered = offers_hardware_timestamps(name)
    except OSError:
        offered = False
    title, found = f"{name} timestamps", "hardware and kernel" if offered else "kernel's only"
    return judged(title, offered or not wanted, found, "set live.hardware_timestamps: false")

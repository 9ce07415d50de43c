"""What the kernel says of a network interface: its link type, whether it is there and up, what it has missed."""

import array
import fcntl
import socket
import struct

from dataplane.capture.source import CaptureError

SIOCGIFFLAGS, SIOCGIFHWADDR = 0x8913, 0x8927  # linux/sockios.h
IFF_UP = 1
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h
ARPHRD_BARE_IP = (65534, 768, 776, 778, 823)  # tun and wireguard, and tunnels: ipip, sit, GRE over IPv4 and IPv6
ETHERNET, RAW = 1, 101  # LINKTYPE_
NAME_BYTES = 15


def _request(name, code):
    """The 24 bytes of the answer to an interface request (netdevice(7)). OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, code, struct.pack("16s24x", name.encode()))[16:]


def index_of(name):
    """The interface's index, 0 where there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def is_up(name):
    try:
        return bool(struct.unpack_from("H", _request(name, SIOCGIFFLAGS))[0] & IFF_UP)
    except OSError:
        return False


def names():
    return sorted(name for _, name in socket.if_nameindex())


def require(name):
    """The index of the interface. CaptureError: there is none."""
    index = index_of(name) if 0 < len(name) <= NAME_BYTES else 0
    if not index:
        raise CaptureError(f"there is no interface {name!r}: there are {', '.join(names())}")
    return index


def link_type(name):
    """(LINKTYPE_ number of its frames, whether it is a loopback). CaptureError: not one that qoetap reads."""
    try:
        kind = struct.unpack_from("H", _request(name, SIOCGIFHWADDR))[0]
    except OSError as error:  # it has vanished meanwhile
        raise CaptureError(f"{name}: cannot be asked for its kind ({error.strerror})") from error
    if kind in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
        return ETHERNET, kind == ARPHRD_LOOPBACK
    if kind in ARPHRD_BARE_IP:
        return RAW, False
    raise CaptureError(f"{name}: is of a kind (ARPHRD {kind}) that qoetap does not read; capture where it is Ethernet")


def missed(name):
    """Frames that the interface itself has missed or dropped on reception so far; 0 where that is not known.

    Drivers tell one loss under one or several of these names: the first that is not 0 counts.
    """
    counts = (_counter(name, counter) for counter in ("rx_missed_errors", "rx_fifo_errors", "rx_over_errors"))
    return next(filter(None, counts), 0)


def _counter(name, counter):
    try:
        with open(f"/sys/class/net/{name}/statistics/{counter}") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


SIOCSHWTSTAMP, SIOCGHWTSTAMP = 0x89B0, 0x89B1
FILTER_ALL = 1  # HWTSTAMP_FILTER_ALL (linux/net_tstamp.h)


def use_hardware_timestamps(name):
    """Have the interface stamp all packets that it receives; None, or the sentence that says why it cannot.

    Kernel's documentation of timestamping, 3.1.
    """
    if _hardware_filter(name, SIOCGHWTSTAMP, 0) == FILTER_ALL:
        return None
    try:
        _hardware_filter(name, SIOCSHWTSTAMP, FILTER_ALL, strict=True)
    except PermissionError:
        return (
            f"{name}: hardware timestamps need CAP_NET_ADMIN to be turned on, the kernel's are used: "
            f"run hwstamp_ctl -i {name} -r 1 as root before"
        )
    except OSError:
        return f"{name}: has no hardware timestamps, the kernel's are used"
    return None


def _hardware_filter(name, code, wanted, strict=False):
    """The receive filter after an hwtstamp request; -1 where it failed, if not `strict`."""
    config = array.array("i", [0, 0, wanted])
    request = struct.pack("16sP16x", name.encode(), config.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, code, request)
    except OSError:
        if strict:
            raise
        return -1
    return config[2]

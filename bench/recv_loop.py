"""The peer that anybody writes first: a Python loop around socket.recv_into. INTERFACE BUFFER_BYTES; counts as JSON.

Ends on TERM or INT. Imports nothing of the project.
"""

import json
import signal
import socket
import struct
import sys

SOL_PACKET, PACKET_STATISTICS, ETH_P_ALL = 263, 6, 3  # linux/if_packet.h, linux/if_ether.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
FRAME_BYTES = 65536


class Ended(Exception):
    """A signal came."""


def end(*_):
    raise Ended


def open_socket(interface, buffer_bytes):
    """A packet socket that hears everything on the interface, from now on."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
    sock.bind((interface, ETH_P_ALL))
    return sock


def count(sock):
    """(packets, bytes) until a signal comes."""
    packets, length, frame, receive = 0, 0, bytearray(FRAME_BYTES), sock.recv_into
    try:
        while True:
            length += receive(frame)
            packets += 1
    except Ended:
        return packets, length


def main():
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with open_socket(sys.argv[1], int(sys.argv[2])) as sock:
        packets, length = count(sock)
        received, dropped = struct.unpack("2I", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(json.dumps({"packets": packets, "bytes": length, "received": received, "dropped": dropped}))


if __name__ == "__main__":
    main()

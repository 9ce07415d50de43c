"""One event row as a dict, in plain Python and from the definitions: the slow twin of dataplane.events."""

import base64
import hashlib
import ipaddress
import math
from datetime import UTC, datetime, timedelta

NO_TIME = -(2**63)
ANSWERS = {
    1: {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 10: 9, 9: 10, 17: 18, 18: 17},
    58: {a: a ^ 1 for a in (128, 129, 130, 131, 144, 145)}
    | {133: 134, 134: 133, 135: 136, 136: 135, 139: 140, 140: 139},
}
NAMES = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "IPv6-ICMP", 132: "SCTP"}


def timestamp(ns):
    """RFC 3339 of ns since 1970."""
    seconds, fraction = divmod(ns, 10**9)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def has_ports(proto, sport, dport):
    """Both ports of a later fragment are unknown, hence zero."""
    return proto in (6, 17, 132) and (sport, dport) != (0, 0)


def flow_sha1(src, dst, proto, sport, dport):
    """SHA-1 of Community ID v1 with seed 0. src, dst: packed addresses; ICMP: sport, dport are type and code."""
    ports, one_way = True, False
    if proto in ANSWERS:
        one_way = sport not in ANSWERS[proto]
        dport = dport if one_way else ANSWERS[proto][sport]
    elif not has_ports(proto, sport, dport):
        ports, sport, dport = False, 0, 0
    a, b = (src, sport), (dst, dport)
    if not one_way and b < a:
        a, b = b, a
    tail = a[1].to_bytes(2, "big") + b[1].to_bytes(2, "big") if ports else b""
    return hashlib.sha1(b"\0\0" + a[0] + b[0] + bytes([proto, 0]) + tail).digest()


def address(packed):
    ip = ipaddress.ip_address(packed)
    mapped = getattr(ip, "ipv4_mapped", None)
    return f"::ffff:{mapped}" if mapped else str(ip)


def value(row, field):
    """A detector's field as JSON would carry it."""
    v = row[field.name].item()
    if isinstance(field.form, tuple):
        return field.form[v] if 0 <= v < len(field.form) else None
    if field.form == "float":
        return v if math.isfinite(v) else None
    if field.form == "bool":
        return bool(v)
    if field.form == "hex":
        return f"{v:016x}"
    return None if v == NO_TIME else v


def flow_part(row):
    """What an event says of its flow; nothing without addresses."""
    if row["ip_version"] == 0:
        return {}
    size = 4 if row["ip_version"] == 4 else 16
    src, dst = bytes(row["src"][:size]), bytes(row["dst"][:size])
    proto, sport, dport = int(row["proto"]), int(row["sport"]), int(row["dport"])
    sha1 = flow_sha1(src, dst, proto, sport, dport)
    out = {"flow_id": sha1[:8].hex(), "community_id": "1:" + base64.b64encode(sha1).decode()}
    out |= {"src_ip": address(src), "dest_ip": address(dst), "proto": NAMES.get(proto, str(proto))}
    if has_ports(proto, sport, dport):
        out |= {"src_port": sport, "dest_port": dport}
    if proto in (1, 58):
        out |= {"icmp_type": sport, "icmp_code": dport}
    return out


def event(detector, row, files, agent_id):
    """The dict that the JSON line of one event row reads as."""
    event_type = detector.events[row["code"] - 1]
    ts = None if row["ts"] == NO_TIME else int(row["ts"])
    out = {"timestamp": None if ts is None else timestamp(ts), "ts_ns": ts, "event_type": event_type.name}
    out |= {"schema_version": "1.0", "agent_id": agent_id} | flow_part(row)
    if row["vlan"]:
        out["vlan"] = [int(row["vlan"])]
    before = [(first, path) for first, path in files if first <= row["seq"]]
    if before:
        out |= {"pcap_file": before[-1][1], "pcap_cnt": int(row["seq"]) - before[-1][0] + 1}
    return out | {detector.name: {f.name: value(row, f) for f in event_type.fields}}

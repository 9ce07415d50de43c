"""Sandwich from its definition: collect each sandwich's members, look at them together. One dict for each event."""

from collections import defaultdict

from tests.naive.runner import wheel_ns

P1, P2, P3 = 1, 2, 3


def sandwiches(packets, timeout_ns):
    """Events of PACKET rows in order of capture, as dicts with `what` ("gap" or "incomplete")."""
    found = defaultdict(list)  # (session, round, j) -> groups of members
    for pkt in packets:
        if pkt.probe_role not in (P1, P2, P3):
            continue
        groups = found[int(pkt.probe_session), int(pkt.probe_round), int(pkt.probe_ttl)]
        if not groups or pkt.clock >= wheel_ns(groups[-1][0].clock + timeout_ns):
            groups.append([])
        groups[-1].append(pkt)
    return [judge(key, group) for key, groups in found.items() for group in groups]


def judge(key, group):
    arrivals = {role: [int(p.ts) for p in group if p.probe_role == role] for role in (P1, P2, P3)}
    p1, p2, p3 = (times[0] if times else None for times in arrivals.values())
    d_ns = int(group[0].probe_d)
    event = dict(zip(("session", "round", "ttl_index"), key, strict=True), d_ns=d_ns, p1_ns=p1, p2_ns=p2, p3_ns=p3)
    event["duplicates"] = sum(len(times) - 1 for times in arrivals.values() if times)
    reason = why_not(p1, p2, p3, d_ns, group)
    if reason:
        return {**event, "what": "incomplete", "reason": reason}
    return {**event, "what": "gap", "gap_ns": p3 - p1 - d_ns}


def why_not(p1, p2, p3, d_ns, group):
    """Reason why there is no gap, None if there is one."""
    if p1 is None and p3 is None:
        return "only_p2"
    if p1 is None:
        return "lost_p1"
    if p3 is None:
        return "lost_p3"
    if any(p.probe_d != d_ns for p in group) or not all(0 <= t < 2**62 for t in (d_ns, *(int(p.ts) for p in group))):
        return "inconsistent"
    if p3 < p1 or (p2 is not None and not p1 <= p2 <= p3):
        return "reordered"
    return None

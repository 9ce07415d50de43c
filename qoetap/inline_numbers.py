"""The numbers of a running `qoetap inline`: what GET /v1/status tells, and the metrics that Prometheus is told.

Taken by the main loop, between two turns. Labels are bounded as in families.py: classes, queues and rules are those of
the configuration.
"""

import time

from qoetap.families import COUNTER, GAUGE, Family
from qoetap.families import FAMILIES as OF_AGENT

NETLINK, SHIM = ("damaged", "foreign", "overruns", "gone", "refused"), ("unanswered", "unwritten")
SENT = ("passed", "released", "flushed", "no_room")  # fields of CLASS: how packets were let through
DROPPED = {"limit_bytes": "over_bytes", "limit_time": "over_time"}  # reason: field of CLASS
NOT_HERE = ("packets_seen", "packets_dropped")  # of metrics of `live`: of the capture, as are those of interfaces
NS = 1e9


def status(plane):
    """A dict for GET /v1/status."""
    pacing, row, shim = plane.shim.pacer.control[0], plane.queues.context[0], plane.shim.context[0]
    netlink = {name: int(row[name]) for name in NETLINK} | {name: int(shim[name]) for name in SHIM}
    numbered = zip(plane.inline.queues, plane.queues.counts(), strict=True)
    return {
        "uptime_s": time.monotonic() - plane.started,
        "packets": plane.engine.seen,
        "held": int(pacing.held),
        "held_max": int(pacing.held_max),
        "late_max_ns": max(plane.late_max, int(pacing.late_max)),
        "passing": bool(plane.passing_until),
        "passes": plane.passes,
        "failures": plane.failures,
        "pardoned": plane.pardoned,
        "mitigation": plane.mitigation.counts(),
        "dry_run": plane.mitigation.dry_run,
        "queues": [{"queue": number, **counts._asdict()} for number, counts in numbered],
        "netlink": {**netlink, "overflows": plane.queues.overflows()},
    }


def snapshot(plane):
    """The numbers for metrics.Exporter."""
    found = status(plane)
    failures = plane.outputs.failures(time.monotonic())
    late = "it was too late: everything passes by" if found["passing"] else ""
    return {
        **plane.engine.book().as_dict(),
        "agent_id": plane.settings.agent_id,
        "healthy": True,  # else nothing answers here; passing by for a second is no reason to start it anew
        "why": "; ".join(filter(None, [late, *failures.values()])),
        "outputs": plane.outputs.counts(),
        "outputs_up": {name: int(not failure) for name, failure in failures.items()},
        "inline": found,
        "names": plane.names,
        "classes": plane.rows(),
    }


# --- what is shown of a snapshot


def of_class(field, unit=1):
    return lambda s: dict(zip(s["names"], (s["classes"][field] / unit).tolist(), strict=True))


def rates(s):
    """In force; unpaced classes have none."""
    rows = zip(s["names"], s["classes"]["rate"].tolist(), strict=True)
    return {name: rate for name, rate in rows if rate}


def by_way(ways):
    """Of each class and way; ways: {label: field of CLASS}."""

    def values(s):
        columns = {way: s["classes"][field].tolist() for way, field in ways.items()}
        return {(name, way): counts[i] for i, name in enumerate(s["names"]) for way, counts in columns.items()}

    return values


def inline(name, unit=1):
    return lambda s: s["inline"][name] / unit


def of_queue(name):
    return lambda s: {str(queue["queue"]): queue[name] for queue in s["inline"]["queues"]}


def rule(told):
    return str(told["rule"]), told["on"], told["do"]


def of_rule(name):
    return lambda s: {rule(told): told[name] for told in s["inline"]["mitigation"]}


def refused(s):
    rules = s["inline"]["mitigation"]
    return {(*rule(told), why): count for told in rules for why, count in told["refused"].items()}


RULE = ("rule", "on", "do")
FAMILIES = (
    *(f for f in OF_AGENT if f.name not in NOT_HERE and not f.name.startswith("interface_")),
    Family(COUNTER, "class_packets", ("class",), of_class("packets"), "Packets offered to the class."),
    Family(COUNTER, "class_bytes", ("class",), of_class("bytes"), "Their bytes, from the IP header on."),
    Family(COUNTER, "class_sent_bytes", ("class",), of_class("sent_bytes"), "Bytes let through."),
    Family(
        COUNTER, "class_packets_sent", ("class", "how"), by_way({way: way for way in SENT}),
        "Packets let through: passed at once, released when due, flushed before, or no_room to hold them.",
    ),
    Family(
        COUNTER, "class_packets_dropped", ("class", "reason"), by_way(DROPPED), "Packets dropped, by the limit."
    ),
    Family(COUNTER, "class_packets_marked", ("class",), of_class("marked"), "Packets marked with CE, RFC 3168."),
    Family(GAUGE, "class_packets_held", ("class",), of_class("held"), "Packets that wait until they are due."),
    Family(GAUGE, "class_held_bytes", ("class",), of_class("held_bytes"), "Their bytes."),
    Family(GAUGE, "class_rate_bits_per_second", ("class",), rates, "Rate in force; unpaced classes have none."),
    Family(
        GAUGE, "class_wait_max_seconds", ("class",), of_class("wait_max", NS), "Longest time that a packet was held."
    ),
    Family(COUNTER, "inline_packets", (), inline("packets"), "Packets that came from the queues."),
    Family(GAUGE, "inline_packets_held", (), inline("held"), "Packets held, of all classes."),
    Family(GAUGE, "inline_packets_held_max", (), inline("held_max"), "The most that were held at a time."),
    Family(GAUGE, "inline_late_max_seconds", (), inline("late_max_ns", NS), "Longest delay of ours since the start."),
    Family(GAUGE, "inline_passing", (), inline("passing"), "1: everything passes by in the kernel at the moment."),
    Family(COUNTER, "inline_passes", (), inline("passes"), "How often everything passed by because we were late."),
    Family(COUNTER, "inline_stage_failures", (), inline("failures"), "How often a detector or stage failed."),
    Family(COUNTER, "inline_packets_pardoned", (), inline("pardoned"), "Packets let through because of that."),
    Family(GAUGE, "queue_packets_waiting", ("queue",), of_queue("waiting"), "Packets that wait in it, held ones too."),
    Family(COUNTER, "queue_packets_full", ("queue",), of_queue("full"), "Packets dropped because the queue was full."),
    Family(COUNTER, "queue_packets_lost", ("queue",), of_queue("lost"), "Packets for which there was no message."),
    Family(
        COUNTER, "inline_netlink_problems", ("reason",), lambda s: s["inline"]["netlink"],
        "Messages, verdicts and packets with which something was amiss.",
    ),
    Family(GAUGE, "mitigation_flows", RULE, of_rule("favoured"), "Flows favoured at present."),
    Family(COUNTER, "mitigation_begun", RULE, of_rule("begun"), "Favours begun."),
    Family(COUNTER, "mitigation_refused", (*RULE, "reason"), refused, "Favours refused, by the bound that was met."),
)  # fmt: skip

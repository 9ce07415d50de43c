"""Times in which flows were favoured, from the events that tell of it. Pure."""


def favours_of(events, end_ns, rule=None):
    """[(since, until)] in ns, joined where they touch: when a rule (its number; None: any) favoured a flow.

    What has not ended by end_ns ends there. Events are dicts.
    """
    open_since, found = {}, []
    for event in events:
        what = event["event_type"].removeprefix("mitigation.")
        if what not in ("start", "end") or rule not in (None, event["mitigation"]["rule"]):
            continue
        key = event["mitigation"]["rule"], event["flow_id"]
        if what == "start":
            open_since[key] = event["ts_ns"]
        elif key in open_since:
            found.append((open_since.pop(key), event["ts_ns"]))
    found += [(since, end_ns) for since in open_since.values()]
    return joined((since, min(until, end_ns)) for since, until in found if since < end_ns)


def joined(intervals):
    """The same times as a list in which none overlap."""
    found = []
    for since, until in sorted(intervals):
        if found and since <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], until))
        else:
            found.append((since, until))
    return found


def covered_s(intervals):
    """Sum of lengths, in the unit of the times."""
    return sum(until - since for since, until in intervals)


def within(intervals, since, until):
    """How much of since..until they cover."""
    return sum(max(0, min(until, b) - max(since, a)) for a, b in intervals)


def most_within(intervals, window):
    """The most that they cover of any time of that length. It is found where one of them begins or ends."""
    starts = [a for a, _ in intervals] + [b - window for _, b in intervals]
    return max((within(intervals, start, start + window) for start in starts), default=0)

"""The slow twin of detectors/iqn.py, and the scorer of its stalls against ground truth. Plain Python, whole lists.

Run as a script it prints the table of docs/iqn.md:  python -m tests.naive.iqn FOLDER  (with news/ and example/ in it)
"""

import sys
from bisect import bisect_left, bisect_right
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

P_NS = 200_000_000
MIN_STALL_NS = 400_000_000  # shorter true stalls are not scored
MATCH_NS = 1_000_000_000
WHEEL_NS = 1 << 24
MEMORY_NS = 10_000_000_000

Stall = namedtuple("Stall", "start end candidates")
Score = namedtuple("Score", "matched missed false mae rmse mean")  # errors in ms, true minus inferred duration
Packet = namedtuple("Packet", "ts flow size long")  # size: UDP payload bytes


# --- windows, over a sorted list of arrivals


def forward(arrivals, n=4, w_s=3 * P_NS // 2, w_e=4 * P_NS):
    """Stalls as the paper's text has them: [t_i, t_i + w] from an arrival on."""
    stalls, i = [], 0
    while (i := next_full(arrivals, i, n, w_s)) is not None:
        end = i
        while holds(arrivals, end, w_e) >= n:
            end += 1
        stalls.append(Stall(arrivals[i], arrivals[end], end - i + holds(arrivals, end, w_e)))
        i = end + 1
    return stalls


def next_full(arrivals, i, n, w_s):
    return next((k for k in range(i, len(arrivals)) if holds(arrivals, k, w_s) >= n), None)


def holds(arrivals, i, w):
    """Arrivals in [t_i, t_i + w]."""
    return bisect_right(arrivals, arrivals[i] + w) - i


def trailing(arrivals, n=4, w_s=3 * P_NS // 2, w_e=4 * P_NS):
    """Stalls as the released script has them: [t - w, t] back from an arrival."""
    stalls, first = [], None
    for i, t in enumerate(arrivals):
        full = i + 1 - bisect_left(arrivals, t - (w_s if first is None else w_e)) >= n
        if first is None and full:
            first = last = i
        elif full:
            last = i
        elif first is not None:
            stalls.append(Stall(arrivals[first], arrivals[last], last - first + n))
            first = None
    if first is not None:
        stalls.append(Stall(arrivals[first], arrivals[last], last - first + n))
    return stalls


def corrected(stall, arrivals, p=P_NS, w_s=3 * P_NS // 2):
    """The default estimate: each gap up to w_s was stalled, and p around the sightings, half of it before."""
    inside = arrivals[bisect_left(arrivals, stall.start) : bisect_left(arrivals, stall.end) + 1]
    covered = sum(min(b - a, w_s) for a, b in pairwise(inside))
    start = stall.start - p // 2
    return Stall(start, start + covered + p, stall.candidates)


# --- guards, for one flow


def guarded(packets, low=1138, high=1246, n=4, p=P_NS):
    """(arrivals that count, moments of bulk transfer) of one flow's Packets, sorted by ts."""
    counted, bulk = [], []
    full_size, ahead, before, vote = 0, 0, None, (0, 0)
    interval = p // (3 * n)
    for packet in packets:
        if packet.size < 1000 and not low <= packet.size <= high:
            continue
        if packet.long:
            full_size = max(full_size, packet.size if packet.size >= 1000 else 0)
            continue
        if before is not None:
            ahead = max(0, ahead - (packet.ts - before))
        before = packet.ts
        if packet.size >= 1000:
            ahead = min(ahead + interval, 4 * p // 3 + MEMORY_NS)
        if ahead > 4 * p // 3:
            bulk.append(packet.ts)
            vote = voted(vote, packet.size) if packet.size >= 1000 else vote
        elif packet.size not in (full_size, vote[0]) and low <= packet.size <= high:
            counted.append(packet.ts)
    return counted, bulk


def voted(vote, size):
    """(size, votes) after one more."""
    held, votes = vote
    if votes == 0 or held == size:
        return size, min(votes + 1, 255)
    return held, votes - 1


def watched(arrivals, bulk, until, n=4, w_s=3 * P_NS // 2, w_e=4 * P_NS):
    """Forward stalls of one flow whose capture ends at `until`.

    What the flow sent before bulk transfer does not count unless its stall was reported by then.
    """
    stalls, proven_at, i = [], None, 0
    while (k := next_full(arrivals, i, n, w_s)) is not None:
        nth = arrivals[k + n - 1]
        proven = proven_at is not None and not any(proven_at <= b <= nth for b in bulk)
        known = nth if proven else wheel(max(nth + 1, arrivals[k] + w_s))
        if known > until:
            break
        bad = [b for b in bulk if arrivals[k] <= b < known]
        if bad:
            i = bisect_right(arrivals, bad[0])
            continue
        proven_at = known if not proven else proven_at
        end = k
        while holds(arrivals, end, w_e) >= n:
            end += 1
        stalls.append(Stall(arrivals[k], arrivals[end], end - k + holds(arrivals, end, w_e)))
        after = end + holds(arrivals, end, w_e)
        over = min([wheel(arrivals[end] + w_e)] + arrivals[after : after + 1])
        purged = after < len(arrivals) and any(over <= b <= arrivals[after] for b in bulk)
        i = after if purged else end + 1
    return stalls


def wheel(due):
    return -(-due // WHEEL_NS) * WHEEL_NS


# --- ground truth and score


def nanoseconds(text):
    seconds, _, fraction = text.strip().partition(".")
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9])


def load_arrivals(folder):
    """Candidate times of the dataset, int ns, sorted, each once: the files repeat lines."""
    lines = (Path(folder) / "timestamp_of_candidate.txt").read_text().split()
    return sorted({nanoseconds(line) for line in lines})


def load_truth(folder):
    """(start, end) of each true stall, int ns."""
    lines = (Path(folder) / "Real_stalls.txt").read_text().split()
    starts = [nanoseconds(line[2:]) for line in lines if line.startswith("S-")]
    ends = [nanoseconds(line[2:]) for line in lines if line.startswith("E-")]
    return list(zip(starts, ends, strict=True))


def score(truth, stalls):
    """A true stall matches the first inferred one that starts within 1 s of it and ends after its start."""
    scored = [true for true in truth if true[1] - true[0] >= MIN_STALL_NS]
    found = [(true, next((s for s in stalls if matches(true, s)), None)) for true in scored]
    errors = [((end - start) - (s.end - s.start)) / 1e6 for (start, end), s in found if s is not None]
    false = sum(not any(matches(true, s) for true in truth) for s in stalls)
    count = max(len(errors), 1)
    mae, square = sum(map(abs, errors)) / count, sum(e * e for e in errors) / count
    return Score(len(errors), len(scored) - len(errors), false, mae, square**0.5, sum(errors) / count)


def matches(true, stall):
    return abs(true[0] - stall.start) <= MATCH_NS and stall.end > true[0]


# --- the table


def capped(arrivals, stalls, cap):
    return [corrected(s, arrivals, w_s=cap) for s in stalls]


def shifted(stalls, before, after):
    return [Stall(s.start - before, s.end + after, s.candidates) for s in stalls]


def by_count(stalls, n=4, p=P_NS):
    return [Stall(s.start - p // 2, s.start - p // 2 + s.candidates * p // n, s.candidates) for s in stalls]


def estimators(arrivals):
    """(name, stalls) of every estimate that was tried."""
    text = forward(arrivals)
    return [
        ("trailing, as released", trailing(arrivals)),
        ("forward, as the text says", text),
        ("forward, p/2 added at both ends", shifted(text, P_NS // 2, P_NS // 2)),
        ("candidates * p / n", by_count(text)),
        ("gaps up to p, plus p", capped(arrivals, text, P_NS)),
        ("gaps up to w_s = 3p/2, plus p (default)", capped(arrivals, text, 3 * P_NS // 2)),
        ("gaps up to 2p, plus p", capped(arrivals, text, 2 * P_NS)),
    ]


def main(folder):
    for genre in ("news", "example"):
        arrivals, truth = load_arrivals(Path(folder) / genre), load_truth(Path(folder) / genre)
        print(f"{genre}: {len(truth)} stalls, {len(arrivals)} candidates")
        for name, stalls in estimators(arrivals):
            s = score(truth, stalls)
            print(f"  {name:42}{s.matched:4}{s.missed:3}{s.false:3}{s.mae:7.1f}{s.rmse:7.1f}{s.mean:+7.1f}")


if __name__ == "__main__":
    main(sys.argv[1])

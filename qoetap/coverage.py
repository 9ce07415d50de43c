"""Classes that an earlier class covers wholly: they would never match, so they are errors.

A match is a product of sets, one for each header field; more exactly one product for each IP version, because no
packet has addresses of both, and one for what is no IP. A product lies in another one if each set does. Sets are
ranges; first their hulls are compared, of one class against all earlier ones at a time, and for those that are left
every range.
"""

from bisect import bisect_right

import numpy as np

from qoetap.matching import DSCP_MAX, MARK_MAX, PORT_MAX, PROTOCOL_MAX, Mark, protocols_of

NOTHING, NONE = (), -1


def merged(ranges):
    """Sorted ranges without overlap of (low, high) pairs."""
    joined = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def lies_in(inner, outer):
    """Whether each of the ranges `inner` lies in one of the merged ranges `outer`."""
    starts = [low for low, _ in outer]
    at = [bisect_right(starts, low) - 1 for low, _ in inner]
    return all(i >= 0 and high <= outer[i][1] for i, (_, high) in zip(at, inner, strict=True))


def addresses(networks, version):
    """Ranges of those of the IP version, of all where networks is None. Version 0: what could not be decoded."""
    if networks is None:
        return ((0, 2 ** (32 if version == 4 else 128) - 1),)
    own = [n for n in networks if n.version == version]
    return merged((int(n.network_address), int(n.broadcast_address)) for n in own)


def numbers(values, most):
    """Ranges of single numbers; None: of all, also of what has none."""
    return ((NONE, most),) if values is None else merged((v, v) for v in values)


def ports(values, other):
    """The same of ports, which ICMP and later fragments do not have: but what has one has the other."""
    return ((0 if other else NONE, PORT_MAX),) if values is None else merged(values)


def sets_of(match, places):
    """Ranges of each field of a match; `places`: number of each interface by name."""
    found, decoded = [], any(getattr(match, key) for key in ("proto", "dscp", "sport", "dport"))
    for version in (0, 4, 6):
        ends = [addresses(match.src, version), addresses(match.dst, version)]
        found += ends if all(ends) and (version or not decoded) else [NOTHING, NOTHING]
    for names in (getattr(match, "in"), match.out):
        found.append(numbers(names and [places[n] for n in names], len(places)))
    found += [ports(match.sport, match.dport), ports(match.dport, match.sport)]
    return [*found, numbers(protocols_of(match), PROTOCOL_MAX), numbers(match.dscp, DSCP_MAX)]


def hulls(sets):
    """(lows, highs), int64 (classes, fields): each set's ends as ranks. What is empty lies in everything."""
    values = sorted({end for row in sets for ranges in row for pair in ranges for end in pair})
    rank = {value: i for i, value in enumerate(values)}
    lows = [[rank[r[0][0]] if r else len(values) for r in row] for row in sets]
    highs = [[rank[r[-1][1]] if r else -1 for r in row] for row in sets]
    return np.array(lows, np.int64), np.array(highs, np.int64)


def first_covered(matches):
    """(index, index of the earlier one) of the first match that an earlier one covers; None if there is none."""
    if not matches:
        return None
    names = sorted({name for m in matches for key in ("in", "out") for name in getattr(m, key) or ()})
    sets = [sets_of(m, {name: i for i, name in enumerate(names)}) for m in matches]
    lows, highs = hulls(sets)
    value, mask = np.array([m.mark or Mark(0, 0) for m in matches], np.int64).T
    for b in range(1, len(matches)):
        wide = ((lows[:b] <= lows[b]) & (highs[:b] >= highs[b])).all(axis=1)
        wide &= (mask[:b] & (MARK_MAX ^ mask[b]) == 0) & (value[b] & mask[:b] == value[:b])
        for a in np.flatnonzero(wide).tolist():
            if all(map(lies_in, sets[b], sets[a])):
                return b, a
    return None

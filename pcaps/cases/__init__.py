"""The stories told by the sample captures, one file for each subject."""

from pcaps.cases import damage, flows, links, loops, ptp, sandwich, stalls, streams

CASES = (
    *stalls.CASES,
    *loops.CASES,
    *ptp.CASES,
    *sandwich.CASES,
    *streams.CASES,
    *flows.CASES,
    *links.CASES,
    *damage.CASES,
)

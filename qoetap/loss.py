"""What a run may lose: the share `live.loss_allowed` of its packets, and of the events of each output."""


def excess(lost, of, allowed, what):
    """The sentence about `lost` of so many, "" where that is allowed."""
    if lost <= allowed * of:
        return ""
    return f"{lost / of:.2%} of {what} were lost, {allowed:.2%} are allowed (live.loss_allowed)"


def packets_lost(ledger, allowed):
    """The same about the packets of a run."""
    sentence = excess(sum(ledger.lost.values()), ledger.seen, allowed, "the packets")
    return sentence and f"{sentence}: enlarge live.ring_size, add workers, or filter"


def losses(ledger, outputs, allowed):
    """Sentences about all that was lost beyond what is allowed."""
    return [*filter(None, [packets_lost(ledger, allowed)]), *outputs.losses(allowed)]

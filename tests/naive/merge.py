"""What may go of several rings, from the rule: a frame goes when all others have a later one at hand, or nothing."""

QUEUED_ns = 1_000_000


class Lane:
    """A ring as its reader sees it: blocks at hand, as lists of times, and how many frames are not shown yet."""

    def __init__(self, most, full, hold):
        self.most, self.full, self.hold = most, full, hold
        self.blocks, self.seen, self.hidden, self.shown = [], [], 0, 0

    def show(self, times):
        self.blocks.append(list(times))

    @property
    def has(self):
        return bool(self.blocks) and self.shown < self.most

    @property
    def patience(self):
        return 0 if len(self.blocks) >= self.full else self.hold

    def pressing(self, now):
        return bool(self.blocks) and (len(self.blocks) >= self.full or now - self.seen[0] > self.hold)

    def pop(self):
        ts = self.blocks[0].pop(0)
        if not self.blocks[0]:
            del self.blocks[0], self.seen[0]
            self.shown += 1
        return ts


def first_of(lanes):
    """The lane with the earliest time; but one seen more than its hold before that, or merely before if it is mostly
    full, goes first, of several the one that was seen first.
    """
    ready = [lane for lane in lanes if lane.has]
    first = min(ready, key=lambda lane: lane.blocks[0][0])
    overdue = [lane for lane in ready if lane.seen[0] + lane.patience < first.seen[0]]
    return min(overdue, key=lambda lane: lane.seen[0], default=first)


def take(lanes, room, now):
    """[(lane, time)] of what goes in one pass."""
    for lane in lanes:
        lane.shown = 0
        lane.seen += [now] * (len(lane.blocks) - len(lane.seen))
    pressing, found = any(lane.pressing(now) for lane in lanes), []
    while len(found) < room and any(lane.has for lane in lanes):
        first = lanes.index(first_of(lanes))
        others = [lane for lane in lanes if not lane.has]
        certain = now - lanes[first].seen[0] >= QUEUED_ns and not any(lane.hidden for lane in others)
        if any(lane.blocks for lane in others) or others and not certain and not pressing:
            break
        found.append((first, lanes[first].pop()))
    return found

"""The relay: each tile is decoded once, by whoever; every taker sees all of them, in order."""

import random
import threading
import time

import pytest

from dataplane.batch import Batch, new_clock
from dataplane.chain import Chain
from dataplane.relay import SLOTS, Relay
from dataplane.wire import decode_options
from tests import packets as make
from tests.rows import block_of

TILE = 16
ETHERNET = 1
OPTIONS = decode_options(b"relay")


def block(rng):
    """UDP packets for a tile or less, each with a source port by chance."""
    count = rng.randrange(1, TILE + 1)
    frames = [make.eth(make.ipv4("10.0.0.1", "10.0.0.2", make.udp(rng.randrange(65536), 53))) for _ in range(count)]
    return block_of([(frame, len(frame), ETHERNET) for frame in frames])


def sports(blocks):
    """(number, source port) of all packets, from their bytes."""
    found = [b.buf[int(f.offset) + 34 : int(f.offset) + 36].tobytes() for b in blocks for f in b.frames]
    return [(i, int.from_bytes(port, "big")) for i, port in enumerate(found)]


class Race:
    """A giver, and takers that note what they see before they end a tile. Some tiles are due."""

    def __init__(self, takers, rng, fails=None):
        self.rng, self.fails, self.given, self.due, self.rounds = rng, fails, 0, 0, 0
        self.batch = Batch(TILE)
        self.relay = Relay(self.batch, TILE, takers, self.deliver)
        self.chain = Chain([self.batch.stage(OPTIONS, new_clock()), self.relay.giving_stage()])
        decoding = [batch.stage(OPTIONS, raw=1) for batch in self.relay.takers]
        stages = [self.relay.taking_stages(i, stage, []) for i, stage in enumerate(decoding)]
        self.taking, self.ending = [Chain(s[:-1]) for s in stages], [Chain(s[-1:]) for s in stages]
        self.seen, self.decoded, self.threads = [[] for _ in decoding], [], [set() for _ in decoding]
        self.slow = [rng.random() / 1000 for _ in decoding]

    def pause(self, who, most=0.0005):
        if who == self.fails and self.given > 5 * TILE:
            raise OSError(who)
        time.sleep(self.rng.random() * most)

    def deliver(self):
        self.pause("deliver")
        self.rounds += 1
        assert len({len(seen) for seen in self.seen}) == 1

    def take(self, taker):
        """What a taker's thread does."""
        batch = self.relay.takers[taker]
        while not self.relay.finished(taker):
            self.pass_through(self.taking[taker], batch)
            if batch.frames:
                self.note(taker, batch, int(self.relay.taken[taker]))
                self.pass_through(self.ending[taker], batch)
                if batch.row[0]["due"]:
                    self.relay.meet()

    @staticmethod
    def pass_through(chain, batch):
        """One tile."""
        batch.expect(1, 0)
        list(chain.over(batch, TILE))

    def note(self, taker, batch, number):
        rows = self.relay.slots[number % SLOTS].packets[: batch.size]
        self.seen[taker] += list(zip(rows["seq"].tolist(), rows["sport"].tolist(), strict=True))
        self.threads[taker].add(threading.get_ident())
        if batch.row[0]["raw"]:
            self.decoded.append(number)
        self.pause(f"take {taker}", self.slow[taker])

    def give(self, blocks):
        with self.relay.at_work(self.take):
            for part in blocks:
                self.pause("give")
                if self.rng.random() < 0.3:
                    self.relay.mark_due()
                    self.due += 1
                self.batch.give(part, self.given)
                for _ in self.chain.over(self.batch, TILE):
                    self.relay.check()
                self.given += self.batch.frames


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("takers", [1, 2, 3, 6])
def test_every_tile_once_and_in_order(takers, seed):
    rng = random.Random(seed)
    blocks = [block(rng) for _ in range(40)]
    race = Race(takers, rng)
    race.give(blocks)
    assert all(seen == sports(blocks) for seen in race.seen)
    assert all(len(threads) == 1 for threads in race.threads) and race.rounds == race.due
    assert 0 < len(race.decoded) == len(set(race.decoded)) < len(blocks)


def test_a_fast_taker_decodes_and_a_slow_one_does_not():
    rng = random.Random(1)
    blocks, fast, slow = [block(rng) for _ in range(30)], Race(1, rng), Race(1, rng)

    def until_all_is_done(who, *_):
        while who == "give" and fast.relay.taken[0] < fast.relay.given:
            time.sleep(0.0001)

    def until_the_ring_is_full(who, *_):
        relay = slow.relay
        while who == "take 0" and relay.given - relay.taken[0] < SLOTS - 1 and not relay.closed:
            time.sleep(0.0001)

    fast.pause, slow.pause = until_all_is_done, until_the_ring_is_full
    fast.give(blocks)
    slow.give(blocks)
    assert (fast.decoded, slow.decoded) == (list(range(1, 30)), [1])  # the first is never raw
    assert fast.seen == slow.seen == [sports(blocks)]


def test_nothing_given_and_again():
    race = Race(2, random.Random(2))
    blocks = [block(race.rng) for _ in range(5)]
    race.give([])
    race.give(blocks)
    assert race.seen == [sports(blocks)] * 2


@pytest.mark.parametrize("who", ["give", "take 1", "deliver"])
def test_what_one_raises_all_hear(who):
    before = threading.active_count()
    race = Race(3, random.Random(3), who)
    with pytest.raises(OSError, match=who):
        race.give([block(race.rng) for _ in range(30)])
    assert threading.active_count() == before


def test_what_was_given_before_an_error_is_seen():
    race = Race(2, random.Random(4))
    blocks = [block(race.rng) for _ in range(7)]

    def broken():
        yield from blocks
        raise OSError("input")

    with pytest.raises(OSError, match="input"):
        race.give(broken())
    assert race.seen == [sports(blocks)] * 2

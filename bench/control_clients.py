"""Agents that post `ptp.delay` events as the sink `http` does, and one who asks for loads: a process each.

Event number j of agent i is the same whenever it is made, so that the state file can be held against it.
"""

import contextlib
import gzip
import http.client
import json
import os
import random
import signal
import threading
import time
from queue import Empty, SimpleQueue
from typing import NamedTuple

BATCH_seconds, REQUEST_seconds = 1.0, 10.0
BACKOFF_seconds, BACKOFF_MAX_seconds = 0.25, 2.0
ASK_seconds = 0.01
KILL_MAX_seconds = 0.004  # after a post was sent
MASTER, SLAVE = "020000fffe000105", "020000fffe000106"
FAULTS = (OSError, http.client.HTTPException)
LINE = (
    '{{"timestamp":"2026-01-01T00:00:00.000000000Z","ts_ns":{ts_ns},"event_type":"ptp.delay","schema_version":"1.0",'
    '"agent_id":"{agent}","flow_id":"5f4b27617a60c22b","community_id":"1:X0snYXpgwiv9TZtqg64sgzUn6Dk=",'
    '"src_ip":"192.0.2.1","src_port":320,"dest_ip":"192.0.2.2","dest_port":320,"proto":"UDP","ptp":{{"mechanism":"e2e",'
    '"domain":0,"sdo":0,"master_clock":"{master}","master_port":1,"slave_clock":"{slave}","slave_port":1,'
    '"request_id":{request_id},"sync_id":{request_id},"two_step":true,"t1_ns":{ts_ns},"t2_ns":{ts_ns},"t3_ns":{ts_ns},'
    '"t4_ns":{ts_ns},"sync_correction":0,"follow_up_correction":0,"response_correction":0,'
    '"mean_path_delay_ns":{delay_ns},"offset_ns":1000}}}}\n'
)


class Load(NamedTuple):
    """What the agents do."""

    agents: int
    events: float  # a second, of all together
    start_ns: int  # time of the first events

    @property
    def gap_ns(self):
        """Between events of an agent."""
        return round(self.agents * 1e9 / self.events)

    def times(self, agent, count):
        """ts_ns of an agent's first events."""
        first = self.start_ns + self.gap_ns * agent // self.agents
        return range(first, first + count * self.gap_ns, self.gap_ns)


def name(agent):
    """Of the agent's path."""
    return f"agent-{agent}:{MASTER}:0"


class Orders:
    """What all agents heed: when to end, and which process to kill while a post is under way."""

    def __init__(self):
        self.ending, self.victims = threading.Event(), SimpleQueue()

    def heed(self, luck):
        with contextlib.suppress(Empty):
            victim = self.victims.get_nowait()
            time.sleep(KILL_MAX_seconds * luck.random())
            os.kill(victim, signal.SIGKILL)


class Agent(threading.Thread):
    """Makes events when their time has come, and posts those of a second until they are taken."""

    def __init__(self, number, load, address, orders):
        super().__init__(daemon=True)
        self.number, self.load, self.orders = number, load, orders
        self.luck, self.connection = random.Random(number), http.client.HTTPConnection(*address, REQUEST_seconds)
        self.acked = self.batches = self.resent = 0
        self.seconds = []  # of each post that was taken

    def run(self):
        due = time.time() + BATCH_seconds * self.number / self.load.agents
        while not self.orders.ending.wait(max(0.0, due - time.time())):
            self.deliver()
            due += BATCH_seconds
        self.deliver()  # the last ones

    def deliver(self):
        """Post what was made since the last batch, as often as it takes."""
        count = max(0, (time.time_ns() - self.load.times(self.number, 0).start) // self.load.gap_ns + 1 - self.acked)
        body = gzip.compress("".join(self.lines(count)).encode(), 1, mtime=0)
        self.batches, attempt = self.batches + 1, 0
        while count and not self.post(body):
            self.connection.close()
            time.sleep(min(BACKOFF_seconds * 2**attempt, BACKOFF_MAX_seconds) * (1 - self.luck.random() / 2))
            attempt, self.resent = attempt + 1, self.resent + 1
        self.acked += count

    def lines(self, count):
        for at, ts_ns in enumerate(self.load.times(self.number, self.acked + count)[self.acked :], self.acked):
            delay_ns = round(36_100 * 2.718 ** (6.2 * self.luck.random()))
            yield LINE.format(
                ts_ns=ts_ns, agent=f"agent-{self.number}", master=MASTER, slave=SLAVE, request_id=at & 0xFFFF,
                delay_ns=delay_ns,
            )  # fmt: skip

    def post(self, body):
        """Whether the batch was taken."""
        headers = {
            "Content-Type": "application/x-ndjson", "Content-Encoding": "gzip",
            "Idempotency-Key": f'"{self.number}-{self.batches}"',
        }  # fmt: skip
        began = time.perf_counter()
        try:
            self.connection.request("POST", "/v1/events", body, headers)
            self.orders.heed(self.luck)
            answer = self.connection.getresponse()
            answer.read()
        except FAULTS:
            return False
        self.seconds.append(time.perf_counter() - began)
        return answer.status == 200


def agents(pipe, load, address):
    """A process: all agents. Told a process id, kills that while a post is under way; asked for "acked", answers how
    many events of each were taken; told "end", answers with all it knows."""
    orders = Orders()
    running = [Agent(number, load, address, orders) for number in range(load.agents)]
    for agent in running:
        agent.start()
    while (told := pipe.recv()) != "end":
        if told == "acked":
            pipe.send([agent.acked for agent in running])
        else:
            orders.victims.put(told)
    orders.ending.set()
    for agent in running:
        agent.join()
    pipe.send({
        "made": [agent.acked for agent in running],
        "batches": sum(agent.batches for agent in running),
        "resent": sum(agent.resent for agent in running),
        "post_seconds": [seconds for agent in running for seconds in agent.seconds],
    })  # fmt: skip


def asker(pipe, load, address):
    """A process: asks for the load of one path after the other until told to end. Answers with seconds and failures."""
    connection, luck = http.client.HTTPConnection(*address, REQUEST_seconds), random.Random(0)
    seconds, failed, classes = [], 0, {}
    while not pipe.poll(ASK_seconds):
        began = time.perf_counter()
        try:
            connection.request("GET", f"/v1/load?path={name(luck.randrange(load.agents))}")
            answer = connection.getresponse()
            reading = json.loads(answer.read())
        except FAULTS:
            connection.close()
            failed += 1
            continue
        seconds.append(time.perf_counter() - began)
        kind = reading.get("class", answer.status)
        classes[kind] = classes.get(kind, 0) + 1
    pipe.send({"seconds": seconds, "failed": failed, "answers": classes})

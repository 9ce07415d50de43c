"""`python -m bench.brokers`: events per second through the kafka and http sinks, their receivers on loopback.

The receivers (librdkafka's mock cluster; a server that reads and forgets) run in the same process on the same cores:
these are lower bounds.
"""

import platform
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import confluent_kafka

from dataplane.sinks import open_sink
from tests.kafka_mock import MockCluster
from tests.sinks import DETECTORS, batch

EVENTS, TIMES = 5000, 60


class Forget(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def measure(spec):
    """Write the same events again and again and close: a line about it."""
    events, sink = batch(EVENTS), open_sink(spec, DETECTORS)
    sink.write(events)  # compiles
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(TIMES):
        sink.write(events)
    sink.close()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    count = EVENTS * TIMES
    assert sink.delivered == sink.settled == count + EVENTS
    return f"{spec.partition(':')[0]}: {count / wall:,.0f} events/s, {cpu / count * 1e6:.1f} us of CPU an event"


def main():
    print(f"Python {platform.python_version()}, confluent-kafka {confluent_kafka.__version__}, {sys.platform}")
    with MockCluster(3) as cluster:
        cluster.create("events", 6)
        print(measure(f"kafka://{cluster.bootstraps}/events"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forget)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(measure(f"http://127.0.0.1:{server.server_address[1]}/"))
    server.shutdown()


if __name__ == "__main__":
    main()

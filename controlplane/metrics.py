"""Numbers of the service for Prometheus. Labels are bounded: paths by PATHS_MAX, the first by name."""

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from controlplane.database import size_bytes
from controlplane.ingest import REASONS

PATHS_MAX = 256
RESULTS = ("accepted", "duplicates", "late", "ignored")


class Metrics:
    """What a LoadService, its Guard and its Streams tell. clock: ns since 1970."""

    def __init__(self, service, guard, streams, clock):
        self.service, self.guard, self.streams, self.clock = service, guard, streams, clock
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def page(self, accept):
        """(text, type) in the format that the header Accept asks for."""
        encode, kind = choose_encoder(accept)
        return encode(self.registry), kind

    def describe(self):
        return ()

    def collect(self):
        yield from self._events()
        yield from self._service()
        yield from self._paths()

    def _events(self):
        counts = self.service.counts
        events = CounterMetricFamily("qoetap_serve_events", "Events by what became of them", labels=["result"])
        for result in RESULTS:
            events.add_metric([result], counts[result])
        rejected = CounterMetricFamily("qoetap_serve_rejected", "Lines and delays rejected", labels=["reason"])
        for reason in REASONS:
            rejected.add_metric([reason], counts[f"rejected.{reason}"])
        yield from (events, rejected)

    def _service(self):
        store = self.service.store
        yield GaugeMetricFamily("qoetap_serve_paths", "Paths that are known", len(self.service.known))
        yield GaugeMetricFamily("qoetap_serve_waiting_rows", "Rows that wait to be written", store.waiting_rows)
        yield GaugeMetricFamily("qoetap_serve_state_up", "1 if state can be written", int(store.trouble is None))
        yield GaugeMetricFamily("qoetap_serve_state_bytes", "Size of the state file", size_bytes(store.path))
        yield GaugeMetricFamily("qoetap_serve_listeners", "Listeners to live loads", self.streams.listeners)
        yield CounterMetricFamily("qoetap_serve_refused", "Requests refused at the door", self.guard.refused)

    def _paths(self):
        loads = GaugeMetricFamily("qoetap_serve_load_ratio", "Load of a path, 0 to 1", labels=["path"])
        ages = GaugeMetricFamily("qoetap_serve_sample_age_seconds", "Age of a path's latest sample", labels=["path"])
        stale = GaugeMetricFamily("qoetap_serve_stale", "1 if a path's latest sample is too old", labels=["path"])
        for reading in self.service.paths(self.clock())[:PATHS_MAX]:
            name = [reading["path"]]
            stale.add_metric(name, int(reading["stale"]))
            for family, key in ((loads, "load"), (ages, "age_s")):
                if reading[key] is not None:
                    family.add_metric(name, reading[key])
        yield from (loads, ages, stale)

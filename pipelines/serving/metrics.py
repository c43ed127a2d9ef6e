"""What /metrics tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The service's figures; each application has its own."""

    def __init__(self) -> None:
        self.registry = on = CollectorRegistry()
        self.requests = Counter("latentbits_requests", "Requests answered.", ("method", "route", "status"), registry=on)
        self.seconds = Histogram(
            "latentbits_request_seconds",
            "From the last byte read to the answer.",
            ("route",),
            buckets=SECONDS,
            registry=on,
        )
        self.refused = Counter("latentbits_refused", "Requests refused, by what they broke.", ("limit",), registry=on)
        self.running = Gauge("latentbits_requests_running", "Requests that are being answered.", registry=on)
        self.queries = Counter("latentbits_queries", "Queries answered.", ("rank",), registry=on)
        self.batch = Histogram(
            "latentbits_batch_queries", "Queries that were answered together.", buckets=BATCHES, registry=on
        )
        self.batch_seconds = Histogram("latentbits_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=on)
        self.waiting = Gauge("latentbits_queries_waiting", "Queries that wait for their batch.", registry=on)
        self.documents = Gauge("latentbits_index_documents", "Documents that can be found.", registry=on)
        self.version = Gauge("latentbits_index_version", "Version of the index that answers.", registry=on)
        self.changed = Counter("latentbits_documents_changed", "Documents changed.", ("change",), registry=on)

    def page(self) -> bytes:
        """The figures in Prometheus's text format."""
        return generate_latest(self.registry)

"""What the server tells Prometheus: counts and times by codes of this software, nothing of any patient."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from medsd.inference.prediction import Prediction

_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class RestStatus:
    """Counters of one running server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._answers = Counter("medsd_rest_answers", "Answers by HTTP status.", ["status"], registry=registry)
        self._seconds = Histogram("medsd_rest_seconds", "From a request to its answer.", registry=registry)
        self._read = Counter("medsd_rest_read", "Studies read.", ["status", "reason"], registry=registry)
        self._batch = Histogram("medsd_rest_batch", "Studies in one run.", buckets=_BATCHES, registry=registry)

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self._answers.labels(status).inc()
        self._seconds.observe(seconds)

    def read(self, predictions: list[Prediction]) -> None:
        """Count the studies of one run."""
        self._batch.observe(len(predictions))
        for prediction in predictions:
            self._read.labels(prediction.status, prediction.reason).inc()

    def page(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

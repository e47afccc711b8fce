"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

Counts = Callable[[], tuple[int, int]]


class Metrics:
    """Of one application: a registry of its own, so that several live in one process.

    Rows have the label ``replica``, where this is one of several.
    """

    def __init__(self, counts: dict[str, Counts], replica: str = "") -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "mxort"}
        self.requests = Counter("requests", "Requests, by status of HTTP", ["path", "status"], **made)  # type: ignore[arg-type]
        self.prompt = Counter("prompt_tokens", "Tokens of prompts", ["model"], **made)  # type: ignore[arg-type]
        self.generated = Counter("generated_tokens", "Tokens generated", ["model"], **made)  # type: ignore[arg-type]
        self.first = Histogram(
            "time_to_first_token_seconds",
            "Of requests that run",
            ["model"],
            buckets=_FIRST,
            **made,  # type: ignore[arg-type]
        )
        self.each = Histogram(
            "time_per_output_token_seconds",
            "Mean of a request, but its first",
            ["model"],
            buckets=_EACH,
            **made,  # type: ignore[arg-type]
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Load(counts))
        self._shown: Collector = _Labelled(self.registry, replica) if replica else self.registry

    def finished(self, model: str, prompt: int, generated: int) -> None:
        """Counts the tokens of a request, whole or not."""
        self.prompt.labels(model).inc(prompt)
        self.generated.labels(model).inc(generated)

    def text(self) -> bytes:
        return generate_latest(self._shown)


class _Labelled(Collector):
    """The rows of a registry, with the label."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry, self._replica = registry, replica

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, "replica": self._replica})
                for sample in family.samples
            ]
            yield family


class _Load(Collector):
    """Requests that run and wait, asked for when the metrics are read."""

    def __init__(self, counts: dict[str, Counts]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[GaugeMetricFamily]:
        running = GaugeMetricFamily("mxort_requests_running", "Requests in a batch", labels=["model"])
        waiting = GaugeMetricFamily("mxort_requests_waiting", "Requests before a batch", labels=["model"])
        for model, counts in self._counts.items():
            for family, value in zip((running, waiting), counts(), strict=True):
                family.add_metric([model], value)
        return running, waiting

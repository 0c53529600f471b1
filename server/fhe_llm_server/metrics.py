"""Prometheus metrics in a registry of their own: two applications in one process do not share a counter."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PHASES = ("queue", "rotations", "products", "finish", "total")


class Metrics:
    """Counters of one application. Nothing here depends on what a ciphertext holds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rounds = Counter("fhe_llm_rounds", "Rounds answered.", ["layer_kind"], registry=self.registry)
        self.jobs = Counter("fhe_llm_jobs", "Token vectors evaluated.", registry=self.registry)
        self.errors = Counter("fhe_llm_errors", "Refusals by code.", ["code"], registry=self.registry)
        transferred = Counter("fhe_llm_bytes", "Bytes of bodies.", ["direction"], registry=self.registry)
        self.bytes_up = transferred.labels("up")
        self.bytes_down = transferred.labels("down")
        phase = Histogram(
            "fhe_llm_phase_seconds",
            "Seconds a round spent.",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.phase = {name: phase.labels(name) for name in PHASES}
        self.batch_jobs = Histogram(
            "fhe_llm_batch_jobs",
            "Jobs that shared one pass over the weights.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.key_cache = Counter(
            "fhe_llm_key_cache_events",
            "Prepared-key look-ups and evictions.",
            ["event"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "fhe_llm_connections", "Requests and sockets being served.", registry=self.registry
        )

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Publish ``value()`` as a gauge, read at scrape time."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

"""The figures of an endpoint, for Prometheus.

Knows what an answer cost. Refuses to know who asked and what.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chat import ReplyStats

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """One endpoint's figures, in a registry of its own.

    Args:
        running: gives the number of answers that are being computed.
        waiting: gives the number of requests that wait for a place.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]):
        self._registry = CollectorRegistry()

        def metric(kind: type, name: str, help_text: str, **options):
            return kind(f"llm_chatbot_{name}", help_text, registry=self._registry, **options)

        self._requests = metric(Counter, "requests", "Requests by how they ended", labelnames=["outcome"])
        self._prompt = metric(Counter, "prompt_tokens", "Tokens of prompts")
        self._cached = metric(Counter, "cached_tokens", "Tokens of prompts that were in the cache")
        self._new = metric(Counter, "new_tokens", "Tokens of answers")
        self._first = metric(
            Histogram,
            "time_to_first_token_seconds",
            "From the place among the running to the first token",
            buckets=SECONDS,
        )
        self._rate = metric(
            Histogram, "tokens_per_second", "Tokens per second of an answer after its first", buckets=RATES
        )
        metric(Gauge, "running", "Answers that are being computed").set_function(running)
        metric(Gauge, "waiting", "Requests that wait for a place").set_function(waiting)

    def count(self, outcome: str, stats: ReplyStats | None = None) -> None:
        """Count a request.

        Args:
            outcome: how the answer ended ("stop", "length", "cancelled", "error"), or why there is none
                ("invalid", "queue_full").
            stats: of an answer that has begun.
        """
        self._requests.labels(outcome).inc()
        if stats is None:
            return
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.reused_tokens or 0)
        self._new.inc(stats.new_tokens)
        if stats.time_to_first_token is not None:
            self._first.observe(stats.time_to_first_token)
        if stats.tokens_per_second is not None:
            self._rate.observe(stats.tokens_per_second)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

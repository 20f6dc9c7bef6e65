"""Metrics of the server for Prometheus, at `/metrics`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts and times of one server.

    Args:
        count_waiting: Number of requests that wait for the model.
        count_open: Number of requests that are answered or wait.
    """

    def __init__(self, *, count_waiting: Callable[[], int], count_open: Callable[[], int]):
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("v2pe_requests", "Requests that ended, by status", ["status"], registry=registry)
        self.prompt_tokens = Counter("v2pe_prompt_tokens", "Tokens of prompts, visual ones included", registry=registry)
        self.new_tokens = Counter("v2pe_new_tokens", "Generated tokens", registry=registry)
        self.batch_size = Histogram(
            "v2pe_batch_size", "Answers generated at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.queue_seconds = Histogram(
            "v2pe_queue_seconds", "Time that a request waited for the model", buckets=_SECONDS, registry=registry
        )
        self.first_token_seconds = Histogram(
            "v2pe_first_token_seconds", "Time to the first text of an answer", buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "v2pe_request_seconds", "Time of a request that was answered", buckets=_SECONDS, registry=registry
        )
        waiting = Gauge("v2pe_waiting_requests", "Requests that wait for the model", registry=registry)
        waiting.set_function(count_waiting)
        open_requests = Gauge("v2pe_open_requests", "Requests that are answered or wait", registry=registry)
        open_requests.set_function(count_open)

    def write(self) -> bytes:
        """All of them in Prometheus' text form."""
        return generate_latest(self._registry)

"""The counters of a server under the names that vLLM gives them, for dashboards and autoscalers made for vLLM.

Only names whose meaning can be kept: what vLLM counts and this engine does not know is left out, not invented. Prefix
cache figures are in tokens, as there.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pelagos.engine.request import Finished
from pelagos.serving.bridge import EngineLike

LABELS = ("model_name", "engine")
SECONDS = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1000.0, 3600.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
TOKENS = tuple(float(1 << power) for power in range(21))
REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "deadline": "abort", "error": "error"}


class VllmMetrics:
    """vLLM's metrics in a registry."""

    def __init__(self, registry: CollectorRegistry, engine: EngineLike, model_name: str) -> None:
        values = (model_name, "0")

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"vllm:{name}", text, LABELS, buckets=buckets, registry=registry)
            return made.labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, LABELS, registry=registry).labels(*values)

        registry.register(_Engine(engine, values))
        ended = Counter("vllm:request_success", "Ended requests", (*LABELS, "finished_reason"), registry=registry)
        self._ended = {reason: ended.labels(*values, shown) for reason, shown in REASONS.items()}
        self._queries = counter("prefix_cache_queries", "Prompt tokens looked for in the cache")
        self._hits = counter("prefix_cache_hits", "Prompt tokens found there")
        self._first = histogram("time_to_first_token_seconds", "To the first token", SECONDS)
        self._per_token = histogram("request_time_per_output_token_seconds", "Per token after the first", TOKEN_SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to the end", SECONDS)
        self._queue = histogram("request_queue_time_seconds", "Waiting", SECONDS)
        self._prefill = histogram("request_prefill_time_seconds", "Reading the prompt", SECONDS)
        self._decode = histogram("request_decode_time_seconds", "Writing the answer", SECONDS)
        self._inference = histogram("request_inference_time_seconds", "Reading and writing", SECONDS)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request", TOKENS)
        self._generated = histogram("request_generation_tokens", "Generated tokens of a request", TOKENS)

    def count(self, end: Finished) -> None:
        """Take in a request that has ended."""
        reason = end.answers[0].finish_reason if end.answers else "error"
        self._ended[reason].inc()
        self._whole.observe(end.times.finished)
        self._prompt.observe(end.usage.num_prompt_tokens)
        self._generated.observe(end.usage.num_generated)
        started, first = end.times.started, end.times.first_token
        if started is None:
            return
        self._queries.inc(end.usage.num_prompt_tokens)
        self._hits.inc(end.usage.num_cached)
        self._queue.observe(started)
        self._inference.observe(end.times.finished - started)
        if first is None:
            return
        self._first.observe(first)
        self._prefill.observe(first - started)
        self._decode.observe(end.times.finished - first)
        if end.usage.num_generated > 1:
            self._per_token.observe((end.times.finished - first) / (end.usage.num_generated - 1))


class _Engine:
    """What the engine itself counts, asked for when Prometheus asks."""

    def __init__(self, engine: EngineLike, values: tuple[str, ...]) -> None:
        self._engine = engine
        self._values = values

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        cache = getattr(stats, "cache", None)
        gauges: dict[str, tuple[str, Any]] = {
            "num_requests_running": ("Requests worked on", stats.num_running),
            "num_requests_waiting": ("Requests in the queue", stats.num_waiting),
        }
        if cache is not None:
            share = cache.num_pages_used / max(1, cache.num_pages)
            gauges["kv_cache_usage_perc"] = ("Share of the cache's pages in use, 0 to 1", share)
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        counters = {
            "prompt_tokens": ("Prompt tokens of ended requests", "num_prompt_tokens"),
            "generation_tokens": ("Generated tokens", "num_generated"),
        }
        for name, (text, attribute) in counters.items():
            if hasattr(stats, attribute):
                counter = CounterMetricFamily(f"vllm:{name}", text, labels=LABELS)
                counter.add_metric(self._values, getattr(stats, attribute))
                yield counter

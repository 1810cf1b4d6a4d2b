"""What is going on: counters for Prometheus, and the requests that run now.

A request is counted where its end is known for certain: in the engine's thread, once for each that the engine took.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily

from pelagos.engine.request import Finished
from pelagos.serving.bridge import EngineLike, Flow
from pelagos.serving.vllm_metrics import VllmMetrics

if TYPE_CHECKING:
    from pelagos.serving.state import Call

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Watch:
    """One server's counters and running requests."""

    def __init__(self, engine: EngineLike, *, vllm_name: str | None = None) -> None:
        """``vllm_name``: the model's name where vLLM's metrics are wanted too."""
        self._flows: dict[str, tuple[Call, Flow]] = {}
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(_EngineGauges(engine))
        registry = self._registry
        self._vllm = None if vllm_name is None else VllmMetrics(registry, engine, vllm_name)
        self._ends = Counter(
            "pelagos_requests", "Engine requests that have ended", ["protocol", "reason"], registry=registry
        )
        self._prompt = Counter("pelagos_prompt_tokens", "Prompt tokens", ["source"], registry=registry)
        self._generated = Counter("pelagos_generated_tokens", "Generated tokens", registry=registry)
        self._queue = Histogram("pelagos_queue_seconds", "Wait for work to start", buckets=SECONDS, registry=registry)
        self._first = Histogram(
            "pelagos_first_token_seconds", "From arrival to the first token", buckets=SECONDS, registry=registry
        )
        self._whole = Histogram(
            "pelagos_request_seconds", "From arrival to the end", buckets=SECONDS, registry=registry
        )
        self._per_token = Histogram(
            "pelagos_seconds_per_token",
            "Time per token after the first",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            registry=registry,
        )
        self._responses = Counter("pelagos_http_responses", "HTTP responses", ["path", "status"], registry=registry)

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def responded(self, path: str, status: int) -> None:
        self._responses.labels(path, str(status)).inc()

    def begin(self, call: "Call", flow: Flow) -> None:
        with self._lock:
            self._flows[call.id] = (call, flow)

    def end(self, call: "Call") -> None:
        with self._lock:
            self._flows.pop(call.id, None)

    def ended(self, call: "Call", protocol: str) -> Callable[[int, Finished], None]:
        """What counts the ends of a flow's requests."""

        def on_finished(number: int, end: Finished) -> None:
            reason = end.answers[0].finish_reason if end.answers else "error"
            self._ends.labels(protocol, reason).inc()
            self._prompt.labels("cached").inc(end.usage.num_cached)
            self._prompt.labels("computed").inc(end.usage.num_computed)
            self._generated.inc(end.usage.num_generated)
            self._whole.observe(end.times.finished)
            if end.times.started is not None:
                self._queue.observe(end.times.started)
            if end.times.first_token is not None:
                self._first.observe(end.times.first_token)
                if end.usage.num_generated > 1:
                    spent = end.times.finished - end.times.first_token
                    self._per_token.observe(spent / (end.usage.num_generated - 1))
            if self._vllm is not None:
                self._vllm.count(end)

        return on_finished

    def running(self, key: str) -> list[dict[str, Any]]:
        """The calls that run now, those of one API key alone if ``key`` is not empty."""
        with self._lock:
            flows = list(self._flows.values())
        return [_view(call, flow) for call, flow in flows if key in ("", call.key)]

    def find(self, call_id: str, key: str) -> Flow | None:
        """The flow of a running call of that key."""
        with self._lock:
            call, flow = self._flows.get(call_id, (None, None))
        return flow if call is not None and call.key == key else None

    @property
    def num_running(self) -> int:
        return len(self._flows)


def _view(call: "Call", flow: Flow) -> dict[str, Any]:
    readings = list(flow.progress.values())
    num_prompt = sum(reading.num_prompt_tokens for reading in readings)
    num_read = sum(reading.num_read for reading in readings)
    state = "generating" if flow.num_generated else "reading" if readings else "waiting"
    return {
        "id": call.id,
        "path": call.path,
        "key": call.key or None,
        "state": state,
        "seconds": round(time.time() - call.started, 3),
        "prompt_tokens": num_prompt,
        "read_tokens": num_read,
        "cached_tokens": sum(reading.num_cached for reading in readings),
        "generated_tokens": flow.num_generated,
    }


class _EngineGauges:
    """The engine's own numbers, asked for when Prometheus asks."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        stats = self._engine.stats()
        values = asdict(stats) if is_dataclass(stats) and not isinstance(stats, type) else {}
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield GaugeMetricFamily(f"pelagos_engine_{name}", f"{name} of the engine", value=value)

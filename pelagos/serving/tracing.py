"""One OpenTelemetry span for each HTTP request, with the stations of its work in the engine as events.

The API package alone records nothing; spans go where the SDK sends them. ``configure`` sets that up for a process.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pelagos.common.errors import UsageError
from pelagos.engine.request import Finished

NANO = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Station:
    """An event of a span. ``at``: nanoseconds since 1970."""

    name: str
    at: int
    attributes: Mapping[str, Any]


def configure() -> None:
    """Send spans to the collector that the standard variables OTEL_EXPORTER_OTLP_... name (default: this machine, port
    4318), unless something else was set up already. Raises UsageError if the SDK is not installed."""
    from opentelemetry import trace

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(f"--trace needs OpenTelemetry's SDK ({error}): pip install 'pelagos[trace]'") from error
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "pelagos"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def stations(ends: Sequence[Finished]) -> list[Station]:
    """Queue, prefill, first token and end of each engine request, dated back from now: they have just ended."""
    now = time.time_ns()
    last = max((end.times.finished for end in ends), default=0.0)
    found: list[Station] = []
    for end in ends:
        added = now - int(last * NANO)
        about = {"pelagos.engine_request": end.request_id}
        usage = end.usage
        read = {"pelagos.prompt_tokens": usage.num_prompt_tokens, "pelagos.cached_tokens": usage.num_cached}
        reasons = ",".join(answer.finish_reason for answer in end.answers)
        wrote = {"pelagos.generated_tokens": usage.num_generated, "pelagos.finish_reason": reasons}
        named: tuple[tuple[str, float | None, dict[str, Any]], ...] = (
            ("queue", 0.0, {}),
            ("prefill", end.times.started, read),
            ("first_token", end.times.first_token, {}),
            ("end", end.times.finished, wrote),
        )
        found += [
            Station(name=name, at=added + int(seconds * NANO), attributes={**about, **more})
            for name, seconds, more in named
            if seconds is not None
        ]
    return sorted(found, key=lambda station: station.at)


@contextmanager
def span(
    tracer: Any, method: str, path: str, headers: Mapping[str, str], notes: Mapping[str, Any], passed: Sequence[Station]
) -> Iterator[None]:
    """A span around a request, child of the caller's if it sent ``traceparent``; none without a tracer. ``notes`` and
    ``passed`` are filled while it runs and read at its end."""
    if tracer is None:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.propagate import extract

    parent = extract(dict(headers))
    with tracer.start_as_current_span(f"{method} {path}", context=parent, kind=trace.SpanKind.SERVER) as current:
        try:
            yield
        finally:
            for name, value in notes.items():
                current.set_attribute(f"pelagos.{name}", value)
            for station in passed:
                current.add_event(station.name, dict(station.attributes), timestamp=station.at)

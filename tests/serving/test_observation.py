"""What others see of a server: spans with their stations, and the metrics of vLLM."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import Live, wait_for
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pelagos.cli.main import main
from pelagos.serving import app, tracing


@pytest.fixture
def traced(launch: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Live, Any]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(app, "_tracer", lambda wanted: provider.get_tracer("test") if wanted else None)
    live = launch(trace=True)
    yield live, exporter
    live.stop()
    provider.shutdown()


def only_span(exporter: Any) -> ReadableSpan:
    wait_for(lambda: bool(exporter.get_finished_spans()))  # the span ends after the answer
    [span] = exporter.get_finished_spans()
    assert isinstance(span, ReadableSpan)
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_has_the_stations_of_its_request(traced: tuple[Live, Any], stream: bool) -> None:
    live, exporter = traced
    live.say("</think>x", num_cached=2)
    before = time.time_ns()
    live.chat(stream=stream)
    span = only_span(exporter)
    after = time.time_ns()
    assert span.name == "POST /v1/chat/completions"
    assert span.attributes is not None
    assert (span.attributes["pelagos.status"], span.attributes["pelagos.finish_reason"]) == (200, "stop")
    assert [event.name for event in span.events] == ["queue", "prefill", "first_token", "end"]
    times = [event.timestamp for event in span.events]
    assert before - 10**7 <= times[0] <= times[1] <= times[2] <= times[3] <= after
    prefill, end = span.events[1].attributes, span.events[3].attributes
    assert prefill is not None
    assert end is not None
    assert prefill["pelagos.prompt_tokens"] == len(live.last.prompt_ids)
    assert prefill["pelagos.cached_tokens"] == 2
    assert (end["pelagos.generated_tokens"], end["pelagos.finish_reason"]) == (3, "stop")


def test_a_span_belongs_to_the_trace_of_its_caller(traced: tuple[Live, Any]) -> None:
    live, exporter = traced
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    live.http.get("/v1/models", headers={"traceparent": f"00-{trace_id}-{parent}-01"})
    span = only_span(exporter)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace_id, parent)
    assert span.events == ()


def test_refused_requests_have_a_span_too(traced: tuple[Live, Any]) -> None:
    live, exporter = traced
    live.chat(temperature=9)
    span = only_span(exporter)
    assert span.attributes is not None
    assert span.attributes["pelagos.status"] == 400


def test_without_the_sdk_the_option_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def missing() -> None:
        monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.resources", None)
        tracing_configure()

    tracing_configure = tracing.configure
    monkeypatch.setattr(tracing, "configure", missing)
    assert main(["serve", "tiny", "--port", "0", "--trace"]) == 2
    assert "--trace needs OpenTelemetry's SDK" in capsys.readouterr().err


def values(page: str) -> dict[str, float]:
    """Samples by name and their labels beside those of the model."""
    found = {}
    for name, labels, value in re.findall(r"^(vllm:\w+)\{(.*)\} (\S+)$", page, re.MULTILINE):
        rest = [label for label in labels.split(",") if not label.startswith(("model_name=", "engine="))]
        assert 'model_name="pelagos"' in labels
        found[name + "".join(rest)] = float(value)
    return found


def test_metrics_of_vllm(launch: Callable[..., Live]) -> None:
    live = launch(vllm_metrics=True)
    live.say("</think>hello", num_cached=4)
    live.chat(max_tokens=4)
    live.say("</think>x", num_cached=0)
    live.chat()
    found = values(live.http.get("/metrics").text)
    prompts = sum(len(request.prompt_ids) for request in live.engine.requests)
    assert found['vllm:request_success_totalfinished_reason="length"'] == 1
    assert found['vllm:request_success_totalfinished_reason="stop"'] == 1
    assert found["vllm:prefix_cache_queries_total"] == found["vllm:request_prompt_tokens_sum"] == prompts
    assert found["vllm:prefix_cache_hits_total"] == 4
    assert found["vllm:request_generation_tokens_sum"] == found["vllm:generation_tokens_total"] == 4 + 3
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (0, 0)
    phases = ("queue", "prefill", "decode", "inference")
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        *(f"request_{p}_time_seconds" for p in phases),
    ):
        assert found[f"vllm:{name}_count"] == 2
    whole = sum(found[f"vllm:request_{phase}_time_seconds_sum"] for phase in ("queue", "prefill", "decode"))
    assert whole == pytest.approx(found["vllm:e2e_request_latency_seconds_sum"])
    live.stop()


def test_metrics_of_vllm_come_by_option_alone(live: Live) -> None:
    assert "vllm:" not in live.http.get("/metrics").text

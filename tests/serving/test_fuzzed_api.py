"""Some seconds of fuzzing against the real engine; `python tests/serving/fuzzing.py` goes on for longer."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from live_server import Live, wait_for

from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.model.transformer import Model

pytest.importorskip("schemathesis", reason="NOT FUZZED: schemathesis is missing, make fuzz brings it")

SECONDS = 10.0


@pytest.mark.filterwarnings("ignore")  # of schemathesis and its libraries
def test_nothing_breaks_hangs_or_is_left(launch: Callable[..., Live]) -> None:
    from fuzzing import fuzz

    engine = Engine(Model.load("tiny"), EngineConfig(cache_bytes=1 << 27))
    live = launch(engine=engine, max_context=600)
    live.http.get("/health")
    num_threads = threading.active_count()
    found = fuzz(live.http.request, live.url, seconds=SECONDS, seed=17)
    assert found.problems == []
    assert found.num_requests > 50
    assert {200, 400} <= found.statuses.keys()
    live.wait_idle(10.0)
    assert live.http.get("/v1/requests").json()["data"] == []
    wait_for(lambda: live.run_in_loop(lambda: len(asyncio.all_tasks())) <= 8)
    # The pools for preparing and storing start their threads when they need them.
    assert threading.active_count() <= num_threads + live.server.config.num_preparers + 1
    live.stop()


@pytest.mark.parametrize(
    ("status", "kind", "text", "problem"),
    [
        (500, "application/json", "{}", "status 500"),
        (418, "application/json", "{}", "is not in openapi.json"),
        (200, "text/event-stream", 'data: {"type": "message_start"}\n\n', "the stream has no end"),
        (200, "text/event-stream", "data: [DONE]\n\n", None),
        (200, "text/event-stream", 'data: {"type": "response.completed"}\n\n', None),
        (400, "application/json", '{"error": {"message": ""}}', "the error says nothing"),
        (400, "application/json", '{"error": {"message": "no"}}', None),
    ],
)
def test_what_counts_as_a_problem(status: int, kind: str, text: str, problem: str | None) -> None:
    from fuzzing import problem_of

    found = problem_of(status, kind, text, {"200", "400"})
    assert found is problem is None or (problem is not None and found is not None and problem in found)

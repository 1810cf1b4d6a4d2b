"""The server over the real engine and the model ``tiny``: random weights, so what counts is that nothing breaks."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from live_server import TWO_CITIES, Live, events

from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.model.transformer import Model


@pytest.fixture(scope="module")
def tiny(launch: Callable[..., Live]) -> Live:
    engine = Engine(Model.load("tiny"), EngineConfig(cache_bytes=1 << 27))
    return launch(engine=engine, max_context=min(engine.model.config.max_positions, engine.cache.most_tokens))


def test_the_same_seed_gives_the_same_answer(tiny: Live) -> None:
    asked: dict[str, Any] = {"seed": 5, "max_tokens": 30, "n": 2}
    first, second = (tiny.chat("hello " * 60, **asked).json() for _ in range(2))
    assert [c["message"] for c in first["choices"]] == [c["message"] for c in second["choices"]]
    assert first["usage"]["prompt_cache_hit_tokens"] == 0
    assert second["usage"]["prompt_cache_hit_tokens"] > 0
    assert second["usage"]["completion_tokens"] == first["usage"]["completion_tokens"] <= 60
    assert second["usage"]["pelagos"]["note"]


def test_a_stream_says_what_the_whole_says(tiny: Live) -> None:
    asked: dict[str, Any] = {"seed": 9, "max_tokens": 40, "thinking": {"type": "disabled"}}
    whole = tiny.chat(**asked).json()["choices"][0]
    chunks = events(tiny.chat(**asked, stream=True).text)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == whole["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_random_weights_make_a_right_call(tiny: Live) -> None:
    """Whatever the model likes to say, the grammar makes it a call with arguments that fit."""
    reply = tiny.chat(
        tools=[TWO_CITIES], tool_choice="required", parallel_tool_calls=False, thinking={"type": "disabled"}, seed=1
    )
    [call] = reply.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_every_protocol(tiny: Live) -> None:
    hello = {"model": "pelagos", "temperature": 0.5, "seed": 3}
    for path, body in (
        ("/v1/completions", {"prompt": "hello", "max_tokens": 5}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 5}),
    ):
        reply = tiny.http.post(path, json=hello | body)
        assert reply.status_code == 200, reply.text
    assert tiny.engine.stats().num_running == 0
    assert b"pelagos_engine_num_generated" in tiny.http.get("/metrics").content

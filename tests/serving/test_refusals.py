"""What a server refuses: each with its status, and a body in the caller's shape that names the field."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from live_server import Live

from pelagos.engine.request import Request
from pelagos.serving.config import Limits

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
# DeepSeek's own list, then the fields that its converter drops without a word.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": "gpt-9"}, "model 'gpt-9' is not served here: the models are pelagos, other-name"),
    ({"model": None}, "model must be given"),
    ({"max_tokens": 0}, "the valid range of max_tokens is [1, 393216]"),
    ({"max_tokens": 400_000}, "the valid range of max_tokens is [1, 393216]"),
    ({"n": 17}, "n must be a whole number from 1 to 16, got 17"),
    ({"temperature": 3}, "the valid range of temperature is [0, 2]"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"top_logprobs": 25, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 2}, "logprobs must be set to true if top_logprobs is used"),
    ({"stop": ["a"] * 17}, "Stop string array too long: 17"),
    ({"response_format": {"type": "json_object"}}, "must contain the word 'json'"),
    ({"tool_choice": "required"}, "tool_choice needs tools to choose from"),
    ({"tool_choice": 5}, 'tool_choice must be "auto", "none", "required"'),
    ({"messages": []}, "Empty input messages"),
    ({"messages": None}, "messages must be a list"),
    ({"messages": ["hi"]}, "messages[0] must be an object"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "must be a response to a preceding message",
    ),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role must be one of system, user"),
    ({"messages": [{"role": "user", "content": "x", "name": "anna"}]}, "messages[0].name cannot be used here"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0] must be a part of type",
    ),
    ({"stream_options": {"include_usage": True}}, "stream_options should be set along with stream = true"),
    ({"reasoning_effort": "hyper"}, "reasoning_effort must be one of none, minimal, low"),
    ({"surprise": 1}, "surprise is not a field of this request; it may have: model, messages"),
    ({"functions": []}, "functions cannot be used here: declare tools instead"),
    ({"store": True}, "store must be false, got True"),
    ({"presence_penalty": 3}, "presence_penalty must be a number from -2 to 2, got 3"),
    ({"top_k": -1}, "top_k must be a whole number from 1"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty must be a number from 0.01 to 100, got 1e-40"),
    ({"min_p": 2}, "min_p must be a number from 0 to 1"),
    ({"seed": -1}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias must have token ids from 0 to 399 as keys, got 'x'"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1 must be a number from -100 to 100"),
    ({"max_completion_tokens": "5"}, "max_completion_tokens must be a whole number"),
    ({"stream": "yes"}, "stream"),
    ({"messages": [*USER, {"role": "user", "content": 5}]}, "messages[1] cannot be used"),
    ({"tools": [{"type": "function"}]}, "tools[0] cannot be used"),
    ({"thinking": {"type": "perhaps"}}, "thinking cannot be used"),
    ({"thinking": ["enabled"]}, "thinking must be an object such as"),
    ({"user_id": "x" * 513}, "user_id must be a text of at most 512 characters"),
    ({"messages": [{"role": "user", "content": "w " * 70_000}]}, "the context of this model 65536"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_a_field_that_cannot_be_taken(live: Live, fields: dict[str, Any], message: str) -> None:
    before = len(live.engine.requests)
    reply = live.http.post(CHAT, json={"model": "pelagos", "messages": USER, **fields})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert len(live.engine.requests) == before


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_a_schema_that_a_grammar_cannot_keep(live: Live) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
        "required": ["a"],
        "additionalProperties": False,
    }
    reply = live.chat(response_format=strict(schema))
    assert reply.status_code == 400
    assert "uniqueItems" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "the body must be JSON"),
        (b"", "the body must be JSON"),
        (b"[]", "the body must be a JSON object, not a list"),
        (b"\xff\xfe", "the body must be UTF-8"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nest lists and objects at most 100 deep"),
        (b'{"a":' * 100_000, "nest lists and objects at most 100 deep"),
    ],
)
def test_a_body_that_is_no_request(live: Live, data: bytes, message: str) -> None:
    reply = live.http.post(CHAT, content=data)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_bounds(launch: Callable[..., Live]) -> None:
    small = launch(limits=Limits(max_body_bytes=2000, max_messages=3, max_tools=1))
    too_long = small.http.post(CHAT, content=b" " * 2001)
    assert (too_long.status_code, too_long.json()["error"]["message"]) == (413, "the body may have at most 2,000 bytes")
    parts = (b" " * 500 for _ in range(10))  # without a declared length
    assert small.http.post(CHAT, content=parts).status_code == 413
    many = small.http.post(CHAT, json={"model": "pelagos", "messages": USER * 4})
    assert "messages must have at most 3 entries, got 4" in many.json()["error"]["message"]
    tool = {"type": "function", "function": {"name": "a"}}
    many = small.http.post(CHAT, json={"model": "pelagos", "messages": USER, "tools": [tool, tool]})
    assert "tools must have at most 1 entries, got 2" in many.json()["error"]["message"]


def test_a_full_queue(launch: Callable[..., Live]) -> None:
    full = launch(max_waiting=0)
    reply = full.chat()
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "3")
    assert reply.json()["error"]["type"] == "overloaded_error"
    body = {"model": "pelagos", "max_tokens": 5, "messages": USER}
    reply = full.http.post("/anthropic/v1/messages", json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (529, "3")
    assert reply.json()["error"]["type"] == "overloaded_error"
    with (
        openai.OpenAI(base_url=f"{full.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="the queue is full"),
    ):
        client.chat.completions.create(model="pelagos", messages=[{"role": "user", "content": "hi"}], stream=True)


def test_an_error_inside_the_server_shows_nothing_of_it(live: Live) -> None:
    def broken(request: Request) -> Any:
        raise RuntimeError("secret detail")

    live.engine.script = broken
    try:
        reply = live.chat()
    finally:
        del live.engine.requests[-1]  # it has no end: the engine itself broke
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.json()["error"]["code"] == "internal_error"


def test_a_path_or_method_that_is_not_there(live: Live) -> None:
    reply = live.http.get("/v1/nothing")
    assert (reply.status_code, "there is no /v1/nothing here" in reply.json()["error"]["message"]) == (404, True)
    assert live.http.get(CHAT).status_code == 405
    assert live.http.get("/anthropic/v1/nothing").json()["type"] == "error"


def test_every_answer_has_an_id(live: Live) -> None:
    live.say("</think>x")
    assert live.chat().headers["x-request-id"].startswith("req_")
    reply = live.http.get("/health", headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    assert live.http.get("/health", headers={"x-request-id": "a\tb"}).headers["x-request-id"].startswith("req_")


def test_the_list_of_models(live: Live) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x") as client:
        assert [model.id for model in client.models.list()] == ["pelagos", "other-name"]
        model = client.models.retrieve("other-name")
    assert model.context_length == live.server.context_length
    assert live.http.get("/v1/models/gpt-9").status_code == 404
    live.say("</think>x")
    assert live.chat(model="other-name").json()["model"] == "pelagos"
    assert json.loads(live.http.get("/anthropic/v1/models").text)["has_more"] is False

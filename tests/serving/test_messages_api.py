"""Anthropic's API, through its own library and as raw JSON."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from live_server import CALL, Live

WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


@pytest.fixture
def client(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{live.url}/anthropic", api_key="none", max_retries=0) as made:
        yield made


def ask(live: Live, path: str = "/v1/messages", **fields: Any) -> Any:
    body = {"model": "pelagos", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}], **fields}
    return live.http.post(path, json={name: value for name, value in body.items() if value is not None})


def test_a_message(live: Live, client: anthropic.Anthropic) -> None:
    live.say("hmm</think>hello", num_cached=4)
    message = client.messages.create(
        model="claude-opus-4-1[1m]", max_tokens=100, messages=[{"role": "user", "content": "hi"}]
    )
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text == "hello"
    assert message.model == "pelagos"
    assert message.usage.cache_read_input_tokens == 4
    assert message.usage.input_tokens == len(live.last.prompt_ids) - 4
    assert message.usage.output_tokens == sum(map(len, (live.engine.script(live.last).answers)))
    assert message.usage.pelagos["note"] == "4 tokens were found"
    assert live.last.params.max_tokens == 100


def test_a_stream_with_a_call(live: Live, client: anthropic.Anthropic) -> None:
    live.say(f"hmm</think>A moment.{CALL}")
    with client.messages.stream(
        model="pelagos", max_tokens=500, messages=[{"role": "user", "content": "hi"}], tools=[WEATHER]
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].input == {"city": "Paris"}
    assert final.stop_reason == "tool_use"


def test_pings_while_the_prompt_is_read(live: Live, client: anthropic.Anthropic) -> None:
    live.engine.pace = 0.21
    live.say("</think>x", read=200)
    text = ask(live, stream=True, system="word " * 10).text
    assert "event: ping" in text
    assert ": reading 200 of" in text
    with client.messages.stream(
        model="pelagos", max_tokens=9, system="word " * 10, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        assert stream.get_final_text() == "x"


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 2000}, None])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_can_be_forced(live: Live, thinking: Any, choice: Any) -> None:
    is_off = thinking is not None and thinking["type"] == "disabled"
    live.say("I will not" if is_off else "x</think>I will not")
    choice = {**choice, "disable_parallel_tool_use": True}
    blocks = ask(live, tools=[WEATHER], tool_choice=choice, thinking=thinking).json()["content"]
    assert [block["type"] for block in blocks if block["type"] != "thinking"] == ["tool_use"]
    assert blocks[-1]["input"]["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("kind", ["custom", None])
def test_a_tool_may_say_that_it_is_the_clients_own(live: Live, kind: str | None) -> None:
    live.say("</think>I will not")
    blocks = ask(live, tools=[{**WEATHER, "type": kind}], tool_choice={"type": "any"}).json()["content"]
    assert "tool_use" in [block["type"] for block in blocks]


def test_an_output_format(live: Live) -> None:
    live.say("x</think>no json")
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}}
    assert json.loads(ask(live, output_config=config).json()["content"][1]["text"]) == {"a": 1}


def test_what_other_models_left_behind_is_accepted(live: Live) -> None:
    """Foreign signatures, thinking that only another service can read, and the billing line that changes every time."""
    live.say("</think>x")
    history = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "c2VjcmV0"},
                {"type": "thinking", "thinking": "old", "signature": "of another model"},
                {"type": "text", "text": "b"},
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}]},
    ]
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1.2.3; cch=12345;"},
        {"type": "text", "text": "Be kind."},
    ]
    reply = ask(
        live,
        messages=history,
        system=system,
        metadata={"user_id": "u1"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert reply.status_code == 200, reply.text
    prompt = live.server.tokenizer.decode(live.last.prompt_ids)
    assert "billing" not in prompt
    assert "Be kind." in prompt
    assert live.last.namespace != ""


def test_counted_tokens_are_those_of_the_request(live: Live, client: anthropic.Anthropic) -> None:
    live.say("</think>x")
    asked: Any = {
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "how is it in Paris?"}],
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    counted = client.messages.count_tokens(model="pelagos", **asked)
    usage = client.messages.create(model="pelagos", max_tokens=9000, **asked).usage
    assert counted.input_tokens == usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens must be given"),
        ({"max_tokens": 0}, "max_tokens must be a whole number"),
        ({"model": "gpt-9"}, "model 'gpt-9' is not served here: the models are pelagos, other-name"),
        ({"messages": []}, "at least one message is required"),
        ({"container": "c"}, "container must be"),
        ({"surprise": 1}, "surprise is not a field of this request"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"tool_choice": {"type": ["any"]}}, "tool_choice must have the type auto, any, none"),
        ({"thinking": 5}, "thinking must be an object such as"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice names 'x'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "server tools are not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0] must be text",
        ),
        ({"output_config": {"effort": "huge"}}, "must be one of none, minimal"),
        ({"temperature": 7}, "valid range of temperature is [0, 2]"),
    ],
)
def test_errors_have_the_shape_of_anthropic(live: Live, fields: Any, message: str) -> None:
    reply = ask(live, **fields)
    assert reply.status_code == 400
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert message in reply.json()["error"]["message"]


def test_an_error_in_the_library(live: Live, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="not served here"):
        client.messages.create(model="gpt-9", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    live.say("x", error="broken")
    with (
        pytest.raises(anthropic.APIStatusError, match="broken"),
        client.messages.stream(model="pelagos", max_tokens=5, messages=[{"role": "user", "content": "hi"}]) as stream,
    ):
        stream.get_final_message()

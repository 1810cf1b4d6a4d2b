"""Chat completions, over HTTP, as raw JSON and through OpenAI's library."""

import json
import time
from typing import Any

import openai
import pytest
from live_server import CALL, TWO_CITIES, WEATHER, Live, events


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_an_answer(live: Live, client: openai.OpenAI) -> None:
    live.say("let me think</think>hello", num_cached=5)
    answer = client.chat.completions.create(model="pelagos", messages=[{"role": "user", "content": "hi"}])
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("hello", "stop")
    assert choice.message.reasoning_content == "let me think"
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    num_prompt = len(live.last.prompt_ids)
    assert answer.usage.prompt_tokens == num_prompt
    assert answer.usage.prompt_tokens_details.cached_tokens == 5
    assert answer.usage.completion_tokens == len(live.engine.script(live.last).answers[0])
    assert answer.usage.pelagos["note"] == "5 tokens were found"


def test_a_stream(live: Live, client: openai.OpenAI) -> None:
    live.say("think</think>hello world")
    stream = client.chat.completions.create(
        model="pelagos",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasoning = "".join(
        chunk.choices[0].delta.reasoning_content or ""
        for chunk in chunks
        if chunk.choices and hasattr(chunk.choices[0].delta, "reasoning_content")
    )
    assert (reasoning, text) == ("think", "hello world")
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"


def test_tool_calls_are_streamed(live: Live, client: openai.OpenAI) -> None:
    live.say(f"I look</think>A moment.{CALL}")
    with client.chat.completions.stream(
        model="pelagos", messages=[{"role": "user", "content": "hi"}], tools=[WEATHER]
    ) as stream:
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    assert final.choices[0].message.content == "A moment."
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_forced(live: Live, thinking: str, choice: Any) -> None:
    """Also while thinking: the reasoning is free, and what follows it is a call whatever the model would say."""
    live.say("hm</think>No, I rather talk." if thinking == "enabled" else "No, I rather talk.")
    reply = live.chat(tools=[TWO_CITIES], tool_choice=choice, parallel_tool_calls=False, thinking={"type": thinking})
    message = reply.json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "weather"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert not message["content"]


def test_choices_share_a_prompt_and_are_numbered(live: Live) -> None:
    live.say("a</think>one", "b</think>two", "c</think>three")
    reply = live.chat(n=3).json()
    assert live.last.num_choices == 3
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["one", "two", "three"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    chunks = events(live.chat(n=3, stream=True).text)
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == ["one", "two", "three"]


def test_json_is_enforced_behind_the_reasoning(live: Live) -> None:
    live.say("free {text</think>I say no")
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    message = live.chat(response_format=form).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "free {text"
    assert json.loads(message["content"])["a"] in (1, 2)


def test_sampling_reaches_the_engine(live: Live) -> None:
    live.say("</think>x")
    asked = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 11,
        "logit_bias": {"7": -100, "3": 2.5},
        "max_completion_tokens": 77,
    }
    assert live.chat(**asked).status_code == 200
    params = live.last.params
    assert {name: getattr(params, name) for name in asked if hasattr(params, name)} == {
        **{name: asked[name] for name in asked if name != "max_completion_tokens"},
        "logit_bias": ((3, 2.5), (7, -100.0)),
    }
    assert params.max_tokens == 77
    assert params.stop_ids == tuple(sorted(live.server.tokenizer.stop_ids))


def test_the_defaults(live: Live) -> None:
    live.say("</think>x")
    live.chat()
    assert (live.last.params.temperature, live.last.params.top_p, live.last.params.seed) == (1.0, 1.0, None)
    assert live.last.params.max_tokens == live.server.context_length - len(live.last.prompt_ids)
    live.chat(thinking={"type": "disabled"})
    assert live.last.params.max_tokens == 8192


def test_logprobs(live: Live, client: openai.OpenAI) -> None:
    live.say("</think>hello")
    answer = client.chat.completions.create(
        model="pelagos", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(entry.token for entry in logprobs.content or ()) == "hello"
    assert [len(entry.top_logprobs) for entry in logprobs.content or ()] == [2] * len(logprobs.content or ())
    assert logprobs.content[0].logprob == -0.5


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_request(live: Live, stream: bool) -> None:
    """It is cut off over token borders, not looked for in reasoning, and tokens behind it are not counted."""
    live.engine.pace = 0.01
    live.say("an END here</think>the text END and " + "more " * 200)
    reply = live.chat(stop=["END"], stream=stream)
    if stream:
        chunks = events(reply.text)
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "the text "
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        body = reply.json()
        assert body["choices"][0]["message"]["content"] == "the text "
        assert body["choices"][0]["message"]["reasoning_content"] == "an END here"
        assert body["usage"]["completion_tokens"] < 60
    live.wait_idle()
    assert live.engine.reasons[-1] == "cancelled"


def test_users_are_kept_apart(live: Live) -> None:
    live.say("</think>x")
    live.chat()
    everybody = live.last
    live.chat(user_id="anna")
    anna = live.last
    live.chat(user_id="bert")
    bert = live.last
    live.chat(user="carl")
    carl = live.last
    assert everybody.namespace == carl.namespace == ""
    assert len({everybody.namespace, anna.namespace, bert.namespace}) == 3
    assert len({request.user for request in (everybody, anna, bert, carl)}) == 4


def test_a_prefix_is_continued(live: Live) -> None:
    live.say(" and on")
    body = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I go", "prefix": True}]
    reply = live.http.post("/beta/chat/completions", json={"model": "pelagos", "messages": body})
    assert reply.json()["choices"][0]["message"]["content"] == " and on"
    assert live.server.tokenizer.decode(live.last.prompt_ids).endswith("</think>I go")


def test_a_long_prompt_shows_that_it_is_read(live: Live) -> None:
    live.engine.pace = 0.05
    live.say("</think>x", read=20)
    with live.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "pelagos", "messages": [{"role": "user", "content": "word " * 40}], "stream": True},
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = list(reply.iter_lines())
    comments = [line for line in lines if line.startswith(":")]
    total = len(live.last.prompt_ids)
    assert comments
    assert all(f"of {total} tokens" in line or "waiting" in line or "generated" in line for line in comments)
    assert lines.index(comments[0]) < 4


def test_usage_is_sent_where_it_is_asked_for(live: Live) -> None:
    live.say("</think>x")
    assert all("usage" not in chunk for chunk in events(live.chat(stream=True).text))
    chunks = events(live.chat(stream=True, stream_options={"include_usage": True}).text)
    assert [chunk["usage"] is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    reply = live.chat()
    assert reply.headers["x-pelagos-computed-tokens"] == str(len(live.last.prompt_ids))
    assert reply.headers["x-pelagos-note"] == "0 tokens were found"


def test_a_length_cut(live: Live) -> None:
    live.say("think</think>a long text", end=False)
    choice = live.chat(max_tokens=6).json()["choices"][0]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails(live: Live, stream: bool) -> None:
    live.say("x", error="the logits are not finite")
    reply = live.chat(stream=stream)
    if stream:
        assert "the logits are not finite" in events(reply.text)[-1]["error"]["message"]
    else:
        assert reply.status_code == 500
        assert "the logits are not finite" in reply.json()["error"]["message"]

"""The openai and anthropic packages against a server of the built-in model, which answers as its card says."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI

from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.loading import default_temperature
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.model.places import model_place
from pelagos.model.transformer import Model
from pelagos.serving.config import ServingConfig
from pelagos.serving.embedded import serving

FOLDER = Path(model_place("nano"))
LIST = "- anchor: violet\n- river: copper\n- lamp: seven\n\nWhat is the value of river?"
FOUND = "- river: copper"
SUM = "What is 12 + 30?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"expression": {"type": "string", "description": "For example 12 * (3 + 4)"}},
    "required": ["expression"],
}
DESCRIPTION = "Computes + - * / and brackets."
NO_THINKING: dict[str, Any] = {"thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    engine = Engine(Model.load("nano"), EngineConfig(cache_bytes=50_000_000))
    config = ServingConfig(port=0, model_name="nano", default_temperature=default_temperature(FOLDER))
    with serving(engine, Tokenizer.from_folder(FOLDER), config) as running:
        yield running.url


@pytest.fixture(scope="module")
def openai(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none")


@pytest.fixture(scope="module")
def anthropic(url: str) -> Anthropic:
    return Anthropic(base_url=url, api_key="none")


def chat(openai: OpenAI, messages: Any, **asked: Any) -> Any:
    return openai.chat.completions.create(model="nano", messages=messages, extra_body=NO_THINKING, **asked)


def test_chat(openai: OpenAI) -> None:
    messages = [{"role": "user", "content": LIST}]
    whole = chat(openai, messages)
    assert whole.choices[0].message.content == FOUND
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(openai, messages, stream=True) if chunk.choices]
    assert "".join(pieces) == FOUND
    assert whole.usage.completion_tokens > 3


def test_async_streams_side_by_side(url: str) -> None:
    async def ask(client: AsyncOpenAI, key: str) -> str:
        question = LIST.replace("of river", f"of {key}")
        stream = await client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": question}], stream=True, extra_body=NO_THINKING
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, key) for key in ("anchor", "river", "lamp")))

    assert asyncio.run(ask_all()) == ["- anchor: violet", FOUND, "- lamp: seven"]


def test_tools(openai: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "calculator", "description": DESCRIPTION, "parameters": SCHEMA}}
    messages: list[Any] = [{"role": "user", "content": SUM}]
    message = chat(openai, messages, tools=[tool]).choices[0].message
    [call] = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("calculator", {"expression": "12 + 30"})
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    answer = chat(openai, messages, tools=[tool]).choices[0].message
    assert answer.content == "42", answer


def test_structured_output(openai: OpenAI) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": False}}
    reply = chat(
        openai, [{"role": "user", "content": SUM}], response_format=shape, max_tokens=200, temperature=0.5, seed=1
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content)["expression"], str)
    else:  # a string that the model does not close
        assert reply.choices[0].message.content.lstrip().startswith("{")


def test_responses(openai: OpenAI) -> None:
    first = openai.responses.create(model="nano", input=LIST, reasoning={"effort": "none"})
    assert first.output_text == FOUND
    more = openai.responses.create(
        model="nano", input="What is the value of lamp?", previous_response_id=first.id, reasoning={"effort": "none"}
    )
    assert more.output_text == "- lamp: seven"


def test_messages(anthropic: Anthropic) -> None:
    asked: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": LIST}], **NO_THINKING}
    whole = anthropic.messages.create(max_tokens=50, **asked)
    [block] = whole.content
    assert block.type == "text"
    assert block.text == FOUND
    with anthropic.messages.stream(max_tokens=50, **asked) as stream:
        assert "".join(stream.text_stream) == FOUND
    assert anthropic.messages.count_tokens(**asked).input_tokens == whole.usage.input_tokens
    tool: Any = {"name": "calculator", "description": DESCRIPTION, "input_schema": SCHEMA}
    reply = anthropic.messages.create(
        model="nano", max_tokens=100, messages=[{"role": "user", "content": SUM}], tools=[tool], **NO_THINKING
    )
    [call] = [block for block in reply.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("calculator", {"expression": "12 + 30"})

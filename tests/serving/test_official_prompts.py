"""What the model sees is, to the byte, what DeepSeek's own converter makes of the request."""

import json
import random
from typing import Any

import deepseek_recipe
import pytest
from live_server import Live

WORDS = (
    "hello",
    "海",
    "<｜Assistant｜>",
    "</think>",
    "json",
    "\n\n",
    "｜DSML｜",
    "a\tb",
    "🌊",
    "<｜end▁of▁sentence｜>",
    "ﬁ",
)
EFFORTS = ("low", "high", "max", "none")


def conversation(chooser: random.Random) -> dict[str, Any]:
    """A request with everything that prompts can hold."""

    def text() -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randrange(1, 12)))

    messages: list[dict[str, Any]] = []
    if chooser.random() < 0.5:
        messages.append({"role": "system", "content": text()})
    has_tools = chooser.random() < 0.5
    for turn in range(chooser.randrange(1, 4)):
        content: Any = (
            text() if chooser.random() < 0.7 else [{"type": "text", "text": text()}, {"type": "text", "text": text()}]
        )
        messages.append({"role": "user", "content": content})
        answer: dict[str, Any] = {"role": "assistant", "content": text()}
        if chooser.random() < 0.5:
            answer["reasoning_content"] = text()
        if has_tools and chooser.random() < 0.5:
            arguments = json.dumps({"city": text(), "days": chooser.randrange(9)}, ensure_ascii=chooser.random() < 0.5)
            call = {"id": f"c{turn}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            messages += [
                answer | {"tool_calls": [call]},
                {"role": "tool", "content": text(), "tool_call_id": f"c{turn}"},
            ]
        else:
            messages.append(answer)
    if chooser.random() < 0.3:
        messages.append({"role": "latest_reminder", "content": text()})
    messages.append({"role": "user", "content": "json " + text()})
    body: dict[str, Any] = {"messages": messages}
    if has_tools:
        parameters = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
        function = {"name": "weather", "description": text(), "parameters": parameters}
        body["tools"] = [{"type": "function", "function": function}]
        if chooser.random() < 0.3:
            body["tool_choice"] = chooser.choice(("auto", "none"))
    elif chooser.random() < 0.4:
        body["response_format"] = {"type": "json_object"}
    if chooser.random() < 0.7:
        body["reasoning_effort"] = chooser.choice(EFFORTS)
    elif chooser.random() < 0.5:
        body["thinking"] = {"type": chooser.choice(("enabled", "disabled"))}
    return body


@pytest.fixture(scope="module")
def official(shared: Live) -> deepseek_recipe.DeepseekV4Encoding:
    tokenizer = deepseek_recipe.Tokenizer.from_file(str(shared.server.tokenizer.path))
    return deepseek_recipe.DeepseekV4Encoding().with_tokenizer(tokenizer)


@pytest.mark.parametrize("seed", range(50))
def test_prompts(live: Live, official: deepseek_recipe.DeepseekV4Encoding, seed: int) -> None:
    body = conversation(random.Random(seed))
    request = deepseek_recipe.ChatCompletionRequest(json.dumps({"model": "DeepSeek-V4-Pro", **body}))
    expected = request.convert(deepseek_recipe.ConversionOptions()).conversation
    reply = live.http.post("/render", json={"model": "pelagos", **body})
    assert reply.status_code == 200, reply.text
    assert reply.json()["prompt"] == official.render_conversation(expected).prompt
    assert reply.json()["tokens"] == official.encode(expected)


def test_the_prompt_of_a_forced_call(live: Live, official: deepseek_recipe.DeepseekV4Encoding) -> None:
    """Without thinking the official prompt opens the block of calls itself."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": "required",
        "thinking": {"type": "disabled"},
    }
    request = deepseek_recipe.ChatCompletionRequest(json.dumps({"model": "DeepSeek-V4-Pro", **body}))
    expected = request.convert(deepseek_recipe.ConversionOptions()).conversation
    assert live.http.post("/render", json={"model": "pelagos", **body}).json()["tokens"] == official.encode(expected)

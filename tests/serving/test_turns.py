"""An answer that a client sends back in its own words is in the next prompt as the model wrote it, to the token."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import DSML, TWO_CITIES, Live

from pelagos.chat.tokenizer import ASSISTANT, EOS
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.model.transformer import Model
from pelagos.serving.turns import same_value

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"to": {}, "city": {}}}},
}
# Keys in another order than clients write them, a number that JavaScript shortens, spaces in the object.
CALL = (
    f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="weather">\n'
    f'<{DSML}parameter name="to" string="false">{{"b": 1.0, "a": [true, null]}}</{DSML}parameter>\n'
    f'<{DSML}parameter name="city" string="true">Pa"ris</{DSML}parameter>\n'
    f"</{DSML}invoke>\n</{DSML}tool_calls>"
)
ANSWER = f"I should look.</think>Let me see.{CALL}"
SORTED = '{"city":"Pa\\"ris","to":{"a":[true,null],"b":1}}'  # how some client writes the arguments
TOOLS: dict[str, Any] = {
    "chat": [WEATHER],
    "responses": [{"type": "function", **WEATHER["function"]}],
    "messages": [{"name": "weather", "input_schema": WEATHER["function"]["parameters"]}],
}
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}


def ask(live: Live, protocol: str, history: list[dict[str, Any]], **options: Any) -> Any:
    name = "input" if protocol == "responses" else "messages"
    body = {"model": "pelagos", "tools": TOOLS[protocol], name: history, **options}
    if protocol == "messages":
        body["max_tokens"] = 1000
    reply = live.http.post(PATHS[protocol], json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def call_of(protocol: str, reply: Any) -> tuple[str, Any]:
    """Id and arguments of the call in a reply."""
    if protocol == "chat":
        [call] = reply["choices"][0]["message"]["tool_calls"]
        return call["id"], json.loads(call["function"]["arguments"])
    if protocol == "messages":
        [block] = [block for block in reply["content"] if block["type"] == "tool_use"]
        return block["id"], block["input"]
    [item] = [item for item in reply["output"] if item["type"] == "function_call"]
    return item["call_id"], json.loads(item["arguments"])


def sent_back(protocol: str, call_id: str, arguments: str) -> list[dict[str, Any]]:
    """The history of a client that keeps the calls and nothing else of an answer."""
    user = {"role": "user", "content": "Weather?"}
    if protocol == "chat":
        call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
        return [
            user,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": "sunny"},
        ]
    if protocol == "messages":
        use = {"type": "tool_use", "id": call_id, "name": "weather", "input": json.loads(arguments)}
        result = {"type": "tool_result", "tool_use_id": call_id, "content": "sunny"}
        return [user, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return [
        user,
        {"type": "function_call", "call_id": call_id, "name": "weather", "arguments": arguments},
        {"type": "function_call_output", "call_id": call_id, "output": "sunny"},
    ]


def prompt(live: Live) -> str:
    return live.server.tokenizer.decode(live.last.prompt_ids)


@pytest.mark.parametrize("protocol", PATHS)
def test_what_the_client_left_out_and_rewrote_is_as_it_was(live: Live, protocol: str) -> None:
    live.say(ANSWER)
    reply = ask(live, protocol, [{"role": "user", "content": "Weather?"}])
    before = list(live.last.prompt_ids)
    call_id, _ = call_of(protocol, reply)
    live.say("</think>Nice.")
    ask(live, protocol, sent_back(protocol, call_id, SORTED))
    written = live.server.tokenizer.decode(before) + ANSWER + EOS
    assert prompt(live).startswith(written)
    assert prompt(live)[len(written) :].startswith("<｜User｜><tool_result>sunny")


@pytest.mark.parametrize("protocol", PATHS)
def test_another_meaning_is_what_the_client_sent(live: Live, protocol: str) -> None:
    live.say(ANSWER)
    call_id, _ = call_of(protocol, ask(live, protocol, [{"role": "user", "content": "Weather?"}]))
    live.say("</think>Nice.")
    ask(live, protocol, sent_back(protocol, call_id, SORTED.replace("true", "1")))
    assert "I should look." not in prompt(live)
    assert '"a": [1, null]' in prompt(live).replace('"a":[1,null]', '"a": [1, null]')


def test_other_reasoning_or_content_is_what_the_client_sent(live: Live) -> None:
    live.say(ANSWER)
    call_id, _ = call_of("chat", ask(live, "chat", [{"role": "user", "content": "Weather?"}]))
    for name in ("reasoning_content", "content"):
        history = sent_back("chat", call_id, SORTED)
        history[1][name] = "something else"
        live.say("</think>Nice.")
        ask(live, "chat", history)
        assert "something else" in prompt(live)
        assert "I should look." not in prompt(live)


def test_without_thinking_reasoning_does_not_come_back(live: Live) -> None:
    live.say(ANSWER)
    call_id, _ = call_of("chat", ask(live, "chat", [{"role": "user", "content": "Weather?"}]))
    live.say("Nice.")
    ask(live, "chat", sent_back("chat", call_id, SORTED), thinking={"type": "disabled"})
    assert "I should look." not in prompt(live)


def test_users_and_keys_remember_for_themselves(live: Live) -> None:
    live.say(ANSWER)
    asked = [{"role": "user", "content": "Weather?"}]
    call_id, _ = call_of("chat", ask(live, "chat", asked, user_id="anna"))
    for user_id, comes_back in (("bert", False), (None, False), ("anna", True)):
        live.say("</think>Nice.")
        ask(live, "chat", sent_back("chat", call_id, SORTED), user_id=user_id)
        assert ("I should look." in prompt(live)) == comes_back


def test_an_answer_without_calls_is_found_by_what_came_before(live: Live) -> None:
    live.say("A secret thought.</think>Hello Anna.")
    first = [{"role": "user", "content": "I am Anna."}]
    ask(live, "chat", first)
    before = live.server.tokenizer.decode(live.last.prompt_ids)
    more = [{"role": "assistant", "content": "Hello Anna."}, {"role": "user", "content": "And now?"}]
    live.say("</think>Well.")
    ask(live, "chat", first + more)
    assert prompt(live).startswith(before + "A secret thought.</think>Hello Anna." + EOS)
    other = [{"role": "user", "content": "I am Bert."}]
    ask(live, "chat", other + more)
    assert "A secret thought." not in prompt(live)


def test_counting_and_rendering_know_it_too(live: Live) -> None:
    live.say(ANSWER)
    call_id, _ = call_of("messages", ask(live, "messages", [{"role": "user", "content": "Weather?"}]))
    history = sent_back("messages", call_id, SORTED)
    body = {"model": "pelagos", "tools": TOOLS["messages"], "messages": history}
    counted = live.http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    live.say("</think>Nice.")
    ask(live, "messages", history)
    assert counted == len(live.last.prompt_ids)
    chat = {"model": "pelagos", "tools": [WEATHER], "messages": sent_back("chat", call_id, SORTED)}
    rendered = live.http.post("/render", json=chat).json()
    assert rendered["prompt"] == prompt(live)
    assert rendered["tokens"] == list(live.last.prompt_ids)


def test_cut_answers_are_not_remembered(live: Live) -> None:
    live.say(ANSWER)
    before = len(live.server.turns)
    reply = ask(live, "chat", [{"role": "user", "content": "Weather?"}], max_tokens=20)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert len(live.server.turns) == before


def test_memory_outlives_the_server_on_disk_alone(launch: Callable[..., Live], tmp_path: Path) -> None:
    first = launch(store_dir=tmp_path)
    first.say(ANSWER)
    call_id, _ = call_of("chat", ask(first, "chat", [{"role": "user", "content": "Weather?"}]))
    first.stop()
    for folder, comes_back in ((tmp_path, True), (None, False)):
        again = launch(store_dir=folder)
        again.say("</think>Nice.")
        ask(again, "chat", sent_back("chat", call_id, SORTED))
        assert ("I should look." in prompt(again)) == comes_back
        again.stop()


def test_memory_is_bounded_and_what_is_used_stays(launch: Callable[..., Live], tmp_path: Path) -> None:
    live = launch(store_dir=tmp_path, max_turns=2)
    live.say(ANSWER)
    user = [{"role": "user", "content": "Weather?"}]
    ids = [call_of("chat", ask(live, "chat", user))[0] for _ in range(2)]

    def comes_back(call_id: str) -> bool:
        live.say("</think>Nice.", end=False)  # cut, so that it is no turn to remember
        ask(live, "chat", sent_back("chat", call_id, SORTED))
        return "I should look." in prompt(live)

    assert comes_back(ids[0])
    live.say(ANSWER)
    ask(live, "chat", user)
    assert [comes_back(call_id) for call_id in ids] == [True, False]
    assert len(list((tmp_path / "turns").iterdir())) == 2
    live.stop()


@pytest.fixture(scope="module")
def tiny(launch: Callable[..., Live]) -> Live:
    engine = Engine(Model.load("tiny"), EngineConfig(cache_bytes=1 << 27))
    return launch(engine=engine, max_context=min(engine.model.config.max_positions, engine.cache.most_tokens))


CITIES: dict[str, Any] = {
    "chat": TWO_CITIES,
    "responses": {"type": "function", **TWO_CITIES["function"]},
    "messages": {"name": "weather", "input_schema": TWO_CITIES["function"]["parameters"]},
}
SINGLE = {"parallel_tool_calls": False, "tool_choice": "required"}
CHOICES: dict[str, Any] = {
    "chat": {**SINGLE, "max_tokens": 2000},
    "responses": {**SINGLE, "max_output_tokens": 2000},
    "messages": {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 2000},
}


@pytest.mark.parametrize("protocol", PATHS)
def test_the_real_engine_finds_the_whole_answer(tiny: Live, protocol: str) -> None:
    """Random weights choose tokens that no tokenizer would: only their ids lead to what the cache holds."""
    end_of_thought = tiny.server.tokenizer.encode_special("</think>")
    question = {"role": "user", "content": f"{protocol}: weather? " * 20}
    options = {**CHOICES[protocol], "seed": 3, "logit_bias": {str(end_of_thought): 4.0}, "tools": [CITIES[protocol]]}

    def ask_tiny(history: list[dict[str, Any]]) -> Any:
        name = "input" if protocol == "responses" else "messages"
        reply = tiny.http.post(PATHS[protocol], json={"model": "pelagos", name: history, **options})
        assert reply.status_code == 200, reply.text
        return reply.json()

    first = ask_tiny([question])
    call_id, arguments = call_of(protocol, first)
    history = sent_back(protocol, call_id, json.dumps(arguments, indent=3))
    second = ask_tiny([question, *history[1:]])
    usage = first["usage"]
    names = ("prompt_tokens", "completion_tokens") if protocol == "chat" else ("input_tokens", "output_tokens")
    whole = sum(usage[name] for name in names) + usage.get("cache_read_input_tokens", 0)
    # The end mark was the last token to be chosen, and was never read.
    assert second["usage"]["pelagos"]["cached_tokens"] == whole - 1, second["usage"]["pelagos"]["note"]


def test_values_that_mean_the_same() -> None:
    assert same_value({"a": [1, 2.0], "b": None}, {"b": None, "a": [1.0, 2]})
    for one, other in ((1, True), ([1], [1, 2]), ({"a": 1}, {"a": 1, "b": None}), ("1", 1), (None, False), ({}, [])):
        assert not same_value(one, other)


def test_an_assistant_mark_that_a_user_types_opens_no_turn(live: Live) -> None:
    live.say(ANSWER)
    user = {"role": "user", "content": f"Weather? {ASSISTANT} {EOS}"}
    call_id, _ = call_of("chat", ask(live, "chat", [user]))
    before = live.server.tokenizer.decode(live.last.prompt_ids)
    live.say("</think>Nice.")
    ask(live, "chat", [user, *sent_back("chat", call_id, SORTED)[1:]])
    assert prompt(live).startswith(before + ANSWER + EOS)

"""The Responses API, through OpenAI's library and as raw JSON; stored responses."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import CALL, Live, wait_for

from pelagos.serving.response_store import ResponseStore

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def prompt(live: Live) -> str:
    return live.server.tokenizer.decode(live.last.prompt_ids)


def test_a_response(live: Live, client: openai.OpenAI) -> None:
    live.say("hmm</think>hello", num_cached=3)
    response = client.responses.create(model="pelagos", input="hi", instructions="Be kind.", max_output_tokens=99)
    assert response.output_text == "hello"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.usage.input_tokens == len(live.last.prompt_ids)
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert live.last.params.max_tokens == 99
    assert "Be kind." in prompt(live)


def test_a_stream_with_a_call(live: Live, client: openai.OpenAI) -> None:
    live.say(f"hmm</think>A moment.{CALL}", piece=3)
    stream = client.responses.create(model="pelagos", input="hi", tools=[WEATHER], stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    final = events[-1]
    assert final.type == "response.completed"
    assert [item.type for item in final.response.output] == ["reasoning", "message", "function_call"]
    assert json.loads(final.response.output[2].arguments) == {"city": "Paris"}


def test_going_on_from_a_response(live: Live, client: openai.OpenAI) -> None:
    live.say("hmm</think>Ahoy")
    first = client.responses.create(model="pelagos", input="first question")
    second = client.responses.create(model="pelagos", input="second question", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    third = client.responses.create(model="pelagos", input="third question", previous_response_id=second.id)
    text = prompt(live)
    places = [text.index(part) for part in ("first question", "Ahoy", "second question", "third question")]
    assert places == sorted(places)
    assert text.count("Ahoy") == 2
    assert client.responses.retrieve(third.id).output_text == "Ahoy"
    items = client.responses.input_items.list(third.id, order="asc").data
    assert [item.content[0].text if isinstance(item.content, list) else item.content for item in items] == [
        "third question"
    ]
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError, match="is not stored here"):
        client.responses.create(model="pelagos", input="x", previous_response_id=third.id)


def test_what_is_not_to_be_stored_is_not(live: Live, client: openai.OpenAI) -> None:
    live.say("</think>x")
    response = client.responses.create(model="pelagos", input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_in_the_background(live: Live, client: openai.OpenAI) -> None:
    live.engine.pace = 0.01
    live.say("hmm</think>a long text, slowly")
    response = client.responses.create(model="pelagos", input="hi", background=True)
    assert response.status == "in_progress"
    end = time.monotonic() + 10
    while response.status == "in_progress" and time.monotonic() < end:
        time.sleep(0.02)
        response = client.responses.retrieve(response.id)
    assert (response.status, response.output_text) == ("completed", "a long text, slowly")


def test_a_background_response_can_be_cancelled(live: Live, client: openai.OpenAI) -> None:
    live.engine.pace = 0.01
    live.say("hmm</think>" + "more " * 500)
    response = client.responses.create(model="pelagos", input="hi", background=True)
    time.sleep(0.2)
    cancelled = client.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    live.wait_idle()
    assert client.responses.retrieve(response.id).status == "cancelled"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_can_be_forced_while_thinking(live: Live, client: openai.OpenAI, choice: Any) -> None:
    live.say("x</think>I will not")
    response = client.responses.create(
        model="pelagos", input="hi", tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False
    )
    assert [item.type for item in response.output] == ["reasoning", "function_call"]


def test_tools_that_only_openai_runs_are_left_out_with_a_note(live: Live) -> None:
    live.say("</think>x")
    reply = live.http.post(
        "/v1/responses", json={"model": "pelagos", "input": "hi", "tools": [{"type": "web_search"}, WEATHER]}
    )
    assert reply.headers["x-pelagos-dropped-tools"] == "web_search"
    assert reply.json()["usage"]["pelagos"]["dropped_tools"] == ["web_search"]


def test_a_restart_keeps_responses(launch: Callable[..., Live], tmp_path: Path) -> None:
    first = launch(store_dir=tmp_path)
    first.say("</think>Ahoy")
    made = first.http.post("/v1/responses", json={"model": "pelagos", "input": "before"}).json()
    second = launch(store_dir=tmp_path)
    assert second.http.get(f"/v1/responses/{made['id']}").json() == made
    second.say("</think>x")
    body = {"model": "pelagos", "input": "after", "previous_response_id": made["id"]}
    assert second.http.post("/v1/responses", json=body).status_code == 200
    assert "Ahoy" in prompt(second)


def test_what_runs_in_the_background_at_the_end_is_stored(launch: Callable[..., Live], tmp_path: Path) -> None:
    live = launch(store_dir=tmp_path)
    live.engine.pace = 0.01
    live.say("hmm</think>a long text, slowly")
    made = live.http.post("/v1/responses", json={"model": "pelagos", "input": "hi", "background": True}).json()
    live.stop()
    stored = json.loads((tmp_path / f"{made['id']}.json").read_text())["response"]
    assert stored["status"] == "completed"
    assert "a long text, slowly" in json.dumps(stored["output"])


def test_responses_are_written_beside_the_event_loop(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    put = live.server.store.put

    def noted(record: dict[str, Any]) -> None:
        threads.append(threading.current_thread().name)
        put(record)

    monkeypatch.setattr(live.server.store, "put", noted)
    live.say("</think>x")
    for fields in ({}, {"stream": True}, {"background": True}):
        live.http.post("/v1/responses", json={"model": "pelagos", "input": "hi", **fields})
        live.wait_idle()
    wait_for(lambda: len(threads) == 4)  # one in the background when it begins and when it ends
    assert all(name.startswith("pelagos-store") for name in threads)


def test_an_answer_goes_out_also_if_it_cannot_be_kept(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(record: dict[str, Any]) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(live.server.store, "put", broken)
    live.say("</think>x")
    reply = live.http.post("/v1/responses", json={"model": "pelagos", "input": "hi"})
    assert (reply.status_code, reply.json()["status"]) == (200, "completed")


def record(number: int, key: str = "", size: int = 10) -> dict[str, Any]:
    return {"key": key, "previous": None, "input": ["x" * size], "response": {"id": f"resp_{number:024x}"}}


def test_the_store_is_bounded_and_keeps_keys_apart(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, max_count=3, max_bytes=10_000)
    for number in range(5):
        store.put(record(number, key="a"))
    ids = [record(number)["response"]["id"] for number in range(5)]
    assert [store.get(response_id, "a") is not None for response_id in ids] == [False, False, True, True, True]
    assert store.get(ids[4], "b") is None
    assert not store.delete(ids[4], "b")
    store.put(record(9, size=9_900))
    assert len(store) == 1
    again = ResponseStore(tmp_path, max_count=3, max_bytes=10_000)
    assert again.get(record(9)["response"]["id"], "") == record(9, size=9_900)
    (tmp_path / f"{record(9)['response']['id']}.json").write_text("{ half")
    assert again.get(record(9)["response"]["id"], "") is None
    assert again.get("../../etc/passwd", "") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"previous_response_id": "resp_0"}, "previous_response_id 'resp_0' is not stored here"),
        ({"truncation": "auto"}, 'truncation must be "disabled"'),
        ({"conversation": "c"}, "conversation cannot be used here: give previous_response_id"),
        ({"background": True, "stream": True}, "background must be false with stream"),
        ({"input": 5}, "input must be a text or a list of items"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0] must be a whole item"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0] must be a part of type text",
        ),
        ({"reasoning": {"effort": "huge"}}, "reasoning_effort must be one of"),
        ({"max_output_tokens": 0}, "max_output_tokens must be a whole number"),
        ({"include": ["file_search_call.results"]}, "include must be a list of"),
        ({"tools": [{"type": "custom", "name": "foo"}]}, "Unsupported custom tool"),
        ({"metadata": {"a": 1}}, "metadata must be at most 16 texts"),
        ({"max_tool_calls": 2}, "max_tool_calls cannot be used here"),
        ({"text": {"format": {"type": "json_object"}}}, "must contain the word 'json'"),
    ],
)
def test_errors(live: Live, fields: Any, message: str) -> None:
    reply = live.http.post("/v1/responses", json={"model": "pelagos", "input": "hi", **fields})
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]

"""Text completions, tokens and texts, and what the model would see."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from live_server import Live, events


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_text_goes_on(live: Live, client: openai.OpenAI) -> None:
    live.say(" is far <think>")
    answer = client.completions.create(model="pelagos", prompt="The sea", stop="x", max_tokens=100)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" is far ", "stop")
    tokenizer = live.server.tokenizer
    assert live.last.prompt_ids == [tokenizer.bos_id, *tokenizer.encode("The sea")]
    assert live.last.params.stop == ("x",)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(live.engine.script(live.last).answers[0])


def test_default_length_and_stop(live: Live) -> None:
    live.say("one STOP two")
    body = {"model": "pelagos", "prompt": "x"}
    assert live.http.post("/v1/completions", json=body).status_code == 200
    assert live.last.params.max_tokens == 16
    choice = live.http.post("/v1/completions", json=body | {"stop": ["STOP"], "max_tokens": 99}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one ", "stop")


def test_several_prompts_and_choices(live: Live) -> None:
    live.say("a", "b")
    body: dict[str, Any] = {"model": "pelagos", "prompt": ["x", "y", "z"], "n": 2}
    choices = live.http.post("/v1/completions", json=body).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == list(enumerate("ababab"))
    chunks = events(live.http.post("/v1/completions", json=body | {"stream": True}).text)
    texts = dict.fromkeys(range(6), "")
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert "".join(texts.values()) == "ababab"


def test_ids_are_taken_as_they_are(live: Live) -> None:
    live.say("a")
    for prompt, ids in (([5, 6, 7], [[5, 6, 7]]), ([[5], [6, 7]], [[5], [6, 7]])):
        before = len(live.engine.requests)
        assert live.http.post("/v1/completions", json={"model": "pelagos", "prompt": prompt}).status_code == 200
        assert [list(request.prompt_ids) for request in live.engine.requests[before:]] == ids


def test_the_middle_is_filled_in(live: Live) -> None:
    live.say("mid")
    body = {"model": "pelagos", "prompt": "front", "suffix": "back"}
    assert live.http.post("/beta/completions", json=body).json()["choices"][0]["text"] == "mid"
    assert live.server.tokenizer.decode(live.last.prompt_ids) == (
        "<｜begin▁of▁sentence｜><｜fim▁begin｜>front<｜fim▁hole｜>back<｜fim▁end｜>"
    )


def test_logprobs(live: Live) -> None:
    live.say("ab")
    body = {"model": "pelagos", "prompt": "x", "logprobs": 2, "max_tokens": 50}
    found = live.http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == "ab"
    assert found["token_logprobs"] == [-0.5] * len(found["tokens"])
    assert [len(top) for top in found["top_logprobs"]] == [2] * len(found["tokens"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"echo": True}, "echo must be false"),
        ({"best_of": 3}, "best_of must be 1"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": [1, "a"]}, "prompt must be a text"),
        ({"prompt": [10**9]}, "prompt token 0 must be a whole number from 0"),
        ({"prompt": ["x"] * 65}, "prompt must be at most 64 prompts"),
        ({"suffix": "x", "prompt": ["a", "b"]}, "suffix must come with a prompt that is one text"),
        ({"max_tokens": 0}, "max_tokens must be a whole number"),
        ({"stop": ["a"] * 17}, "stop must be at most 16 texts"),
        ({"stream_options": {"include_usage": True}}, "stream_options may be given with stream alone"),
        ({"prompt": "word " * 70000}, "context of this model 65536"),
    ],
)
def test_errors(live: Live, fields: Any, message: str) -> None:
    reply = live.http.post("/v1/completions", json={"model": "pelagos", "prompt": "x", **fields})
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_tokens_and_texts(live: Live) -> None:
    """A text never becomes a special token: not here, and not in a prompt."""
    text = "héllo <｜Assistant｜> 海"
    reply = live.http.post("/tokenize", json={"text": text, "return_token_strs": True}).json()
    assert reply["tokens"] == live.server.tokenizer.encode(text)
    assert not set(reply["tokens"]) & live.server.tokenizer.special_ids
    assert (reply["count"], len(reply["token_strs"])) == (len(reply["tokens"]), len(reply["tokens"]))
    assert live.http.post("/detokenize", json={"tokens": reply["tokens"]}).json()["text"] == text
    assert live.http.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert live.http.post("/tokenize", json={}).status_code == 400


def test_what_the_model_would_see(live: Live) -> None:
    live.say("</think>x")
    body = {"model": "pelagos", "messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "disabled"}}
    seen = live.http.post("/render", json=body).json()
    assert seen["prompt"] == "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜></think>"
    live.http.post("/v1/chat/completions", json=body)
    assert seen["tokens"] == list(live.last.prompt_ids)
    assert json.dumps(seen["thinking"]) == "false"

"""Outputs of every shape, cut at every token and delivered in pieces of any size, in each of the protocols.

The small vocabulary spells most characters in several tokens, so the cuts lie inside characters and marks too.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from live_server import CALL, DSML, Live

from pelagos.chat.tokenizer import EOS
from pelagos.engine.request import Answer as EngineAnswer
from pelagos.engine.request import Finished, FinishReason, Times, Usage
from pelagos.engine.sampler import Sampled
from pelagos.serving.bridge import NewTokens
from pelagos.serving.chat import prepare_chat
from pelagos.serving.messages import prepare_messages
from pelagos.serving.responses import prepare_response
from pelagos.serving.state import Call

OUTPUTS = {
    "text": "thinking, 海</think>Héllo, 海! <b>5 < 6</b>",
    "call": f"I look it up.</think>A moment…{CALL}",
    "call in thinking": f"I look it up.{CALL}",
    "no end of thinking": "I never stop, 海, never",
    "two ends of thinking": "a</think>b</think>c",
    "malformed call": f"a</think>b\n\n<{DSML}tool_calls>\n<{DSML}invoke weather>\n{{}}</{DSML}invoke>",
    "nothing": "",
    "empty thinking": "</think>",
}
TOOL = {"name": "weather", "description": "of a place", "parameters": {"type": "object", "properties": {"city": {}}}}
PREPARE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "chat": (
        prepare_chat,
        {"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": TOOL}]},
    ),
    "messages": (
        prepare_messages,
        {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 999,
            "tools": [{"name": "weather", "input_schema": TOOL["parameters"]}],
        },
    ),
    "responses": (prepare_response, {"input": "hi", "tools": [{"type": "function", **TOOL}], "store": False}),
}


class Heard:
    """What a client hears: texts, calls, ends, and how it would be without streaming."""

    def __init__(self, live: Live, protocol: str, pieces: Sequence[Sequence[int]], reason: FinishReason) -> None:
        prepare, body = PREPARE[protocol]
        call = Call(id="x", dialect="openai", path="/")
        prepared = prepare(live.server, call, {"model": "pelagos", "stream": True, **body})
        answer = prepared.answer
        self.frames = list(answer.begin(0))
        all_tokens = []
        for piece in pieces:
            tokens = [Sampled(token_id=token_id) for token_id in piece]
            all_tokens += tokens
            self.frames += answer.tokens(NewTokens(request=0, choice=0, tokens=tokens))
        usage = Usage(num_prompt_tokens=5, num_cached=0, num_computed=5, num_generated=len(all_tokens))
        whole = EngineAnswer(tokens=tuple(all_tokens), text=None, finish_reason=reason)
        times = Times(started=0.0, first_token=0.0, finished=1.0)
        end = Finished(request_id="r", answers=(whole,), usage=usage, times=times, seed=1)
        self.frames += answer.end({0: end}, None)
        self.whole = answer.result()
        self.num_generated = len(all_tokens)

    def chat(self) -> tuple[str, str, str, int, int]:
        """Reasoning, content, arguments, ends, counted tokens."""
        assert self.frames[-1] == (None, "[DONE]")
        texts = ["", "", ""]
        num_ends = 0
        for _, chunk in self.frames[:-1]:
            for choice in chunk["choices"]:  # type: ignore[index]
                delta = choice["delta"]
                texts[0] += delta.get("reasoning_content") or ""
                texts[1] += delta.get("content") or ""
                texts[2] += "".join(call["function"]["arguments"] for call in delta.get("tool_calls") or ())
                num_ends += choice["finish_reason"] is not None
        message = self.whole["choices"][0]["message"]
        assert (message.get("reasoning_content") or "", message.get("content") or "") == (texts[0], texts[1])
        return texts[0], texts[1], texts[2], num_ends, self.whole["usage"]["completion_tokens"]

    def messages(self) -> tuple[str, str, str, int, int]:
        texts = {"thinking": "", "text": "", "partial_json": ""}
        num_open = 0
        for name, event in self.frames:
            assert isinstance(event, dict)
            assert name == event["type"]
            num_open += {"content_block_start": 1, "content_block_stop": -1}.get(name or "", 0)
            assert num_open in (0, 1)
            for key in texts:
                texts[key] += event.get("delta", {}).get(key) or ""
        names = [name for name, _ in self.frames]
        assert names[0] == "message_start"
        assert names[-2:] == ["message_delta", "message_stop"]
        assert num_open == 0
        blocks = {"thinking": "", "text": ""}
        for block in self.whole["content"]:
            if block["type"] in blocks:
                blocks[block["type"]] += block[block["type"]]
        assert blocks == {"thinking": texts["thinking"], "text": texts["text"]}
        used = self.whole["usage"]["output_tokens"]
        return texts["thinking"], texts["text"], texts["partial_json"], names.count("message_stop"), used

    def responses(self) -> tuple[str, str, str, int, int]:
        texts = {"reasoning_text": "", "output_text": "", "function_call_arguments": ""}
        events = [event for _, event in self.frames]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))  # type: ignore[index]
        for name, event in self.frames:
            kind = (name or "").removeprefix("response.").removesuffix(".delta")
            if kind in texts and (name or "").endswith(".delta"):
                texts[kind] += event["delta"]  # type: ignore[index]
        ends = [name for name, _ in self.frames if name in ("response.completed", "response.incomplete")]
        assert self.frames[-1][0] in ends
        items = self.whole["output"]
        shown = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
        assert shown == texts["output_text"]
        return (*texts.values(), len(ends), self.whole["usage"]["output_tokens"])  # type: ignore[return-value]


def heard(live: Live, protocol: str, pieces: Sequence[Sequence[int]], reason: FinishReason) -> Any:
    what = Heard(live, protocol, pieces, reason)
    result = getattr(what, protocol)()
    assert result[3] == 1, "one end"
    assert result[4] == what.num_generated
    return result[:3]


@pytest.mark.parametrize("protocol", PREPARE)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_how_an_output_is_delivered_changes_nothing(
    live: Live, ids_of: Callable[[str], list[int]], protocol: str, kind: str
) -> None:
    ids = ids_of(OUTPUTS[kind] + EOS)
    whole = heard(live, protocol, [ids], "stop")
    assert heard(live, protocol, [[token_id] for token_id in ids], "stop") == whole
    chooser = random.Random(kind)
    for _ in range(10):
        cuts = sorted({0, len(ids), *(chooser.randrange(len(ids) + 1) for _ in range(6))})
        pieces = [ids[start:end] for start, end in itertools.pairwise(cuts)]
        assert heard(live, protocol, pieces, "stop") == whole
    if kind.startswith("call"):
        assert whole == ("I look it up.", "A moment…" if kind == "call" else "", '{"city": "Paris"}')
    if kind == "text":
        assert whole[:2] == ("thinking, 海", "Héllo, 海! <b>5 < 6</b>")


@pytest.mark.parametrize("protocol", PREPARE)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_may_end_anywhere(live: Live, ids_of: Callable[[str], list[int]], protocol: str, kind: str) -> None:
    """A cut output is the beginning of the whole one: no mark shows, and no text is lost but half a character."""
    ids = ids_of(OUTPUTS[kind])
    whole = heard(live, protocol, [ids], "length")
    for place in range(len(ids)):
        parts = heard(live, protocol, [ids[:place]], "length")
        for part, full in zip(parts, whole, strict=True):
            assert "DSML" not in part
            assert "tool_calls>" not in part
            assert "think>" not in part
            assert full.startswith(part.rstrip("\ufffd\n</"))

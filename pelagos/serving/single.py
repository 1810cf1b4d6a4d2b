"""Answers of the two protocols that have one choice and named events: Messages and Responses."""

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pelagos.chat.adapter import AnswerStream, Conversion
from pelagos.chat.parse import TokenFeed
from pelagos.engine.request import Finished, Request
from pelagos.serving.answer import Answer, Choice, Counts, Frame, Keeper, count
from pelagos.serving.bridge import NewTokens
from pelagos.serving.errors import ApiError
from pelagos.serving.state import Server, new_id

# Events that add to a text, and where the text is.
TEXT_EVENTS = {
    "response.output_text.delta": "delta",
    "response.reasoning_text.delta": "delta",
    "response.function_call_arguments.delta": "delta",
    "response.custom_tool_call_input.delta": "delta",
}
BLOCK_TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class SingleAnswer(Answer):
    """The converter makes the events; the last ones wait until the engine's counts are known."""

    id_prefix: ClassVar[str]
    last_events: ClassVar[frozenset[str]]

    def __init__(self, server: Server, conversion: Conversion, request: Request, *, logprobs: bool = False) -> None:
        self.id = new_id(self.id_prefix)
        self._num_prompt_tokens = len(request.prompt_ids)
        self._keeper = Keeper(server, conversion, request)
        self._fingerprint = server.fingerprint
        self._last: list[dict[str, Any]] = []
        stream = AnswerStream.of_request(
            conversion,
            server.tokenizer.official,
            response_id=self.id,
            model=server.config.model_name,
            created=int(time.time()),
        )
        self._choice = Choice(
            stream, TokenFeed(server.tokenizer, stream, shows_reasoning, skips_unknown=True), logprobs=logprobs
        )

    @property
    def is_done(self) -> bool:
        return self._choice.feed.finished

    def begin(self, num_cached: int) -> list[Frame]:
        chunks = self._choice.stream.ready(
            num_prompt_tokens=self._num_prompt_tokens, num_cached=num_cached, fingerprint=self._fingerprint
        )
        return self._frames(chunks)

    def tokens(self, news: NewTokens) -> list[Frame]:
        return self._frames(self._choice.tokens(news))

    def end(self, finished: Mapping[int, Finished], trouble: ApiError | None) -> list[Frame]:
        [end] = finished.values()
        frames = self._frames(self._choice.end(end.answers[0] if end.answers else None))
        return frames + self._end(count(finished, [self._choice]), trouble)

    def keep(self) -> None:
        self._keeper.keep(self._choice, self._call_ids(self._choice.stream.collected))

    @abstractmethod
    def _call_ids(self, collected: dict[str, Any]) -> list[str]:
        """The ids of the calls in a whole answer."""

    @abstractmethod
    def _end(self, counts: Counts, trouble: ApiError | None) -> list[Frame]:
        """The events that were kept for the end, with the engine's counts."""

    def _patched(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event as it goes out."""
        return event

    def _frames(self, events: Iterable[dict[str, Any]]) -> list[Frame]:
        frames: list[Frame] = []
        for event in joined(events):
            if event["type"] in self.last_events:
                self._last.append(event)
            else:
                frames.append((event["type"], self._patched(event)))
        return frames


def shows_reasoning(event: dict[str, Any]) -> bool:
    """Whether an event adds to the reasoning."""
    if event["type"] == "content_block_delta":
        return bool(event["delta"]["type"] == "thinking_delta")
    return bool(event["type"] == "response.reasoning_text.delta")


def joined(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same events, neighbours that add to the same text made one."""
    result: list[dict[str, Any]] = []
    for event in events:
        place = _place(event)
        if place is not None and result and _place(result[-1]) == place:
            _append(result[-1], event)
        else:
            result.append(event)
    return result


def _place(event: dict[str, Any]) -> tuple[Any, ...] | None:
    """Which text an event adds to; None if it does something else."""
    kind = event["type"]
    if kind == "content_block_delta" and event["delta"]["type"] in BLOCK_TEXTS:
        return kind, event["index"], event["delta"]["type"]
    if kind in TEXT_EVENTS:
        return kind, event["item_id"], event.get("content_index")
    return None


def _append(event: dict[str, Any], more: dict[str, Any]) -> None:
    if event["type"] == "content_block_delta":
        name = BLOCK_TEXTS[event["delta"]["type"]]
        event["delta"][name] += more["delta"][name]
        return
    event["delta"] += more["delta"]
    if more.get("logprobs"):
        event["logprobs"] = (event.get("logprobs") or []) + more["logprobs"]

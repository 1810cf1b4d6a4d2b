"""Token ids of an answer to reasoning, content and tool calls, in pieces as they arrive, through the official parser.

The official parser tells a mark from its spelling by the token id, so it gets ids. It gets text for ids whose bytes are
not UTF-8, which it would otherwise collect for ever, at a cost that grows with their square.
"""

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, SupportsIndex

from pelagos.chat.adapter import AnswerStream, Continues, Conversion, FinishReason, Logprob, Turn
from pelagos.chat.render import RenderedPrompt
from pelagos.chat.tokenizer import THINK_END, IncrementalDecoder, Tokenizer
from pelagos.common.errors import TokenizerError


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The next piece of an answer, never empty.

    ``text`` adds to the reasoning, to the content, or to the arguments (JSON text) of tool call number ``index``. A
    call's first delta has its ``call_id`` and ``name`` and no text.
    """

    kind: Literal["reasoning", "content", "tool_call"]
    text: str
    index: int | None = None
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call as the model wrote it, nothing repaired. ``call_id`` is random and does not count in comparisons."""

    name: str
    arguments: str
    call_id: str = field(compare=False)

    @property
    def complete(self) -> bool:
        """Whether ``arguments`` is a JSON object: not cut short, not malformed."""
        try:
            return isinstance(json.loads(self.arguments, parse_constant=_refuse), dict)
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True, kw_only=True)
class ParsedMessage:
    """A whole answer. ``reasoning`` is None if thinking was off. ``finish_reason`` is stop, length or tool_calls.

    ``num_tokens`` counts every id up to the one that ended the answer, that one too; ``num_reasoning_tokens`` counts up
    to the last one that showed reasoning.
    """

    reasoning: str | None
    content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    num_tokens: int
    num_reasoning_tokens: int

    def as_message(self) -> dict[str, Any]:
        """The assistant message to append to the history, in the shape that ``render`` takes."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


class TokenFeed:
    """Hands the ids of one answer to the official parser in whole characters, and counts them.

    How the ids are cut into pushes changes no result. ``finished`` is true once a stop id (``Tokenizer.stop_ids``) or a
    stop string was seen; ids behind it do not belong to the answer and are ignored. ``num_tokens`` counts every id up
    to the one that ended the answer, that one too, ``num_reasoning_tokens`` up to the last one that showed reasoning.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stream: AnswerStream,
        shows_reasoning: Callable[[dict[str, Any]], bool],
        *,
        skips_unknown: bool = False,
    ) -> None:
        """``shows_reasoning`` says of a chunk of the stream whether it adds to the reasoning. ``skips_unknown``: an id
        that only pads the model's vocabulary to a round size counts and has no text; else it is an error."""
        self._skips_unknown = skips_unknown
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self._tokenizer = tokenizer
        self._stream = stream
        self._shows_reasoning = shows_reasoning
        self._think_end = tokenizer.encode_special(THINK_END)
        self._at_stop_id = False
        self._ended = False
        # Ids that wait until their bytes are whole characters, their text so far, whether it is known not to be UTF-8.
        self._decoder = IncrementalDecoder(tokenizer)
        self._held: list[int] = []
        self._held_logprobs: list[Logprob] = []
        self._held_text = ""
        self._broken = False

    @property
    def finished(self) -> bool:
        return self._at_stop_id or self._stream.finished

    def push(self, ids: Iterable[SupportsIndex], logprobs: Sequence[Logprob] | None = None) -> Iterator[dict[str, Any]]:
        """Take the next ids, with their log-probabilities where the answer shows them; yields what they add, so it acts
        only as far as it is read. Raises TokenizerError at an id out of range."""
        assert not self._ended, "push after finish"
        numbers = list(map(operator.index, ids))
        joins = logprobs is None and self._stream.may_join
        position = 0
        while position < len(numbers) and not self.finished:
            stop = self._end_of_ascii(numbers, position) if joins and not self._held else position
            if stop > position:
                self.num_tokens += stop - position
                chunks = self._stream.push_ids(numbers[position:stop])
            else:
                stop = position + 1
                chunks = self._push_next(numbers[position], None if logprobs is None else logprobs[position])
            if any(map(self._shows_reasoning, chunks)):
                self.num_reasoning_tokens = self.num_tokens - (numbers[stop - 1] == self._think_end)
            position = stop
            yield from chunks

    def finish(self, reason: FinishReason = "stop") -> list[dict[str, Any]]:
        """End the answer, ``reason`` being the engine's; returns what was still held back. Call it once."""
        assert not self._ended, "finish called twice"
        self._ended = True
        chunks = self._stream.push_text(self._held_text) if self._held_text else []
        return chunks + self._stream.finish(reason)

    def _end_of_ascii(self, ids: Sequence[int], start: int) -> int:
        """Where the ids from ``start`` on end that are plain ASCII with something to see in each: these may go to the
        parser in one push."""
        for position in range(start, len(ids)):
            text = self._tokenizer.ascii_text(ids[position]) if self._is_known(ids[position]) else None
            if (
                text is None or text.isspace()
            ):  # the parser keeps spaces back where a mark may follow: they show nothing
                return position
        return len(ids)

    def _push_next(self, token_id: int, logprob: Logprob | None) -> list[dict[str, Any]]:
        self.num_tokens += 1
        if not self._is_known(token_id):
            return []
        if token_id in self._tokenizer.stop_ids:
            self._at_stop_id = True
            return []
        return self._push_one(token_id, logprob)

    def _is_known(self, token_id: int) -> bool:
        try:
            self._tokenizer.ascii_text(token_id)
        except TokenizerError:
            if not self._skips_unknown:
                raise
            return False
        return True

    def _push_one(self, token_id: int, logprob: Logprob | None) -> list[dict[str, Any]]:
        if token_id not in self._tokenizer.special_ids:
            return self._push_plain(token_id, logprob)
        rest = self._held_text + self._decoder.flush()
        chunks = self._stream.push_text(rest) if rest else []
        chunks += self._stream.push_ids([token_id], None if logprob is None else [logprob])
        self._held, self._held_logprobs, self._held_text, self._broken = [], [], "", False
        return chunks

    def _push_plain(self, token_id: int, logprob: Logprob | None) -> list[dict[str, Any]]:
        """Hand on the held ids when their bytes are whole characters, their text as soon as it cannot be UTF-8."""
        self._held.append(token_id)
        if logprob is not None:
            self._held_logprobs.append(logprob)
        self._held_text += self._decoder.push_one(token_id)
        self._broken |= "\ufffd" in self._held_text
        whole = not self._decoder.pending
        chunks: list[dict[str, Any]] = []
        if self._broken:
            chunks = self._stream.push_text(self._held_text)
        elif whole:
            chunks = self._stream.push_ids(self._held, self._held_logprobs or None)
        if self._broken or whole:
            self._held, self._held_logprobs, self._held_text = [], [], ""
        if whole:
            self._broken = False
        return chunks


class OutputParser:
    """Parser of one answer: ``push`` ids as they come, ``finish`` once, then read ``message``.

    How the ids are cut into pushes changes no result. ``finished`` is true once a stop id (``Tokenizer.stop_ids``) or a
    stop string was seen; ids behind it do not belong to the answer and are ignored. ``num_tokens`` is kept current.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool,
        tools: bool,
        continues: Continues | None = None,
        stop: Sequence[str] = (),
        json_output: bool = False,
    ) -> None:
        """``thinking``, ``tools`` and ``continues`` as in RenderedPrompt; with ``tools`` off, calls stay plain text.

        ``stop``: strings that end the content (not the reasoning) and are cut off. ``json_output``: take JSON out of a
        code fence.
        """
        stream = AnswerStream.plain(
            tokenizer.official, thinking=thinking, continues=continues, tools=tools, stop=stop, json_output=json_output
        )
        self._feed = TokenFeed(tokenizer, stream, chat_chunk_reasons)
        self._ended = False
        self._finish_reason: str | None = None
        self._reasoning: list[str] | None = [] if thinking else None
        self._content: list[str] = []
        self._calls: list[tuple[Delta, list[str]]] = []

    @classmethod
    def for_prompt(
        cls, prompt: RenderedPrompt, tokenizer: Tokenizer, *, stop: Sequence[str] = (), json_output: bool = False
    ) -> "OutputParser":
        """The parser of the answer to ``prompt``."""
        return cls(
            tokenizer,
            thinking=prompt.thinking,
            tools=prompt.tools,
            continues=prompt.continues,
            stop=stop,
            json_output=json_output,
        )

    @property
    def finished(self) -> bool:
        return self._feed.finished

    @property
    def num_tokens(self) -> int:
        return self._feed.num_tokens

    def push(self, ids: Iterable[SupportsIndex]) -> list[Delta]:
        """Take the next ids and return what they add. Raises TokenizerError at an id out of range."""
        return [delta for chunk in self._feed.push(ids) for delta in self._take(chunk)]

    def finish(self, reason: FinishReason = "stop") -> list[Delta]:
        """End the answer, ``reason`` being the engine's; returns what was still held back. Call it once."""
        deltas = [delta for chunk in self._feed.finish(reason) for delta in self._take(chunk)]
        self._ended = True
        return deltas

    def parse(self, ids: Iterable[SupportsIndex], reason: FinishReason = "stop") -> ParsedMessage:
        """A whole answer in one call."""
        self.push(ids)
        self.finish(reason)
        return self.message

    @property
    def message(self) -> ParsedMessage:
        """The whole answer, after ``finish``."""
        assert self._ended, "message before finish"
        assert self._finish_reason is not None, "the library gave no finish_reason"
        return ParsedMessage(
            reasoning=None if self._reasoning is None else "".join(self._reasoning),
            content="".join(self._content),
            tool_calls=tuple(
                ToolCall(name=head.name or "", arguments="".join(parts), call_id=head.call_id or "")
                for head, parts in self._calls
            ),
            finish_reason=self._finish_reason,
            num_tokens=self._feed.num_tokens,
            num_reasoning_tokens=self._feed.num_reasoning_tokens,
        )

    def _take(self, chunk: dict[str, Any]) -> list[Delta]:
        """A chunk as deltas, without the empty ones, added to the message."""
        deltas = []
        for choice in chunk["choices"]:
            deltas += [delta for delta in _deltas(choice["delta"]) if delta.text or delta.name is not None]
            self._finish_reason = choice["finish_reason"] or self._finish_reason
        for delta in deltas:
            if delta.kind == "content":
                self._content.append(delta.text)
            elif delta.kind == "reasoning":
                assert self._reasoning is not None, "reasoning with thinking off"
                self._reasoning.append(delta.text)
            elif delta.name is not None:
                self._calls.append((delta, []))
            else:
                assert delta.index is not None
                self._calls[delta.index][1].append(delta.text)
        return deltas


def turn_of(conversion: Conversion, tokenizer: Tokenizer, ids: Sequence[int]) -> Turn:
    """A whole answer to a request as the conversation would hold it, whatever the request's protocol; ids without text
    are skipped. The ids of its calls are random."""
    stream = AnswerStream.of_request(
        replace(conversion, protocol="chat"), tokenizer.official, response_id="", model="", created=0
    )
    feed = TokenFeed(tokenizer, stream, chat_chunk_reasons, skips_unknown=True)
    stream.ready()
    for _ in feed.push(ids):
        pass
    feed.finish()
    message = stream.collected["choices"][0]["message"]
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    return Turn(
        content=message.get("content") or "",
        reasoning=message.get("reasoning_content"),
        calls=tuple((call_id, function["name"], function["arguments"]) for call_id, function in calls),
    )


def chat_chunk_reasons(chunk: dict[str, Any]) -> bool:
    """Whether a chunk of Chat Completions adds to the reasoning."""
    return any(choice["delta"].get("reasoning_content") for choice in chunk["choices"])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _deltas(delta: dict[str, Any]) -> Iterable[Delta]:
    yield Delta(kind="reasoning", text=delta.get("reasoning_content") or "")
    yield Delta(kind="content", text=delta.get("content") or "")
    for call in delta.get("tool_calls") or ():
        function = call["function"]
        yield Delta(
            kind="tool_call",
            text=function["arguments"],
            index=call["index"],
            call_id=call.get("id"),
            name=function.get("name"),
        )

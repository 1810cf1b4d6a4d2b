"""What comes back to a client: events of the engine in, events of a protocol out.

An ``Answer`` is one API response. ``begin`` once, ``tokens`` as they come, ``end`` once: each returns what to send. All
run in the event loop. Without streaming the same is done and ``result`` is sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pelagos.chat.adapter import AnswerStream, Conversion, Logprob
from pelagos.chat.parse import TokenFeed, turn_of
from pelagos.engine.request import Answer as EngineAnswer
from pelagos.engine.request import Finished, Reading, Request
from pelagos.serving.bridge import NewTokens
from pelagos.serving.errors import ApiError, Dialect
from pelagos.serving.turns import Written

if TYPE_CHECKING:
    from pelagos.serving.state import Server

Frame: TypeAlias = tuple[str | None, Mapping[str, Any] | str]  # name and data of an event


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Tokens of a whole response. ``extra`` is what goes beyond the protocols: the cache hit explained, times."""

    num_prompt: int
    num_cached: int
    num_computed: int
    num_generated: int
    num_reasoning: int
    extra: dict[str, Any]


class Answer(ABC):
    """One API response as it comes to be."""

    dialect: Dialect = "openai"

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether nothing more is wanted of the engine: every choice is at a stop string or end token."""

    @abstractmethod
    def begin(self, num_cached: int) -> list[Frame]: ...

    @abstractmethod
    def tokens(self, news: NewTokens) -> list[Frame]: ...

    @abstractmethod
    def end(self, finished: Mapping[int, Finished], trouble: ApiError | None) -> list[Frame]:
        """The last events, ``finished`` by number of the request. ``trouble``: why the answer is not whole."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The whole response, after ``end``."""

    @abstractmethod
    def keep(self) -> None:
        """Write down what must outlive the answer; called in a thread, after ``end`` or ``failure`` and before their
        events go out."""

    def alive(self) -> list[Frame]:
        """Events, beside a comment, that say that nothing is lost yet."""
        return []

    def failure(self, error: ApiError, request_id: str) -> list[Frame]:
        """Events that end a stream in the middle."""
        from pelagos.serving.errors import body

        frames: list[Frame] = [(None, body(error, "openai", request_id)), (None, "[DONE]")]
        return [("error", body(error, "anthropic", request_id))] if self.dialect == "anthropic" else frames


class Choice:
    """One answer of the model, read by the official parser. ``chunks`` are dicts in the protocol's shape."""

    def __init__(self, stream: AnswerStream, feed: TokenFeed, *, logprobs: bool = False) -> None:
        self.stream = stream
        self.feed = feed
        self.token_ids: Sequence[int] = ()
        self._logprobs = logprobs
        self._is_ended = False

    def tokens(self, news: NewTokens) -> Iterable[dict[str, Any]]:
        if self._is_ended:
            return []
        pairs: list[Logprob] | None = None
        if self._logprobs:
            pairs = [(token.logprob or 0.0, token.top_logprobs) for token in news.tokens]
        return self.feed.push([token.token_id for token in news.tokens], pairs)

    def end(self, answer: EngineAnswer | None) -> list[dict[str, Any]]:
        """``answer``: the engine's; None if it has none."""
        self._is_ended = True
        reason = "error" if answer is None else answer.finish_reason
        self.token_ids = [] if answer is None else answer.token_ids[: self.feed.num_tokens]
        is_stop = reason == "stop" or self.feed.finished
        return self.feed.finish("stop" if is_stop else "length")


class Keeper:
    """Remembers what the model wrote in answer to one request, where later prompts will show it."""

    def __init__(self, server: "Server", conversion: Conversion, request: Request) -> None:
        self._server = server
        self._conversion = conversion
        self._namespace = request.namespace
        self._prompt_ids = request.prompt_ids

    def keep(self, choice: "Choice", call_ids: Sequence[str]) -> None:
        """Remember a choice that has ended. ``call_ids``: of its calls, as the client saw them."""
        token_ids = choice.token_ids
        if not self._conversion.has_tools or not token_ids or token_ids[-1] != self._server.tokenizer.eos_id:
            return
        turn = turn_of(self._conversion, self._server.tokenizer, token_ids)
        if len(turn.calls) == len(call_ids):
            calls = tuple((call_id, *call[1:]) for call_id, call in zip(call_ids, turn.calls, strict=True))
            written = Written(prompt_ids=self._prompt_ids, token_ids=token_ids, turn=replace(turn, calls=calls))
            self._server.turns.remember(self._namespace, written)


def count(finished: Mapping[int, Finished], choices: Sequence[Choice] | None = None) -> Counts:
    """Adds up the engine's counts. Where the server itself found the end of an answer (``choices``), the tokens behind
    it, which the engine made before it could be told, do not count."""
    ends = list(finished.values())
    usages = [end.usage for end in ends]
    num_generated = sum(usage.num_generated for usage in usages)
    num_reasoning = 0
    if choices is not None:
        num_generated = sum(choice.feed.num_tokens for choice in choices)
        num_reasoning = sum(choice.feed.num_reasoning_tokens for choice in choices)
    counts = {
        "num_prompt": sum(usage.num_prompt_tokens for usage in usages),
        "num_cached": sum(usage.num_cached for usage in usages),
        "num_computed": sum(usage.num_computed for usage in usages),
    }
    first = ends[0] if ends else None
    extra: dict[str, Any] = {"cached_tokens": counts["num_cached"], "computed_tokens": counts["num_computed"]}
    if first is not None:
        extra |= {
            "note": first.note,
            "queue_seconds": _rounded(first.times.started),
            "first_token_seconds": _rounded(first.times.first_token),
            "seconds": _rounded(max(end.times.finished for end in ends)),
            "seed": first.seed,
        }
        drafted, accepted = (sum(getattr(usage, name) for usage in usages) for name in ("num_drafted", "num_accepted"))
        if drafted:
            extra |= {"drafted_tokens": drafted, "accepted_tokens": accepted}
    return Counts(**counts, num_generated=num_generated, num_reasoning=num_reasoning, extra=extra)


def headers(counts: Counts) -> dict[str, str]:
    """The same for people who look at the headers of a response that was not streamed."""
    found = {
        f"x-pelagos-{name.replace('_', '-')}": str(value).encode("ascii", "replace").decode().replace("\n", " ")
        for name, value in counts.extra.items()
        if value not in (None, "")
    }
    return {name: value[:500] for name, value in found.items()}


def progress_text(progress: Mapping[int, Reading], num_generated: int) -> str:
    """The comment that a stream shows while there is nothing else."""
    if num_generated or not progress:
        return f"generated {num_generated} tokens" if num_generated else "waiting for its turn"
    read = sum(reading.num_read for reading in progress.values())
    total = sum(reading.num_prompt_tokens for reading in progress.values())
    return f"reading {read} of {total} tokens"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)

"""One prompt, one model, one answer: generation without a server.

``generate_stream`` is the loop; ``generate`` collects what it yields. The prompt is read in chunks, then each token is
chosen and fed back until one of these ends the output:

- an end token, the model's or one of ``stop_ids`` ("stop"): it is in ``token_ids`` and not in ``text``;
- a stop string ("stop"): ``text`` is cut before it, ``token_ids`` has all tokens up to the one that completed it;
- ``max_tokens``, or the longest sequence the model takes ("length").
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import checked_prompt
from pelagos.engine.sampler import History, Sampled, sample
from pelagos.engine.stop import Decoder, TextStream

if TYPE_CHECKING:
    from pelagos.model.transformer import AnyState, Model

FinishReason = Literal["stop", "length"]


class Stopwatch:
    """Adds up the seconds spent in its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Prompt tokens read so far, and how many there are."""

    num_read: int
    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Token:
    """One generated token. ``text`` is what it made certain: it may be empty, or hold the end of earlier tokens."""

    sampled: Sampled
    text: str


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of work, without what the caller did between events. Prefill is reading the prompt. Decode is choosing
    tokens and reading all but the last back: ``num_decode_tokens`` counts those read."""

    prefill_seconds: float
    decode_seconds: float
    num_prefill_tokens: int
    num_decode_tokens: int

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.num_prefill_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        return self.num_decode_tokens / self.decode_seconds if self.num_decode_tokens else None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A whole output. ``text`` is None without a decoder. ``state_bytes`` is the size of the state at the end, which
    holds all tokens but the last. ``seed`` is the given one, or the one that was drawn; it gives the same output
    again."""

    tokens: tuple[Sampled, ...]
    text: str | None
    finish_reason: FinishReason
    stop_string: str | None
    timings: Timings
    state_bytes: int
    seed: int

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


def generate(
    model: "Model",
    prompt_ids: Sequence[int],
    params: SamplingParams,
    decoder: Decoder | None = None,
    *,
    on_token: Callable[[Token], None] | None = None,
    prefill_chunk: int = 512,
) -> Generation:
    """The whole output; ``on_token`` sees each token as it comes. Same arguments and errors as ``generate_stream``."""
    for event in generate_stream(model, prompt_ids, params, decoder, prefill_chunk=prefill_chunk):
        if isinstance(event, Generation):
            return event
        if isinstance(event, Token) and on_token is not None:
            on_token(event)
    raise AssertionError("a stream ends with its Generation")


def generate_stream(
    model: "Model",
    prompt_ids: Sequence[int],
    params: SamplingParams,
    decoder: Decoder | None = None,
    *,
    prefill_chunk: int = 512,
) -> Iterator[Progress | Token | Generation]:
    """Progress for each chunk of the prompt, each token as it comes, then the Generation.

    ``decoder``: a new ``IncrementalDecoder`` of the model's tokenizer; None for ids alone. ``prefill_chunk``: prompt
    tokens read at a time, which bounds memory and changes no bit of the result. Raises UsageError, before any work and
    at the call itself, for a prompt that is empty, too long or not of this vocabulary, and for stop strings without a
    decoder.
    """
    prompt = checked_prompt(prompt_ids, model.config.vocab_size, model.config.max_positions)
    if prefill_chunk < 1:
        raise UsageError(f"prefill_chunk must be a whole number of at least 1, got {prefill_chunk}")
    if params.stop and decoder is None:
        raise UsageError("stop needs the text of the output, and the model came without a tokenizer")
    return _run(model, prompt, params.with_seed(), decoder, prefill_chunk)


def _run(
    model: "Model", prompt: list[int], params: SamplingParams, decoder: Decoder | None, prefill_chunk: int
) -> Iterator[Progress | Token | Generation]:
    end_ids = frozenset(params.stop_ids) | frozenset(() if params.ignore_eos else model.config.eos_ids)
    num_places = min(params.max_tokens, model.config.max_positions - len(prompt))
    history = History(model.config.vocab_size, prompt) if params.uses_history else None
    text = TextStream(decoder, params.stop)
    prefill, decode = Stopwatch(), Stopwatch()
    events: list[Token] = []
    finish_reason: FinishReason = "length"

    state = model.new_state()
    logits = yield from _prefill(model, prompt, state, prefill_chunk, prefill)
    while finish_reason == "length" and len(events) < num_places:
        with decode:
            if events:
                logits = model.step([events[-1].sampled.token_id], state, num_logits=1)
            sampled = sample(logits[-1], params, history, state.num_tokens)
            if history is not None:
                history.add(sampled.token_id)
            at_end = sampled.token_id in end_ids
            piece = "" if at_end else text.push(sampled.token_id)
            if at_end or len(events) + 1 == num_places:
                piece += text.flush()
            if at_end or text.stop_string is not None:
                finish_reason = "stop"
        events.append(Token(sampled=sampled, text=piece))
        yield events[-1]

    assert params.seed is not None
    yield Generation(
        tokens=tuple(event.sampled for event in events),
        text=None if decoder is None else "".join(event.text for event in events),
        finish_reason=finish_reason,
        stop_string=text.stop_string,
        timings=Timings(
            prefill_seconds=prefill.seconds,
            decode_seconds=decode.seconds,
            num_prefill_tokens=len(prompt),
            num_decode_tokens=max(0, len(events) - 1),
        ),
        state_bytes=state.num_bytes,
        seed=params.seed,
    )


def _prefill(
    model: "Model", prompt: list[int], state: "AnyState", chunk: int, watch: Stopwatch
) -> Generator[Progress, None, Tensor]:
    """Read the prompt and return the logits after its last token, [1, V] float32."""
    for start in range(0, len(prompt), chunk):
        stop = min(start + chunk, len(prompt))
        with watch:
            logits = model.step(prompt[start:stop], state, num_logits=int(stop == len(prompt)))
        yield Progress(num_read=stop, num_prompt_tokens=len(prompt))
    return logits

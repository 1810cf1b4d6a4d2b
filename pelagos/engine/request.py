"""One request to the engine, and what comes back: events while it runs, one ``Finished`` at its end.

A request is a prompt and how to go on from it; ``num_choices`` answers share the prompt's work. Each answer ends for a
reason of its own; the request ends when all have. This module needs no torch.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pelagos.common.errors import UsageError
from pelagos.common.fields import check_fields, setting, show
from pelagos.engine.params import SamplingParams
from pelagos.engine.stop import Decoder

if TYPE_CHECKING:
    from torch import Tensor

    from pelagos.engine.sampler import Sampled

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
MAX_NAME_BYTES = 512


class Constraint(Protocol):
    """What holds an answer to a grammar; ``pelagos.chat.grammar_state.ConstraintState`` is one."""

    @property
    def is_active(self) -> bool: ...

    def observe(self, token_id: int) -> None: ...

    def mask(self, size: int) -> "Tensor | None": ...

    def forced(self) -> list[int]: ...

    def copy(self) -> "Constraint": ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to generate. ``prompt_ids`` is the whole prefix: the engine finds out what of it need not be computed.

    ``decoder`` makes a decoder for each answer; without one there is no text. ``constraint``: its state before the
    first token of an answer; each answer follows a copy. Work is shared among requests of one ``namespace`` alone.
    ``user``: whom the work is done for; users take turns. ``timeout``: seconds from ``add`` to the end, whatever was
    reached by then.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    num_choices: int = setting(1, help="answers to the prompt", low=1, high=128)
    decoder: Callable[[], Decoder] | None = None
    constraint: Constraint | None = None
    namespace: str = ""
    user: str = ""
    priority: int = setting(0, help="higher goes first", low=-100, high=100)
    timeout: float | None = setting(None, help="seconds until the request is ended", low=0.0, high=1e9)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("namespace", "user"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.encode()) > MAX_NAME_BYTES:
                raise UsageError(f"{name} must be a text of at most {MAX_NAME_BYTES} bytes")
        if self.params.stop and self.decoder is None:
            raise UsageError("stop needs the text of the output, and the request came without a decoder")


def checked_prompt(prompt_ids: Sequence[int], vocab_size: int, max_positions: int) -> list[int]:
    """The prompt as plain ids. Raises UsageError if it is empty, too long, or not of this vocabulary."""
    if len(prompt_ids) == 0:
        raise UsageError("the prompt must hold at least one token, got none")
    if len(prompt_ids) > max_positions:
        raise UsageError(f"the prompt has {len(prompt_ids)} tokens, the model takes at most {max_positions}")
    for position, token_id in enumerate(prompt_ids):
        try:
            fits = 0 <= operator.index(token_id) < vocab_size
        except TypeError:
            fits = False
        if not fits:
            raise UsageError(
                f"prompt token {position} must be a whole number from 0 to {vocab_size - 1}, got {show(token_id)}"
            )
    return [operator.index(token_id) for token_id in prompt_ids]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The prompt is being read: ``num_read`` of its tokens are known, ``num_cached`` of them without work."""

    request_id: str
    num_read: int
    num_cached: int
    num_prompt_tokens: int


class Tokens(NamedTuple):
    """New tokens of one answer, and the text that they made certain (it may be empty, or hold the end of earlier
    tokens). An end token is the last of ``tokens`` and not in ``text``."""

    request_id: str
    choice: int
    tokens: "tuple[Sampled, ...]"
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as a whole. ``text`` is None without a decoder. ``stop_string``: the one that ended it."""

    tokens: "tuple[Sampled, ...]"
    text: str | None
    finish_reason: FinishReason
    stop_string: str | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of a request. Prompt tokens are cached (found) or computed; ``num_generated`` is the sum of all answers;
    drafted and accepted: by speculation."""

    num_prompt_tokens: int
    num_cached: int
    num_computed: int
    num_generated: int
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds from ``add``: to the start of work, to the first token, to the end. None: it did not come to that."""

    started: float | None
    first_token: float | None
    finished: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The end of a request: exactly one for each that was added. ``error`` says in a sentence what went wrong where an
    answer's reason is "error". ``seed`` gives the same output again. ``note`` explains the cache hit."""

    request_id: str
    answers: tuple[Answer, ...]
    usage: Usage
    times: Times
    seed: int
    note: str = ""
    error: str | None = None


Event = Reading | Tokens | Finished
# What it returns for Tokens is when it wants to hear of more, on the clock of time.monotonic; None: at once. Until then
# they add up, unless the answer ends.
OnEvent = Callable[[Event], float | None]

"""What the engine keeps of a request while it works on it: the request itself, and each of its answers.

A ``Job`` is a request from ``add`` to its last event. Its prompt is read once, by the first ``Sequence``; at the
prompt's end the other answers fork from it.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Answer, Constraint, Finished, FinishReason, OnEvent, Request, Times, Tokens, Usage
from pelagos.engine.sampler import History, Sampled
from pelagos.engine.stop import TextStream


@dataclass(kw_only=True, eq=False, slots=True)
class Sequence:
    """One answer. ``timeline``: what the engine's cache opened for it. ``ids``: room for all its tokens, the prompt's
    first; the first ``num_ids`` are known, of which the timeline has read ``timeline.num_tokens``. ``is_free``: whether
    nothing but the logits counts for its next token."""

    job: "Job"
    choice: int
    timeline: Any
    ids: np.ndarray
    num_ids: int
    constraint: Constraint | None
    history: History | None
    text: TextStream
    is_free: bool
    sampled: list[Sampled] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    drafts: list[int] = field(default_factory=list)
    num_counted: int = 0
    num_handed_out: int = 0
    is_closed: bool = False

    @property
    def pending(self) -> np.ndarray:
        """Known tokens that the timeline has not read."""
        return self.ids[self.timeline.num_tokens : self.num_ids]

    @property
    def is_reading(self) -> bool:
        """Whether the prompt is not read to its end."""
        return bool(self.timeline.num_tokens < self.job.num_prompt_tokens)

    def append(self, sampled: Sampled) -> None:
        """Take the next token of the answer, and find out whether it is the last."""
        assert self.finish_reason is None
        token_id = sampled.token_id
        self.ids[self.num_ids] = token_id
        self.num_ids += 1
        self.sampled.append(sampled)
        if self.history is not None:
            self.history.add(token_id)
        at_end = token_id in self.job.end_ids
        if self.constraint is not None:
            self.constraint.observe(token_id)
        piece = "" if at_end else self.text.push(token_id)
        is_full = self.num_ids == len(self.ids)
        if at_end or is_full:
            piece += self.text.flush()
        self.pieces.append(piece)
        if at_end or self.text.stop_string is not None:
            self.finish_reason = "stop"
        elif is_full:
            self.finish_reason = "length"

    def answer(self) -> Answer:
        has_text = self.job.request.decoder is not None
        return Answer(
            tokens=tuple(self.sampled),
            text="".join(self.pieces) if has_text else None,
            finish_reason=self.finish_reason or "cancelled",
            stop_string=self.text.stop_string,
        )

    def count(self) -> int:
        """How many tokens were appended since this was last asked."""
        start, self.num_counted = self.num_counted, len(self.sampled)
        return self.num_counted - start

    def news(self) -> Tokens | None:
        """What was appended and not yet handed out."""
        start, stop = self.num_handed_out, len(self.sampled)
        if start == stop:
            return None
        self.num_handed_out = stop
        return Tokens(self.job.request_id, self.choice, tuple(self.sampled[start:]), "".join(self.pieces[start:]))


@dataclass(kw_only=True, eq=False, slots=True)
class Job:
    """One request. ``order``: of arrival. ``stops``: places in the prompt where another request waits for a restart
    point; ``waits_for``: the job whose work it waits for. ``sequences`` is empty until it is admitted."""

    request_id: str
    request: Request
    params: SamplingParams
    prompt: np.ndarray
    max_tokens: int
    end_ids: frozenset[int]
    order: int
    on_event: OnEvent | None
    added: float
    quiet_until: float = 0.0
    sequences: list[Sequence] = field(default_factory=list)
    stops: set[int] = field(default_factory=set)
    waits_for: "tuple[Job, int] | None" = None
    num_cached: int = 0
    num_computed: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    started: float | None = None
    first_token: float | None = None
    is_paused: bool = False
    note: str = ""
    error: str | None = None
    answers: dict[int, Answer] = field(default_factory=dict)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.prompt)

    @property
    def is_reading(self) -> bool:
        return bool(self.sequences) and self.sequences[0].is_reading

    def new_sequence(self, choice: int, timeline: Any, vocab_size: int) -> Sequence:
        ids = np.zeros(self.num_prompt_tokens + self.max_tokens, dtype=np.int32)
        ids[: self.num_prompt_tokens] = self.prompt
        make = self.request.decoder
        return Sequence(
            job=self,
            choice=choice,
            timeline=timeline,
            ids=ids,
            num_ids=self.num_prompt_tokens,
            constraint=None if self.request.constraint is None else self.request.constraint.copy(),
            history=History(vocab_size, self.prompt.tolist()) if self.params.uses_history else None,
            text=TextStream(None if make is None else make(), self.params.stop),
            is_free=self.params.is_free and self.request.constraint is None,
        )

    def finished(self, now: float) -> Finished:
        """The last event, when all answers are there."""
        assert self.params.seed is not None
        answers = [self.answers[choice] for choice in range(self.request.num_choices)]
        return Finished(
            request_id=self.request_id,
            answers=tuple(answers),
            usage=Usage(
                num_prompt_tokens=self.num_prompt_tokens,
                num_cached=self.num_cached,
                num_computed=self.num_computed,
                num_generated=sum(len(answer.tokens) for answer in answers),
                num_drafted=self.num_drafted,
                num_accepted=self.num_accepted,
            ),
            times=Times(
                started=None if self.started is None else self.started - self.added,
                first_token=None if self.first_token is None else self.first_token - self.added,
                finished=now - self.added,
            ),
            seed=self.params.seed,
            note=self.note,
            error=self.error,
        )


class Piece(NamedTuple):
    """Part of a step: the next tokens of one sequence, the first at position ``start``. Logits are wanted behind the
    last ``num_logits`` of them. ``num_drafts``: tokens at its end that are guesses."""

    sequence: Sequence
    start: int
    token_ids: list[int]
    num_logits: int
    num_drafts: int = 0


Batch = list[Piece]

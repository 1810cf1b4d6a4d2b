"""Greedy answers to many prompts side by side, on the exact inference path: each is what it would be alone."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor

from pelagos.model.native_state import NativeState
from pelagos.model.state import State
from pelagos.model.transformer import AnyState, Model

PREFILL_TOKENS = 1024  # read in one call, of all prompts together


@dataclass(kw_only=True)
class Timeline:
    """What of a conversation was read already, and the state after it. A prompt that goes on from there costs its new
    tokens alone; any other starts anew."""

    token_ids: list[int] = field(default_factory=list)
    state: AnyState | None = None

    def unread(self, model: Model, prompt: Sequence[int]) -> list[int]:
        """The tokens of ``prompt`` that are still to be read, at least one."""
        num_read = len(self.token_ids)
        if self.state is None or num_read >= len(prompt) or list(prompt[:num_read]) != self.token_ids:
            self.token_ids, self.state, num_read = [], model.new_state(), 0
        return list(prompt[num_read:])


def read_together(
    model: Model, prompts: Sequence[Sequence[int]], prefill_tokens: int = PREFILL_TOKENS
) -> list[Timeline]:
    """A timeline per prompt, behind the longest start that all have in common, which is read once."""
    starts = [list(prompt[:-1]) for prompt in prompts]  # an answer begins behind a token that is read for it alone
    num_common = sum(1 for _ in takewhile(lambda tokens: len({*tokens}) == 1, zip(*starts, strict=False)))
    line = Timeline(state=model.new_state())
    _read(model, [line], [starts[0][:num_common]], prefill_tokens)
    state = cast("State | NativeState", line.state)  # what new_state makes
    return [Timeline(token_ids=list(line.token_ids), state=state.copy()) for _ in prompts]


def greedy_answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    stop_ids: Collection[int],
    timelines: Sequence[Timeline] | None = None,
    is_over: Callable[[int, list[int]], bool] | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
) -> list[list[int]]:
    """The likeliest token again and again after each prompt of at least one token; the smallest id among equals.

    An answer ends with a stop id, which it holds, after its ``max_tokens``, at the longest sequence the model takes, or
    when ``is_over(number of the prompt, answer so far)``. ``timelines``: one per prompt, to go on from and to be kept.
    Raises UsageError for prompts that are too long or not of this vocabulary.
    """
    lines = [Timeline() for _ in prompts] if timelines is None else timelines
    room = model.config.max_positions
    limits = [min(limit, room - len(prompt)) for limit, prompt in zip(max_tokens, prompts, strict=True)]
    answers: list[list[int]] = [[] for _ in prompts]
    logits = _read(
        model, lines, [line.unread(model, p) for line, p in zip(lines, prompts, strict=True)], prefill_tokens
    )
    active = [i for i, limit in enumerate(limits) if limit > 0]
    while active:
        for i in active:
            answers[i].append(int(logits[i].argmax()))
        active = [
            i
            for i in active
            if answers[i][-1] not in stop_ids
            and len(answers[i]) < limits[i]
            and not (is_over is not None and is_over(i, answers[i]))
        ]
        logits = _step(model, lines, {i: answers[i][-1:] for i in active})
    return answers


def _read(model: Model, lines: Sequence[Timeline], unread: list[list[int]], num_tokens: int) -> dict[int, Tensor]:
    """Read all of ``unread``; logits after the last token of each, [V]."""
    logits: dict[int, Tensor] = {}
    while waiting := [i for i, tokens in enumerate(unread) if tokens]:
        room, pieces = num_tokens, {}
        for i in waiting:
            if room:
                pieces[i], unread[i] = unread[i][:room], unread[i][room:]
                room -= len(pieces[i])
        logits |= _step(model, lines, pieces)
    return logits


def _step(model: Model, lines: Sequence[Timeline], pieces: dict[int, list[int]]) -> dict[int, Tensor]:
    if not pieces:
        return {}
    states = [state for i in pieces if (state := lines[i].state) is not None]
    rows = model.step_batch(list(pieces.values()), states, num_logits=1)
    for i, tokens in pieces.items():
        lines[i].token_ids += tokens
    return {i: row[-1] for i, row in zip(pieces, rows, strict=True)}


@torch.no_grad()
def log_probabilities(
    model: Model, token_ids: Sequence[int], *, start: int = 1, prefill_tokens: int = PREFILL_TOKENS
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens ``start`` .. of one sequence, each given all before it, and whether each is the
    likeliest: [T - start] float64 and bool. ``start`` is at least 1. On the exact inference path."""
    assert start >= 1, "nothing stands before the first token"
    state, chosen, likeliest = model.new_state(), [], []
    for first in range(0, len(token_ids) - 1, prefill_tokens):
        tokens = token_ids[first : min(first + prefill_tokens, len(token_ids) - 1)]
        num_wanted = min(len(tokens), max(0, first + len(tokens) - (start - 1)))
        logits = model.step(tokens, state, num_logits=num_wanted)
        place = first + len(tokens) - num_wanted
        targets = torch.tensor(token_ids[place + 1 : place + 1 + num_wanted], dtype=torch.int64, device=logits.device)
        log_p = torch.log_softmax(logits.double(), 1)
        chosen.append(log_p.gather(1, targets.unsqueeze(1)).squeeze(1))
        likeliest.append(logits.argmax(1) == targets)
    if not chosen:
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.bool)
    return torch.cat(chosen), torch.cat(likeliest)

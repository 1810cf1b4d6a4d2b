"""The choice of one token from the model's logits.

Randomness is counter-based: the number that chooses the token at a position is a function of the seed and the position
alone (Philox, Salmon et al. 2011). So a token does not depend on what else runs in the batch, on how the prompt was
read, or on whether the work was stopped and went on.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pelagos.common.errors import PelagosError, UsageError
from pelagos.engine.params import SamplingParams
from pelagos.ops.cpu.module import native
from pelagos.ops.cpu.sampling import NONE_ALLOWED, NOT_FINITE, TokenChoice, choose_tokens
from pelagos.ops.reference import sampling


class History:
    """Which tokens a timeline holds: ``seen`` [V] bool over prompt and output, ``counts`` [V] int64 of the output."""

    def __init__(self, vocab_size: int, prompt_ids: Sequence[int]) -> None:
        self.seen = torch.zeros(vocab_size, dtype=torch.bool)
        self.seen[torch.tensor(prompt_ids, dtype=torch.int64)] = True
        self.counts = torch.zeros(vocab_size, dtype=torch.int64)

    def add(self, token_id: int) -> None:
        self.seen[token_id] = True
        self.counts[token_id] += 1


class Sampled(NamedTuple):  # as Tokens and Piece are: made for each token, and a tuple is made fastest
    """One chosen token. Log-probabilities are natural logarithms under the model's own distribution, before penalties,
    temperature and filters; they are None and () unless asked for. ``top_logprobs``: (token id, value), likeliest
    first."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, position: int, choice: int = 0) -> float:
    """A number in [0, 1), the same for the same seed and position (both from 0 to 2**63 - 1) everywhere, another for
    each of a request's answers."""
    return float(np.random.Generator(np.random.Philox(key=seed + (choice << 64), counter=position)).random())


def choose(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
    """Token ids, NOT_FINITE or NONE_ALLOWED, of rows of the model's logits [N, V] float32, dense, one for each choice:
    by the native kernels where they are built, else as the reference has it."""
    if native() is not None:
        return choose_tokens(logits, choices)
    return [_choose(logits[one.row], one) for one in choices]


def token_choice(
    params: SamplingParams, position: int, row: int = 0, choice: int = 0, allowed: Tensor | None = None
) -> TokenChoice:
    """What ``params`` want of the token at ``position``, but for what changes the logits."""
    if params.temperature == 0:
        return TokenChoice(row, allowed=allowed)
    assert params.seed is not None
    top_k = params.top_k or 0
    return TokenChoice(
        row, params.temperature, top_k, params.top_p, params.min_p, params.seed, choice, position, allowed
    )


def checked_token(token_id: int, position: int) -> int:
    """Raise PelagosError for what ``choose`` gives in place of a token."""
    if token_id == NOT_FINITE:
        raise PelagosError(
            f"the model's logits for position {position} are not finite: its weights or a kernel are broken"
        )
    if token_id == NONE_ALLOWED:
        raise UsageError("the grammar and the allowed tokens leave no token to choose")
    return token_id


def sample(
    logits: Tensor,
    params: SamplingParams,
    history: History | None,
    position: int,
    *,
    choice: int = 0,
    mask: Tensor | None = None,
) -> Sampled:
    """Choose the token at ``position`` of the timeline (0 is the prompt's first token) from the model's logits for it.

    logits [V] float32 on any device. ``history`` may be None where ``params.uses_history`` is false; ``params.seed``
    may be None only where temperature is 0. ``choice``: number of the answer; ``mask`` [V] bool: tokens that a grammar
    allows. Raises PelagosError if the logits are NaN, +inf, or all -inf, or if no token is left.
    """
    logits = logits.cpu().contiguous()
    wanted = token_choice(params, position, 0, choice, _allowed(len(logits), params, mask))
    token_id = checked_token(choose(_weighted(logits, params, history)[None], [wanted])[0], position)
    if params.logprobs is None:
        return Sampled(token_id=token_id)
    values = sampling.log_probabilities(logits)
    ids = sampling.top_ids(logits, params.logprobs).tolist() if params.logprobs else []
    top = tuple((index, values[index].item()) for index in ids)
    return Sampled(token_id=token_id, logprob=values[token_id].item(), top_logprobs=top)


def _weighted(logits: Tensor, params: SamplingParams, history: History | None) -> Tensor:
    """Logits with biases and penalties."""
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        logits = logits.index_add(0, torch.tensor(ids), torch.tensor(values, dtype=logits.dtype))
    if params.uses_history:
        assert history is not None
        logits = sampling.penalize_repetition(logits, history.seen, params.repetition_penalty)
        logits = sampling.penalize_counts(logits, history.counts, params.presence_penalty, params.frequency_penalty)
    return logits


def _allowed(vocab_size: int, params: SamplingParams, mask: Tensor | None) -> Tensor | None:
    """Which tokens may be chosen, [V] bool; None: all."""
    if params.allowed_ids is None:
        return mask
    allowed = torch.zeros(vocab_size, dtype=torch.bool)
    allowed[torch.tensor(params.allowed_ids)] = True
    return allowed if mask is None else mask & allowed


def _choose(logits: Tensor, wanted: TokenChoice) -> int:
    """``choose`` of one row, by the reference."""
    if not math.isfinite(logits.max().item()):
        return NOT_FINITE
    if wanted.allowed is not None:
        logits = logits.masked_fill(~wanted.allowed, -torch.inf)
        if math.isinf(logits.max().item()):
            return NONE_ALLOWED
    if wanted.temperature == 0:
        return int(sampling.greedy(logits))
    logits = sampling.apply_temperature(logits, wanted.temperature)
    if wanted.top_k:
        logits = sampling.keep_top_k(logits, wanted.top_k)
    logits = sampling.keep_min_p(sampling.keep_top_p(logits, wanted.top_p), wanted.min_p)
    number = torch.tensor(uniform(wanted.seed, wanted.position, wanted.choice), dtype=torch.float64)
    return int(sampling.choose(sampling.probabilities(logits), number))

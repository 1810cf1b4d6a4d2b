"""The choice of one token from the model's logits.

Randomness is counter-based: the number that chooses the token at a position is a function of the seed and the position
alone (Philox, Salmon et al. 2011). So a token does not depend on what else runs in the batch, on how the prompt was
read, or on whether the work was stopped and went on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pelagos.common.errors import PelagosError, UsageError
from pelagos.engine.params import SamplingParams
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


@dataclass(frozen=True, kw_only=True)
class Sampled:
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
    logits = logits.cpu()
    if not math.isfinite(logits.max().item()):
        raise PelagosError(
            f"the model's logits for position {position} are not finite: its weights or a kernel are broken"
        )
    token_id = _choose(_allowed(logits, params, mask), params, history, position, choice)
    if params.logprobs is None:
        return Sampled(token_id=token_id)
    values = sampling.log_probabilities(logits)
    ids = sampling.top_ids(logits, params.logprobs).tolist() if params.logprobs else []
    top = tuple((index, values[index].item()) for index in ids)
    return Sampled(token_id=token_id, logprob=values[token_id].item(), top_logprobs=top)


def _allowed(logits: Tensor, params: SamplingParams, mask: Tensor | None) -> Tensor:
    """Logits with the biases added, -inf for what may not be chosen."""
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        logits = logits.index_add(0, torch.tensor(ids), torch.tensor(values, dtype=logits.dtype))
    if params.allowed_ids is not None:
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        allowed[torch.tensor(params.allowed_ids)] = True
        mask = allowed if mask is None else mask & allowed
    if mask is None:
        return logits
    logits = logits.masked_fill(~mask, -torch.inf)
    if math.isinf(logits.max().item()):
        raise UsageError("the grammar and the allowed tokens leave no token to choose")
    return logits


def _choose(logits: Tensor, params: SamplingParams, history: History | None, position: int, choice: int) -> int:
    if params.uses_history:
        assert history is not None
        logits = sampling.penalize_repetition(logits, history.seen, params.repetition_penalty)
        logits = sampling.penalize_counts(logits, history.counts, params.presence_penalty, params.frequency_penalty)
    if params.temperature == 0:
        return int(sampling.greedy(logits))
    assert params.seed is not None
    logits = sampling.apply_temperature(logits, params.temperature)
    if params.top_k is not None:
        logits = sampling.keep_top_k(logits, params.top_k)
    logits = sampling.keep_min_p(sampling.keep_top_p(logits, params.top_p), params.min_p)
    number = torch.tensor(uniform(params.seed, position, choice), dtype=torch.float64)
    return int(sampling.choose(sampling.probabilities(logits), number))

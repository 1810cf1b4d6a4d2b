"""From logits to a token: penalties, temperature, top-k, top-p, min-p, choice.

The order is that of Hugging Face's generation: penalties, temperature, then top-k, top-p and min-p, where each filter
sees the distribution that the filter before it left, renormalised. A filtered-out token has the logit -inf.

Every function takes one row ``[V]`` or many ``[N, V]``; a row's result is bit for bit the same in both, whatever the
other rows hold and however many threads run. For that reason the only sum over the vocabulary is a running sum: it goes
from the first entry to the last in every row, where a plain sum may be split among threads. Ties go to the smaller
token id everywhere.

Shapes: N rows, V vocabulary, K chosen. A shape written ``[..., V]`` stands for both ``[V]`` and ``[N, V]``.
"""

import torch
from torch import Tensor


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens of prompt and output less likely: a positive logit is divided by ``penalty``, a negative one
    multiplied by it. 1 changes nothing.

    logits [..., V] float32, seen [..., V] bool -> [..., V] float32.
    Source: equation 2 of CTRL (arXiv 1909.05858) with the sign rule of Hugging Face, so that a penalty always lowers.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalize_counts(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract ``frequency`` for every time the output holds a token, and ``presence`` once if it does at all.

    logits [..., V] float32, counts [..., V] integers, of the output alone -> [..., V] float32.
    Source: the OpenAI API reference, "frequency and presence penalties".
    """
    return logits - frequency * counts - presence * (counts > 0)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by a temperature above 0. The row's largest logit is subtracted first, which no later step can see and
    which keeps the quotient finite for every temperature.

    logits [..., V] float32 -> [..., V] float64, largest entry 0.
    """
    return _below_largest(logits) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the ``k`` largest logits of a row, exactly ``k`` of them also where logits tie.

    logits [..., V] floating point -> same shape and dtype.
    """
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top_ids(logits, k), True)
    return logits.masked_fill(~kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the most likely tokens until their probabilities reach ``p``; the one that reaches it is kept. 1 keeps all.

    logits [..., V] floating point -> same shape and dtype.
    Source: nucleus sampling (arXiv 1904.09751, section 3.1).
    """
    if p >= 1:
        return logits
    weights, ids = torch.sort(_below_largest(logits).exp(), dim=-1, descending=True, stable=True)
    running = weights.cumsum(dim=-1)
    kept = (running - weights) < p * running[..., -1:]
    return logits.masked_fill(~torch.zeros_like(kept).scatter(-1, ids, kept), -torch.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that are at least ``min_p`` times as likely as the most likely one. 0 keeps all.

    logits [..., V] floating point -> same shape and dtype.
    Source: min-p sampling (arXiv 2407.01082, section 3).
    """
    return logits.masked_fill(_below_largest(logits).exp() < min_p, -torch.inf)


def top_ids(logits: Tensor, k: int) -> Tensor:
    """The ids of the ``k`` largest logits (all V if V < k), largest first, equal ones by smaller id.

    logits [..., V] floating point -> [..., K] int64. ``torch.topk`` does not define which of several equal entries it
    returns, so it gives the threshold alone.
    """
    k = min(k, logits.shape[-1])
    if logits.dim() > 1:
        rows = [top_ids(row, k) for row in logits]
        return torch.stack(rows) if rows else torch.empty(0, k, dtype=torch.int64, device=logits.device)
    candidates = (logits >= logits.topk(k).values[-1]).nonzero().squeeze(-1)
    order = torch.sort(logits[candidates], descending=True, stable=True).indices
    return candidates[order[:k]]


def log_probabilities(logits: Tensor) -> Tensor:
    """The logarithm of the softmax of a row.

    logits [..., V] floating point, none NaN and at least one of a row above -inf -> [..., V] float64.
    """
    shifted = _below_largest(logits)
    return shifted - shifted.exp().cumsum(dim=-1)[..., -1:].log()


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of a row. Same input as ``log_probabilities``; [..., V] float64."""
    weights = _below_largest(logits).exp()
    return weights / weights.cumsum(dim=-1)[..., -1:]


def greedy(logits: Tensor) -> Tensor:
    """The id of the largest logit. logits [..., V] floating point -> [...] int64."""
    return logits.argmax(dim=-1)  # documented to return the first of equal entries


def choose(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first id whose running sum of probabilities exceeds ``uniform`` of their total: inverse transform sampling.
    A token of probability 0 is never chosen.

    probabilities [..., V] float64, need not sum to 1; uniform [...] float64 in [0, 1) -> [...] int64.
    """
    running = probabilities.contiguous().cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * running[..., -1:]
    return torch.searchsorted(running, target, right=True).squeeze(-1)


def _below_largest(logits: Tensor) -> Tensor:
    """Logits minus the largest of their row, so that exp cannot overflow. [..., V] -> [..., V] float64, contiguous."""
    values = logits.double().contiguous()  # one memory order, hence one way to compute, for a row alone and in a batch
    return values - values.amax(dim=-1, keepdim=True)

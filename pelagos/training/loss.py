"""The training objective:

    loss = CE_main + mtp_weight · CE_mtp + balance_weight · Σ_layers L_balance + index_weight · Σ_layers L_index

L_index is made by packed.py. Everything here is float32.

Shapes: N predicted places, D width, V vocabulary, B rows, T tokens, E experts, K chosen experts.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from pelagos.common.fields import check_fields, setting

_CHUNK = 2048  # places whose logits stand in memory at a time


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the objective's parts."""

    mtp_weight: float = setting(0.3, help="weight of the multi-token-prediction loss", low=0.0, high=10.0)
    mtp_weight_late: float = setting(0.1, help="the same from the start of the rate's decay on", low=0.0, high=10.0)
    balance_weight: float = setting(1e-4, help="weight of the balance loss of each routed layer", low=0.0, high=10.0)
    index_weight: float = setting(1.0, help="weight of the indexers' own loss", low=0.0, high=100.0)

    def __post_init__(self) -> None:
        check_fields(self)


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · −log softmax(hidden · headᵀ)[target].

    hidden: [N, D]; head: [V, D]; targets: [N] int64; weights: [N] float32, 0 where nothing is predicted. Logits exist
    for 2,048 places at a time; their gradient is worked out on the way forward.
    """
    loss: Tensor = _CrossEntropy.apply(hidden, head, targets, weights)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        kept = weights.nonzero().squeeze(1)
        shares = weights[kept]
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        matrix = head.float()
        for start in range(0, len(kept), _CHUNK):
            at, share = kept[start : start + _CHUNK], shares[start : start + _CHUNK]
            h = hidden[at].float()
            log_p = torch.log_softmax(h @ matrix.t(), 1)
            place = torch.arange(len(at), device=at.device)
            loss -= (log_p[place, targets[at]] * share).sum()
            grad = log_p.exp_()
            grad[place, targets[at]] -= 1.0
            grad *= share.unsqueeze(1)
            grad_hidden[at] = grad @ matrix
            grad_head.addmm_(grad.t(), h)
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_head.to(head.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grads[0], grad_head * grads[0], None, None


@torch.no_grad()
def next_tokens(token_ids: Tensor, document_ids: Tensor, weights: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """Targets and weights of predicting the token ``ahead`` places on, within the same document.

    token_ids, document_ids, weights: [B, T] -> targets [B·T] int64, weights [B·T] float32 (0 across a document's end).
    """
    targets = F.pad(token_ids[:, ahead:], (0, ahead))
    same = F.pad(document_ids[:, ahead:], (0, ahead), value=-1) == document_ids
    shifted = F.pad(weights[:, ahead:], (0, ahead))
    return targets.flatten(), (shifted * (same & (document_ids >= 0))).flatten()


def balance_loss(scores: Tensor, chosen: Tensor, counted: Tensor) -> Tensor:
    """Σ_e f_e · P_e per packed row, averaged: 1 when experts are equally used.

    scores: [B, T, E] router scores; chosen: [B, T, K]; counted: [B, T] bool, tokens that are not padding. f_e is
    E / (K · tokens) times the tokens that chose e, without gradient; P_e the mean share of e in a token's scores.
    Source: DeepSeek-V3 report, section 2.1.2, with V4's scores.
    """
    num_experts, num_chosen = scores.shape[2], chosen.shape[2]
    tokens = counted.sum(1, keepdim=True).clamp(min=1)  # [B, 1]
    shares = scores / scores.sum(2, keepdim=True).clamp(min=1e-20)
    mean_share = (shares * counted.unsqueeze(2)).sum(1) / tokens
    used = torch.zeros_like(mean_share).scatter_add_(
        1, chosen.flatten(1), counted.unsqueeze(2).expand_as(chosen).flatten(1).to(mean_share.dtype)
    )
    return (used * num_experts / (num_chosen * tokens) * mean_share).sum(1).mean()

"""Mixture of experts: routing, and the clamped SwiGLU of one expert.

Shapes: T tokens, E experts, K chosen experts, D width, I inner width of an expert.
"""

import torch
from torch import Tensor

from pelagos.ops.reference.elementwise import ordered_sum, silu, softplus


def router_scores(logits: Tensor) -> Tensor:
    """sqrt(softplus(logits)), float32, not negative. logits: [T, E]."""
    return torch.sqrt(softplus(logits.float()))


def top_experts(scores: Tensor, bias: Tensor, k: int) -> Tensor:
    """The k experts with the largest score + bias, smaller id first among equals. [T, E], [E] -> [T, k] int64."""
    return torch.sort(scores + bias, dim=1, descending=True, stable=True).indices[:, :k]


def routing_weights(scores: Tensor, chosen: Tensor, factor: float) -> Tensor:
    """Scores of the chosen experts, scaled to sum to ``factor``. scores: [T, E] float32; chosen: [T, K] -> [T, K]."""
    picked = scores.gather(1, chosen)
    return picked / (ordered_sum(picked, 1).unsqueeze(1) + 1e-20) * factor


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
    """silu(min(gate, limit)) · clamp(up, ±limit), float32. gate, up: [T, I]; the gate is limited from above only."""
    gate, up = gate.float(), up.float()
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return silu(gate) * up

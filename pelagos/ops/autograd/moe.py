"""Router scores and SwiGLU with torch's own activations."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST = 1e-30  # below it the slope of the square root would overflow


def router_scores(logits: Tensor) -> Tensor:
    """See the reference; scores below 1e-15 are held there, without gradient."""
    return torch.sqrt(F.softplus(logits.float()).clamp(min=_SMALLEST))


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
    """See the reference. The gradient is zero where a clamp holds."""
    gate, up = gate.float(), up.float()
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return F.silu(gate) * up

"""Sums in a fixed order, and activations whose value does not depend on an element's place in its tensor."""

import torch
from torch import Tensor


def ordered_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over ``dim`` as a fixed tree: element i is added to element i + ceil(n/2), and so on with what is left.

    x: any shape and float dtype, ``dim`` may be empty (the sum is 0). Only elementwise additions are used, so the
    order depends on the length of ``dim`` alone, not on the other dimensions, strides or threads.
    """
    size = x.shape[dim]
    if size == 0:
        return x.sum(dim)
    while size > 1:
        half = (size + 1) // 2
        low, high = x.narrow(dim, 0, half), x.narrow(dim, half, size - half)
        if size % 2:
            middle = low.narrow(dim, half - 1, 1)
            x = torch.cat([low.narrow(dim, 0, half - 1) + high, middle], dim)
        else:
            x = low + high
        size = half
    return x.squeeze(dim)


def mean_square(x: Tensor) -> Tensor:
    """Mean of x² over the last dim, float32, [..., D] -> [..., 1]."""
    x = x.float()
    return ordered_sum(x * x, -1).unsqueeze(-1) / x.shape[-1]


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax over ``dim`` in float32. -inf entries get weight 0; at least one entry must be finite."""
    x = x.float()
    weights = torch.exp(x - x.amax(dim, keepdim=True))
    return weights / ordered_sum(weights, dim).unsqueeze(dim)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + torch.exp(-x))


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    """ln(1 + exp(x)), without overflow for large x."""
    return x.clamp(min=0.0) + torch.log1p(torch.exp(-x.abs()))

"""RMS normalisation and rotary position encoding.

Shapes: T tokens, C head size, R rotated dims at the end of a head (pairs of neighbours).
"""

import torch
from torch import Tensor

from pelagos.ops.reference.elementwise import mean_square


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight · x / sqrt(mean(x²) + eps) over the last dim, in float32, rounded once to the dtype of x."""
    return (weight.float() * (x.float() * torch.rsqrt(mean_square(x) + eps))).to(x.dtype)


def head_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dim; the factor is found in float32, the product is in the dtype of x."""
    return x * torch.rsqrt(mean_square(x) + eps).to(x.dtype)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency. positions: [T] int64. frequencies: [R/2] float32. Two [T, R/2] float32."""
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of the last R dims: (e, o) -> (e·cos − o·sin, e·sin + o·cos); inverse turns back.

    x: [T, ..., C]; cos, sin: [T, R/2] float32. Computed in float32, returned in the dtype of x.
    """
    num_rotated = 2 * cos.shape[-1]
    shape = (x.shape[0], *([1] * (x.dim() - 2)), cos.shape[-1])
    cos, sin = cos.view(shape), sin.view(shape)
    if inverse:
        sin = -sin
    still, turned = x[..., : x.shape[-1] - num_rotated], x[..., x.shape[-1] - num_rotated :].float()
    even, odd = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return torch.cat([still, pairs.flatten(-2).to(x.dtype)], dim=-1)

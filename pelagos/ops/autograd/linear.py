"""Linear maps as library products; weights are float parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """See the reference. Computed in the dtype of x."""
    return F.linear(x, weight.to(x.dtype)).to(out_dtype or x.dtype)


def grouped_linear(x: Tensor, weight: Tensor, *, num_groups: int) -> Tensor:
    """See the reference. x: [T, G, I]; weight: [G·N, I] -> [T, G·N]."""
    matrices = weight.to(x.dtype).view(num_groups, -1, x.shape[-1])
    return torch.bmm(x.transpose(0, 1), matrices.transpose(1, 2)).transpose(0, 1).flatten(1)

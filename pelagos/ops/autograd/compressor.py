"""Pooling with torch's own softmax."""

import torch
from torch import Tensor


def pool_window(values: Tensor, gates: Tensor) -> Tensor:
    """See the reference. values, gates: [N, J, C] -> [N, C]."""
    return (torch.softmax(gates.float(), 1) * values.float()).sum(1)

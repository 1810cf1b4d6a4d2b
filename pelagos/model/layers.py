"""Building blocks: a matrix, an embedding, a norm weight."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.formats.matrix import QuantizedMatrix
from pelagos.ops.dispatch import Ops
from pelagos.ops.reference.linear import Matrix


class StoredWeights(nn.Module):
    """Base of modules whose matrices may stay as a checkpoint stores them.

    A matrix attribute is a float Parameter, or a QuantizedMatrix (FP8, FP4), or a tuple of either, one per expert.
    """

    def put(self, name: str, value: Matrix | Sequence[Matrix]) -> None:
        """Replace matrix ``name``."""
        self._parameters.pop(name, None)
        self.__dict__.pop(name, None)
        if isinstance(value, Tensor):
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            setattr(self, name, value if isinstance(value, QuantizedMatrix) else tuple(value))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        for name, value in list(vars(self).items()):
            if isinstance(value, QuantizedMatrix):
                setattr(self, name, value.to(device))
            elif isinstance(value, tuple) and all(isinstance(item, (Tensor, QuantizedMatrix)) for item in value):
                setattr(self, name, tuple(item.to(device) for item in value))
        return self


class Linear(StoredWeights):
    """y = x · Wᵀ. ``rounds_input``: with official rounding x is first rounded to FP8 in groups of 128."""

    def __init__(self, num_in: int, num_out: int, ops: Ops, *, rounds_input: bool = False) -> None:
        super().__init__()
        self.ops, self.rounds_input = ops, rounds_input
        self.weight: Matrix = nn.Parameter(torch.empty(num_out, num_in))

    def forward(self, x: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        """x: [..., num_in] -> [..., num_out] in ``out_dtype`` or the dtype of x."""
        x = self.ops.round_activation(x) if self.rounds_input else x
        return self.ops.linear(x, self.weight, out_dtype=out_dtype)


class Embedding(nn.Module):
    """One row per token id."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, size))

    def forward(self, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """token_ids: [T] int64 -> [T, size] in ``dtype``."""
        # Not weight[token_ids]: its gradient is added up by several threads in whatever order they come.
        return F.embedding(token_ids, self.weight).to(dtype)


class Norm(nn.Module):
    """RMSNorm with a weight; see ops.reference.norm_rope.rms_norm."""

    def __init__(self, size: int, eps: float, ops: Ops) -> None:
        super().__init__()
        self.ops, self.eps = ops, eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

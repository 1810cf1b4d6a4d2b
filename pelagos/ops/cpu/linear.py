"""Matrix products on weights as they are stored: native/linear.h."""

from typing import Any

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import activation, kernels
from pelagos.ops.cpu.rounding import round_activation
from pelagos.ops.reference.linear import Matrix

_FLOAT_FORMATS = {torch.float32: 0, torch.bfloat16: 1}  # numbers of native/types.h
_FP8, _FP4 = 2, 3


class NativeMatrix:
    """A weight matrix [N, I] as native code takes it: ``handle`` points into the tensors, which this keeps alive.

    Raises UsageError for a dtype that is not kept as it is stored (float16, float64), and for one not on the CPU.
    """

    def __init__(self, weight: Matrix) -> None:
        if weight.device.type != "cpu":
            raise UsageError(f"weight must be on the CPU, not on {weight.device}")
        rows, columns = weight.shape
        if isinstance(weight, Tensor):
            if weight.dtype not in _FLOAT_FORMATS:
                raise UsageError(f"weight must be float32, bfloat16, FP8 or FP4, not {weight.dtype}")
            values = weight.detach().contiguous()
            self._kept: tuple[Tensor, ...] = (values,)
            layout: tuple[Any, ...] = (_FLOAT_FORMATS[weight.dtype], values.data_ptr(), 0, False, 1, 1)
        else:
            codes, scales = weight.codes.contiguous(), weight.scales.contiguous()
            self._kept = (codes, scales)
            kind = _FP4 if weight.kind == "fp4" else _FP8
            block = weight.layout.rows, weight.layout.cols
            layout = (kind, codes.data_ptr(), scales.data_ptr(), scales.dtype == torch.float32, *block)
        self.shape = (rows, columns)
        self.handle = kernels().Matrix(*layout, rows, columns, 0)
        self.pairs: bool = self.handle.pairs  # whether rounded_linear computes products of pairs


def linear(x: Tensor, weight: Matrix, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """See ops.reference.linear.linear."""
    return _product(x, NativeMatrix(weight), 1, out_dtype or x.dtype)


def grouped_linear(x: Tensor, weight: Matrix, *, num_groups: int) -> Tensor:
    """See ops.reference.linear.grouped_linear."""
    return _product(x.flatten(-2), NativeMatrix(weight), num_groups, x.dtype)


def rounded_linear(x: Tensor, weight: Matrix) -> Tensor:
    """linear(round_activation(x), weight) as the native forward pass of a rounding model computes it, float32.

    Shapes and errors of ops.reference.linear.linear. FP8 and FP4 weights in the official layouts take products of
    pairs, see native/linear.h: another order of the sum than that of ``linear``.
    """
    matrix, rounded = NativeMatrix(weight), round_activation(x)
    if not matrix.pairs:
        return _product(rounded, matrix, 1, torch.float32)
    rows = _rows(rounded, matrix.shape[1]).float()
    y = torch.empty(rows.shape[0], matrix.shape[0])
    packed = torch.empty_like(rows)
    kernels().linear_pairs(matrix.handle, rows.data_ptr(), rows.shape[0], packed.data_ptr(), y.data_ptr())
    return y.reshape(*x.shape[:-1], matrix.shape[0])


def _rows(x: Tensor, num_columns: int) -> Tensor:
    rows, _ = activation("x", x)
    if rows.shape[-1] != num_columns:
        raise UsageError(f"x must have {num_columns} columns, not {rows.shape[-1]}")
    return rows.reshape(-1, num_columns)


def _product(x: Tensor, weight: NativeMatrix, num_groups: int, out_dtype: torch.dtype) -> Tensor:
    num_out, num_in = weight.shape
    flat = _rows(x, num_in * num_groups)
    y = torch.empty(flat.shape[0], num_out)
    kernels().linear(weight.handle, num_groups, flat.data_ptr(), flat.shape[0], y.data_ptr(), False)
    return y.to(out_dtype).reshape(*x.shape[:-1], num_out)

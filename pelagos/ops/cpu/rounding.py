"""Native roundings of the served model, and the bytes of cached rows. Definitions: pelagos/formats, simulate and rows.

Bits are those of the definitions (a NaN may carry other payload bits). Raises UsageError.
"""

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import activation, kernels, num_rows, numbers


class RowFormat(IntEnum):
    """How a cached row lies in memory; the numbers are those of native/types.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FP8 = 2
    INDEX_FP8 = 3
    INDEX_FP4 = 4


def round_activation(x: Tensor) -> Tensor:
    rows, _ = activation("x", x)
    y = torch.empty_like(rows)
    kernels().round_activation(rows.data_ptr(), num_rows(x), x.shape[-1], y.data_ptr())
    return y.to(x.dtype)


def hadamard(x: Tensor) -> Tensor:
    y, rounds = _copy(x)
    kernels().hadamard(y.data_ptr(), num_rows(x), _power_of_two(x), rounds)
    return y.to(x.dtype)


def round_index(x: Tensor) -> Tensor:
    y, rounds = _copy(x)
    kernels().round_index(y.data_ptr(), num_rows(x), _power_of_two(x), rounds)
    return y.to(x.dtype)


def round_row(rows: Tensor, num_rope_dims: int) -> Tensor:
    y, _ = _copy(rows)
    if not 0 <= num_rope_dims <= rows.shape[-1]:
        raise UsageError(f"num_rope_dims must be from 0 to {rows.shape[-1]}, not {num_rope_dims}")
    kernels().round_row(y.data_ptr(), num_rows(rows), rows.shape[-1], num_rope_dims)
    return y.to(rows.dtype)


def row_layout(row_format: RowFormat, size: int, num_rope_dims: int = 0) -> Any:
    """The native ``RowLayout`` of rows of ``size`` numbers; ``.bytes`` is the length of one."""
    if size < 1 or (row_format is RowFormat.INDEX_FP4 and size % 2):
        raise UsageError(f"size of a {row_format.name} row must be at least 1 and, in FP4, even, not {size}")
    if not 0 <= num_rope_dims <= size:
        raise UsageError(f"num_rope_dims must be from 0 to {size}, not {num_rope_dims}")
    return kernels().RowLayout(int(row_format), size, num_rope_dims)


def store_rows(layout: Any, x: Tensor) -> Tensor:
    """Rows [N, size] -> uint8 [N, layout.bytes]."""
    rows = numbers("x", x, None, layout.size)
    packed = torch.empty(len(rows), layout.bytes, dtype=torch.uint8)
    kernels().store_rows(layout, rows.data_ptr(), len(rows), packed.data_ptr())
    return packed


def load_rows(layout: Any, packed: Tensor) -> Tensor:
    """The inverse of ``store_rows``: uint8 [N, layout.bytes], at any address -> float32 [N, size]."""
    if (
        packed.dtype != torch.uint8
        or packed.dim() != 2
        or packed.shape[1] != layout.bytes
        or not packed.is_contiguous()
    ):
        raise UsageError(f"packed must be dense uint8 [N, {layout.bytes}], not {packed.dtype} {list(packed.shape)}")
    rows = torch.empty(len(packed), layout.size)
    kernels().load_rows(layout, packed.data_ptr(), len(packed), rows.data_ptr())
    return rows


def _copy(x: Tensor) -> tuple[Tensor, bool]:
    """``activation`` in memory of its own, to be changed in place."""
    rows, rounds = activation("x", x)
    return (rows.clone() if rows.data_ptr() == x.data_ptr() else rows), rounds


def _power_of_two(x: Tensor) -> int:
    size = x.shape[-1]
    if size < 1 or size & (size - 1):
        raise UsageError(f"the last dimension of x must be a power of two, not {size}")
    return size

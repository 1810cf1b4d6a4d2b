"""Native pooling of token windows. Meaning, shapes and dtypes: pelagos/ops/reference/compressor.py; up to 256 slots."""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import kernels, numbers

_MAX_SLOTS = 256


def pool_window(values: Tensor, gates: Tensor, exists: Tensor | None = None) -> Tensor:
    """``exists``: [N, J] bool, which slots there are (None: all); the others are not read. Raises UsageError."""
    values = numbers("values", values, None, None, None)
    num, slots, size = values.shape
    if not 1 <= slots <= _MAX_SLOTS:
        raise UsageError(f"values must have 1 to {_MAX_SLOTS} slots, not {slots}")
    gates, row = numbers("gates", gates, num, slots, size), torch.empty(num, size)
    if exists is not None and (exists.dtype != torch.bool or exists.shape != (num, slots)):
        raise UsageError(f"exists must be bool [{num}, {slots}], not {exists.dtype} {list(exists.shape)}")
    flags = None if exists is None else exists.contiguous()
    address = 0 if flags is None else flags.data_ptr()
    kernels().pool_window(values.data_ptr(), gates.data_ptr(), address, num, slots, size, row.data_ptr())
    return row

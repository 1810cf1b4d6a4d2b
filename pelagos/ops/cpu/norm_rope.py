"""Native RMS normalisation and rotation. Meaning, shapes and dtypes: pelagos/ops/reference/norm_rope.py.

Activations may be float32 or bfloat16; results have their dtype. A row's bits depend on the row alone. Errors are
UsageError.
"""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import activation, kernels, num_rows, numbers


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows, rounds = activation("x", x)
    size = x.shape[-1]
    weight, y = numbers("weight", weight, size), torch.empty_like(rows)
    kernels().rms_norm(rows.data_ptr(), weight.data_ptr(), num_rows(x), size, eps, y.data_ptr(), rounds)
    return y.to(x.dtype)


def head_norm(x: Tensor, eps: float) -> Tensor:
    rows, rounds = activation("x", x)
    y = torch.empty_like(rows)
    kernels().head_norm(rows.data_ptr(), num_rows(x), x.shape[-1], eps, y.data_ptr(), rounds)
    return y.to(x.dtype)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    if positions.dtype != torch.int64 or positions.dim() != 1 or positions.device.type != "cpu":
        raise UsageError(f"positions must be a flat int64 tensor on the CPU, not {positions.dtype} {positions.shape}")
    positions, frequencies = positions.contiguous(), numbers("frequencies", frequencies, None)
    rows, half = len(positions), len(frequencies)
    cos, sin = torch.empty(2, rows, half).unbind()
    kernels().rotation(positions.data_ptr(), frequencies.data_ptr(), rows, half, cos.data_ptr(), sin.data_ptr())
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    rows, rounds = activation("x", x)
    num_tokens, size, half = x.shape[0], x.shape[-1], cos.shape[-1]
    if 2 * half > size:
        raise UsageError(f"cos must have at most {size // 2} columns, half the size of a head, not {half}")
    cos, sin = numbers("cos", cos, num_tokens, half), numbers("sin", sin, num_tokens, half)
    y = rows.clone() if rows.data_ptr() == x.data_ptr() else rows
    heads = y[0].numel() // size if num_tokens else 0
    kernels().rotate(y.data_ptr(), cos.data_ptr(), sin.data_ptr(), num_tokens, heads, size, half, inverse, rounds)
    return y.to(x.dtype)

"""Native residual streams. Meaning, shapes and dtypes: pelagos/ops/reference/mhc.py; 1 to 8 streams.

Streams may be float32 or bfloat16. A row's bits depend on the row alone. Raises UsageError.
"""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import activation, kernels, numbers

_MAX_STREAMS = 8


def mhc_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    flat, _ = _streams(streams)
    rows, num, size = streams.shape
    wide = (2 + num) * num
    base, scale, z = numbers("base", base, wide), numbers("scale", scale, 3), _projected(flat, fn, wide)
    pre, post, mix = torch.empty(rows, num), torch.empty(rows, num), torch.empty(rows, num, num)
    inputs = (flat.data_ptr(), z.data_ptr(), base.data_ptr(), scale.data_ptr())
    outputs = (pre.data_ptr(), post.data_ptr(), mix.data_ptr())
    kernels().mhc_weights(*inputs, rows, num, size, norm_eps, hc_eps, iterations, *outputs)
    return pre, post, mix


def mhc_head_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float
) -> Tensor:
    flat, _ = _streams(streams)
    rows, num, size = streams.shape
    base, scale, z = numbers("base", base, num), numbers("scale", scale, 1), _projected(flat, fn, num)
    pre = torch.empty(rows, num)
    inputs = (flat.data_ptr(), z.data_ptr(), base.data_ptr(), scale.data_ptr())
    kernels().mhc_head_weights(*inputs, rows, num, size, norm_eps, hc_eps, pre.data_ptr())
    return pre


def mhc_collapse(streams: Tensor, pre: Tensor) -> Tensor:
    flat, rounds = _streams(streams)
    rows, num, size = streams.shape
    pre, y = numbers("pre", pre, rows, num), torch.empty(rows, size)
    kernels().mhc_collapse(flat.data_ptr(), pre.data_ptr(), rows, num, size, y.data_ptr(), rounds)
    return y.to(streams.dtype)


def mhc_expand(streams: Tensor, y: Tensor, post: Tensor, mix: Tensor) -> Tensor:
    flat, rounds = _streams(streams)
    rows, num, size = streams.shape
    y, post, mix = numbers("y", y, rows, size), numbers("post", post, rows, num), numbers("mix", mix, rows, num, num)
    out = flat.clone() if flat.data_ptr() == streams.data_ptr() else flat
    inputs = (y.data_ptr(), post.data_ptr(), mix.data_ptr())
    kernels().mhc_expand(out.data_ptr(), *inputs, rows, num, size, rounds)
    return out.to(streams.dtype)


def _streams(streams: Tensor) -> tuple[Tensor, bool]:
    if streams.dim() != 3 or not 1 <= streams.shape[1] <= _MAX_STREAMS:
        raise UsageError(f"streams must be [T, 1 to {_MAX_STREAMS}, D], not {list(streams.shape)}")
    return activation("streams", streams)


def _projected(flat: Tensor, fn: Tensor, wide: int) -> Tensor:
    """Dot products of the flat streams with the rows of fn, [T, wide]."""
    size = flat.shape[1] * flat.shape[2]
    fn, z = numbers("fn", fn, wide, size), torch.empty(len(flat), wide)
    kernels().project_streams(flat.data_ptr(), fn.data_ptr(), len(flat), size, wide, z.data_ptr())
    return z

"""RMS normalisation by torch's own fused function, and a rotation whose gradient is the rotation back."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from pelagos.ops.reference import norm_rope


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See the reference."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def head_norm(x: Tensor, eps: float) -> Tensor:
    """See the reference."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """See the reference. No gradient for the angles."""
    y: Tensor = _Rotation.apply(x, cos, sin, inverse)  # type: ignore[no-untyped-call]
    return y


class _Rotation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.inverse = inverse
        return norm_rope.rotate(x, cos, sin, inverse=inverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return norm_rope.rotate(grads[0], cos, sin, inverse=not ctx.inverse), None, None, None

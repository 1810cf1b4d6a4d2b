"""Hyper-connections with hand-written gradients for the two parts that autograd makes expensive.

- The normalised projection needs one product forward and two backward, and no normalised copy of the streams.
- Sinkhorn is about 40 tiny divisions. Its matrices are laid out [M, M, T], tokens last, so each is a few long vector
  operations; backward recomputes the iterations in place of keeping some 120 saved tensors.

Shapes: T tokens, M streams, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def mhc_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See the reference."""
    num = streams.shape[1]
    z = _project(streams, fn, norm_eps)
    reads, writes, mixes = torch.split(z, [num, num, num * num], 1)
    pre = torch.sigmoid(reads * scale[0] + base[:num]) + hc_eps
    post = 2.0 * torch.sigmoid(writes * scale[1] + base[num : 2 * num])
    logits = (mixes * scale[2] + base[2 * num :]).view(-1, num, num)
    mix: Tensor = _Sinkhorn.apply(torch.softmax(logits, -1), hc_eps, iterations)  # type: ignore[no-untyped-call]
    return pre, post, mix


def mhc_head_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float
) -> Tensor:
    """See the reference."""
    return torch.sigmoid(_project(streams, fn, norm_eps) * scale + base) + hc_eps


def mhc_collapse(streams: Tensor, pre: Tensor) -> Tensor:
    """See the reference."""
    return torch.einsum("tm,tmd->td", pre, streams.float()).to(streams.dtype)


def mhc_expand(streams: Tensor, y: Tensor, post: Tensor, mix: Tensor) -> Tensor:
    """See the reference."""
    mixed = torch.einsum("tjk,tjd->tkd", mix, streams.float())
    return torch.addcmul(mixed, post.unsqueeze(-1), y.float().unsqueeze(1)).to(streams.dtype)


def _project(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    z: Tensor = _Projection.apply(streams.float().flatten(1), fn.float(), eps)  # type: ignore[no-untyped-call]
    return z


class _Projection(Function):
    """z = (v · fnᵀ) · r with r = 1 / sqrt(mean(v²) + eps)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, fn: Tensor, eps: float) -> Tensor:
        r = torch.rsqrt(torch.linalg.vector_norm(v, dim=1, keepdim=True).square() / v.shape[1] + eps)
        p = v @ fn.t()
        ctx.save_for_backward(v, fn, r, p)
        return p * r

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        v, fn, r, p = ctx.saved_tensors
        scaled = grads[0] * r
        # dr/dv = −r³ · v / n, and r is behind every z of the token.
        back = (grads[0] * p).sum(1, keepdim=True) * r.pow(3) / -v.shape[1]
        return torch.addcmul(scaled @ fn, v, back), scaled.t() @ v, None


class _Sinkhorn(Function):
    """[T, M, M] rows that sum to 1 -> nearly doubly stochastic: columns, then iterations − 1 times rows and columns."""

    @staticmethod
    def forward(ctx: Any, softmaxed: Tensor, eps: float, iterations: int) -> Tensor:
        start = softmaxed.permute(1, 2, 0).contiguous() + eps
        ctx.save_for_backward(start)
        ctx.eps, ctx.iterations = eps, iterations
        mix = start.clone()
        for dim in _dims(iterations):
            mix.div_(mix.sum(dim, keepdim=True).add_(eps))
        return mix.permute(2, 0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mix,) = ctx.saved_tensors
        steps: list[tuple[int, Tensor, Tensor]] = []
        for dim in _dims(ctx.iterations):
            total = mix.sum(dim, keepdim=True).add_(ctx.eps)
            mix = mix / total
            steps.append((dim, mix, total))
        grad = grads[0].permute(1, 2, 0).contiguous()
        for dim, mix, total in reversed(steps):
            grad = (grad - (grad * mix).sum(dim, keepdim=True)).div_(total)
        return grad.permute(2, 0, 1), None, None


def _dims(iterations: int) -> list[int]:
    """Dims summed by each division, of [from stream, to stream, T]: 0 makes columns sum to 1, 1 makes rows."""
    return [0, *([1, 0] * (iterations - 1))]

"""Manifold-constrained hyper-connections: how a sub-block reads and writes the residual streams.

Shapes: T tokens, M streams, D width. All in float32; results that become activations are rounded once.
"""

import torch
from torch import Tensor

from pelagos.ops.reference.elementwise import mean_square, ordered_sum, sigmoid, softmax
from pelagos.ops.reference.linear import linear


def mhc_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Collapse weights ``pre`` [T, M], write weights ``post`` [T, M] and stream mixing ``mix`` [T, M, M].

    streams: [T, M, D]; fn: [(2+M)·M, M·D]; base: [(2+M)·M]; scale: [3]. mix[j, k] is the share of stream j that goes to
    stream k; Sinkhorn makes it doubly stochastic: softmax over k, columns, then ``iterations`` − 1 times rows and
    columns.
    """
    num = streams.shape[1]
    z = _projected(streams, fn, norm_eps)
    pre = sigmoid(z[:, :num] * scale[0] + base[:num]) + hc_eps
    post = 2.0 * sigmoid(z[:, num : 2 * num] * scale[1] + base[num : 2 * num])
    mix = softmax((z[:, 2 * num :] * scale[2] + base[2 * num :]).view(-1, num, num), -1) + hc_eps
    mix = mix / (ordered_sum(mix, 1).unsqueeze(1) + hc_eps)
    for _ in range(iterations - 1):
        mix = mix / (ordered_sum(mix, 2).unsqueeze(2) + hc_eps)
        mix = mix / (ordered_sum(mix, 1).unsqueeze(1) + hc_eps)
    return pre, post, mix


def mhc_head_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float
) -> Tensor:
    """Collapse weights [T, M] before the output head. fn: [M, M·D]; base: [M]; scale: [1]."""
    return sigmoid(_projected(streams, fn, norm_eps) * scale + base) + hc_eps


def mhc_collapse(streams: Tensor, pre: Tensor) -> Tensor:
    """Σ_j pre[j] · streams[j]: [T, M, D], [T, M] -> [T, D] in the dtype of streams."""
    return ordered_sum(streams.float() * pre.unsqueeze(-1), 1).to(streams.dtype)


def mhc_expand(streams: Tensor, y: Tensor, post: Tensor, mix: Tensor) -> Tensor:
    """streams'[k] = post[k] · y + Σ_j mix[j, k] · streams[j]. y: [T, D]. The sum runs over the first index of mix."""
    wide, y = streams.float(), y.float()
    mixed = [ordered_sum(wide * mix[:, :, k].unsqueeze(-1), 1) for k in range(streams.shape[1])]
    return (post.unsqueeze(-1) * y.unsqueeze(1) + torch.stack(mixed, 1)).to(streams.dtype)


def _projected(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    flat = streams.float().flatten(1)
    return linear(flat, fn) * torch.rsqrt(mean_square(flat) + norm_eps)

"""Residual streams (manifold-constrained hyper-connections): parameters of one sub-block, and of the output head.

Official checkpoints spell these parameters flat (``hc_attn_fn``), so the owner registers them; here is what they do.
"""

import torch
from torch import Tensor, nn

from pelagos.model.config import ModelConfig
from pelagos.ops.dispatch import Ops


class StreamMixer(nn.Module):
    """Reads one input from the streams, and writes a sub-block's output back into them."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        num = config.num_streams
        self.ops = ops
        self.norm_eps, self.hc_eps, self.iterations = config.norm_eps, config.hc_eps, config.sinkhorn_iterations
        self.fn = nn.Parameter(torch.empty((2 + num) * num, num * config.hidden_size))
        self.base = nn.Parameter(torch.empty((2 + num) * num))
        self.scale = nn.Parameter(torch.empty(3))

    def read(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """streams [T, M, D] -> input [T, D], and the write weights [T, M] and mixing [T, M, M] for ``write``."""
        pre, post, mix = self.ops.mhc_weights(
            streams,
            self.fn,
            self.base,
            self.scale,
            norm_eps=self.norm_eps,
            hc_eps=self.hc_eps,
            iterations=self.iterations,
        )
        return self.ops.mhc_collapse(streams, pre), post, mix

    def write(self, streams: Tensor, y: Tensor, post: Tensor, mix: Tensor) -> Tensor:
        """Streams after the sub-block, [T, M, D]. y: its output [T, D]."""
        return self.ops.mhc_expand(streams, y, post, mix)


class StreamHead(nn.Module):
    """Collapses the streams before the output head."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        num = config.num_streams
        self.ops = ops
        self.norm_eps, self.hc_eps = config.norm_eps, config.hc_eps
        self.fn = nn.Parameter(torch.empty(num, num * config.hidden_size))
        self.base = nn.Parameter(torch.empty(num))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, streams: Tensor) -> Tensor:
        """[T, M, D] -> [T, D]."""
        pre = self.ops.mhc_head_weights(
            streams, self.fn, self.base, self.scale, norm_eps=self.norm_eps, hc_eps=self.hc_eps
        )
        return self.ops.mhc_collapse(streams, pre)

"""The lightning indexer of a CSA layer: scores compressed rows with small heads of its own and keeps the best.

Shapes: T tokens, D width, H indexer heads, C indexer head size, S index rows, K kept rows.
"""

import torch
from torch import Tensor, nn

from pelagos.model.compressor import Compressor
from pelagos.model.config import ModelConfig
from pelagos.model.layers import Linear
from pelagos.model.state import CompressedShape
from pelagos.ops.dispatch import Ops
from pelagos.ops.reference.indexer import choose_rows


class Indexer(nn.Module):
    def __init__(self, config: ModelConfig, shape: CompressedShape, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.num_heads, self.head_dim, self.topk = config.num_index_heads, config.index_head_dim, config.index_topk
        self.official_rounding = config.official_rounding
        num_out = self.num_heads * self.head_dim
        self.wq_b = Linear(config.query_rank, num_out, ops, rounds_input=config.official_rounding)
        self.weights_proj = Linear(config.hidden_size, self.num_heads, ops)
        self.compressor = Compressor(config.hidden_size, shape, ops, norm_eps=config.norm_eps)

    def queries(self, x: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated index queries [T, H, C] and head weights [T, H] float32. x: [T, D]; c: query latent [T, rank]."""
        q = self.ops.rotate(self.wq_b(c).unflatten(-1, (self.num_heads, self.head_dim)), cos, sin)
        weights = self.weights_proj(x, out_dtype=torch.float32) * self.head_dim**-0.5 * self.num_heads**-0.5
        return self.rounded(q), weights

    def rounded(self, x: Tensor) -> Tensor:
        """Index rows and queries as the served model holds them: Hadamard-rotated, then FP4 in groups of 32."""
        return self.ops.round_index(x) if self.official_rounding else x

    def choose(self, q: Tensor, weights: Tensor, rows: Tensor, num_visible: Tensor) -> Tensor:
        """Rows each query keeps, [T, K] ascending, −1 padded. rows: [S, C]; num_visible: [T]."""
        return choose_rows(q, weights, rows, num_visible, self.topk)

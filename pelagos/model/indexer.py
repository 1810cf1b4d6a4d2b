"""The lightning indexer of a CSA layer: scores compressed rows with small heads of its own and keeps the best.

Shapes: T tokens, D width, H indexer heads, C indexer head size, S index rows, K kept rows.
"""

import torch
from torch import Tensor, nn

from pelagos.formats import simulate
from pelagos.model.compressor import Compressor
from pelagos.model.config import ModelConfig
from pelagos.model.layers import Linear
from pelagos.model.state import CompressedShape
from pelagos.ops.reference.indexer import choose_rows, hadamard
from pelagos.ops.reference.norm_rope import rotate


class Indexer(nn.Module):
    def __init__(self, config: ModelConfig, shape: CompressedShape) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.topk = config.num_index_heads, config.index_head_dim, config.index_topk
        self.official_rounding = config.official_rounding
        num_out = self.num_heads * self.head_dim
        self.wq_b = Linear(config.query_rank, num_out, rounds_input=config.official_rounding)
        self.weights_proj = Linear(config.hidden_size, self.num_heads)
        self.compressor = Compressor(config.hidden_size, shape, norm_eps=config.norm_eps)

    def queries(self, x: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated index queries [T, H, C] and head weights [T, H] float32. x: [T, D]; c: query latent [T, rank]."""
        q = rotate(self.wq_b(c).unflatten(-1, (self.num_heads, self.head_dim)), cos, sin)
        weights = self.weights_proj(x, out_dtype=torch.float32) * self.head_dim**-0.5 * self.num_heads**-0.5
        return self.rounded(q), weights

    def rounded(self, x: Tensor) -> Tensor:
        """Index rows and queries as the served model holds them: Hadamard-rotated, then FP4 in groups of 32."""
        return simulate.index_fp4(hadamard(x)) if self.official_rounding else x

    def choose(self, q: Tensor, weights: Tensor, rows: Tensor, num_visible: Tensor) -> Tensor:
        """Rows each query keeps, [T, K] ascending, −1 padded. rows: [S, C]; num_visible: [T]."""
        return choose_rows(q, weights, rows, num_visible, self.topk)

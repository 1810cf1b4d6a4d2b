"""Attention of one layer: low-rank queries, one row per token as key and value, compressed rows, grouped output.

What a query sees of its sequence, and where rows are kept, is the ``Context``'s part: ``Sequences`` (sequences.py)
keeps them in states, for inference.

Shapes: T new tokens, D width, H heads, C head size, G output groups.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pelagos.model.compressor import Compressor
from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.indexer import Indexer
from pelagos.model.layers import Linear, Norm
from pelagos.model.rope import rope_frequencies
from pelagos.model.state import layer_shape
from pelagos.ops.dispatch import Ops
from pelagos.ops.reference.norm_rope import rotation


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """What new tokens bring to core attention, rotated and normed.

    q: [T, H, C]; rows: [T, C]; positions: [T]; frequencies: of the layer. With compressed rows: ``pairs`` of values and
    gates [T, P] float32; with an indexer its ``index_pairs``, and ``index_queries`` [T, H_I, C_I] with head weights.
    """

    q: Tensor
    rows: Tensor
    positions: Tensor
    frequencies: Tensor
    pairs: tuple[Tensor, Tensor] | None = None
    index_pairs: tuple[Tensor, Tensor] | None = None
    index_queries: tuple[Tensor, Tensor] | None = None


class Context(Protocol):
    """What the new tokens of one layer stand in."""

    def attend(self, attention: "Attention", new: NewTokens) -> Tensor:
        """Core attention, [T, H, C] float32, before the rotation back."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops) -> None:
        super().__init__()
        shape, rounds = layer_shape(config, layer), config.official_rounding
        self.ops, self.layer, self.rope_config = ops, layer, config.rope_of(layer)
        self.num_heads, self.head_dim, self.rope_dim = config.num_heads, config.head_dim, config.rope_dim
        self.num_groups, self.index_topk, self.norm_eps = config.num_output_groups, config.index_topk, config.norm_eps
        self.official_rounding = rounds
        num_values = self.num_heads * self.head_dim
        num_grouped = self.num_groups * config.output_rank
        self.wq_a = Linear(config.hidden_size, config.query_rank, ops, rounds_input=rounds)
        self.q_norm = Norm(config.query_rank, config.norm_eps, ops)
        self.wq_b = Linear(config.query_rank, num_values, ops, rounds_input=rounds)
        self.wkv = Linear(config.hidden_size, self.head_dim, ops, rounds_input=rounds)
        self.kv_norm = Norm(self.head_dim, config.norm_eps, ops)
        self.attn_sink = nn.Parameter(torch.empty(self.num_heads))
        self.wo_a = Linear(num_values // self.num_groups, num_grouped, ops)  # the served model never rounds its input
        self.wo_b = Linear(num_grouped, config.hidden_size, ops, rounds_input=rounds)
        if shape.rows:
            self.compressor = Compressor(config.hidden_size, shape.rows, ops, norm_eps=config.norm_eps)
        if shape.index:
            self.indexer = Indexer(config, shape.index, ops)

    def forward(self, x: Tensor, positions: Tensor, context: Context) -> Tensor:
        """x: [T, D] normed input; positions: [T]. Returns [T, D]."""
        frequencies = rope_frequencies(self.rope_config, self.rope_dim).to(x.device)
        cos, sin = rotation(positions, frequencies)
        o = context.attend(self, self._new_tokens(x, positions, frequencies, cos, sin))
        o = self.ops.rotate(o.to(x.dtype), cos, sin, inverse=True)
        o = o.reshape(len(o), self.num_groups, -1)
        y: Tensor = self.wo_b(self.ops.grouped_linear(o, self.wo_a.weight, num_groups=self.num_groups))
        return y

    def rounded(self, rows: Tensor) -> Tensor:
        """Rows as the served model keeps them."""
        return self.ops.round_row(rows, self.rope_dim) if self.official_rounding else rows

    def _new_tokens(self, x: Tensor, positions: Tensor, frequencies: Tensor, cos: Tensor, sin: Tensor) -> NewTokens:
        c = self.q_norm(self.wq_a(x))
        apart = x.detach()  # the indexer learns from its own loss, and nothing else learns from that
        q = self.ops.head_norm(self.wq_b(c).unflatten(-1, (self.num_heads, self.head_dim)), self.norm_eps)
        rows = self.rounded(self.ops.rotate(self.kv_norm(self.wkv(x)), cos, sin))
        own_index = self.layer.index == "own"
        return NewTokens(
            q=self.ops.rotate(q, cos, sin),
            rows=rows,
            positions=positions,
            frequencies=frequencies,
            pairs=self.compressor.pairs(x, positions) if self.layer.ratio else None,
            index_pairs=self.indexer.compressor.pairs(apart, positions) if own_index else None,
            index_queries=self.indexer.queries(apart, c.detach(), cos, sin) if own_index else None,
        )

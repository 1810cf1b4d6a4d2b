"""Attention of one layer: low-rank queries, one row per token as key and value, compressed rows, grouped output.

Shapes: T tokens of all segments, D width, H heads, C head size, G output groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pelagos.formats import simulate
from pelagos.model.compressor import Compressor
from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.indexer import Indexer
from pelagos.model.layers import Linear, Norm
from pelagos.model.rope import rope_frequencies
from pelagos.model.state import LayerState, layer_shape
from pelagos.ops.reference.attention import WindowRows, attend
from pelagos.ops.reference.linear import grouped_linear
from pelagos.ops.reference.norm_rope import head_norm, rotate, rotation


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The new tokens of one sequence within a batch: tokens start .. stop, first one at ``position``."""

    start: int
    stop: int
    position: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.stop)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        shape, rounds = layer_shape(config, layer), config.official_rounding
        self.layer, self.rope_config = layer, config.rope_of(layer)
        self.num_heads, self.head_dim, self.rope_dim = config.num_heads, config.head_dim, config.rope_dim
        self.num_groups, self.index_topk, self.norm_eps = config.num_output_groups, config.index_topk, config.norm_eps
        self.official_rounding = rounds
        num_values = self.num_heads * self.head_dim
        num_grouped = self.num_groups * config.output_rank
        self.wq_a = Linear(config.hidden_size, config.query_rank, rounds_input=rounds)
        self.q_norm = Norm(config.query_rank, config.norm_eps)
        self.wq_b = Linear(config.query_rank, num_values, rounds_input=rounds)
        self.wkv = Linear(config.hidden_size, self.head_dim, rounds_input=rounds)
        self.kv_norm = Norm(self.head_dim, config.norm_eps)
        self.attn_sink = nn.Parameter(torch.empty(self.num_heads))
        self.wo_a = Linear(num_values // self.num_groups, num_grouped)  # the served model never rounds its input
        self.wo_b = Linear(num_grouped, config.hidden_size, rounds_input=rounds)
        if shape.rows:
            self.compressor = Compressor(config.hidden_size, shape.rows, norm_eps=config.norm_eps)
        if shape.index:
            self.indexer = Indexer(config, shape.index)

    def forward(self, x: Tensor, positions: Tensor, segments: list[Segment], states: list[LayerState]) -> Tensor:
        """x: [T, D] normed input; positions: [T]; one state per segment, advanced here. Returns [T, D]."""
        frequencies = rope_frequencies(self.rope_config, self.rope_dim).to(x.device)
        cos, sin = rotation(positions, frequencies)
        c = self.q_norm(self.wq_a(x))
        q = head_norm(self.wq_b(c).unflatten(-1, (self.num_heads, self.head_dim)), self.norm_eps)
        q = rotate(q, cos, sin)
        window_rows = self._rounded(rotate(self.kv_norm(self.wkv(x)), cos, sin))
        parts = []
        compressed = self._compressed(x, c, positions, cos, sin)
        for segment, state in zip(segments, states, strict=True):
            self._close_windows(compressed, segment, state, frequencies, x.dtype)
            parts.append(self._attend(q, window_rows, compressed, positions, segment, state))
        o = rotate(torch.cat(parts).to(x.dtype), cos, sin, inverse=True)
        grouped = grouped_linear(o.reshape(len(o), self.num_groups, -1), self.wo_a.weight, num_groups=self.num_groups)
        y: Tensor = self.wo_b(grouped)
        return y

    def _rounded(self, rows: Tensor) -> Tensor:
        return simulate.row_fp8(rows, self.rope_dim) if self.official_rounding else rows

    def _compressed(self, x: Tensor, c: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> "_Compressed | None":
        if self.layer.ratio is None:
            return None
        pairs = self.compressor.pairs(x, positions)
        if self.layer.index != "own":
            return _Compressed(pairs=pairs)
        index_pairs = self.indexer.compressor.pairs(x, positions)
        return _Compressed(pairs=pairs, index_pairs=index_pairs, index_queries=self.indexer.queries(x, c, cos, sin))

    def _close_windows(
        self, new: "_Compressed | None", segment: Segment, state: LayerState, frequencies: Tensor, dtype: torch.dtype
    ) -> None:
        if new is None or state.rows is None:
            return
        values, gates = (pair[segment.tokens] for pair in new.pairs)
        rows = self.compressor.close_windows(state.rows, values, gates, frequencies, dtype)
        state.rows.rows.append(self._rounded(rows))
        if new.index_pairs is not None and state.index is not None:
            values, gates = (pair[segment.tokens] for pair in new.index_pairs)
            rows = self.indexer.compressor.close_windows(state.index, values, gates, frequencies, dtype)
            state.index.rows.append(self.indexer.rounded(rows))

    def _attend(
        self,
        q: Tensor,
        new_rows: Tensor,
        compressed: "_Compressed | None",
        positions: Tensor,
        segment: Segment,
        state: LayerState,
    ) -> Tensor:
        """Core attention of one segment, [T, H, C] float32; keeps the last window rows in the state."""
        q, at = q[segment.tokens], positions[segment.tokens]
        rows = torch.cat([state.window, new_rows[segment.tokens]])
        window = WindowRows(rows=rows, start=segment.position - state.window.shape[0], size=self.layer.window)
        keep = min(self.layer.window - 1, rows.shape[0])
        state.window = rows[rows.shape[0] - keep :].clone()
        if compressed is None or state.rows is None or self.layer.ratio is None:
            return attend(q, at, window, self.attn_sink)
        num_visible = (at + 1) // self.layer.ratio
        visible = state.rows.rows.rows
        if compressed.index_queries is None or state.index is None:
            return attend(q, at, window, self.attn_sink, rows=visible, num_visible=num_visible)
        # Up to index_topk visible rows all are kept, and no scores are needed.
        split = int((num_visible <= self.index_topk).sum())
        queries, weights = (part[segment.tokens][split:] for part in compressed.index_queries)
        chosen = self.indexer.choose(queries, weights, state.index.rows.rows, num_visible[split:])
        dense = attend(q[:split], at[:split], window, self.attn_sink, rows=visible, num_visible=num_visible[:split])
        return torch.cat([dense, attend(q[split:], at[split:], window, self.attn_sink, rows=visible, chosen=chosen)])


@dataclass(frozen=True, kw_only=True)
class _Compressed:
    """What the new tokens of a batch bring to compressed rows: (values, gates) pairs, and index queries with
    weights."""

    pairs: tuple[Tensor, Tensor]
    index_pairs: tuple[Tensor, Tensor] | None = None
    index_queries: tuple[Tensor, Tensor] | None = None

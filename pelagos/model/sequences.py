"""Inference: new tokens of several sequences, each with its state.

Shapes: T new tokens of all sequences, H heads, C head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.model.attention import Attention, NewTokens
from pelagos.model.state import LayerState
from pelagos.ops.reference.attention import WindowRows, attend


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The new tokens of one sequence within a batch: tokens start .. stop, first one at ``position``."""

    start: int
    stop: int
    position: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """One layer of a batch: segments, and for each the state of that layer, which ``attend`` advances."""

    segments: Sequence[Segment]
    states: Sequence[LayerState]

    def attend(self, attention: Attention, new: NewTokens) -> Tensor:
        """See ``Context.attend``. Each sequence gets the bits it would get alone."""
        parts = []
        for segment, state in zip(self.segments, self.states, strict=True):
            _close_windows(attention, new, segment, state)
            parts.append(_attend(attention, new, segment, state))
        return torch.cat(parts)


def _close_windows(attention: Attention, new: NewTokens, segment: Segment, state: LayerState) -> None:
    dtype = new.rows.dtype
    if new.pairs is not None and state.rows is not None:
        values, gates = (pair[segment.tokens] for pair in new.pairs)
        rows = attention.compressor.close_windows(state.rows, values, gates, new.frequencies, dtype)
        state.rows.rows.append(attention.rounded(rows))
    if new.index_pairs is not None and state.index is not None:
        values, gates = (pair[segment.tokens] for pair in new.index_pairs)
        rows = attention.indexer.compressor.close_windows(state.index, values, gates, new.frequencies, dtype)
        state.index.rows.append(attention.indexer.rounded(rows))


def _attend(attention: Attention, new: NewTokens, segment: Segment, state: LayerState) -> Tensor:
    """Core attention of one segment, [T, H, C] float32; keeps the last window rows in the state."""
    q, at, sink = new.q[segment.tokens], new.positions[segment.tokens], attention.attn_sink
    rows = torch.cat([state.window, new.rows[segment.tokens]])
    window = WindowRows(rows=rows, start=segment.position - state.window.shape[0], size=attention.layer.window)
    keep = min(attention.layer.window - 1, rows.shape[0])
    state.window = rows[rows.shape[0] - keep :].clone()
    if state.rows is None or attention.layer.ratio is None:
        return attend(q, at, window, sink)
    num_visible, visible = (at + 1) // attention.layer.ratio, state.rows.rows.rows
    if new.index_queries is None or state.index is None:
        return attend(q, at, window, sink, rows=visible, num_visible=num_visible)
    # Up to index_topk visible rows all are kept, and no scores are needed.
    split = int((num_visible <= attention.index_topk).sum())
    queries, weights = (part[segment.tokens][split:] for part in new.index_queries)
    chosen = attention.indexer.choose(queries, weights, state.index.rows.rows, num_visible[split:])
    dense = attend(q[:split], at[:split], window, sink, rows=visible, num_visible=num_visible[:split])
    return torch.cat([dense, attend(q[split:], at[split:], window, sink, rows=visible, chosen=chosen)])

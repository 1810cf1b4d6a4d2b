"""Core attention over window rows and compressed rows, one softmax with a sink per head.

A row is key and value at once. Rows are taken in blocks of 64 that start at fixed places (positions for the window, row
numbers for compressed rows, list places for chosen rows), in that order, with a running maximum and sum. A block in
which a query sees nothing changes nothing, to the bit; so a query's result does not depend on the chunk it came in,
nor on rows that exist beyond what it sees.

Shapes: T queries, H heads, C head size, S rows, B rows of a block, K chosen rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.ops.reference.elementwise import ordered_sum
from pelagos.ops.reference.row_products import matmul_rows

ROW_BLOCK = 64
QUERY_TILE = 64


@dataclass(frozen=True, kw_only=True)
class WindowRows:
    """Rows of consecutive positions. rows: [S, C], first at position ``start``; a query sees the last ``size`` up to
    it."""

    rows: Tensor
    start: int
    size: int


def attend(
    q: Tensor,
    positions: Tensor,
    window: WindowRows,
    sink: Tensor,
    *,
    rows: Tensor | None = None,
    num_visible: Tensor | None = None,
    chosen: Tensor | None = None,
) -> Tensor:
    """o_h = Σ_j exp(l_j) · row_j / (Σ_j exp(l_j) + exp(sink_h)), with l_j = q_h · row_j / sqrt(C).

    q: [T, H, C]; positions: [T] int64, ascending; sink: [H] float32; rows: [S, C] compressed rows. Either query t sees
    rows 0 .. num_visible[t] − 1, or, with chosen [T, K] (ascending, −1 padded), those. Returns [T, H, C] float32.
    """
    tiles = []
    for start in range(0, q.shape[0], QUERY_TILE):
        tile = slice(start, start + QUERY_TILE)
        softmax = _OnlineSoftmax(q[tile])
        _add_window(softmax, positions[tile], window)
        if rows is not None and chosen is not None and len(rows):
            _add_chosen(softmax, rows, chosen[tile])
        elif rows is not None and num_visible is not None:
            _add_visible(softmax, rows, num_visible[tile])
        tiles.append(softmax.result(sink))
    return torch.cat(tiles) if tiles else q.float()


def _add_window(softmax: "_OnlineSoftmax", positions: Tensor, window: WindowRows) -> None:
    last = int(positions[-1])
    first = max(int(positions[0]) - window.size + 1, 0) // ROW_BLOCK * ROW_BLOCK
    for start in range(first, last + 1, ROW_BLOCK):
        block = _block(window.rows, start - window.start)
        at = torch.arange(start, start + ROW_BLOCK, device=positions.device)
        age = positions.unsqueeze(1) - at
        softmax.add(block, (age >= 0) & (age < window.size))


def _add_visible(softmax: "_OnlineSoftmax", rows: Tensor, num_visible: Tensor) -> None:
    for start in range(0, int(num_visible.max()), ROW_BLOCK):
        at = torch.arange(start, start + ROW_BLOCK, device=rows.device)
        softmax.add(_block(rows, start), at < num_visible.unsqueeze(1))


def _add_chosen(softmax: "_OnlineSoftmax", rows: Tensor, chosen: Tensor) -> None:
    chosen = F.pad(chosen, (0, -chosen.shape[1] % ROW_BLOCK), value=-1)
    for start in range(0, chosen.shape[1], ROW_BLOCK):
        block = chosen[:, start : start + ROW_BLOCK]
        softmax.add_gathered(rows[block.clamp(min=0)] * (block >= 0).unsqueeze(-1), block >= 0)


def _block(rows: Tensor, offset: int) -> Tensor:
    """Rows offset .. offset + 64 as float32; those outside of ``rows`` are zero (and must be masked)."""
    start, stop = max(offset, 0), min(offset + ROW_BLOCK, rows.shape[0])
    return F.pad(rows[start:stop].float(), (0, 0, start - offset, offset + ROW_BLOCK - stop))


class _OnlineSoftmax:
    """Running maximum, sum and weighted sum of rows for a tile of queries."""

    def __init__(self, q: Tensor) -> None:
        self.q = q.float()
        self.scale = q.shape[-1] ** -0.5
        self.maximum = self.q.new_full(q.shape[:2], -torch.inf)  # [T, H]
        self.total = self.q.new_zeros(q.shape[:2])  # [T, H]
        self.weighted = torch.zeros_like(self.q)  # [T, H, C]

    def add(self, block: Tensor, seen: Tensor) -> None:
        """Rows [B, C] shared by the tile; seen: [T, B]."""
        num_queries, num_heads, _ = self.q.shape
        logits = matmul_rows(self.q.flatten(0, 1), block).view(num_queries, num_heads, -1)
        weights, factor = self._weigh(logits, seen)
        sums = matmul_rows(weights.flatten(0, 1), block.t()).view(self.q.shape)
        self.weighted = self.weighted * factor.unsqueeze(-1) + sums

    def add_gathered(self, blocks: Tensor, seen: Tensor) -> None:
        """Rows [T, B, C], other ones for each query; seen: [T, B]."""
        blocks = blocks.float()
        logits = torch.stack([matmul_rows(q, block) for q, block in zip(self.q, blocks, strict=True)])
        weights, factor = self._weigh(logits, seen)
        sums = torch.stack([matmul_rows(w, block.t()) for w, block in zip(weights, blocks, strict=True)])
        self.weighted = self.weighted * factor.unsqueeze(-1) + sums

    def _weigh(self, logits: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        logits = (logits * self.scale).masked_fill(~seen.unsqueeze(1), -torch.inf)
        maximum = torch.maximum(self.maximum, logits.amax(-1))
        finite = maximum.masked_fill(maximum == -torch.inf, 0.0)
        weights = torch.exp(logits - finite.unsqueeze(-1))
        factor = torch.exp(self.maximum - finite)
        self.maximum, self.total = maximum, self.total * factor + ordered_sum(weights, -1)
        return weights, factor

    def result(self, sink: Tensor) -> Tensor:
        maximum = torch.maximum(self.maximum, sink)
        factor = torch.exp(self.maximum - maximum)
        total = self.total * factor + torch.exp(sink - maximum)
        return self.weighted * (factor / total).unsqueeze(-1)

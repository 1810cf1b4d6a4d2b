"""The lightning indexer: which compressed rows a query keeps.

Shapes: T queries, S rows, H indexer heads, C indexer head size, K kept rows.
"""

import math

import torch
from torch import Tensor

from pelagos.ops.reference.elementwise import ordered_sum
from pelagos.ops.reference.row_products import matmul_rows

ROW_BLOCK = 64
QUERY_TILE = 64


def index_scores(q: Tensor, head_weights: Tensor, rows: Tensor) -> Tensor:
    """I[t, s] = Σ_h w[t, h] · max(0, q[t, h] · row_s). q: [T, H, C]; head_weights: [T, H] float32; rows: [S, C].

    Returns [T, S] float32. Rows are taken in blocks of 64 from row 0, so a score does not depend on how many there are.
    """
    num_queries, num_heads, _ = q.shape
    flat = q.flatten(0, 1).float()
    blocks = []
    for start in range(0, rows.shape[0], ROW_BLOCK):
        block = rows[start : start + ROW_BLOCK].float()
        num = block.shape[0]
        block = torch.nn.functional.pad(block, (0, 0, 0, ROW_BLOCK - num))
        dots = matmul_rows(flat, block).view(num_queries, num_heads, ROW_BLOCK)[:, :, :num]
        blocks.append(ordered_sum(dots.clamp(min=0.0) * head_weights.unsqueeze(-1), 1))
    return torch.cat(blocks, 1) if blocks else flat.new_zeros(num_queries, 0)


def top_rows(scores: Tensor, num_visible: Tensor, k: int) -> Tensor:
    """The k best visible rows of each query: larger score first, then smaller row index; ±0 are equal.

    scores: [T, S] float32; num_visible: [T], query t may choose from rows 0 .. num_visible[t] − 1. Returns [T, k] int64
    row indices in ascending order, then −1 where fewer than k rows are visible.
    """
    num_rows = scores.shape[1]
    hidden = torch.arange(num_rows, device=scores.device) >= num_visible.unsqueeze(1)
    order = torch.sort(scores.masked_fill(hidden, -torch.inf), dim=1, descending=True, stable=True).indices[:, :k]
    order = order.masked_fill(order >= num_visible.unsqueeze(1), num_rows)
    order = torch.nn.functional.pad(order, (0, k - order.shape[1]), value=num_rows).sort(dim=1).values
    return order.masked_fill(order == num_rows, -1)


def choose_rows(q: Tensor, head_weights: Tensor, rows: Tensor, num_visible: Tensor, k: int) -> Tensor:
    """``top_rows`` of ``index_scores``, a tile of queries at a time to bound memory. Returns [T, k] int64."""
    tiles = [slice(i, i + QUERY_TILE) for i in range(0, q.shape[0], QUERY_TILE)]
    chosen = [top_rows(index_scores(q[t], head_weights[t], rows), num_visible[t], k) for t in tiles]
    return torch.cat(chosen) if chosen else num_visible.new_zeros(0, k)


def hadamard(x: Tensor) -> Tensor:
    """Normalised Hadamard transform of the last dim (a power of two), natural order; its own inverse. Keeps the
    dtype."""
    size = x.shape[-1]
    assert size & (size - 1) == 0, "hadamard: the last dim must be a power of two"
    y = x.float().unsqueeze(-1)
    stride = 1
    while stride < size:
        y = y.reshape(*x.shape[:-1], size // (2 * stride), 2, stride)
        y = torch.stack([y[..., 0, :] + y[..., 1, :], y[..., 0, :] - y[..., 1, :]], dim=-2)
        stride *= 2
    y = y.reshape(x.shape) * (1.0 / math.sqrt(size))
    return y.to(x.dtype)

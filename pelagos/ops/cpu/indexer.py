"""Index scores and the rows that a query keeps: native/indexer.h."""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import kernels, numbers
from pelagos.ops.cpu.rounding import RowFormat, row_layout

MAX_SIZE = 256  # of an index row
_LANES = 16


def index_scores(q: Tensor, head_weights: Tensor, rows: Tensor) -> Tensor:
    """See ops.reference.indexer.index_scores."""
    queries, weights, keys = _checked(q, head_weights, rows)
    stride = -(-len(keys) // _LANES) * _LANES
    scores = torch.empty(len(queries), stride)
    visible = torch.full((len(queries),), len(keys), dtype=torch.int64)
    kernels().index_scores(
        row_layout(RowFormat.FLOAT32, keys.shape[1]),
        *(t.data_ptr() for t in (keys, queries, weights, visible)),
        len(queries),
        queries.shape[1],
        scores.data_ptr(),
        stride,
    )
    return scores[:, : len(keys)].contiguous()


def top_rows(scores: Tensor, num_visible: Tensor, k: int) -> Tensor:
    """See ops.reference.indexer.top_rows."""
    values, visible = numbers("scores", scores, None, None), num_visible.to(torch.int64).contiguous()
    chosen = torch.empty(len(values), k, dtype=torch.int32)
    kernels().top_rows(values.data_ptr(), values.shape[1], visible.data_ptr(), len(values), k, chosen.data_ptr())
    return chosen.long()


def choose_rows(q: Tensor, head_weights: Tensor, rows: Tensor, num_visible: Tensor, k: int) -> Tensor:
    """See ops.reference.indexer.choose_rows."""
    queries, weights, keys = _checked(q, head_weights, rows)
    visible = num_visible.to(torch.int64).contiguous()
    chosen = torch.empty(len(queries), k, dtype=torch.int32)
    kernels().choose_rows(
        row_layout(RowFormat.FLOAT32, keys.shape[1]),
        keys.data_ptr(),
        0,
        1,
        *(t.data_ptr() for t in (queries, weights, visible)),
        len(queries),
        queries.shape[1],
        k,
        chosen.data_ptr(),
    )
    return chosen.long()


def _checked(q: Tensor, head_weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_heads, size = q.shape[1:]
    if not 1 <= size <= MAX_SIZE:
        raise UsageError(f"q must have heads of 1 to {MAX_SIZE} numbers, not {size}")
    weights = numbers("head_weights", head_weights, len(q), num_heads)
    return numbers("q", q, None, num_heads, size), weights, numbers("rows", rows, None, size)

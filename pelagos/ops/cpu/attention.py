"""Native core attention. Meaning, shapes and dtypes: pelagos/ops/reference/attention.py."""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import kernels, numbers
from pelagos.ops.reference.attention import WindowRows

_FORMATS = {torch.float32: 0, torch.bfloat16: 1}  # RowFormat of native/types.h


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
    """Rows may be float32 or bfloat16 and are read as they are.

    The window must hold all rows that the queries see. Raises UsageError that names the argument; ResourceError where
    there are no native kernels.
    """
    q = numbers("q", q, None, None, None)
    num_queries, num_heads, size = q.shape
    sink, window_rows = numbers("sink", sink, num_heads), numbers("window", window.rows, None, size)
    positions = _counts("positions", positions, num_queries)
    _check_window(positions, window)
    out = torch.empty_like(q)
    addresses = (q.data_ptr(), positions.data_ptr(), out.data_ptr())
    sequence = kernels().AttendSequence(*addresses, num_queries, window_rows.data_ptr(), window.start, window.size)
    most = 0
    if rows is not None and len(rows) and (chosen is not None or num_visible is not None):
        rows = _rows(rows, size)
        visible, chosen_rows = _seen(rows, num_queries, num_visible, chosen)
        most = int(visible.max()) if num_queries else 0
        row_bytes = size * rows.element_size()
        layout = (_FORMATS[rows.dtype], size, 0, row_bytes)
        pages = (rows.data_ptr(), 0, row_bytes * len(rows), len(rows))  # all rows in one page
        list_of_rows = (0, 0) if chosen_rows is None else (chosen_rows.data_ptr(), chosen_rows.shape[1])
        sequence.see_rows(*layout, *pages, visible.data_ptr(), *list_of_rows)
    scratch = torch.empty(kernels().attend_scratch(num_queries, most, num_heads, size))
    kernels().attend([sequence], num_heads, size, sink.data_ptr(), scratch.data_ptr())
    return out


def _counts(name: str, x: Tensor, *shape: int) -> Tensor:
    if x.dtype != torch.int64 or x.device.type != "cpu" or x.shape != shape:
        raise UsageError(f"{name} must be int64 {list(shape)} on the CPU, not {x.dtype} {list(x.shape)} on {x.device}")
    return x.contiguous()


def _check_window(positions: Tensor, window: WindowRows) -> None:
    if window.size < 1:
        raise UsageError(f"window.size must be at least 1, not {window.size}")
    if not len(positions):
        return
    low, high = int(positions.min()), int(positions.max())
    first, last = max(low - window.size + 1, 0), window.start + len(window.rows) - 1
    if low < 0 or first < window.start or high > last:
        raise UsageError(
            f"window has rows of the positions {window.start} to {last}, and the queries need {first} to {high}"
        )


def _rows(rows: Tensor, size: int) -> Tensor:
    if rows.dtype not in _FORMATS or rows.device.type != "cpu" or rows.dim() != 2 or rows.shape[1] != size:
        raise UsageError(
            f"rows must be float32 or bfloat16 [S, {size}] on the CPU, "
            f"not {rows.dtype} {list(rows.shape)} on {rows.device}"
        )
    return rows.detach().contiguous()


def _seen(
    rows: Tensor, num_queries: int, num_visible: Tensor | None, chosen: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """How many rows each query sees, and with ``chosen`` which, as int32."""
    if chosen is None:
        assert num_visible is not None
        num_visible = _counts("num_visible", num_visible, num_queries)
        if len(num_visible) and not 0 <= int(num_visible.min()) <= int(num_visible.max()) <= len(rows):
            raise UsageError(f"num_visible must be from 0 to {len(rows)}, the number of rows")
        return num_visible, None
    width = chosen.shape[1] if chosen.dim() == 2 else 0
    chosen = _counts("chosen", chosen, num_queries, width)
    if chosen.numel() and not -1 <= int(chosen.min()) <= int(chosen.max()) < len(rows):
        raise UsageError(f"chosen must hold row numbers from 0 to {len(rows) - 1}, then -1")
    exists = chosen >= 0
    if bool((exists[:, 1:] > exists[:, :-1]).any()):
        raise UsageError("chosen must not hold a row number behind a -1")
    return exists.sum(1), chosen.int()

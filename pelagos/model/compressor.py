"""Compressed rows: every m tokens become one row (CSA: pooled over the previous window too).

Shapes: T new tokens, D width, m tokens per row, C row size, P pair size (2C with overlap, first half: what a token
gives to the row of the next window, second half: to the row of its own), N windows closed by the new tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.model.layers import Linear, Norm
from pelagos.model.state import CompressedShape, CompressorState
from pelagos.ops.dispatch import Ops
from pelagos.ops.reference.norm_rope import rotation


class Compressor(nn.Module):
    """Projects tokens to (value, gate) pairs, and pools whole windows into rows."""

    def __init__(self, hidden_size: int, shape: CompressedShape, ops: Ops, *, norm_eps: float) -> None:
        super().__init__()
        self.ops, self.shape = ops, shape
        self.wkv = Linear(hidden_size, shape.pair_size, ops)
        self.wgate = Linear(hidden_size, shape.pair_size, ops)
        self.ape = nn.Parameter(torch.empty(shape.ratio, shape.pair_size))
        self.norm = Norm(shape.size, norm_eps, ops)

    def pairs(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gates of tokens, gates with their position bias. x: [T, D] -> two [T, P] float32."""
        values = self.wkv(x, out_dtype=torch.float32)
        gates = self.wgate(x, out_dtype=torch.float32)
        return values, gates + F.embedding(positions % self.shape.ratio, self.ape.float())

    def close_windows(
        self, state: CompressorState, values: Tensor, gates: Tensor, frequencies: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Take the pairs of new tokens into ``state`` and return the rows of the windows they close, [N, C] in
        ``dtype``.

        The caller appends the rows to the state. A row is rotated to the position of the first token of its window.
        """
        ratio, first_row = self.shape.ratio, state.rows.rows.shape[0]
        values, gates = torch.cat([state.tail_values, values]), torch.cat([state.tail_gates, gates])
        num_closed = values.shape[0] // ratio
        used = num_closed * ratio
        state.tail_values, state.tail_gates = values[used:].clone(), gates[used:].clone()
        if num_closed == 0:
            return values.new_zeros(0, self.shape.size, dtype=dtype)
        values, gates = values[:used].view(num_closed, ratio, -1), gates[:used].view(num_closed, ratio, -1)
        if self.shape.overlap:
            values, gates = self._with_previous(state, values, gates)
        numbers = first_row + torch.arange(num_closed, device=values.device)
        return self.pool(values, gates, numbers, frequencies, dtype)

    def pool(self, values: Tensor, gates: Tensor, numbers: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of whole windows, [N, C] in ``dtype``. values, gates: [N, slots, C] float32; numbers: [N], of the rows
        within their sequence."""
        rows = self.norm(self.ops.pool_window(values, gates).to(dtype))
        return self.ops.rotate(rows, *rotation(numbers * self.shape.ratio, frequencies))

    def _with_previous(self, state: CompressorState, values: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """[N, m, 2C] -> [N, 2m, C]: first halves of each previous window, then second halves of the own one."""
        size = self.shape.size
        previous_values = _shifted(values[..., :size], state.overlap_values, 0.0)
        previous_gates = _shifted(gates[..., :size], state.overlap_gates, -torch.inf)
        state.overlap_values, state.overlap_gates = values[-1, :, :size].clone(), gates[-1, :, :size].clone()
        values = torch.cat([previous_values, values[..., size:]], 1)
        return values, torch.cat([previous_gates, gates[..., size:]], 1)


def _shifted(halves: Tensor, before: Tensor | None, missing: float) -> Tensor:
    """Each window's predecessor: [N, m, C], with ``before`` (or ``missing``) as that of the first."""
    if before is None:
        return F.pad(halves[:-1], (0, 0, 0, 0, 1, 0), value=missing)
    return torch.cat([before.unsqueeze(0), halves[:-1]])

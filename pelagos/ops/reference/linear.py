"""Linear maps. Weights are float of any dtype, or in a stored format (FP8, FP4), decoded exactly.

Shapes: T rows of activations, G groups, I inner size, N rows of the weight matrix (outputs).
"""

import torch
from torch import Tensor

from pelagos.formats.matrix import QuantizedMatrix
from pelagos.ops.reference.row_products import OUTER_MULTIPLE, matmul_rows

_DECODED_BYTES = 32 << 20  # float32 weights decoded at a time, so that stored matrices never stand in memory twice

Matrix = Tensor | QuantizedMatrix


def linear(x: Tensor, weight: Matrix, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """y = x · Wᵀ, summed in float32 and rounded once to ``out_dtype`` (default: the dtype of x).

    x: [..., I] float. weight: [N, I], float of any dtype or in a stored format; decoded exactly, block by block, with
    block borders that depend on the matrix alone. Returns [..., N].
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    num_out, num_in = weight.shape
    assert rows.shape[1] == num_in, f"linear: x has {rows.shape[1]} columns, weight {num_in}"
    step = max(OUTER_MULTIPLE, _DECODED_BYTES // (4 * num_in) // 128 * 128)
    blocks = [matmul_rows(rows, _decode(weight, n, min(n + step, num_out))) for n in range(0, num_out, step)]
    y = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return y.to(out_dtype or x.dtype).reshape(*x.shape[:-1], num_out)


def grouped_linear(x: Tensor, weight: Matrix, *, num_groups: int) -> Tensor:
    """One matrix per group of inputs: y[g] = x[g] · W[g]ᵀ.

    x: [T, G, I]. weight: [G·N, I], group g owns rows g·N .. (g+1)·N. Returns [T, G·N] in the dtype of x.
    """
    size = weight.shape[0] // num_groups
    parts = [matmul_rows(x[:, g].float(), _decode(weight, g * size, (g + 1) * size)) for g in range(num_groups)]
    return torch.cat(parts, dim=1).to(x.dtype)


def _decode(weight: Matrix, start: int, stop: int) -> Tensor:
    return weight.decode_rows(start, stop) if isinstance(weight, QuantizedMatrix) else weight[start:stop].float()

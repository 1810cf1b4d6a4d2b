"""Muon as DeepSeek-V4 uses it: momentum whose direction is made orthogonal, with an update of fixed size.

For every logically independent matrix W with gradient G (the paper's algorithm):

    M <- mu·M + G                                  momentum: plain accumulation
    X <- orthogonal(mu·M + G) · sqrt(max(rows, cols)) · rms
    W <- W·(1 - lr·decay) - lr·X

An orthogonal matrix of r = min(rows, cols) singular values 1 has RMS sqrt(r / (rows·cols)) = 1 / sqrt(max(rows, cols)):
the factor brings every update to one RMS, so that Muon and AdamW share a learning rate.

Shapes: n matrices of R rows and C columns; S <= L the smaller and the larger of R and C, padded.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.ops.reference.elementwise import ordered_sum

GROWING = (3.4445, -4.7750, 2.0315)  # lifts small singular values fast, and leaves all between 0.7 and 1.2
SETTLING = (2.0, -1.5, 0.5)  # value 1 and slope 0 at 1: squares what is missing to 1
_NORM_FLOOR = 1e-7
# Libraries may sum in another order where a matrix does not start on 64 bytes. With these multiples every matrix of a
# batch does, in float32 and bfloat16, so that a matrix gives the same bits wherever it stands in whatever batch.
_ROW_MULTIPLE, _COLUMN_MULTIPLE = 8, 32


def orthogonalize(batch: Tensor, steps: tuple[int, int] = (8, 2), *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Replace the singular values of each matrix by numbers near 1: U·S·Vᵀ -> about U·Vᵀ, by hybrid Newton-Schulz.

    X <- a·X + b·(X·Xᵀ)·X + c·(X·Xᵀ)²·X from X = Y / (|Y| + 1e-7), ``steps[0]`` times with GROWING and ``steps[1]``
    times with SETTLING (a, b, c). batch: [n, R, C] float. The products run in ``dtype``. Returns [n, R, C] float32.
    A zero matrix stays exactly zero; singular values below about 3e-5 of the norm do not get to 1. Matrices do not
    influence each other: on a CPU each gives the same bits alone and in any batch.
    """
    num_rows, num_columns = batch.shape[1:]
    x = batch.float()
    if num_rows > num_columns:
        return orthogonalize(x.mT, steps, dtype=dtype).mT
    norms = ordered_sum(x.square().flatten(1), 1).sqrt()
    x = x / (norms + _NORM_FLOOR)[:, None, None]
    x = F.pad(x, (0, -num_columns % _COLUMN_MULTIPLE, 0, -num_rows % _ROW_MULTIPLE)).to(dtype).contiguous()  # [n, S, L]
    for a, b, c in (GROWING,) * steps[0] + (SETTLING,) * steps[1]:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x[:, :num_rows, :num_columns].float()


# Below a product and a sum are two calls on purpose. Fused forms may round the last elements of a tensor in another way
# than the rest, and then a matrix would not step alike alone and in a stack.


def look_ahead(momentum: Tensor, gradient: Tensor, mu: float) -> Tensor:
    """Advance ``momentum`` in place to mu·M + G, and return mu·M + G of that new M (Nesterov). Any equal shapes."""
    momentum.mul_(mu).add_(gradient)
    return (momentum * mu).add_(gradient)


def scaled_direction(
    looked_ahead: Tensor, *, rms: float, steps: tuple[int, int] = (8, 2), dtype: torch.dtype = torch.float32
) -> Tensor:
    """The update X for a learning rate of 1, [n, R, C] float32, of root mean square ``rms`` where ranks are full."""
    factor = max(looked_ahead.shape[1:]) ** 0.5 * rms
    return orthogonalize(looked_ahead, steps, dtype=dtype).mul(factor).contiguous()


def apply_update(weight: Tensor, update: Tensor, *, lr: float, decay: float) -> None:
    """W <- W·(1 - lr·decay) - lr·X in place. Any equal shapes, float32."""
    weight.mul_(1 - lr * decay).sub_(update * lr)


def newton_schulz_flops(num_rows: int, num_columns: int, steps: tuple[int, int] = (8, 2)) -> int:
    """Floating-point operations to orthogonalize one matrix: 4·S²·L + 2·S³ a step."""
    small, large = sorted((num_rows, num_columns))
    return sum(steps) * (4 * small**2 * large + 2 * small**3)


def assign_ranks(costs: Mapping[str, float], num_ranks: int) -> dict[str, int]:
    """Which of ``num_ranks`` processes does each piece of work: the costliest first, each to the least loaded.

    The heaviest rank gets at most 4/3 of the best possible load (Graham's LPT). Ties go by name, then to the lower
    rank, so every process finds the same answer.
    """
    loads = [0.0] * num_ranks
    ranks = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        loads[rank] += costs[name]
        ranks[name] = rank
    return ranks

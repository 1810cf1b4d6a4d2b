"""Pooling of a token window into one compressed row.

Shapes: N windows, J slots (tokens of the window; twice that with overlap), C row size.
"""

from torch import Tensor

from pelagos.ops.reference.elementwise import ordered_sum, softmax


def pool_window(values: Tensor, gates: Tensor) -> Tensor:
    """Σ_j softmax_j(gates) ∘ values, each channel alone. values, gates: [N, J, C] float32 -> [N, C] float32.

    A slot that does not exist has gate −inf and value 0.
    """
    return ordered_sum(softmax(gates, 1) * values.float(), 1)

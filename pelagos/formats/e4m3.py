"""FP8 E4M3: the code of dense weights, of attention rows and of the inputs of matrix products.

The dtype is torch.float8_e4m3fn ("fn": finite, with one NaN per sign). Magnitudes: 0, the subnormals 1..7 * 2^-9, then
(1 + m/8) * 2^(e - 7) for e = 1..15, m = 0..7, except e = 15, m = 7, which is NaN. The largest is 448.
"""

import torch
from torch import Tensor

MAX = 448.0


def encode(x: Tensor) -> Tensor:
    """Round floats of any shape to the nearest E4M3 value, ties to the even code.

    Saturates: everything beyond 448, infinities included, becomes 448 with its sign. NaN stays NaN, -0.0 stays -0.0.
    float64 is rounded to float32 first.
    """
    # The clamp fixes what the conversion alone leaves open: beyond 464 some versions of torch give 448 and others NaN.
    return x.float().clamp(-MAX, MAX).to(torch.float8_e4m3fn)


def decode(codes: Tensor) -> Tensor:
    """The float32 values of float8_e4m3fn codes of any shape. Exact."""
    return codes.to(torch.float32)

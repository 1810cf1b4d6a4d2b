"""FP4 E2M1: the code of routed experts and of index rows.

A code is 0..15: bit 3 is the sign, bits 0..2 choose 0, 0.5, 1, 1.5, 2, 3, 4 or 6. Torch computes nothing in its own
4-bit type, so codes are uint8, one a byte, until `pack` puts two in a byte as checkpoints and caches hold them.
"""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError

MAX = 6.0
_MAX_CODE = 7

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor(_MAGNITUDES + tuple(-v for v in _MAGNITUDES), dtype=torch.float32, device="cpu")
# The two values of each of the 256 possible bytes, low half first. A pair is held as one int64: a lookup moves 8 bytes.
_PAIRS = torch.stack((_VALUES.repeat(16), _VALUES.repeat_interleave(16)), dim=1).view(torch.int64).flatten()


def encode(x: Tensor) -> Tensor:
    """Round floats of any shape to the nearest E2M1 value, ties to the even code (0.25 -> 0, 0.75 -> 1, 5 -> 4).

    Returns uint8 codes 0..15. Saturates at 6 with the sign, infinities included. -0.0, and what rounds to it, keeps its
    sign bit. NaN, which the format lacks, becomes +6 as in NVIDIA's conversion instruction: a caller that must not hide
    a NaN looks for it first, or carries it in the scale.
    """
    a = x.abs()
    code = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    # One step up for each midpoint passed. A midpoint itself belongs to the even one of its two neighbours.
    for midpoint, is_up in (
        (0.25, False),
        (0.75, True),
        (1.25, False),
        (1.75, True),
        (2.5, False),
        (3.5, True),
        (5.0, False),
    ):
        code += a >= midpoint if is_up else a > midpoint
    code |= torch.signbit(x).to(torch.uint8) << 3
    return code.masked_fill_(x.isnan(), _MAX_CODE)


def decode(codes: Tensor) -> Tensor:
    """The float32 values of uint8 codes 0..15 of any shape. Exact."""
    table = _VALUES.to(codes.device)
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


def pack(codes: Tensor) -> Tensor:
    """Two codes to a byte: uint8 [..., n] -> int8 [..., n/2]. Low half: even column; high half: the odd one after it.

    Raises UsageError where n is odd.
    """
    if codes.shape[-1] % 2:
        raise UsageError(f"FP4 codes are packed in pairs: the last dimension must be even, not {codes.shape[-1]}")
    return (codes[..., 0::2] | codes[..., 1::2] << 4).view(torch.int8)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: int8 or uint8 [..., n/2] -> uint8 codes [..., n]."""
    pair = packed.view(torch.uint8)
    return torch.stack((pair & 0xF, pair >> 4), dim=-1).flatten(-2)


def decode_packed(packed: Tensor) -> Tensor:
    """`decode(unpack(packed))` in one lookup per byte: int8 or uint8 [..., n/2] -> float32 [..., n]."""
    table = _PAIRS.to(packed.device)
    pairs = table.index_select(0, packed.view(torch.uint8).flatten().int())
    return pairs.view(torch.float32).view(*packed.shape[:-1], 2 * packed.shape[-1])

"""Numbers in groups along the last dimension, one power-of-two scale per group: activations and cached rows.

Shapes: n numbers in G = ceil(n / size) groups; where `size` does not divide n the last group is smaller.
"""

import torch.nn.functional as F
from torch import Tensor

from pelagos.formats import e2m1, e4m3, ue8m0

# Floors under the largest magnitude of a group, as in the official kernels: a group of zeros still has a valid scale.
FP8_FLOOR = 1e-4
FP4_FLOOR = e2m1.MAX * 2.0**-126


def split_groups(x: Tensor, size: int) -> Tensor:
    """[..., n] -> [..., G, size]: a view where `size` divides n, else a copy with zeros behind the last group."""
    num_groups = -(-x.shape[-1] // size)
    missing = num_groups * size - x.shape[-1]
    return (F.pad(x, (0, missing)) if missing else x).view(*x.shape[:-1], num_groups, size)


def join_groups(groups: Tensor, length: int) -> Tensor:
    """The inverse of `split_groups`: [..., G, size] -> [..., length]."""
    return groups.flatten(-2)[..., :length]


def multiply_groups(values: Tensor, scales: Tensor, size: int) -> Tensor:
    """float32 [..., n] times float32 [..., G], each scale over its group. May overwrite `values`: use the result."""
    return join_groups(split_groups(values, size).mul_(scales.unsqueeze(-1)), values.shape[-1])


def quantize_groups_fp8(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Floats [..., n] -> float8_e4m3fn codes [..., n] and float32 power-of-two scales [..., G].

    s = 2^ceil(log2(max(amax, 1e-4) / 448)). A group that holds NaN or infinity has a NaN scale, so it decodes to NaN.
    """
    ratio, scales = _divide_by_scales(x, size, e4m3.MAX, FP8_FLOOR)
    return e4m3.encode(ratio), scales


def quantize_groups_fp4(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Floats [..., n] -> uint8 E2M1 codes [..., n] and float32 power-of-two scales [..., G].

    s = 2^ceil(log2(max(amax, 6 * 2^-126) / 6)). NaN and infinity as in `quantize_groups_fp8`.
    """
    ratio, scales = _divide_by_scales(x, size, e2m1.MAX, FP4_FLOOR)
    return e2m1.encode(ratio), scales


def _divide_by_scales(x: Tensor, size: int, max_value: float, floor: float) -> tuple[Tensor, Tensor]:
    groups = split_groups(x.detach().float(), size)
    # The float32 quotient exceeds a power of two exactly where the true quotient does, so rounding it up is exact.
    scales = ue8m0.ceil_power_of_two(groups.abs().amax(dim=-1).clamp(min=floor) / max_value)
    return join_groups(groups / scales.unsqueeze(-1), x.shape[-1]), scales

"""UE8M0: the scale of a block, a power of two in one byte.

The dtype is torch.float8_e8m0fnu. Byte b is 2^(b - 127) for b = 0..254, that is 2^-127 (a subnormal float32) to 2^127;
255 is NaN. Zero, negative numbers and infinity have no code.
"""

import torch
from torch import Tensor

_MANTISSA_BITS = 23
_MANTISSA_MASK = (1 << _MANTISSA_BITS) - 1
_HALF_MANTISSA = 1 << (_MANTISSA_BITS - 1)  # 2^-127 as the mantissa of a subnormal float32
_NAN_BYTE = 255


def encode(scale: Tensor) -> Tensor:
    """Round floats of any shape up to the next power of two, 2^ceil(log2(scale)), and return it as float8_e8m0fnu.

    Exact on the bits of the float32; a logarithm would err next to powers of two. 0 and all below 2^-127 become 2^-127.
    What no code can bound becomes NaN: above 2^127, infinity, negative, NaN. float64 is rounded to float32 first.
    """
    bits = scale.float().view(torch.int32)
    exponent = bits >> _MANTISSA_BITS
    mantissa = bits & _MANTISSA_MASK
    # A subnormal is mantissa * 2^-149: up to 2^-127 it is byte 0, above that byte 1.
    byte = exponent + (mantissa > torch.where(exponent == 0, _HALF_MANTISSA, 0))
    byte = torch.where(scale >= 0, byte.clamp(0, _NAN_BYTE), _NAN_BYTE)
    return byte.to(torch.uint8).view(torch.float8_e8m0fnu)


def decode(codes: Tensor) -> Tensor:
    """The float32 values of float8_e8m0fnu codes, or of their uint8 bytes, of any shape. Exact."""
    return codes.view(torch.float8_e8m0fnu).to(torch.float32)


def ceil_power_of_two(x: Tensor) -> Tensor:
    """The smallest UE8M0 value that is at least x, as float32. Edge cases as in `encode`."""
    return decode(encode(x))

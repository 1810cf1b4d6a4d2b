"""Value -> low precision -> value: the roundings that the official model applies while it runs.

Each function returns the dtype and shape of its input, float32 or bfloat16; a decoded value has at most 4 significant
bits, so both hold it exactly. Groups are rounded on their own: a row comes out alike in any batch. A group that holds
NaN or infinity becomes NaN throughout. Results carry no gradient. The rules are those of the kernels published with the
model (act_quant and fp4_act_quant with UE8M0 scales).
"""

import torch
from torch import Tensor

from pelagos.formats import e2m1, e4m3
from pelagos.formats.blocks import ROW_32, ROW_64, ROW_128
from pelagos.formats.groups import multiply_groups, quantize_groups_fp4, quantize_groups_fp8


def activation_fp8(x: Tensor) -> Tensor:
    """The input [..., n] of an FP8 or FP4 matrix product, rounded to FP8 in groups of 128."""
    codes, scales = quantize_groups_fp8(x, ROW_128.cols)
    return multiply_groups(e4m3.decode(codes), scales, ROW_128.cols).to(x.dtype)


def row_fp8(row: Tensor, num_rope_dims: int) -> Tensor:
    """An attention row [..., C]: the first C - num_rope_dims dims rounded to FP8 in groups of 64, the rest to BF16."""
    assert 0 <= num_rope_dims <= row.shape[-1]
    plain, rotated = row.detach().tensor_split([row.shape[-1] - num_rope_dims], dim=-1)
    codes, scales = quantize_groups_fp8(plain, ROW_64.cols)
    plain = multiply_groups(e4m3.decode(codes), scales, ROW_64.cols)
    return torch.cat((plain.to(row.dtype), rotated.bfloat16().to(row.dtype)), dim=-1)


def index_fp4(x: Tensor) -> Tensor:
    """An index row or index query [..., n], after its Hadamard rotation, rounded to FP4 in groups of 32."""
    codes, scales = quantize_groups_fp4(x, ROW_32.cols)
    return multiply_groups(e2m1.decode(codes), scales, ROW_32.cols).to(x.dtype)

"""The bytes of cached rows, as the public attention kernels lay them out (FlashMLA, SGLang, vLLM). Little-endian.

Attention row of C dims, the last R rotated, 584 bytes for C = 512 and R = 64:

    [C - R] E4M3 | [R] BF16 | [ceil((C - R) / 64)] UE8M0 | zeros up to a multiple of 8 bytes

Index row of n dims, 68 bytes in FP4 and 132 in FP8 for n = 128:

    FP4: [n / 2] two E2M1 codes a byte | [ceil(n / 32)] UE8M0
    FP8: [n] E4M3 | [ceil(n / 128)] float32 scales, powers of two

Kernels store a page as all data first and all scales behind; a row here is that row's share of both, in one piece.
Unpacking gives bit for bit what `simulate` gives: row_fp8, index_fp4, and activation_fp8 for the FP8 index row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.formats import e2m1, e4m3, ue8m0
from pelagos.formats.blocks import ROW_32, ROW_64, ROW_128
from pelagos.formats.groups import multiply_groups, quantize_groups_fp4, quantize_groups_fp8

_ALIGNMENT = 8


def attention_row_bytes(head_dim: int, num_rope_dims: int) -> int:
    """Bytes of one packed attention row."""
    assert 0 <= num_rope_dims <= head_dim
    num_plain = head_dim - num_rope_dims
    used = num_plain + 2 * num_rope_dims + _num_groups(num_plain, ROW_64.cols)
    return -(-used // _ALIGNMENT) * _ALIGNMENT


def pack_attention_row(row: Tensor, num_rope_dims: int) -> Tensor:
    """Attention rows [..., C], float32 or bfloat16 -> uint8 [..., attention_row_bytes(C, num_rope_dims)]."""
    plain, rotated = row.tensor_split([row.shape[-1] - num_rope_dims], dim=-1)
    codes, scales = quantize_groups_fp8(plain, ROW_64.cols)
    data = torch.cat((_bytes(codes), _bytes(rotated.bfloat16()), _bytes(ue8m0.encode(scales))), dim=-1)
    return F.pad(data, (0, attention_row_bytes(row.shape[-1], num_rope_dims) - data.shape[-1]))


def unpack_attention_row(
    packed: Tensor, head_dim: int, num_rope_dims: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The inverse of `pack_attention_row`: uint8 [..., bytes] -> `dtype` [..., head_dim].

    Raises UsageError where the last dimension is not attention_row_bytes(head_dim, num_rope_dims).
    """
    _check_bytes(packed, attention_row_bytes(head_dim, num_rope_dims))
    num_plain = head_dim - num_rope_dims
    end = num_plain + 2 * num_rope_dims
    codes, rotated, tail = packed.tensor_split([num_plain, end], dim=-1)
    scales = ue8m0.decode(tail[..., : _num_groups(num_plain, ROW_64.cols)])
    plain = multiply_groups(e4m3.decode(codes.view(torch.float8_e4m3fn)), scales, ROW_64.cols)
    return torch.cat((plain.to(dtype), _view(rotated, torch.bfloat16).to(dtype)), dim=-1)


def index_row_bytes_fp4(head_dim: int) -> int:
    """Bytes of one index row packed in FP4."""
    return head_dim // 2 + _num_groups(head_dim, ROW_32.cols)


def pack_index_row_fp4(row: Tensor) -> Tensor:
    """Index rows [..., n], n even, after their Hadamard rotation -> uint8 [..., index_row_bytes_fp4(n)]."""
    codes, scales = quantize_groups_fp4(row, ROW_32.cols)
    return torch.cat((_bytes(e2m1.pack(codes)), _bytes(ue8m0.encode(scales))), dim=-1)


def unpack_index_row_fp4(packed: Tensor, head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack_index_row_fp4`: uint8 [..., bytes] -> `dtype` [..., head_dim]. Same errors."""
    _check_bytes(packed, index_row_bytes_fp4(head_dim))
    pairs, scales = packed.tensor_split([head_dim // 2], dim=-1)
    return multiply_groups(e2m1.decode_packed(pairs), ue8m0.decode(scales), ROW_32.cols).to(dtype)


def index_row_bytes_fp8(head_dim: int) -> int:
    """Bytes of one index row packed in FP8."""
    return head_dim + 4 * _num_groups(head_dim, ROW_128.cols)


def pack_index_row_fp8(row: Tensor) -> Tensor:
    """Index rows [..., n] -> uint8 [..., index_row_bytes_fp8(n)]."""
    codes, scales = quantize_groups_fp8(row, ROW_128.cols)
    return torch.cat((_bytes(codes), _bytes(scales)), dim=-1)


def unpack_index_row_fp8(packed: Tensor, head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack_index_row_fp8`: uint8 [..., bytes] -> `dtype` [..., head_dim]. Same errors."""
    _check_bytes(packed, index_row_bytes_fp8(head_dim))
    codes, scales = packed.tensor_split([head_dim], dim=-1)
    values = e4m3.decode(codes.view(torch.float8_e4m3fn))
    return multiply_groups(values, _view(scales, torch.float32), ROW_128.cols).to(dtype)


def _num_groups(length: int, size: int) -> int:
    return -(-length // size)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _view(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [..., k * itemsize] as [..., k] numbers. Copies: a slice need not be aligned for the wider type."""
    shape = (*data.shape[:-1], data.shape[-1] // dtype.itemsize)
    return data.clone(memory_format=torch.contiguous_format).flatten().view(dtype).view(shape)


def _check_bytes(packed: Tensor, expected: int) -> None:
    if packed.dtype != torch.uint8 or packed.shape[-1] != expected:
        raise UsageError(f"a packed row must be {expected} bytes (uint8), not {packed.shape[-1]} of {packed.dtype}")

"""A weight matrix as codes and scales, as it lies in a checkpoint: value = code * scale of its block."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.formats import e2m1, e4m3, ue8m0
from pelagos.formats.blocks import BLOCK_128X128, ROW_32, BlockLayout, block_amax, expand_scales, row_scales
from pelagos.formats.groups import join_groups, multiply_groups, split_groups

_SCALE_DTYPES = (torch.float8_e8m0fnu, torch.float32)
# The scale of a block of zeros. The higher floor of activations, 1e-4, would cost small weights their bits.
_MIN_SCALE = 2.0**-126


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuantizedMatrix:
    """A matrix [out, in] in blocks of FP8 or FP4. The tensors may be memory-mapped; nothing is copied or read here.

    codes: float8_e4m3fn [out, in], or two E2M1 codes per byte, int8 [out, in / 2].
    scales: float8_e8m0fnu (float32 in -Base checkpoints) of shape layout.scale_shape(out, in).
    Raises UsageError where dtypes, shapes or devices do not fit together.
    """

    codes: Tensor
    scales: Tensor
    layout: BlockLayout

    def __post_init__(self) -> None:
        if self.codes.dtype not in (torch.float8_e4m3fn, torch.int8) or self.codes.dim() != 2:
            raise UsageError(
                f"codes must be a float8_e4m3fn or int8 matrix, not {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.scales.dtype not in _SCALE_DTYPES:
            raise UsageError(f"scales must be float8_e8m0fnu or float32, not {self.scales.dtype}")
        expected = self.layout.scale_shape(*self.shape)
        if tuple(self.scales.shape) != expected:
            raise UsageError(
                f"scales of a {list(self.shape)} matrix in blocks of {self.layout.rows}x{self.layout.cols} "
                f"must have shape {list(expected)}, not {list(self.scales.shape)}"
            )
        if self.codes.device != self.scales.device:
            raise UsageError(f"codes are on {self.codes.device} but scales on {self.scales.device}")

    @property
    def kind(self) -> Literal["fp8", "fp4"]:
        return "fp4" if self.codes.dtype == torch.int8 else "fp8"

    @property
    def shape(self) -> tuple[int, int]:
        """The logical shape (out, in)."""
        codes_per_item = 2 if self.kind == "fp4" else 1
        return self.codes.shape[0], self.codes.shape[1] * codes_per_item

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def decode_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop - 1 as float32 [stop - start, in], reading those rows alone. Exact for power-of-two scales.

        Raises IndexError unless 0 <= start <= stop <= out.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}..{stop} are outside a matrix of {self.shape[0]} rows")
        codes = self.codes[start:stop]
        values = e2m1.decode_packed(codes) if self.kind == "fp4" else e4m3.decode(codes)
        return multiply_groups(values, row_scales(self.scales, self.layout, start, stop), self.layout.cols)

    def decode(self) -> Tensor:
        """The whole matrix as float32 [out, in]."""
        return self.decode_rows(0, self.shape[0])

    def to(self, device: torch.device | str) -> "QuantizedMatrix":
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))

    def __repr__(self) -> str:
        size, block = self.shape, self.layout
        return f"QuantizedMatrix({self.kind}, {size[0]}x{size[1]}, blocks {block.rows}x{block.cols}, {self.device})"


def quantize_fp8(w: Tensor, layout: BlockLayout = BLOCK_128X128, *, scales: Tensor | None = None) -> QuantizedMatrix:
    """Round a float matrix [out, in] to E4M3, each block under the scale 2^ceil(log2(max(amax, 448 * 2^-126) / 448)).

    With `scales` (float8_e8m0fnu or float32, of the layout's shape) those are used as they are; quantizing a decoded
    matrix with its own scales gives its codes back. Raises UsageError where w holds NaN or infinity, or a magnitude
    beyond 448 times the given scale.
    """
    ratio, scales = _divide_by_scales(w, layout, e4m3.MAX, scales)
    return QuantizedMatrix(codes=e4m3.encode(ratio), scales=scales, layout=layout)


def quantize_fp4(w: Tensor, *, scales: Tensor | None = None) -> QuantizedMatrix:
    """Round a float matrix [out, in], in even, to E2M1 in groups of 32 inputs of one row.

    The scale of a group is 2^ceil(log2(max(amax, 6 * 2^-126) / 6)). `scales` and errors as in `quantize_fp8`, with 6
    for 448; UsageError also where in is odd.
    """
    ratio, scales = _divide_by_scales(w, ROW_32, e2m1.MAX, scales)
    return QuantizedMatrix(codes=e2m1.pack(e2m1.encode(ratio)), scales=scales, layout=ROW_32)


def fp4_to_fp8(m: QuantizedMatrix) -> QuantizedMatrix:
    """The same values as FP8 in 128x128 tiles, so that FP8 kernels can run FP4 experts. out and in: multiples of 128.

    The scale of a tile is its largest group scale / 64, which puts the largest code at 6 * 64 = 384. Raises UsageError
    that names the first tile where `fp4_to_fp8_is_lossless` does not hold.
    """
    codes, scales, is_lossy = _retile(m)
    if is_lossy.any():
        row, col = is_lossy.nonzero()[0].tolist()
        raise UsageError(
            f"FP4 tile [{row}, {col}] (rows {128 * row}..{128 * row + 127}, columns {128 * col}..{128 * col + 127}) "
            "cannot be kept in FP8 without loss: its group scales must be numbers within a factor 2^14 of each other"
        )
    return QuantizedMatrix(codes=codes, scales=scales, layout=BLOCK_128X128)


def fp4_to_fp8_is_lossless(m: QuantizedMatrix) -> bool:
    """Whether `fp4_to_fp8` keeps every value.

    Under a tile scale of max(s) / 64 a group with scale s holds values of code * 64 s / max(s), at most 384. E4M3 holds
    such a value exactly if and only if it is a multiple of its smallest step, 2^-9. Codes of 0.5 and 1.5 thus need
    s >= 2^-14 max(s), which is enough for all codes; groups of larger codes alone may be smaller still (2^-17 for 4),
    and groups of zeros may have any scale. A NaN scale is never lossless.
    """
    return not _retile(m)[2].any()


def _retile(m: QuantizedMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """FP8 codes [out, in], UE8M0 tile scales [out / 128, in / 128], and which tiles lost a value (bool, same shape)."""
    num_outputs, num_inputs = m.shape
    if m.kind != "fp4" or m.layout != ROW_32 or num_outputs % 128 or num_inputs % 128:
        raise UsageError(f"FP4 to FP8 needs an FP4 matrix in 1x32 groups with sides that are multiples of 128, not {m}")
    groups_per_tile = BLOCK_128X128.cols // ROW_32.cols
    tile = BlockLayout(rows=BLOCK_128X128.rows, cols=groups_per_tile)  # of the scales, not of the values
    group_scales = m.scales.to(torch.float32)
    tile_scales = ue8m0.encode(block_amax(group_scales, tile) / 64)
    divisors = row_scales(tile_scales, tile, 0, num_outputs)
    ratio = join_groups(split_groups(group_scales, groups_per_tile) / divisors.unsqueeze(-1), group_scales.shape[1])
    # 2^-20 is too small for any nonzero code. Without the clamp a product could underflow to a zero that looks exact.
    values = multiply_groups(e2m1.decode_packed(m.codes), ratio.clamp(min=2.0**-20), ROW_32.cols)
    codes = e4m3.encode(values)
    is_lossy = (e4m3.decode(codes) != values).view(num_outputs // 128, 128, num_inputs // 128, 128)
    return codes, tile_scales, is_lossy.any(dim=3).any(dim=1)


def _divide_by_scales(w: Tensor, layout: BlockLayout, max_value: float, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """w / scale, float32 [out, in], and the scales, computed from w where none are given."""
    if w.dim() != 2:
        raise UsageError(f"only a matrix can be quantized in blocks, not a tensor of shape {list(w.shape)}")
    w = w.detach().float()
    if scales is None:
        amax = block_amax(w, layout)
        if not amax.isfinite().all():
            raise UsageError("the matrix holds NaN or infinity, which cannot be quantized")
        scales = ue8m0.encode(amax.clamp(min=max_value * _MIN_SCALE) / max_value)
        return w / expand_scales(scales, layout, *w.shape), scales
    _check_scales(scales, layout.scale_shape(*w.shape))
    expanded = expand_scales(scales, layout, *w.shape)
    if not (w.abs() <= max_value * expanded).all():
        raise UsageError(f"the matrix holds values beyond {max_value:g} times the given scale of their block, or NaN")
    return w / expanded, scales


def _check_scales(scales: Tensor, shape: tuple[int, int]) -> None:
    if scales.dtype not in _SCALE_DTYPES or tuple(scales.shape) != shape:
        raise UsageError(
            f"scales must be float8_e8m0fnu or float32 of shape {list(shape)}, not {scales.dtype} {list(scales.shape)}"
        )
    values = scales.to(torch.float32)
    if not (values.isfinite() & (values > 0)).all():
        raise UsageError("scales must be finite numbers above 0")

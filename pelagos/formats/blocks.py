"""The blocks of a weight matrix that share one scale.

A matrix [out, in] is tiled with blocks of `rows` x `cols`; where the sizes do not divide, the last blocks are smaller.
Its scales are a matrix [ceil(out / rows), ceil(in / cols)].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.common.errors import ConfigError
from pelagos.formats.groups import multiply_groups, split_groups


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """Block size of a scaled matrix: `rows` of outputs by `cols` of inputs. ConfigError unless both are at least 1."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("cols", self.cols)):
            if value < 1:
                raise ConfigError(f"BlockLayout.{name} must be at least 1, not {value}")

    def scale_shape(self, num_outputs: int, num_inputs: int) -> tuple[int, int]:
        """Shape of the scales of a matrix [num_outputs, num_inputs]."""
        return -(-num_outputs // self.rows), -(-num_inputs // self.cols)


BLOCK_128X128 = BlockLayout(rows=128, cols=128)  # FP8 weights
ROW_128 = BlockLayout(rows=1, cols=128)  # inputs of matrix products
ROW_64 = BlockLayout(rows=1, cols=64)  # attention rows
ROW_32 = BlockLayout(rows=1, cols=32)  # FP4 weights, index rows


def block_amax(w: Tensor, layout: BlockLayout) -> Tensor:
    """The largest magnitude in each block of a float matrix [out, in]: float32 of the scales' shape. NaN stays NaN."""
    by_row = split_groups(w.abs(), layout.cols).amax(dim=-1)
    return split_groups(by_row.T, layout.rows).amax(dim=-1).T.float()


def row_scales(scales: Tensor, layout: BlockLayout, start: int, stop: int) -> Tensor:
    """The scales of matrix rows start..stop - 1: float32 [stop - start, ceil(in / cols)]. Reads no other scales."""
    first = start // layout.rows
    block = torch.arange(start, stop, device=scales.device) // layout.rows - first
    return scales[first : -(-stop // layout.rows)].to(torch.float32).index_select(0, block)


def expand_scales(scales: Tensor, layout: BlockLayout, num_outputs: int, num_inputs: int) -> Tensor:
    """Every scale repeated over its block: float32 [num_outputs, num_inputs]."""
    ones = torch.ones(num_outputs, num_inputs, device=scales.device)
    return multiply_groups(ones, row_scales(scales, layout, 0, num_outputs), layout.cols)

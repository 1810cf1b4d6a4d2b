import math

import pytest
import torch

from pelagos.common.errors import ConfigError
from pelagos.formats.blocks import (
    BLOCK_128X128,
    ROW_32,
    ROW_64,
    ROW_128,
    BlockLayout,
    block_amax,
    expand_scales,
    row_scales,
)
from pelagos.formats.groups import join_groups, multiply_groups, split_groups

ODD_CASES = [
    (BlockLayout(rows=3, cols=4), 7, 10),
    (BlockLayout(rows=1, cols=4), 5, 9),
    (BlockLayout(rows=8, cols=8), 3, 2),
]
CASES = [*ODD_CASES, (BlockLayout(rows=2, cols=5), 6, 10), (BlockLayout(rows=2, cols=1), 4, 3)]


def test_named_layouts():
    assert [(b.rows, b.cols) for b in (BLOCK_128X128, ROW_128, ROW_64, ROW_32)] == [
        (128, 128),
        (1, 128),
        (1, 64),
        (1, 32),
    ]


def test_scale_shape_counts_the_blocks_at_the_edges():
    assert BLOCK_128X128.scale_shape(256, 384) == (2, 3)
    assert BLOCK_128X128.scale_shape(257, 1) == (3, 1)
    assert ROW_32.scale_shape(5, 33) == (5, 2)
    assert ROW_32.scale_shape(0, 32) == (0, 1)


@pytest.mark.parametrize(("rows", "cols", "field"), [(0, 1, "rows"), (1, 0, "cols"), (-3, 2, "rows")])
def test_block_sizes_below_one_are_refused(rows, cols, field):
    with pytest.raises(ConfigError, match=f"BlockLayout.{field} must be at least 1"):
        BlockLayout(rows=rows, cols=cols)


@pytest.mark.parametrize(("layout", "num_outputs", "num_inputs"), CASES)
def test_block_amax_and_expand_against_loops(layout, num_outputs, num_inputs):
    w = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(1))
    amax = block_amax(w, layout)
    assert amax.shape == layout.scale_shape(num_outputs, num_inputs)
    expanded = expand_scales(amax, layout, num_outputs, num_inputs)
    assert expanded.shape == w.shape
    for i in range(amax.shape[0]):
        for j in range(amax.shape[1]):
            block = (slice(i * layout.rows, (i + 1) * layout.rows), slice(j * layout.cols, (j + 1) * layout.cols))
            assert amax[i, j] == w[block].abs().max()
            assert (expanded[block] == amax[i, j]).all()


@pytest.mark.parametrize(("layout", "num_outputs", "num_inputs"), CASES)
def test_row_scales_of_every_range_of_rows(layout, num_outputs, num_inputs):
    scales = torch.rand(layout.scale_shape(num_outputs, num_inputs), generator=torch.Generator().manual_seed(2))
    for start in range(num_outputs + 1):
        for stop in range(start, num_outputs + 1):
            rows = row_scales(scales, layout, start, stop)
            assert torch.equal(rows, scales[[r // layout.rows for r in range(start, stop)]])


def test_block_amax_keeps_nan_in_its_block():
    w = torch.ones(4, 4)
    w[3, 0] = math.nan
    assert block_amax(w, BlockLayout(rows=2, cols=2)).isnan().tolist() == [[False, False], [True, False]]


def test_block_amax_of_bfloat16_and_of_nothing():
    amax = block_amax(torch.tensor([[1.0, -3.0]], dtype=torch.bfloat16), ROW_32)
    assert amax.dtype == torch.float32
    assert amax.item() == 3.0
    assert block_amax(torch.zeros(0, 64), ROW_32).shape == (0, 2)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16])
def test_groups_split_join_and_multiply(length):
    x = torch.arange(2.0 * 3 * length).view(2, 3, length)
    groups = split_groups(x, 8)
    num_groups = math.ceil(length / 8)
    assert groups.shape == (2, 3, num_groups, 8)
    assert torch.equal(join_groups(groups, length), x)
    scales = torch.rand(2, 3, num_groups, generator=torch.Generator().manual_seed(3))
    expected = torch.stack([x[..., i] * scales[..., i // 8] for i in range(length)], -1) if length else x
    assert torch.equal(multiply_groups(x.clone(), scales, 8), expected)

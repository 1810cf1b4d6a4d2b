"""Native index scores and choices against the reference, on packed and paged rows, and against themselves."""

from typing import Any

import pytest
import torch
from rowwise_checks import check_contract, needs_native, noise, same_everywhere

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import kernels
from pelagos.ops.cpu.indexer import choose_rows, index_scores, top_rows
from pelagos.ops.cpu.rounding import RowFormat, load_rows, round_index, row_layout, store_rows
from pelagos.ops.reference import indexer as reference

pytestmark = needs_native


@pytest.mark.parametrize(
    ("name", "function"), [("index_scores", index_scores), ("top_rows", top_rows), ("choose_rows", choose_rows)]
)
def test_contract(name: str, function: object) -> None:
    check_contract(name, function)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_ties_zeros_and_infinities(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = (
        torch.randint(-1, 2, (40, 500), generator=g)
        * torch.tensor([0.0, 1.0, -0.0, 1e-40, torch.inf])[torch.randint(0, 5, (40, 500), generator=g)]
    )
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    visible = torch.randint(0, 501, (40,), generator=g)
    for k in (1, 7, 499, 500, 600):
        assert torch.equal(top_rows(scores, visible, k), reference.top_rows(scores, visible, k))


def test_nan_scores_are_chosen_first() -> None:
    scores = torch.tensor([[1.0, torch.nan, torch.inf, -torch.nan, 0.0]])
    assert top_rows(scores, torch.tensor([5]), 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "row_format", [RowFormat.FLOAT32, RowFormat.BFLOAT16, RowFormat.INDEX_FP8, RowFormat.INDEX_FP4]
)
def test_packed_rows_in_scattered_pages(row_format: RowFormat) -> None:
    """4,000 rows, far more than are kept: each query chooses what it would alone, and what unpacked rows give."""
    num_rows, page_rows, heads, size, k = 4000, 32, 4, 64, 40
    rows, q, weights = (
        round_index(noise(num_rows, size)),
        round_index(noise(37, heads, size, seed=1)),
        noise(37, heads, seed=2),
    )
    visible = torch.linspace(41, num_rows, 37).long()
    layout = row_layout(row_format, size)
    packed = store_rows(layout, rows)
    pages = torch.randperm(num_rows // page_rows, generator=torch.Generator().manual_seed(3)).int()
    arena = torch.empty_like(packed).view(-1, page_rows, layout.bytes)
    arena[pages.long()] = packed.view(-1, page_rows, layout.bytes)
    expected = choose_rows(q, weights, load_rows(layout, packed), visible, k)

    def run(start: int, stop: int) -> torch.Tensor:
        chosen = torch.empty(stop - start, k, dtype=torch.int32)
        places = q[start:stop].contiguous(), weights[start:stop].contiguous(), visible[start:stop].contiguous()
        addresses = [t.data_ptr() for t in (arena, pages)]
        inputs = [t.data_ptr() for t in places]
        kernels().choose_rows(layout, *addresses, page_rows, *inputs, stop - start, heads, k, chosen.data_ptr())
        return chosen.long()

    assert torch.equal(same_everywhere(lambda: run(0, 37))[0], expected)
    assert all(torch.equal(run(i, i + 1)[0], expected[i]) for i in range(37))


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("heads", [1, 4, 13, 64])
def test_codes_have_the_scores_of_their_numbers(size: int, heads: int) -> None:
    """Scores in integers and scores in float32: the same bits, wherever the scales of a row's blocks lie."""
    num_rows, layout = 203, row_layout(RowFormat.INDEX_FP4, size)
    scales = 2.0 ** torch.randint(-12, 13, (num_rows, size // 32), generator=torch.Generator().manual_seed(size))
    packed = store_rows(layout, noise(num_rows, size) * scales.repeat_interleave(32, 1))
    q, weights = round_index(noise(5, heads, size, seed=1)), noise(5, heads, seed=2)
    q[3, 0, :32] = 0.0
    expected = index_scores(q, weights, load_rows(layout, packed))
    assert torch.equal(same_everywhere(lambda: _scores_of_packed(layout, packed, q, weights))[0], expected)
    q[2, 0, 0] += 0.3  # not a number that FP4 has
    expected = index_scores(q, weights, load_rows(layout, packed))
    assert torch.equal(same_everywhere(lambda: _scores_of_packed(layout, packed, q, weights))[0], expected)


def _scores_of_packed(layout: Any, packed: torch.Tensor, q: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    stride = -(-len(packed) // 16) * 16
    scores, visible = torch.empty(len(q), stride), torch.full((len(q),), len(packed))
    inputs = [t.data_ptr() for t in (packed, q, weights, visible)]
    kernels().index_scores(layout, *inputs, len(q), q.shape[1], scores.data_ptr(), stride)
    return scores[:, : len(packed)]


@pytest.mark.parametrize("num_kinds", [1, 3, 40])
def test_equal_rows_among_many(num_kinds: int) -> None:
    """Far more rows than are kept, most of them equal to others; no number and infinite scores among them."""
    rows = noise(num_kinds, 32)[torch.randint(0, num_kinds, (3001,), generator=torch.Generator().manual_seed(4))]
    q, weights = noise(7, 4, 32, seed=1), noise(7, 4, seed=2)
    weights[1] = torch.nan
    weights[2] = -1.0
    weights[3] = torch.inf
    visible = torch.tensor([3001, 3001, 2990, 3001, 129, 1000, 17])
    for k in (1, 8, 64, 187, 188, 3000):
        expected = reference.choose_rows(q, weights, rows, visible, k)
        assert torch.equal(choose_rows(q, weights, rows, visible, k), expected)


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="q must have heads of 1 to 256 numbers, not 300"):
        index_scores(noise(1, 2, 300), noise(1, 2), noise(5, 300))
    with pytest.raises(UsageError, match=r"rows must have shape \[any, 8\], not \[5, 7\]"):
        index_scores(noise(1, 2, 8), noise(1, 2), noise(5, 7))

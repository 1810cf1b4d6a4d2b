"""Native index scores and choices against the reference, on packed and paged rows, and against themselves."""

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


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="q must have heads of 1 to 256 numbers, not 300"):
        index_scores(noise(1, 2, 300), noise(1, 2), noise(5, 300))
    with pytest.raises(UsageError, match=r"rows must have shape \[any, 8\], not \[5, 7\]"):
        index_scores(noise(1, 2, 8), noise(1, 2), noise(5, 7))

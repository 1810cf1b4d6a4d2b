"""The reference keeps its own contract: no NaN, zero tokens, and rows that depend on nothing beside them."""

import pytest
import torch

from pelagos.ops.contract import OPS, Case


def _results(value: object) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)  # type: ignore[return-value]


def _cases(name: str) -> list[Case]:
    return list(OPS[name].cases(torch.Generator().manual_seed(7)))


def _rows(case: Case, per_row: tuple[str, ...], index: slice) -> Case:
    return {key: value[index] if key in per_row else value for key, value in case.items()}


@pytest.mark.parametrize("name", OPS)
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    op = OPS[name]
    compared = 0
    for case in _cases(name):
        whole = _results(op.reference(**case))
        num_rows = len(case[op.per_row[0]])
        for start, stop in ((0, 1), (num_rows - 1, num_rows), (1, 4), (2, 15), (5, 70)):
            if 0 <= start < stop <= num_rows:
                part = _results(op.reference(**_rows(case, op.per_row, slice(start, stop))))
                for a, b in zip(whole, part, strict=True):
                    assert torch.equal(a[start:stop], b)
                    compared += 1
    assert compared > 10


@pytest.mark.parametrize("name", OPS)
def test_no_nan_and_deterministic(name: str) -> None:
    op = OPS[name]
    for case in _cases(name):
        first, second = _results(op.reference(**case)), _results(op.reference(**case))
        for a, b in zip(first, second, strict=True):
            assert len(a) == len(case[op.per_row[0]])
            assert not torch.isnan(a.float()).any()
            assert torch.equal(a, b)


def test_every_op_has_a_case_without_tokens() -> None:
    for name, op in OPS.items():
        assert any(len(case[op.per_row[0]]) == 0 for case in _cases(name)), name

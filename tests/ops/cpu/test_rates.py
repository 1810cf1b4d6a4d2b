"""Rates of the kernels: work over time, on weights that are what they say."""

import pytest
import torch
from rowwise_checks import needs_native

from pelagos.formats.matrix import QuantizedMatrix
from pelagos.ops.cpu import rates
from pelagos.ops.cpu.rates import FORMATS, Limit, measure_products, random_matrix, seconds_in_turns
from pelagos.ops.reference.linear import linear


@pytest.mark.parametrize("kind", FORMATS)
def test_random_weights_are_finite_and_of_their_format(kind: str) -> None:
    matrix = random_matrix(kind, 128, 256, torch.Generator().manual_seed(1))
    assert tuple(matrix.shape) == (128, 256)
    assert isinstance(matrix, QuantizedMatrix) == (kind in ("fp4", "fp8"))
    if isinstance(matrix, QuantizedMatrix):
        assert matrix.kind == kind
    product = linear(torch.randn(3, 256), matrix)
    assert bool(product.isfinite().all())
    assert float(product.abs().max()) > 0


@needs_native
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_rates_are_work_over_time(kind: str, rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians of the turns: of 0.5, 2.0 and 0.25 seconds, and of their shares of what the limit did beside them."""
    times = [(0.5, 1.0), (2.0, 8.0), (0.25, 0.25)]
    monkeypatch.setattr(rates, "seconds_in_turns", lambda work, limit, seconds: (work(), limit(), times)[2])
    per_matrix = {"fp4": 128 * 256 // 2 + 128 * 256 // 32, "fp8": 128 * 256, "bf16": 128 * 512, "fp32": 128 * 1024}[
        kind
    ]
    one, many = measure_products(
        kind, (128, 256), (1, 5), num_bytes=3 * per_matrix, seconds=1.0,
        reading=Limit(work=lambda: None, amount=per_matrix), multiplying=Limit(work=lambda: None, amount=100.0),
        rounded=rounded,
    )  # fmt: skip
    assert (one.unit, one.value, one.share) == ("B/s", 3 * per_matrix / 0.5, 6.0)
    assert (many.unit, many.value) == ("FLOP/s", 2 * 5 * 128 * 256 * 3 / 0.5)
    assert many.share == many.value / 100


def test_turns_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 4.0, 4.5, 5.5, 5.6, 6.0, 8.0, 8.0, 9.0, 20.0])
    monkeypatch.setattr(rates.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(times))
    calls: list[str] = []
    turns = seconds_in_turns(lambda: calls.append("first"), lambda: calls.append("second"), 10.0)
    assert turns == [(3.0, 1.0), (2.0, 1.0)]
    assert calls == ["first", "second"] * 3

"""Rates of the kernels: work over time, on weights that are what they say."""

import pytest
import torch
from rowwise_checks import needs_native

from pelagos.formats.matrix import QuantizedMatrix
from pelagos.ops.cpu import rates
from pelagos.ops.cpu.rates import FORMATS, measure_products, random_matrix
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
def test_rates_are_work_over_the_best_time(kind: str, rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "best_seconds", lambda work, seconds: (work(), 0.5)[1])
    per_matrix = {"fp4": 128 * 256 // 2 + 128 * 256 // 32, "fp8": 128 * 256, "bf16": 128 * 512, "fp32": 128 * 1024}[
        kind
    ]
    one, many = measure_products(
        kind, (128, 256), (1, 5), num_bytes=3 * per_matrix, seconds=1.0,
        read_bytes_per_second=per_matrix, float32_flops=100.0, rounded=rounded,
    )  # fmt: skip
    assert (one.unit, one.value, one.share) == ("B/s", 3 * per_matrix / 0.5, 6.0)
    assert (many.unit, many.value) == ("FLOP/s", 2 * 5 * 128 * 256 * 3 / 0.5)
    assert many.share == many.value / 100

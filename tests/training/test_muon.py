"""Muon's parts: orthogonalization against singular values in float64, the update, the sharing of work."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pelagos.training.muon import (
    apply_update,
    assign_ranks,
    look_ahead,
    newton_schulz_flops,
    orthogonalize,
    scaled_direction,
)

POLYNOMIALS = [(3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def singular_values(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.double())


def with_spectrum(values: Tensor, num_columns: int, seed: int = 0) -> Tensor:
    """A float64 matrix of these singular values, with as many rows."""
    u = torch.linalg.qr(gaussian(len(values), len(values), seed=seed).double()).Q
    v = torch.linalg.qr(gaussian(num_columns, len(values), seed=seed + 1).double()).Q
    return u @ torch.diag(values) @ v.T


def polar(x: Tensor) -> Tensor:
    """U·Vᵀ in float64."""
    u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(128, 256), (256, 128), (256, 256), (4, 256), (16, 1024), (1, 40), (24, 7)])
def test_singular_values_of_gaussian_matrices_become_one(shape: tuple[int, int]) -> None:
    x = orthogonalize(gaussian(3, *shape))
    values = singular_values(x)
    assert values.min() > 0.999
    assert values.max() < 1.003


def test_five_plain_steps_are_known_to_leave_the_update_small() -> None:
    rms = scaled_direction(gaussian(4, 128, 256), rms=1.0, steps=(5, 0)).square().mean().sqrt()
    assert 0.87 < rms < 0.96


def test_wide_spectrum() -> None:
    x = with_spectrum(torch.logspace(0, -4, 256, dtype=torch.float64), 256).float()
    values = singular_values(orthogonalize(x[None]))
    assert values.min() > 0.999
    assert values.max() < 1.0025


@pytest.mark.parametrize("steps", [(1, 0), (4, 0), (0, 3), (4, 2), (8, 2)])
def test_each_step_is_its_polynomial_of_the_singular_values(steps: tuple[int, int]) -> None:
    x = with_spectrum(torch.linspace(0.3, 1.7, 12, dtype=torch.float64), 30)
    u, values, vh = torch.linalg.svd(x, full_matrices=False)
    values = values / values.norm()
    for (a, b, c), count in zip(POLYNOMIALS, steps, strict=True):
        for _ in range(count):
            values = a * values + b * values**3 + c * values**5
    expected = u @ torch.diag(values) @ vh
    torch.testing.assert_close(orthogonalize(x[None], steps)[0].double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64)])
def test_equals_polar_factor(shape: tuple[int, int]) -> None:
    rows, columns = sorted(shape)
    x = with_spectrum(torch.linspace(1, 3, rows, dtype=torch.float64), columns)
    x = x if shape[0] == rows else x.mT
    torch.testing.assert_close(orthogonalize(x[None])[0].double(), polar(x), atol=5e-4, rtol=0)


def test_bfloat16_products() -> None:
    x = gaussian(2, 128, 256)
    y = orthogonalize(x, dtype=torch.bfloat16)
    assert y.dtype == torch.float32
    values = singular_values(y)
    assert values.min() > 0.97
    assert values.max() < 1.03
    assert not torch.equal(y, orthogonalize(x))


def test_scale_of_the_gradient_does_not_matter_but_tiny_ones_do_not_explode() -> None:
    x = gaussian(1, 16, 32)
    for factor in (1e12, 1e-4):
        torch.testing.assert_close(orthogonalize(x * factor), orthogonalize(x), atol=1e-3, rtol=0)
    assert orthogonalize(x * 1e-18).norm() < 1e-3  # far below the floor of the norm


def test_zero_stays_zero() -> None:
    x = gaussian(3, 24, 40)
    x[1] = 0
    y = orthogonalize(x)
    assert torch.count_nonzero(y[1]) == 0
    assert torch.equal(y[0], orthogonalize(x[:1])[0])
    assert orthogonalize(x[:0]).shape == (0, 24, 40)


@settings(max_examples=40)
@given(
    num=st.integers(2, 9),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 150)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_a_matrix_gives_the_same_bits_in_any_batch(
    num: int, shape: tuple[int, int], dtype: torch.dtype, data: st.DataObject
) -> None:
    x = gaussian(num, *shape)
    together = orthogonalize(x, dtype=dtype)
    order = data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=num, unique=True))
    assert torch.equal(orthogonalize(x[order], dtype=dtype), together[order])
    if shape[0] != shape[1]:  # the larger side is summed over either way
        assert torch.equal(orthogonalize(x.mT, dtype=dtype), together.mT)


@pytest.mark.parametrize("shape", [(32, 64), (64, 128), (40, 96), (128, 256)])
def test_a_tall_matrix_gives_the_bits_of_its_transpose(shape: tuple[int, int]) -> None:
    x = gaussian(3, *shape)
    assert torch.equal(orthogonalize(x.mT), orthogonalize(x).mT)
    assert torch.equal(orthogonalize(x.mT.contiguous()), orthogonalize(x).mT)


def test_steps_equal_the_formula_in_float64() -> None:
    weight, momentum = gaussian(2, 12, 20), torch.zeros(2, 12, 20)
    exact, exact_momentum = weight.double(), momentum.double()
    lr, decay, mu, rms = 0.02, 0.1, 0.95, 0.18
    for step in range(4):
        gradient = gaussian(2, 12, 20, seed=step + 1)
        update = scaled_direction(look_ahead(momentum, gradient, mu), rms=rms)
        apply_update(weight, update, lr=lr, decay=decay)
        exact_momentum = mu * exact_momentum + gradient.double()
        orthogonal = torch.stack([polar(x) for x in mu * exact_momentum + gradient.double()])
        exact = exact * (1 - lr * decay) - lr * math.sqrt(20) * rms * orthogonal
    torch.testing.assert_close(momentum.double(), exact_momentum, atol=1e-5, rtol=0)
    torch.testing.assert_close(weight.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(128, 256), (256, 128), (64, 64), (4, 96)])
def test_update_has_the_given_rms(shape: tuple[int, int]) -> None:
    update = scaled_direction(gaussian(3, *shape), rms=0.18)
    assert update.square().mean().sqrt().item() == pytest.approx(0.18, rel=5e-3)


@pytest.mark.parametrize("size", [1, 7, 16, 37, 100])
def test_elementwise_parts_give_the_same_bits_at_any_place(size: int) -> None:
    weight, momentum, gradient = (gaussian(3, size, 5, seed=seed) for seed in range(3))
    single = [(weight[i].clone(), momentum[i].clone(), gradient[i].clone()) for i in range(3)]
    looked_ahead = look_ahead(momentum, gradient, 0.95)
    apply_update(weight, looked_ahead, lr=0.003, decay=0.1)
    for i, (w, m, g) in enumerate(single):
        apply_update(w, look_ahead(m, g, 0.95), lr=0.003, decay=0.1)
        assert torch.equal(w, weight[i])
        assert torch.equal(m, momentum[i])


def test_flops_are_those_that_torch_counts() -> None:
    for shape in [(32, 64), (64, 32), (64, 64)]:
        with FlopCounterMode(display=False) as counter:
            orthogonalize(gaussian(1, *shape), (3, 1))
        assert newton_schulz_flops(*shape, (3, 1)) == counter.get_total_flops()


@given(
    costs=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 50), min_size=1, max_size=6),
    num_ranks=st.integers(1, 3),
)
def test_ranks_share_the_work(costs: dict[str, float], num_ranks: int) -> None:
    def heaviest(owners: dict[str, int]) -> float:
        return max(sum(costs[name] for name in costs if owners[name] == rank) for rank in range(num_ranks))

    owners = assign_ranks(costs, num_ranks)
    assert owners.keys() == costs.keys()
    assert owners == assign_ranks(dict(reversed(costs.items())), num_ranks)
    choices = itertools.product(range(num_ranks), repeat=len(costs))
    best = min(heaviest(dict(zip(costs, choice, strict=True))) for choice in choices)
    assert heaviest(owners) <= best * (4 / 3 - 1 / (3 * num_ranks)) + 1e-9


def test_ranks_of_equal_costs_go_by_name() -> None:
    assert assign_ranks({"c": 1.0, "a": 1.0, "d": 1.0, "b": 1.0}, 2) == {"a": 0, "b": 1, "c": 0, "d": 1}

"""The functions for training: values against the reference on its own cases, gradients against finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pelagos.ops.autograd import compressor, linear, mhc, moe, norm_rope
from pelagos.ops.autograd.rounding import straight_through
from pelagos.ops.contract import OPS
from pelagos.ops.dispatch import autograd_ops, reference_ops

_OPS = autograd_ops()
_NAMES = [name for name in OPS if hasattr(_OPS, name) and getattr(_OPS, name) is not OPS[name].reference]


def _tuple(value: object) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)  # type: ignore[return-value]


def test_what_is_replaced() -> None:
    assert {"linear", "mhc_weights", "mhc_expand", "rms_norm", "clamped_swiglu"} <= set(_NAMES)
    assert reference_ops().name == "reference"


@pytest.mark.parametrize("name", _NAMES)
def test_values(name: str) -> None:
    op, compared = OPS[name], 0
    for case in op.cases(torch.Generator().manual_seed(3)):
        floats = [value for value in case.values() if isinstance(value, Tensor) and value.is_floating_point()]
        if any(value.dtype != torch.float32 for value in floats) or not all(
            isinstance(value, Tensor | float | int | None) for value in case.values()
        ):
            continue  # stored formats and bfloat16 are not for training on CPU
        expected, found = _tuple(op.reference(**case)), _tuple(getattr(_OPS, name)(**case))
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            if b.numel():
                assert (a - b).abs().max() <= op.tolerance * b.abs().max().clamp(min=1e-30)
                compared += 1
    assert compared >= 5


def _double(*shape: int, seed: int = 0) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.requires_grad_()


def _angles(num_tokens: int, num_pairs: int) -> tuple[Tensor, Tensor]:
    angles = torch.linspace(0.1, 3.0, num_tokens * num_pairs, dtype=torch.float64).view(num_tokens, num_pairs)
    return angles.cos(), angles.sin()


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the functions compute in float64, which finite differences need."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda v, fn: mhc._Projection.apply(v, fn, 1e-3), [_double(5, 12), _double(7, 12, seed=1)]),
        (lambda x: mhc._Sinkhorn.apply(torch.softmax(x, -1), 1e-6, 20), [_double(3, 4, 4)]),
        (lambda x: mhc._Sinkhorn.apply(torch.softmax(3 * x, -1), 1e-2, 1), [_double(3, 4, 4)]),
        (
            lambda *a: mhc.mhc_weights(*a, norm_eps=1e-3, hc_eps=1e-6, iterations=20),
            [_double(3, 4, 5), _double(24, 20, seed=1), _double(24, seed=2), _double(3, seed=3)],
        ),
        (
            lambda *a: mhc.mhc_head_weights(*a, norm_eps=1e-3, hc_eps=1e-6),
            [_double(3, 4, 5), _double(4, 20, seed=1), _double(4, seed=2), _double(1, seed=3)],
        ),
        (mhc.mhc_collapse, [_double(3, 4, 5), _double(3, 4, seed=1)]),
        (mhc.mhc_expand, [_double(3, 4, 5), _double(3, 5, seed=1), _double(3, 4, seed=2), _double(3, 4, 4, seed=3)]),
        (lambda x, w: norm_rope.rms_norm(x, w, 1e-3), [_double(3, 8), _double(8, seed=1)]),
        (lambda x: norm_rope.head_norm(x, 1e-3), [_double(3, 2, 8)]),
        (
            lambda x: norm_rope.rotate(x, *_angles(3, 2), inverse=False),
            [_double(3, 2, 8)],
        ),
        (lambda x: norm_rope.rotate(x, *_angles(3, 3), inverse=True), [_double(3, 2, 6)]),
        (lambda x, w: linear.grouped_linear(x, w, num_groups=2), [_double(3, 2, 4), _double(6, 4, seed=1)]),
        (moe.router_scores, [_double(3, 6)]),
        (lambda g, u: moe.clamped_swiglu(g, u, 0.8), [_double(4, 6), _double(4, 6, seed=1)]),
        (compressor.pool_window, [_double(3, 8, 5), _double(3, 8, 5, seed=1)]),
    ],
)
def test_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    assert gradcheck(function, inputs, rtol=1e-5, atol=1e-8)


def test_straight_through() -> None:
    x = _double(5)
    y = straight_through(x, torch.round)
    assert torch.equal(y, torch.round(x))
    (grad,) = torch.autograd.grad(y, x, torch.arange(5.0, dtype=torch.float64))
    assert torch.equal(grad, torch.arange(5.0, dtype=torch.float64))


def test_router_scores_of_hopeless_experts_have_finite_gradients() -> None:
    logits = torch.tensor([[-200.0, -80.0, 0.0, 200.0]], requires_grad=True)
    moe.router_scores(logits).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()

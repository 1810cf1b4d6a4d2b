"""Native routing and SwiGLU against the reference and against float64."""

import pytest
import torch
from rowwise_checks import check_contract, needs_native, noise, same_bits, same_everywhere

from pelagos.common.errors import UsageError
from pelagos.ops.cpu import moe
from pelagos.ops.reference import moe as reference

pytestmark = needs_native


def test_router_scores() -> None:
    check_contract("router_scores", moe.router_scores)


def test_top_experts() -> None:
    check_contract("top_experts", moe.top_experts)


def test_routing_weights() -> None:
    check_contract("routing_weights", moe.routing_weights, exact=True)


def test_clamped_swiglu() -> None:
    check_contract("clamped_swiglu", moe.clamped_swiglu)


def test_router_scores_keep_their_digits_at_both_ends() -> None:
    logits = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([0.0, -0.0, 1e-40, 1e30, -3e38])]).unsqueeze(0)
    (scores,) = same_everywhere(lambda: moe.router_scores(logits))
    wide = logits.double()
    exact = (wide.clamp(min=0) + torch.log1p(torch.exp(-wide.abs()))).sqrt()
    torch.testing.assert_close(scores.double(), exact, rtol=4e-7, atol=0)


@pytest.mark.parametrize(("num", "k"), [(1, 1), (6, 6), (256, 6), (384, 8), (40, 0)])
def test_top_experts_with_ties_infinities_and_nan(num: int, k: int) -> None:
    scores = torch.randint(0, 6, (50, num)).float() / 2
    scores[scores == 2.5] = torch.inf
    bias = torch.randint(-2, 3, (num,)).float()
    bias[::3] = -0.0
    scores[::2, :: max(num // 3, 1)] = torch.nan
    scores[1] = -0.0
    (chosen,) = same_everywhere(lambda: moe.top_experts(scores, bias, k))
    assert torch.equal(chosen, reference.top_experts(scores, bias, k))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 8])
def test_routing_weights_give_the_bits_of_the_reference(k: int) -> None:
    scores = noise(30, 40).abs()
    scores[3] = 0.0
    chosen = moe.top_experts(scores, torch.zeros(40), k)
    (weights,) = same_everywhere(lambda: moe.routing_weights(scores, chosen, 2.5))
    assert same_bits(weights, reference.routing_weights(scores, chosen, 2.5))


@pytest.mark.parametrize("limit", [None, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_with_an_experts_share(limit: float | None, dtype: torch.dtype) -> None:
    gate, up, share = 8.0 * noise(7, 600), 8.0 * noise(7, 600, seed=1), noise(7, seed=2).abs()
    gate[0, :4] = torch.tensor([torch.nan, 200.0, -200.0, 1e-40])
    up[1, 0] = torch.nan
    (h,) = same_everywhere(lambda: moe.clamped_swiglu(gate, up, limit, share, dtype=dtype))
    expected = (reference.clamped_swiglu(gate, up, limit) * share.unsqueeze(1)).to(dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(h, expected, rtol=tolerance, atol=1e-36, equal_nan=True)
    assert (h == expected).float().mean() > (0.99 if dtype == torch.bfloat16 else 0.3)


def test_errors_name_the_argument() -> None:
    with pytest.raises(UsageError, match="k must be from 0 to 5"):
        moe.top_experts(noise(2, 5), noise(5), 6)
    with pytest.raises(UsageError, match="chosen must be"):
        moe.routing_weights(noise(2, 5), torch.full((2, 1), 5), 1.0)
    with pytest.raises(UsageError, match=r"up must have shape \[2, 5\]"):
        moe.clamped_swiglu(noise(2, 5), noise(2, 4), None)
    with pytest.raises(UsageError, match="dtype must be"):
        moe.clamped_swiglu(noise(2, 5), noise(2, 5), None, dtype=torch.float16)

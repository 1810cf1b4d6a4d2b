"""Native residual streams against the reference and against float64."""

import pytest
import torch
from rowwise_checks import check_contract, needs_native, noise, same_bits, same_everywhere

from pelagos.common.errors import UsageError
from pelagos.ops.contract import Case
from pelagos.ops.cpu import mhc
from pelagos.ops.reference import mhc as reference

pytestmark = needs_native


def _case(num: int, size: int, rows: int = 5) -> Case:
    wide = (2 + num) * num
    return {
        "streams": 3.0 * noise(rows, num, size),
        "fn": noise(wide, num * size, seed=1) / (num * size) ** 0.5,
        "base": noise(wide, seed=2),
        "scale": noise(3, seed=3),
        "norm_eps": 1e-6,
        "hc_eps": 1e-6,
        "iterations": 20,
    }


def test_mhc_weights() -> None:
    check_contract("mhc_weights", mhc.mhc_weights)


def test_mhc_head_weights() -> None:
    check_contract("mhc_head_weights", mhc.mhc_head_weights)


def test_mhc_collapse() -> None:
    check_contract("mhc_collapse", mhc.mhc_collapse, exact=True)


def test_mhc_expand() -> None:
    check_contract("mhc_expand", mhc.mhc_expand, exact=True)


@pytest.mark.parametrize("num", range(1, 9))
def test_every_number_of_streams(num: int) -> None:
    case = _case(num, 37)
    pre, post, mix = same_everywhere(lambda: mhc.mhc_weights(**case))
    wide = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in case.items()}
    for found, near in zip((pre, post, mix), reference.mhc_weights(**wide), strict=True):
        torch.testing.assert_close(found.double(), near.double(), rtol=2e-5, atol=1e-7)
    assert (mix.sum(1) - 1.0).abs().max() < 1e-5
    streams, y = case["streams"], noise(5, 37, seed=4)
    (found,) = same_everywhere(lambda: mhc.mhc_collapse(streams, pre))
    assert same_bits(found, reference.mhc_collapse(streams, pre))
    (found,) = same_everywhere(lambda: mhc.mhc_expand(streams, y, post, mix))
    assert same_bits(found, reference.mhc_expand(streams, y, post, mix))


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("hc_eps", [0.0, 1e-6, 0.1])
def test_iterations_and_eps(iterations: int, hc_eps: float) -> None:
    for num in (3, 4):
        case = {**_case(num, 16), "iterations": iterations, "hc_eps": hc_eps}
        for found, expected in zip(
            same_everywhere(lambda c=case: mhc.mhc_weights(**c)), reference.mhc_weights(**case), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-7)


def test_logits_far_apart_stay_finite() -> None:
    case = {**_case(4, 16), "scale": torch.tensor([50.0, 50.0, 200.0])}
    for found, expected in zip(
        same_everywhere(lambda: mhc.mhc_weights(**case)), reference.mhc_weights(**case), strict=True
    ):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num", [3, 4])
def test_bfloat16_streams_round_once(num: int) -> None:
    streams, y = noise(9, num, 600).bfloat16(), noise(9, 600, seed=1).bfloat16()
    pre, post, mix = (x.abs() for x in (noise(9, num), noise(9, num, seed=2), noise(9, num, num, seed=3)))
    (found,) = same_everywhere(lambda: mhc.mhc_collapse(streams, pre))
    assert same_bits(found, reference.mhc_collapse(streams, pre))
    before = streams.clone()
    (found,) = same_everywhere(lambda: mhc.mhc_expand(streams, y, post, mix))
    assert same_bits(found, reference.mhc_expand(streams, y, post, mix))
    assert torch.equal(streams, before)


def test_errors_name_the_argument() -> None:
    with pytest.raises(UsageError, match=r"streams must be \[T, 1 to 8, D\]"):
        mhc.mhc_collapse(noise(2, 9, 4), noise(2, 9))
    with pytest.raises(UsageError, match=r"pre must have shape \[2, 4\]"):
        mhc.mhc_collapse(noise(2, 4, 4), noise(2, 3))
    with pytest.raises(UsageError, match=r"fn must have shape \[24, 16\]"):
        mhc.mhc_weights(**{**_case(4, 4), "fn": noise(24, 15)})

"""Native norms and rotation against the reference and against float64."""

import pytest
import torch
from rowwise_checks import check_contract, needs_native, noise, same_bits, same_everywhere

from pelagos.common.errors import UsageError
from pelagos.ops.cpu import norm_rope
from pelagos.ops.reference import norm_rope as reference

pytestmark = needs_native


def test_rms_norm() -> None:
    check_contract("rms_norm", norm_rope.rms_norm)


def test_head_norm() -> None:
    check_contract("head_norm", norm_rope.head_norm)


def test_rotation() -> None:
    check_contract("rotation", norm_rope.rotation)


def test_rotate() -> None:
    check_contract("rotate", norm_rope.rotate, exact=True)


@pytest.mark.parametrize("size", [16, 63, 64, 65, 4096, 16384])
def test_norm_values(size: int) -> None:
    x, weight = noise(5, size), noise(size, seed=1)
    x[1] *= 1e-30  # the squares are zero in float32
    x[2] *= 1e-41
    wide = x.double()
    factor = (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    (y,) = same_everywhere(lambda: norm_rope.rms_norm(x, weight, 1e-6))
    torch.testing.assert_close(y.double(), weight.double() * (wide * factor), rtol=1e-6, atol=1e-44)
    (y,) = same_everywhere(lambda: norm_rope.head_norm(x, 1e-6))
    torch.testing.assert_close(y.double(), wide * factor, rtol=1e-6, atol=1e-44)


def test_norms_of_bfloat16_round_where_the_reference_does() -> None:
    x, weight = noise(200, 3, 64).bfloat16(), noise(64, seed=1)
    (y,) = same_everywhere(lambda: norm_rope.head_norm(x, 1e-6))
    expected = reference.head_norm(x, 1e-6)
    assert (y == expected).float().mean() > 0.99  # a factor may lie next to a midpoint
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=0)
    (y,) = same_everywhere(lambda: norm_rope.rms_norm(x, weight, 1e-6))
    expected = reference.rms_norm(x, weight, 1e-6)
    assert (y == expected).float().mean() > 0.99
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=0)


def test_rotation_is_within_one_unit_of_the_last_place() -> None:
    positions = torch.cat([torch.arange(300), torch.randint(0, 1 << 24, (3000,)), torch.tensor([(1 << 40) + 1])])
    frequencies = torch.cat([10000.0 ** (-torch.arange(32) / 32), torch.tensor([3.0, 1.5707964])])
    cos, sin = same_everywhere(lambda: norm_rope.rotation(positions, frequencies))
    angles = positions.float().unsqueeze(1) * frequencies
    angles = angles[:-1].double()
    for found, exact in ((cos[:-1], angles.cos()), (sin[:-1], angles.sin())):
        unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 23)
        assert ((found.double() - exact).abs() <= 0.51 * unit).all()
    assert (cos.square() + sin.square() - 1.0).abs().max() < 1e-6


@pytest.mark.parametrize("half", [1, 4, 7, 8, 9, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_gives_the_bits_of_the_reference(half: int, dtype: torch.dtype) -> None:
    x = noise(9, 3, 70).to(dtype)
    cos, sin = norm_rope.rotation(torch.arange(9) * 1000, torch.rand(half))
    for inverse in (False, True):
        (y,) = same_everywhere(lambda i=inverse: norm_rope.rotate(x, cos, sin, inverse=i))
        assert same_bits(y, reference.rotate(x, cos, sin, inverse=inverse))


def test_arguments_are_left_alone() -> None:
    x, before = noise(4, 2, 8), noise(4, 2, 8)
    cos, sin = norm_rope.rotation(torch.arange(4), torch.rand(4))
    norm_rope.rotate(x, cos, sin)
    assert torch.equal(x, before)


def test_errors_name_the_argument() -> None:
    with pytest.raises(UsageError, match="x must be float32 or bfloat16"):
        norm_rope.head_norm(noise(2, 8).half(), 1e-6)
    with pytest.raises(UsageError, match=r"weight must have shape \[8\]"):
        norm_rope.rms_norm(noise(2, 8), noise(7), 1e-6)
    with pytest.raises(UsageError, match="positions must be"):
        norm_rope.rotation(torch.zeros(3), noise(2))
    with pytest.raises(UsageError, match="cos must have at most 4 columns"):
        norm_rope.rotate(noise(2, 8), noise(2, 5), noise(2, 5))

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from pelagos.formats import simulate
from pelagos.formats.measures import bias, max_relative_error, relative_rms_error

DTYPES = [torch.float32, torch.bfloat16]


def random_numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers whose groups differ in size by up to 2^20, some zero and some tiny."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-12, 8, (*shape[:-1], 1), generator=generator)
    return (x * (torch.rand(shape, generator=generator) > 0.1)).to(dtype)


def round_groups(x: torch.Tensor, size: int, maximum: float, floor: float, code: type) -> torch.Tensor:
    """The rule of the model, number by number in Python and ml_dtypes."""
    rows = x.float().reshape(-1, x.shape[-1]).numpy()
    out = np.empty_like(rows)
    for row, result in zip(rows, out, strict=True):
        for start in range(0, len(row), size):
            group = row[start : start + size].astype(np.float64)
            mantissa, exponent = math.frexp(max(float(np.abs(group).max()), floor) / maximum)
            scale = 2.0 ** (exponent - 1 if mantissa == 0.5 else exponent)
            codes = np.clip(group / scale, -maximum, maximum).astype(np.float32).astype(code)
            result[start : start + size] = codes.astype(np.float64) * scale
    return torch.from_numpy(out).view(x.shape).to(x.dtype)


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    bits = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
    assert torch.equal(a.view(bits), b.view(bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [128, 256, 1, 127, 129, 300])
def test_activation_fp8_against_the_rule(length, dtype):
    x = random_numbers(5, 4, length, dtype=dtype)
    assert_same_bits(simulate.activation_fp8(x), round_groups(x, 128, 448, 1e-4, ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "num_rope_dims"), [(512, 64), (32, 8), (100, 10), (64, 0), (8, 8)])
def test_row_fp8_against_the_rule(head_dim, num_rope_dims, dtype):
    row = random_numbers(9, head_dim, dtype=dtype)
    rounded = simulate.row_fp8(row, num_rope_dims)
    num_plain = head_dim - num_rope_dims
    expected = round_groups(row[:, :num_plain], 64, 448, 1e-4, ml_dtypes.float8_e4m3fn) if num_plain else row[:, :0]
    assert_same_bits(rounded[:, :num_plain], expected)
    assert_same_bits(rounded[:, num_plain:], row[:, num_plain:].bfloat16().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [128, 32, 16, 33, 100])
def test_index_fp4_against_the_rule(length, dtype):
    x = random_numbers(7, 3, length, dtype=dtype)
    assert_same_bits(simulate.index_fp4(x), round_groups(x, 32, 6, 6 * 2.0**-126, ml_dtypes.float4_e2m1fn))


def test_scale_of_a_largest_magnitude_of_3_is_2_to_the_minus_7():
    """3 / 448 = 2^-7.2: steps of 2^-9 * 2^-7 next to zero, and 3 itself is kept."""
    x = torch.zeros(128)
    x[:4] = torch.tensor([3.0, 2.0**-16, 1.4 * 2.0**-16, 2.0**-17])
    assert simulate.activation_fp8(x)[:4].tolist() == [3.0, 2.0**-16, 2.0**-16, 0.0]


def test_fp4_ties_under_scale_one():
    x = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75, -5.0])
    assert simulate.index_fp4(x).tolist() == [6, 0, 1, 1, 2, 2, 4, 4, -1, -4]


@pytest.mark.parametrize("function", [simulate.activation_fp8, simulate.index_fp4, lambda x: simulate.row_fp8(x, 8)])
def test_zeros_empty_batches_and_repetition(function):
    zeros = torch.zeros(2, 64)
    assert_same_bits(function(zeros), zeros)
    assert_same_bits(function(-zeros), -zeros)
    assert function(torch.zeros(0, 64)).shape == (0, 64)
    once = function(random_numbers(6, 64))
    assert_same_bits(function(once), once)  # a rounded value is its own nearest value, under the same or half the scale


@pytest.mark.parametrize("function", [simulate.activation_fp8, simulate.index_fp4, lambda x: simulate.row_fp8(x, 8)])
def test_a_row_does_not_depend_on_the_batch(function):
    x = random_numbers(13, 2, 72)
    whole = function(x)
    for i in range(13):
        assert_same_bits(function(x[i : i + 1]), whole[i : i + 1])
        assert_same_bits(function(x[i, 1]), whole[i, 1])
    assert_same_bits(function(x.transpose(0, 1)), whole.transpose(0, 1))
    assert_same_bits(function(x[:, :, torch.arange(72)].as_strided((13, 72), (144, 1))), whole[:, 0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_show_in_their_group_and_nowhere_else(bad):
    x = torch.ones(2, 256)
    x[1, 130] = bad
    is_nan = torch.zeros(2, 256, dtype=torch.bool)
    is_nan[1, 128:] = True
    assert torch.equal(simulate.activation_fp8(x).isnan(), is_nan)
    is_nan[1, 160:] = False
    assert torch.equal(simulate.index_fp4(x).isnan(), is_nan)


def test_result_carries_no_gradient_and_input_is_left_alone():
    x = random_numbers(2, 128)
    leaf = x.clone().requires_grad_()
    for rounded in (simulate.activation_fp8(leaf), simulate.row_fp8(leaf, 64), simulate.index_fp4(leaf)):
        assert not rounded.requires_grad
    assert torch.equal(leaf.detach(), x)


def test_error_of_normal_numbers():
    """A number above the subnormals of E4M3 is off by at most half a step: 1/16 of a number just above 1."""
    x = torch.randn(512, 128, generator=torch.Generator().manual_seed(4))
    large = x.abs().clamp(min=0.05)
    assert 2.0**-5 < max_relative_error(simulate.activation_fp8(large), large) <= 2.0**-4
    assert 0.02 < relative_rms_error(simulate.activation_fp8(x), x) < 0.03
    assert 0.09 < relative_rms_error(simulate.index_fp4(x), x) < 0.14


@pytest.mark.parametrize(("function", "bound"), [(simulate.activation_fp8, 4e-4), (simulate.index_fp4, 4e-3)])
def test_rounding_is_unbiased(function, bound):
    """Of positive numbers, so that cutting digits off would show: it is more than ten times beyond the bound."""
    x = torch.rand(2048, 128, generator=torch.Generator().manual_seed(5)) + 0.001
    rounded = function(x)
    assert abs(bias(rounded, x)) < bound
    rounded_down = torch.where(rounded > x, function(x - (rounded - x)), rounded)
    assert bias(rounded_down, x) < -10 * bound

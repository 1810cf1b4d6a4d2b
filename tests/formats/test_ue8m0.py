import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelagos.formats import ue8m0

ALL_BYTES = torch.arange(256).to(torch.uint8)
POWERS = torch.tensor([2.0**e for e in range(-127, 128)], dtype=torch.float64).float()
INF = torch.tensor(math.inf)


def encode_bytes(x: torch.Tensor) -> list[int]:
    return ue8m0.encode(x).view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_decode_all_256_bytes(dtype):
    decoded = ue8m0.decode(ALL_BYTES.view(dtype))
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded[:255], POWERS)
    assert decoded[255].isnan()
    np.testing.assert_array_equal(decoded.numpy(), ALL_BYTES.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


def test_encode_powers_of_two_and_their_neighbours():
    assert encode_bytes(POWERS) == list(range(255))
    assert encode_bytes(POWERS.nextafter(INF)) == list(range(1, 256))  # above 2^127 there is only NaN
    assert encode_bytes(POWERS.nextafter(-INF)) == [0, *range(1, 255)]


def test_encode_edge_cases():
    x = torch.tensor([0.0, -0.0, 2.0**-149, 2.0**-128, math.inf, -math.inf, math.nan, -math.nan, -1.0, -1e-40, 3e38])
    assert encode_bytes(x) == [0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_encode_other_dtypes(dtype):
    assert encode_bytes(torch.tensor([1.0, 1.5, 2.0, 0.375], dtype=dtype)) == [127, 128, 128, 126]


def test_any_shape():
    x = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) + 0.01
    assert ue8m0.encode(x.transpose(0, 1)).shape == (5, 3, 2)
    assert torch.equal(ue8m0.ceil_power_of_two(x.transpose(0, 1)), ue8m0.ceil_power_of_two(x).transpose(0, 1))
    assert ue8m0.ceil_power_of_two(torch.tensor(5.0)).item() == 8.0


@given(st.floats(2.0**-127, 2.0**127, width=32))
def test_ceil_power_of_two_is_the_smallest_power_not_below(x):
    power = ue8m0.ceil_power_of_two(torch.tensor(x)).item()
    assert math.frexp(power)[0] == 0.5
    assert Fraction(power) / 2 < Fraction(x) <= Fraction(power)


def test_scale_of_largest_magnitude_is_exact_next_to_every_power_of_two():
    """2^ceil(log2(a / MAX)) through a float32 quotient gives what the true one gives; so does the official product."""
    for maximum in (448.0, 6.0):
        exponents = range(-120, 118)
        centre = torch.tensor([maximum * 2.0**e for e in exponents], dtype=torch.float64).float()
        exact = torch.tensor([2.0**e for e in exponents], dtype=torch.float64).float()
        inverse = torch.tensor(1.0) / maximum  # the official kernels multiply by the float32 reciprocal
        for a, expected in (
            (centre, exact),
            (centre.nextafter(-INF), exact),
            (centre.nextafter(INF), 2 * exact),
        ):
            assert torch.equal(ue8m0.ceil_power_of_two(a / maximum), expected)
            assert torch.equal(ue8m0.ceil_power_of_two(a * inverse), expected)

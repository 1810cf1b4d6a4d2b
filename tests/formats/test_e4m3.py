import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelagos.formats import e4m3

INF = math.inf
ALL_BYTES = torch.arange(256).to(torch.uint8)


def value_by_definition(byte: int) -> float:
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def encode_bytes(x: torch.Tensor) -> list[int]:
    return e4m3.encode(x).view(torch.uint8).tolist()


def encode_with_ml_dtypes(x: torch.Tensor) -> list[int]:
    """ml_dtypes turns what is beyond 464 into NaN, so it is given clipped numbers."""
    clipped = np.clip(x.float().numpy(), -448, 448)
    return clipped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).tolist()


def test_decode_all_256_bytes():
    decoded = e4m3.decode(ALL_BYTES.view(torch.float8_e4m3fn))
    assert decoded.dtype == torch.float32
    by_definition = np.array([value_by_definition(b) for b in range(256)], dtype=np.float32)
    np.testing.assert_array_equal(decoded.numpy(), by_definition)
    np.testing.assert_array_equal(np.signbit(decoded.numpy()[[0, 128]]), [False, True])
    np.testing.assert_array_equal(decoded.numpy(), ALL_BYTES.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_encode_gives_back_every_code_from_its_value(dtype):
    numbers = torch.tensor([b for b in range(256) if b & 0x7F != 0x7F])
    values = torch.tensor([value_by_definition(b) for b in numbers.tolist()], dtype=dtype)
    assert encode_bytes(values) == numbers.tolist()


@pytest.mark.parametrize("sign", [0, 0x80])
def test_midpoints_and_their_neighbours(sign):
    lower = torch.arange(0x7E)  # every code that has a finite code above it
    values = torch.tensor([value_by_definition(b) for b in range(0x7F)], dtype=torch.float64)
    midpoint = ((values[:-1] + values[1:]) / 2).float()
    assert torch.equal(midpoint.double(), (values[:-1] + values[1:]) / 2)
    factor = -1.0 if sign else 1.0
    infinity, zero = torch.tensor(INF), torch.tensor(0.0)
    even = lower + lower % 2
    assert encode_bytes(factor * midpoint) == (even + sign).tolist()
    assert encode_bytes(factor * midpoint.nextafter(zero)) == (lower + sign).tolist()
    assert encode_bytes(factor * midpoint.nextafter(infinity)) == (lower + 1 + sign).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("magnitude", [448.0, 456.0, 464.0, 466.0, 480.0, 1e30, INF])
def test_saturates(magnitude, dtype):
    x = torch.tensor([magnitude, -magnitude], dtype=dtype).repeat(50)  # long enough for vector instructions
    assert encode_bytes(x) == [0x7E, 0xFE] * 50


def test_nan_stays_nan():
    x = torch.tensor([math.nan, 1.0] * 50)
    assert e4m3.decode(e4m3.encode(x)).isnan().tolist() == [True, False] * 50


def test_signed_zeros_and_underflow_keep_their_sign():
    assert encode_bytes(torch.tensor([0.0, -0.0, 2.0**-10, -(2.0**-10), 1e-40, -1e-40])) == [0, 0x80] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_against_ml_dtypes(dtype):
    x = torch.arange(65536).to(torch.uint16).view(dtype)
    x = x[~x.isnan()]
    assert encode_bytes(x) == encode_with_ml_dtypes(x)


def test_strided_tensors_and_odd_lengths_round_alike():
    x = torch.randn(67, 33, generator=torch.Generator().manual_seed(0)) * 100
    one_by_one = [encode_bytes(number)[0] for number in x.flatten()[:200].split(1)]
    assert encode_bytes(x.flatten())[:200] == one_by_one
    assert encode_bytes(x.T) == np.array(encode_bytes(x)).T.tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_any_float_against_ml_dtypes(numbers):
    x = torch.tensor(numbers, dtype=torch.float32)
    assert encode_bytes(x) == encode_with_ml_dtypes(x)

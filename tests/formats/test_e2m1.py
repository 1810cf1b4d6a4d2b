import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import UsageError
from pelagos.formats import e2m1

INF = math.inf
MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def encode_with_ml_dtypes(x: torch.Tensor) -> list[int]:
    return x.float().numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8).tolist()


def test_decode_all_16_codes():
    codes = torch.arange(16).to(torch.uint8)
    decoded = e2m1.decode(codes)
    assert decoded.dtype == torch.float32
    assert decoded.tolist() == MAGNITUDES + [-m for m in MAGNITUDES]
    assert decoded.signbit().tolist() == [False] * 8 + [True] * 8
    np.testing.assert_array_equal(decoded.numpy(), codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_encode_gives_back_every_code_from_its_value(dtype):
    codes = torch.arange(16).to(torch.uint8)
    encoded = e2m1.encode(e2m1.decode(codes).to(dtype))
    assert encoded.dtype == torch.uint8
    assert torch.equal(encoded, codes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("midpoint", "rounded"), [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5.0, 4)]
)
def test_midpoints_and_their_neighbours(midpoint, rounded, dtype):
    below, above = max(m for m in MAGNITUDES if m < midpoint), min(m for m in MAGNITUDES if m > midpoint)
    m = torch.tensor([midpoint, -midpoint], dtype=dtype)
    towards_zero = m.nextafter(torch.zeros_like(m))
    outwards = m.nextafter(torch.tensor([INF, -INF], dtype=dtype))
    assert e2m1.decode(e2m1.encode(m)).tolist() == [rounded, -rounded]
    assert e2m1.decode(e2m1.encode(towards_zero)).tolist() == [below, -below]
    assert e2m1.decode(e2m1.encode(outwards)).tolist() == [above, -above]


def test_saturates():
    x = torch.tensor([6.0, 6.5, 7.0, 8.0, 1e30, INF])
    assert e2m1.encode(x).tolist() == [7] * 6
    assert e2m1.encode(-x).tolist() == [15] * 6


def test_zeros_and_underflow_keep_their_sign():
    x = torch.tensor([0.0, -0.0, 0.25, -0.25, 1e-40, -1e-40])
    assert e2m1.encode(x).tolist() == [0, 8] * 3


def test_nan_becomes_plus_six():
    assert e2m1.encode(torch.tensor([math.nan, -math.nan, 1.0])).tolist() == [7, 7, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_against_ml_dtypes(dtype):
    x = torch.arange(65536).to(torch.uint16).view(dtype)
    x = x[~x.isnan()]
    assert e2m1.encode(x).tolist() == encode_with_ml_dtypes(x)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40))
def test_any_float_against_ml_dtypes(numbers):
    x = torch.tensor(numbers, dtype=torch.float32)
    assert e2m1.encode(x).tolist() == encode_with_ml_dtypes(x)


def test_pack_puts_the_even_column_in_the_low_half():
    packed = e2m1.pack(torch.tensor([[0x1, 0x2, 0xF, 0x8]], dtype=torch.uint8))
    assert packed.dtype == torch.int8
    assert packed.view(torch.uint8).tolist() == [[0x21, 0x8F]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_all_256_bytes_unpack_pack_and_decode(dtype):
    packed = torch.arange(256).to(torch.uint8).view(dtype).view(2, 4, 32)
    codes = e2m1.unpack(packed)
    assert codes.shape == (2, 4, 64)
    assert codes.flatten().tolist() == [half for byte in range(256) for half in (byte & 15, byte >> 4)]
    assert torch.equal(e2m1.pack(codes), packed.view(torch.int8))
    decoded = e2m1.decode_packed(packed)
    assert torch.equal(decoded.view(torch.int32), e2m1.decode(codes).view(torch.int32))  # the bits: -0.0 is not 0.0


def test_empty_and_strided():
    assert e2m1.decode_packed(torch.zeros(0, 8, dtype=torch.int8)).shape == (0, 16)
    assert e2m1.encode(torch.zeros(3, 0)).shape == (3, 0)
    packed = torch.arange(96).to(torch.int8).view(8, 12)[1::2, 2:7]
    assert torch.equal(e2m1.decode_packed(packed), e2m1.decode_packed(packed.clone()))
    assert torch.equal(e2m1.pack(e2m1.unpack(packed)), packed)


def test_odd_number_of_codes_is_refused():
    with pytest.raises(UsageError, match="must be even, not 3"):
        e2m1.pack(torch.zeros(2, 3, dtype=torch.uint8))

"""FP4 experts as FP8, and the condition under which nothing is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.common.errors import UsageError
from pelagos.formats import e2m1
from pelagos.formats.blocks import BLOCK_128X128, ROW_32
from pelagos.formats.matrix import QuantizedMatrix, fp4_to_fp8, fp4_to_fp8_is_lossless, quantize_fp4, quantize_fp8

# The smallest step of a code, as a power of two: 0.5 and 1.5 are odd multiples of 2^-1, and so on.
STEP_OF_CODE = {1: -1, 2: 0, 3: -1, 4: 1, 5: 0, 6: 2, 7: 1}


def is_lossless_by_exponents(codes: np.ndarray, scale_bytes: np.ndarray) -> bool:
    """The condition on integers: no step of a nonzero number, under its tile's scale, is finer than 2^-9."""
    tile_byte = max(int(scale_bytes.max()) - 6, 0)
    for group, byte in zip(codes.reshape(-1, 32), scale_bytes.flatten().tolist(), strict=True):
        steps = [STEP_OF_CODE[c & 7] for c in group.tolist() if c & 7]
        if steps and min(steps) + byte - tile_byte < -9:
            return False
    return True


def fp4_matrix(codes: np.ndarray, scale_bytes: np.ndarray) -> QuantizedMatrix:
    scales = torch.from_numpy(scale_bytes.astype(np.uint8)).view(torch.float8_e8m0fnu)
    return QuantizedMatrix(codes=e2m1.pack(torch.from_numpy(codes.astype(np.uint8))), scales=scales, layout=ROW_32)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), base=st.integers(0, 254), spread=st.integers(0, 25), num_nonzero=st.integers(0, 3)
)
def test_fp4_to_fp8_keeps_every_value_exactly_where_it_says_so(seed, base, spread, num_nonzero):
    """Few nonzero numbers for wide spreads, so that both outcomes are common; every number is compared bit for bit."""
    random = np.random.default_rng(seed)
    scale_bytes = random.integers(max(base - spread, 0), base, (128, 4), endpoint=True)
    codes = random.integers(0, 16, (128, 128))
    if num_nonzero:
        codes[random.random((128, 128)) > num_nonzero * 1e-4] &= 8  # keeps the signs of zeros
    m = fp4_matrix(codes, scale_bytes)
    is_lossless = is_lossless_by_exponents(codes, scale_bytes)
    assert fp4_to_fp8_is_lossless(m) == is_lossless
    if is_lossless:
        fp8 = fp4_to_fp8(m)
        assert (fp8.kind, fp8.layout, fp8.shape) == ("fp8", BLOCK_128X128, (128, 128))
        assert torch.equal(fp8.decode().view(torch.int32), m.decode().view(torch.int32))
    else:
        with pytest.raises(UsageError, match=r"tile \[0, 0\]"):
            fp4_to_fp8(m)


@pytest.mark.parametrize(
    ("code", "widest"), [(1, 14), (3, 14), (2, 15), (5, 15), (4, 16), (7, 16), (6, 17), (0, 100), (8, 100)]
)
def test_widest_ratio_of_scales_for_each_code(code, widest):
    codes = np.zeros((128, 128))
    codes[0, 0], codes[127, 127] = 7, code
    for spread, expected in ((widest, True), (widest + 1, code in (0, 8))):
        scale_bytes = np.full((128, 4), 150)
        scale_bytes[127, 3] = 150 - spread
        assert fp4_to_fp8_is_lossless(fp4_matrix(codes, scale_bytes)) == expected


def test_fp4_to_fp8_names_the_tile_that_does_not_fit():
    codes = np.random.default_rng(0).integers(0, 16, (256, 384))
    scale_bytes = np.full((256, 12), 120)
    scale_bytes[128, 11], scale_bytes[255, 8] = 127, 112  # a factor of 2^15 in the last tile
    m = fp4_matrix(codes, scale_bytes)
    assert not fp4_to_fp8_is_lossless(m)
    with pytest.raises(UsageError, match=r"tile \[1, 2\] \(rows 128..255, columns 256..383\) .* 2\^14"):
        fp4_to_fp8(m)
    scale_bytes[255, 8] = 113
    m = fp4_matrix(codes, scale_bytes)
    assert fp4_to_fp8_is_lossless(m)
    assert torch.equal(fp4_to_fp8(m).decode(), m.decode())


def test_fp4_to_fp8_puts_a_64th_of_the_largest_scale_on_each_tile():
    scale_bytes = np.full((128, 8), 120)
    scale_bytes[5, 2], scale_bytes[70, 7] = 125, 123
    fp8 = fp4_to_fp8(fp4_matrix(np.random.default_rng(0).integers(0, 16, (128, 256)), scale_bytes))
    assert fp8.scales.view(torch.uint8).tolist() == [[119, 117]]
    assert fp8.codes[:, :128].float().abs().max() == 384


def test_fp4_to_fp8_of_extreme_scales():
    """Scales next to both ends of UE8M0, where quotients of scales leave the range of float32."""
    sevens = np.full((128, 128), 7)
    both_ends = np.full((128, 4), 254)
    both_ends[3, 1] = 0
    assert not fp4_to_fp8_is_lossless(fp4_matrix(sevens, both_ends))
    for byte in (0, 3, 254):
        m = fp4_matrix(sevens, np.full((128, 4), byte))
        fp8 = fp4_to_fp8(m)
        assert (fp8.scales.view(torch.uint8) == max(byte - 6, 0)).all()
        assert torch.equal(fp8.decode(), m.decode())
    with_nan = np.full((128, 4), 120)
    with_nan[0, 0] = 255
    assert not fp4_to_fp8_is_lossless(fp4_matrix(sevens, with_nan))
    assert not fp4_to_fp8_is_lossless(fp4_matrix(sevens * 0, with_nan))


@pytest.mark.parametrize("m", [quantize_fp8(torch.ones(128, 128)), quantize_fp4(torch.ones(64, 128))], ids=repr)
def test_fp4_to_fp8_of_other_matrices_is_refused(m):
    for function in (fp4_to_fp8, fp4_to_fp8_is_lossless):
        with pytest.raises(UsageError, match="multiples of 128"):
            function(m)

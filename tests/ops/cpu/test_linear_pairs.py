"""Products of rounded rows with FP8 and FP4 weights: the sum that native/linear.h defines, the same bits everywhere."""

import pytest
import torch
from rowwise_checks import among_nan, needs_native, noise, same_bits, settings
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.formats.blocks import BlockLayout
from pelagos.formats.matrix import QuantizedMatrix, quantize_fp4, quantize_fp8
from pelagos.ops.cpu.arguments import kernels
from pelagos.ops.cpu.linear import NativeMatrix, linear, rounded_linear
from pelagos.ops.cpu.rounding import round_activation
from pelagos.ops.reference import linear as reference

pytestmark = needs_native

E8M0 = torch.float8_e8m0fnu


def _uneven(*shape: int, seed: int = 0) -> Tensor:
    """Noise whose size differs from block to block, so that sums round at every step."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(-12, 8, (shape[0], -(-shape[1] // 32)), generator=draw).float().exp2()
    return noise(*shape, seed=seed + 1) * sizes.repeat_interleave(32, 1)[:, : shape[1]]


WEIGHTS = {
    "fp8": quantize_fp8(_uneven(150, 384)),
    "fp8 half a scale": quantize_fp8(_uneven(131, 192)),
    "fp8 one row a scale": quantize_fp8(_uneven(37, 320), BlockLayout(rows=1, cols=128)),
    "fp8 three rows a scale": quantize_fp8(_uneven(70, 256), BlockLayout(rows=3, cols=128)),
    "fp8 many columns": quantize_fp8(_uneven(9, 2240)),
    "fp4": quantize_fp4(_uneven(70, 384)),
    "fp4 half a line": quantize_fp4(_uneven(33, 192)),
    "fp4 few columns": quantize_fp4(_uneven(75, 64)),
    "fp4 many columns": quantize_fp4(_uneven(9, 2240)),
}


def _defined(x: Tensor, weight: Tensor) -> Tensor:
    """The sum of native/linear.h, step by step. Sums of two float32 numbers in float64 round like one fused step, but
    for numbers that are further apart than the tests' are."""
    words = [m % 8 * 4 + m // 8 for m in range(32)]
    products = (round_activation(x).unsqueeze(1) * weight.unsqueeze(0)).unflatten(-1, (-1, 32))[..., words]
    lanes = torch.zeros(*products.shape[:2], 16)
    for block in products.unbind(2):
        for word in (1, 0):
            lanes = (lanes.double() + block[..., word::2].double()).float()
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.squeeze(-1)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_sum_is_as_defined_on_every_instruction_set_with_any_rows_and_threads(name: str) -> None:
    weight = WEIGHTS[name]
    assert NativeMatrix(weight).pairs
    x = _uneven(130, weight.shape[1], seed=5)
    expected = _defined(x, weight.decode())
    theirs = reference.linear(round_activation(x), weight)
    assert (expected - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for isa, threads in settings():
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 60, 61, 130):
            got = torch.cat([rounded_linear(part, weight) for part in x.split(rows)])
            assert same_bits(got, expected), f"{isa}, {threads} threads, {rows} rows"


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_any_number_of_rows_at_any_place(kind: str) -> None:
    weight = WEIGHTS[kind]
    x = _uneven(140, weight.shape[1], seed=6)
    expected = rounded_linear(x, weight)
    for rows in range(1, 71):
        for start in (0, 1, rows):
            got = rounded_linear(among_nan(x[start : start + rows]), weight)
            assert same_bits(got, expected[start : start + rows]), f"{rows} rows from {start} on"
    assert rounded_linear(x[:0], weight).shape == (0, weight.shape[0])
    assert same_bits(rounded_linear(x.view(2, 70, -1), weight), expected.view(2, 70, -1))


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_every_code_under_scales_up_to_the_limits(kind: str) -> None:
    """Against single ones, which products leave as they are; NaN codes make their own outputs NaN, no others."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(8, 1)
    bytes_ = torch.tensor([41, 246, 127, 128, 100, 119, 120, 126])
    if kind == "fp8":
        codes[:6, [0x7F, 0xFF]] = 0
        codes[6, 0xFF] = codes[7, 0x7F] = 0
        layout, grid = BlockLayout(rows=1, cols=128), codes.view(torch.float8_e4m3fn)
    else:
        layout, grid = BlockLayout(rows=1, cols=32), codes.view(torch.int8)[:, :128]
    scales = bytes_.to(torch.uint8).unsqueeze(1).repeat(1, 256 // layout.cols).view(E8M0)
    matrix = QuantizedMatrix(codes=grid, scales=scales, layout=layout)
    assert NativeMatrix(matrix).pairs
    expected = matrix.decode()
    is_lost = expected.isnan().any(1)
    assert is_lost.tolist() == [False] * 6 + [kind == "fp8"] * 2
    for _ in settings():
        for rows in (256, 4, 3, 1):
            got = torch.cat([rounded_linear(part, matrix) for part in torch.eye(256).split(rows)]).T
            assert got[is_lost].isnan().all()
            assert torch.equal(got[~is_lost], expected[~is_lost])


def test_the_smallest_products_are_exact() -> None:
    """2^-31, the smallest rounded number, times 2^-95, the smallest weight, is the smallest normal number."""
    codes = torch.zeros(40, 64, dtype=torch.uint8)
    codes[:, 3], codes[:, 8] = 1, 0x81
    scales = torch.full((1, 1), 41, dtype=torch.uint8).view(E8M0)
    layout = BlockLayout(rows=128, cols=128)
    matrix = QuantizedMatrix(codes=codes.view(torch.float8_e4m3fn), scales=scales, layout=layout)
    x = torch.zeros(9, 64)
    x[:, 3] = 2.0**-31
    x[0, 8] = 2.0**-31
    for _ in settings():
        for rows in (9, 1):
            got = torch.cat([rounded_linear(part, matrix) for part in x.split(rows)])
            assert (got[0] == 0.0).all()
            assert (got[1:] == 2.0**-126).all()


def test_rows_that_are_not_numbers_stay_alone() -> None:
    x = _uneven(70, 384, seed=7)
    x[3, 5], x[8, 200], x[66, 383], x[20] = torch.nan, torch.inf, -torch.inf, 0.0
    for kind in ("fp8", "fp4"):
        whole = x.clone()
        whole[[3, 8, 66]] = 1.0
        expected = rounded_linear(whole, WEIGHTS[kind])
        expected[[3, 8, 66]] = torch.nan
        assert (expected[20] == 0.0).all()
        for _ in settings():
            for rows in (70, 5, 1):
                assert same_bits(torch.cat([rounded_linear(part, WEIGHTS[kind]) for part in x.split(rows)]), expected)


OTHERS = {
    "columns": quantize_fp4(noise(20, 96)),
    "blocks": quantize_fp8(noise(64, 192), BlockLayout(rows=32, cols=64)),
    "float32 scales": quantize_fp8(noise(130, 256), scales=torch.ones(2, 2)),
    "small scale": quantize_fp4(noise(40, 128) * torch.tensor([1.0] * 96 + [2.0**-90] * 32)),
    "large scale": quantize_fp4(noise(40, 128) * 2.0**123),
    "bfloat16": noise(40, 128).bfloat16(),
    "float32": noise(40, 128),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_matrices_have_the_sum_of_plain_products(name: str) -> None:
    weight = OTHERS[name]
    assert not NativeMatrix(weight).pairs
    x = _uneven(20, weight.shape[1], seed=8)
    for _ in settings():
        for rows in (20, 3):
            for part in x.split(rows):
                assert same_bits(rounded_linear(part, weight), linear(round_activation(part), weight))


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_any_alignment(kind: str) -> None:
    """Codes and scales at odd addresses, at the end of the memory that there is."""
    weight = WEIGHTS[kind]
    x = _uneven(70, weight.shape[1], seed=9)
    expected, rounded = rounded_linear(x, weight), round_activation(x)

    def moved(t: Tensor) -> Tensor:
        raw = t.contiguous().view(torch.uint8).flatten()
        return torch.cat([torch.full((1,), 255, dtype=torch.uint8), raw])[1:]

    codes, scales = moved(weight.codes), moved(weight.scales)
    layout = (weight.layout.rows, weight.layout.cols, *weight.shape, 0)
    number = {"fp8": 2, "fp4": 3}[kind]
    matrix = kernels().Matrix(number, codes.data_ptr(), scales.data_ptr(), False, *layout)
    for _ in settings():
        for rows in (1, 3, 70):
            inputs, packed = among_nan(rounded[:rows]), among_nan(torch.zeros(rows, weight.shape[1]))
            y = torch.empty(rows, weight.shape[0])
            kernels().linear_pairs(matrix, inputs.data_ptr(), rows, packed.data_ptr(), y.data_ptr())
            assert same_bits(y, expected[:rows])


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="x must have 384 columns, not 8"):
        rounded_linear(torch.zeros(2, 8), WEIGHTS["fp8"])
    with pytest.raises(UsageError, match=r"x must be float32 or bfloat16, not torch\.float64"):
        rounded_linear(torch.zeros(2, 384).double(), WEIGHTS["fp8"])

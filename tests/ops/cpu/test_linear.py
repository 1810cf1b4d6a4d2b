"""Native matrix products against the reference, and themselves: however rows are cut, the same bits."""

import pytest
import torch
from rowwise_checks import check_contract, needs_native, settings
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.formats.blocks import BlockLayout
from pelagos.formats.matrix import QuantizedMatrix, quantize_fp4, quantize_fp8
from pelagos.ops.cpu.arguments import kernels
from pelagos.ops.cpu.linear import NativeMatrix, grouped_linear, linear
from pelagos.ops.reference import linear as reference

pytestmark = needs_native


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("name", "function"), [("linear", linear), ("grouped_linear", grouped_linear)])
def test_contract(name: str, function: object) -> None:
    check_contract(name, function)


WEIGHTS = {
    "float32": _noise(70, 300),
    "bfloat16": _noise(70, 304).bfloat16(),
    "bfloat16 many columns": _noise(9, 2080).bfloat16(),
    "fp8": quantize_fp8(_noise(150, 304)),
    "fp8 whole parts": quantize_fp8(_noise(150, 320)),
    "fp8 odd": quantize_fp8(_noise(130, 201)),
    "fp8 float32 scales": quantize_fp8(
        _noise(130, 256), scales=torch.rand(2, 2, generator=torch.Generator().manual_seed(1)) + 1
    ),
    "fp8 other blocks": quantize_fp8(_noise(64, 192), BlockLayout(rows=32, cols=64)),
    "fp4": quantize_fp4(_noise(70, 320)),
    "fp4 odd": quantize_fp4(_noise(33, 90)),
    "many columns": quantize_fp4(_noise(9, 2080)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_same_bits_for_any_rows_threads_and_instruction_set(name: str) -> None:
    weight = WEIGHTS[name]
    x = _noise(150, weight.shape[1], seed=2)
    expected = linear(x, weight)
    assert _error(expected, reference.linear(x, weight)) <= 1e-5
    for _ in settings():
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 24, 25, 60, 61, 150):
            parts = [linear(part, weight) for part in x.split(rows)]
            assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_every_code_and_scale(kind: str) -> None:
    """Each code under the smallest, largest and other scales; a NaN code or scale makes its outputs NaN, no others."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(8, 1)
    if kind == "fp8":
        codes[:6, [0x7F, 0xFF]] = 0  # NaN
        layout, bytes_ = BlockLayout(rows=1, cols=128), torch.tensor([0, 1, 64, 127, 200, 246, 127, 255])
        grid = codes.view(torch.float8_e4m3fn)
    else:
        layout, bytes_ = BlockLayout(rows=1, cols=32), torch.tensor([0, 1, 64, 127, 128, 200, 252, 255])
        grid = codes.view(torch.int8)[:, :128]
    scales = bytes_.to(torch.uint8).unsqueeze(1).repeat(1, 256 // layout.cols).view(torch.float8_e8m0fnu)
    matrix = QuantizedMatrix(codes=grid, scales=scales, layout=layout)
    expected = matrix.decode()
    is_lost = expected.isnan().any(1)
    assert is_lost.tolist() == [False] * (6 if kind == "fp8" else 7) + [True] * (2 if kind == "fp8" else 1)
    for _ in settings():
        for rows in (256, 4, 1):
            got = torch.cat([linear(part, matrix) for part in torch.eye(256).split(rows)]).T
            assert got[is_lost].isnan().all()
            assert torch.equal(got[~is_lost], expected[~is_lost] + 0.0)


@pytest.mark.parametrize("kind", ["fp8", "fp4", "bfloat16", "float32"])
def test_any_alignment(kind: str) -> None:
    weight = {"fp8": quantize_fp8, "fp4": quantize_fp4, "bfloat16": Tensor.bfloat16, "float32": Tensor.float}[kind](
        _noise(40, 96)
    )
    x = _noise(70, 96, seed=3)
    expected = linear(x, weight)

    def moved(t: Tensor) -> Tensor:
        raw = t.contiguous().view(torch.uint8).flatten()
        block = torch.full((raw.numel() + 65,), 255, dtype=torch.uint8)
        block[1 : 1 + raw.numel()] = raw
        return block[1 : 1 + raw.numel()]

    if isinstance(weight, QuantizedMatrix):
        codes, scales = moved(weight.codes), moved(weight.scales)
        kind_number = 3 if kind == "fp4" else 2
        layout = (kind_number, codes.data_ptr(), scales.data_ptr(), False, weight.layout.rows, weight.layout.cols)
    else:
        codes = moved(weight)
        layout = (1 if kind == "bfloat16" else 0, codes.data_ptr(), 0, False, 1, 1)
    handle = kernels().Matrix(*layout, 40, 96, 0)
    for _ in settings():
        for rows in (1, 70):
            y = torch.empty(rows, 40)
            kernels().linear(handle, 1, x.data_ptr(), rows, y.data_ptr(), False)
            assert torch.equal(y, expected[:rows])


def test_rounding_to_bfloat16() -> None:
    weight, x = quantize_fp8(_noise(40, 128)), _noise(5, 128)
    y = torch.empty(5, 40)
    kernels().linear(NativeMatrix(weight).handle, 1, x.data_ptr(), 5, y.data_ptr(), True)
    assert torch.equal(y, linear(x, weight).bfloat16().float())
    assert linear(x.bfloat16(), weight).dtype == torch.bfloat16
    assert linear(x.bfloat16(), weight, out_dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(3, 7), "x must have 7 columns, not 8"),
        (torch.zeros(2, 8).double(), torch.zeros(3, 8), "x must be float32 or bfloat16, not torch.float64"),
        (
            torch.zeros(2, 8),
            torch.zeros(3, 8).half(),
            "weight must be float32, bfloat16, FP8 or FP4, not torch.float16",
        ),
        (torch.zeros(2, 8), torch.zeros(3, 8, device="meta"), "weight must be on the CPU, not on meta"),
    ],
)
def test_wrong_arguments(x: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        linear(x, weight)

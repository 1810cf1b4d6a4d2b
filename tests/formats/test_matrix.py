import math

import ml_dtypes
import numpy as np
import pytest
import torch

from pelagos.common.errors import UsageError
from pelagos.formats import e2m1, ue8m0
from pelagos.formats.blocks import BLOCK_128X128, ROW_32, ROW_128, BlockLayout, block_amax
from pelagos.formats.matrix import QuantizedMatrix, quantize_fp4, quantize_fp8

SMALL_BLOCK = BlockLayout(rows=4, cols=6)


def random_weights(num_outputs: int, num_inputs: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers times a random power of two for each pair of rows."""
    generator = torch.Generator().manual_seed(seed)
    size = 2.0 ** torch.randint(-20, 6, (num_outputs, 1), generator=generator)
    return torch.randn(num_outputs, num_inputs, generator=generator) * size


def random_codes(num_outputs: int, num_bytes: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bytes; E4M3's two NaN bytes replaced by zero."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (num_outputs, num_bytes), generator=generator).to(torch.uint8)
    if dtype == torch.float8_e4m3fn:
        codes[codes & 0x7F == 0x7F] = 0
    return codes.view(dtype)


def random_matrix(
    kind: str, layout: BlockLayout, num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> QuantizedMatrix:
    codes = (
        random_codes(num_outputs, num_inputs, torch.float8_e4m3fn)
        if kind == "fp8"
        else random_codes(num_outputs, num_inputs // 2, torch.int8)
    )
    generator = torch.Generator().manual_seed(9)
    shape = layout.scale_shape(num_outputs, num_inputs)
    scales = torch.randint(100, 140, shape, generator=generator).to(torch.uint8).view(torch.float8_e8m0fnu)
    if dtype == torch.float32:
        scales = scales.float() * (1 + torch.rand(shape, generator=generator))  # -Base scales need not be powers of two
    return QuantizedMatrix(codes=codes, scales=scales, layout=layout)


MATRICES = [
    random_matrix("fp8", BLOCK_128X128, 256, 256, torch.float8_e8m0fnu),
    random_matrix("fp8", BLOCK_128X128, 200, 150, torch.float8_e8m0fnu),
    random_matrix("fp8", BLOCK_128X128, 200, 150, torch.float32),
    random_matrix("fp8", ROW_128, 9, 300, torch.float8_e8m0fnu),
    random_matrix("fp8", SMALL_BLOCK, 11, 13, torch.float8_e8m0fnu),
    random_matrix("fp4", ROW_32, 12, 96, torch.float8_e8m0fnu),
    random_matrix("fp4", ROW_32, 7, 50, torch.float8_e8m0fnu),
]
every_matrix = pytest.mark.parametrize("m", MATRICES, ids=repr)


def decode_by_definition(m: QuantizedMatrix) -> np.ndarray:
    codes = m.codes.view(torch.uint8).numpy()
    if m.kind == "fp4":
        values = np.empty(m.shape, np.float32)
        values[:, 0::2] = (codes & 15).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        values[:, 1::2] = (codes >> 4).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    else:
        values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scales = m.scales.float().numpy()
    row, col = np.indices(m.shape)
    return values * scales[row // m.layout.rows, col // m.layout.cols]


def same_codes(a: QuantizedMatrix, b: QuantizedMatrix) -> bool:
    return torch.equal(a.codes.view(torch.uint8), b.codes.view(torch.uint8))


@every_matrix
def test_decode_against_the_definition(m):
    decoded = m.decode()
    assert decoded.dtype == torch.float32
    np.testing.assert_array_equal(decoded.numpy().view(np.int32), decode_by_definition(m).view(np.int32))


@every_matrix
def test_decode_rows_does_not_depend_on_the_split(m):
    whole, num_outputs = m.decode(), m.shape[0]
    for step in (1, 3, 127, 128, 129):
        parts = [m.decode_rows(i, min(i + step, num_outputs)) for i in range(0, num_outputs, step)]
        assert torch.equal(torch.cat(parts), whole)
    assert m.decode_rows(num_outputs, num_outputs).shape == (0, m.shape[1])


def test_decode_rows_leaves_the_matrix_alone_and_refuses_other_rows():
    m = MATRICES[4]
    before = m.codes.clone(), m.scales.clone()
    m.decode_rows(2, 9)
    assert torch.equal(m.codes.view(torch.uint8), before[0].view(torch.uint8))
    assert torch.equal(m.scales.view(torch.uint8), before[1].view(torch.uint8))
    for start, stop in ((-1, 2), (3, 2), (0, 12)):
        with pytest.raises(IndexError, match="matrix of 11 rows"):
            m.decode_rows(start, stop)


def test_decode_rows_of_a_memory_mapped_file_reads_those_rows_alone(tmp_path):
    """The file is 64 GiB of holes around three rows: reading more than the rows asked for would not end."""
    m, first, num_outputs, num_inputs = MATRICES[0], 2**20, 2**21, 2**15
    rows = m.codes.view(torch.uint8)[:3].repeat(1, num_inputs // 256)
    with (tmp_path / "codes").open("wb") as file:
        file.seek(first * num_inputs)
        file.write(rows.numpy().tobytes())
        file.truncate(num_outputs * num_inputs)
    codes = torch.from_numpy(np.memmap(tmp_path / "codes", np.uint8, "r+", shape=(num_outputs, num_inputs)))
    scales = torch.ones(BLOCK_128X128.scale_shape(num_outputs, num_inputs), dtype=torch.float8_e8m0fnu)
    mapped = QuantizedMatrix(codes=codes.view(torch.float8_e4m3fn), scales=scales, layout=BLOCK_128X128)
    assert torch.equal(mapped.decode_rows(first, first + 3), rows.view(torch.float8_e4m3fn).float())
    assert not mapped.decode_rows(first + 3, first + 5).any()


def test_facts_about_a_matrix():
    fp8, fp4 = MATRICES[1], MATRICES[6]
    assert (fp8.kind, fp8.shape, fp8.num_bytes) == ("fp8", (200, 150), 200 * 150 + 4)
    assert (fp4.kind, fp4.shape, fp4.num_bytes) == ("fp4", (7, 50), 7 * 25 + 14)
    assert MATRICES[2].num_bytes == 200 * 150 + 16
    assert fp4.device == torch.device("cpu")
    assert repr(fp4) == "QuantizedMatrix(fp4, 7x50, blocks 1x32, cpu)"
    meta = fp4.to("meta")
    assert (meta.device.type, meta.shape, meta.kind, meta.layout) == ("meta", fp4.shape, "fp4", ROW_32)


@pytest.mark.parametrize(
    ("codes", "scales", "message"),
    [
        (torch.zeros(4, 4), torch.ones(1, 1), "codes must be"),
        (torch.zeros(4, dtype=torch.int8), torch.ones(1, 1), "codes must be"),
        (torch.zeros(4, 4, dtype=torch.int8), torch.ones(1, 1, dtype=torch.bfloat16), "scales must be float8_e8m0fnu"),
        (torch.zeros(4, 4, dtype=torch.int8), torch.ones(1, 2), r"\[4, 8\] matrix .* must have shape \[1, 1\]"),
        (torch.zeros(4, 4, dtype=torch.int8), torch.ones(1, 1, device="meta"), "codes are on cpu but scales on meta"),
    ],
)
def test_parts_that_do_not_fit_are_refused(codes, scales, message):
    with pytest.raises(UsageError, match=message):
        QuantizedMatrix(codes=codes, scales=scales, layout=BLOCK_128X128)


@every_matrix
def test_quantizing_with_its_own_scales_gives_the_codes_back(m):
    decoded = m.decode()
    again = (
        quantize_fp4(decoded, scales=m.scales) if m.kind == "fp4" else quantize_fp8(decoded, m.layout, scales=m.scales)
    )
    assert same_codes(again, m)
    assert again.scales is m.scales


@pytest.mark.parametrize("layout", [BLOCK_128X128, ROW_128, SMALL_BLOCK])
def test_quantize_fp8_takes_the_smallest_scale_that_fits_and_rounds_to_nearest(layout):
    w = random_weights(140, 150)
    m = quantize_fp8(w, layout)
    assert m.codes.dtype == torch.float8_e4m3fn
    amax, scales = block_amax(w, layout), ue8m0.decode(m.scales)
    assert (amax <= 448 * scales).all()
    assert (amax > 224 * scales).all()
    row, col = np.indices(w.shape)
    ratio = w.numpy() / scales.numpy()[row // layout.rows, col // layout.cols]
    expected = ratio.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(m.codes.view(torch.uint8).numpy(), expected)


def test_quantize_fp4_takes_the_smallest_scale_that_fits_and_rounds_to_nearest():
    w = random_weights(20, 72)
    m = quantize_fp4(w)
    amax, scales = block_amax(w, ROW_32), ue8m0.decode(m.scales)
    assert m.scales.shape == (20, 3)
    assert (amax <= 6 * scales).all()
    assert (amax > 3 * scales).all()
    ratio = w.numpy() / scales.numpy().repeat(32, axis=1)[:, :72]
    expected = ratio.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(e2m1.unpack(m.codes).numpy(), expected)


@pytest.mark.parametrize("quantize", [quantize_fp8, quantize_fp4])
def test_quantizing_twice_changes_nothing(quantize):
    once = quantize(random_weights(130, 160)).decode()
    assert torch.equal(quantize(once).decode(), once)


@pytest.mark.parametrize("quantize", [quantize_fp8, quantize_fp4])
def test_blocks_of_zeros_and_tiny_weights(quantize):
    w = torch.zeros(256, 256)
    w[0, 0] = -(2.0**-126)
    m = quantize(w)
    scales = ue8m0.decode(m.scales)
    assert (scales == 2.0**-126).all()
    assert torch.equal(m.decode(), w)
    assert (m.codes.view(torch.uint8)[1:] == 0).all()


@pytest.mark.parametrize("quantize", [quantize_fp8, quantize_fp4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_parameters(quantize, dtype):
    w = random_weights(8, 64).bfloat16()
    parameter = torch.nn.Parameter(w.to(dtype))
    assert same_codes(quantize(parameter), quantize(w.float()))
    assert not quantize(parameter).decode().requires_grad
    assert quantize(torch.zeros(0, 64)).decode().shape == (0, 64)


@pytest.mark.parametrize("quantize", [quantize_fp8, quantize_fp4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(quantize, bad):
    w = torch.ones(4, 64)
    scales = quantize(w).scales
    w[2, 3] = bad
    with pytest.raises(UsageError, match="NaN or infinity"):
        quantize(w)
    with pytest.raises(UsageError, match="beyond"):
        quantize(w, scales=scales)


@pytest.mark.parametrize(("quantize", "maximum"), [(quantize_fp8, 448.0), (quantize_fp4, 6.0)])
def test_given_scales_are_checked(quantize, maximum):
    w = torch.full((4, 32), maximum)
    good = quantize(w).scales
    assert torch.equal(quantize(w, scales=good).decode(), w)
    with pytest.raises(UsageError, match=f"beyond {maximum:g} times"):
        quantize(w.nextafter(torch.tensor(math.inf)), scales=good)
    for bad in (good.float()[:, :0], good.float().bfloat16()):
        with pytest.raises(UsageError, match="scales must be float8_e8m0fnu or float32 of shape"):
            quantize(w, scales=bad)
    for number in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="finite numbers above 0"):
            quantize(w, scales=torch.full_like(good.float(), number))


def test_wrong_ranks_and_odd_fp4_widths_are_refused():
    with pytest.raises(UsageError, match="only a matrix"):
        quantize_fp8(torch.zeros(2, 3, 4))
    with pytest.raises(UsageError, match="must be even"):
        quantize_fp4(torch.zeros(2, 33))


def test_decode_agrees_with_transformers():
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    for m in (MATRICES[0], MATRICES[5], random_matrix("fp8", BLOCK_128X128, 256, 128, torch.float32)):
        theirs = module.Fp8Dequantize(None).convert({"weight": [m.codes], "weight_scale_inv": [m.scales]})["weight"]
        assert torch.equal(theirs.float(), m.decode())

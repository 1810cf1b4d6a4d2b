"""Native roundings and row bytes against pelagos.formats, bit for bit, and the Hadamard transform."""

from collections.abc import Callable

import pytest
import torch
from rowwise_checks import among_nan, check_contract, needs_native, noise, same_bits, same_everywhere, settings
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.formats import rows, simulate
from pelagos.ops.cpu import rounding
from pelagos.ops.cpu.rounding import RowFormat
from pelagos.ops.reference import indexer

pytestmark = needs_native

DTYPES = [torch.float32, torch.bfloat16]


def _all_sizes(*shape: int) -> Tensor:
    """Numbers of every magnitude, group by group, with denormals, both zeros and many midpoints between codes."""
    x = noise(*shape) * torch.exp2(torch.randint(-140, 125, (*shape[:-1], 1)).float())
    grid = torch.randint(-16, 17, shape).float() * torch.exp2(torch.randint(-12, 12, (*shape[:-1], 1)).float())
    x = torch.where(torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) % 3 == 0, grid, x)
    x[0] = 0.0
    x[-1] = -0.0
    x[..., 0] *= -1e-4
    return x


def _broken(x: Tensor) -> Tensor:
    """With NaN or infinity in some groups."""
    x = x.clone()
    x.view(-1)[:: max(x.numel() // 7, 1)] = torch.nan
    x.view(-1)[1 :: max(x.numel() // 5, 1)] = -torch.inf
    return x


def _index(x: Tensor) -> Tensor:
    return simulate.index_fp4(indexer.hadamard(x))


def test_hadamard() -> None:
    check_contract("hadamard", rounding.hadamard, exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 64, 256, 1024])
def test_hadamard_gives_the_bits_of_the_reference(size: int, dtype: torch.dtype) -> None:
    x = noise(5, size).to(dtype)
    (y,) = same_everywhere(lambda: rounding.hadamard(among_nan(x)))
    assert same_bits(y, indexer.hadamard(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 100, 128, 130, 1000, 4096])
def test_round_activation(size: int, dtype: torch.dtype) -> None:
    for x in (_all_sizes(12, size).to(dtype), _broken(_all_sizes(12, size)).to(dtype)):
        (y,) = same_everywhere(lambda x=x: rounding.round_activation(among_nan(x)))
        assert same_bits(y, simulate.activation_fp8(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "num_rope"), [(1, 0), (1, 1), (24, 8), (70, 6), (512, 64), (33, 33)])
def test_round_row(size: int, num_rope: int, dtype: torch.dtype) -> None:
    for x in (_all_sizes(12, size).to(dtype), _broken(_all_sizes(12, size)).to(dtype)):
        (y,) = same_everywhere(lambda x=x: rounding.round_row(among_nan(x), num_rope))
        assert same_bits(y, simulate.row_fp8(x, num_rope))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 16, 32, 64, 128])
def test_round_index(size: int, dtype: torch.dtype) -> None:
    for x in (_all_sizes(40, size).to(dtype), _broken(_all_sizes(40, size)).to(dtype)):
        (y,) = same_everywhere(lambda x=x: rounding.round_index(among_nan(x)))
        assert same_bits(y, _index(x))


def test_every_float_of_sixteen_bits_rounds_as_the_formats_say() -> None:
    """Each BF16 number in a group of its own, and each with the group maximum beside it."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    alone = torch.zeros(1 << 16, 2)
    alone[:, 0] = every
    for most in (0.0, 1.0, 6.0, 448.0):
        alone[:, 1] = most
        for isa, _ in settings():
            assert same_bits(rounding.round_activation(alone), simulate.activation_fp8(alone)), isa
    layout = rounding.row_layout(RowFormat.INDEX_FP4, 2)
    plain = alone[every.isfinite()]
    (y,) = same_everywhere(lambda: rounding.load_rows(layout, rounding.store_rows(layout, plain)))
    assert same_bits(y, simulate.index_fp4(plain))


Pack = Callable[[Tensor], Tensor]
FORMATS: list[tuple[RowFormat, int, int, Pack, Pack]] = []
for _size, _rope in ((1, 0), (24, 8), (70, 6), (129, 1), (128, 64), (512, 64), (9, 9)):
    FORMATS.append(
        (
            RowFormat.FP8,
            _size,
            _rope,
            lambda x, r=_rope: rows.pack_attention_row(x, r),
            lambda p, s=_size, r=_rope: rows.unpack_attention_row(p, s, r),
        )
    )
for _size in (2, 16, 32, 40, 128, 130):
    FORMATS.append(
        (RowFormat.INDEX_FP4, _size, 0, rows.pack_index_row_fp4, lambda p, s=_size: rows.unpack_index_row_fp4(p, s))
    )
    FORMATS.append(
        (RowFormat.INDEX_FP8, _size, 0, rows.pack_index_row_fp8, lambda p, s=_size: rows.unpack_index_row_fp8(p, s))
    )
for _size in (1, 16, 37, 512):
    FORMATS.append(
        (RowFormat.FLOAT32, _size, 0, lambda x: x.view(torch.uint8), lambda p: p.clone().view(torch.float32))
    )
    FORMATS.append(
        (
            RowFormat.BFLOAT16,
            _size,
            0,
            lambda x: x.bfloat16().view(torch.uint8),
            lambda p: p.clone().view(torch.bfloat16).float(),
        )
    )


@pytest.mark.parametrize(("row_format", "size", "num_rope", "pack", "unpack"), FORMATS)
def test_row_bytes(row_format: RowFormat, size: int, num_rope: int, pack: Pack, unpack: Pack) -> None:
    layout = rounding.row_layout(row_format, size, num_rope)
    x = _all_sizes(23, size)
    (packed,) = same_everywhere(lambda: rounding.store_rows(layout, among_nan(x)))
    assert torch.equal(packed, pack(x))
    expected = unpack(packed)
    for offset in (0, 1, 3):  # any address
        memory = torch.full((packed.numel() + 8,), 0xFF, dtype=torch.uint8)
        inner = memory[offset : offset + packed.numel()].view(packed.shape)
        inner.copy_(packed)
        (loaded,) = same_everywhere(lambda inner=inner: rounding.load_rows(layout, inner))
        assert same_bits(loaded, expected)


@pytest.mark.parametrize(("row_format", "size", "num_rope", "pack", "unpack"), FORMATS)
def test_groups_with_nan_or_infinity_load_as_nan(
    row_format: RowFormat, size: int, num_rope: int, pack: Pack, unpack: Pack
) -> None:
    layout = rounding.row_layout(row_format, size, num_rope)
    x = _broken(_all_sizes(23, size))
    (packed,) = same_everywhere(lambda: rounding.store_rows(layout, x))
    (loaded,) = same_everywhere(lambda: rounding.load_rows(layout, packed))
    assert same_bits(loaded, unpack(pack(x)))


@pytest.mark.parametrize(
    ("row_format", "size", "num_rope"),
    [(RowFormat.FP8, 96, 16), (RowFormat.INDEX_FP4, 64, 0), (RowFormat.INDEX_FP8, 40, 0)],
)
def test_any_bytes_load_as_the_formats_say(row_format: RowFormat, size: int, num_rope: int) -> None:
    layout = rounding.row_layout(row_format, size, num_rope)
    packed = torch.randint(0, 256, (300, layout.bytes), dtype=torch.uint8)
    unpack = next(u for f, _, _, _, u in _with_size(size, num_rope) if f is row_format)
    (loaded,) = same_everywhere(lambda: rounding.load_rows(layout, packed))
    assert same_bits(loaded, unpack(packed))


def _with_size(size: int, num_rope: int) -> list[tuple[RowFormat, int, int, None, Pack]]:
    return [
        (RowFormat.FP8, size, num_rope, None, lambda p: rows.unpack_attention_row(p, size, num_rope)),
        (RowFormat.INDEX_FP4, size, 0, None, lambda p: rows.unpack_index_row_fp4(p, size)),
        (RowFormat.INDEX_FP8, size, 0, None, lambda p: rows.unpack_index_row_fp8(p, size)),
    ]


def test_a_rounded_row_is_stored_without_loss() -> None:
    x = noise(50, 512) * torch.exp2(torch.randint(-8, 8, (50, 1)).float())
    for rounded, row_format, num_rope in (
        (rounding.round_row(x, 64), RowFormat.FP8, 64),
        (rounding.round_index(x), RowFormat.INDEX_FP4, 0),
        (rounding.round_activation(x), RowFormat.INDEX_FP8, 0),
    ):
        layout = rounding.row_layout(row_format, 512, num_rope)
        assert same_bits(rounding.load_rows(layout, rounding.store_rows(layout, rounded)), rounded)


def test_no_row_is_nothing() -> None:
    layout = rounding.row_layout(RowFormat.FP8, 96, 16)
    assert rounding.store_rows(layout, torch.empty(0, 96)).shape == (0, layout.bytes)
    assert rounding.load_rows(layout, torch.empty(0, layout.bytes, dtype=torch.uint8)).shape == (0, 96)
    for op in (rounding.round_activation, rounding.hadamard, rounding.round_index):
        assert op(torch.empty(0, 32)).shape == (0, 32)


def test_errors_name_the_argument() -> None:
    with pytest.raises(UsageError, match="power of two, not 12"):
        rounding.hadamard(noise(2, 12))
    with pytest.raises(UsageError, match="num_rope_dims must be from 0 to 8"):
        rounding.round_row(noise(2, 8), 9)
    with pytest.raises(UsageError, match="INDEX_FP4 row must be at least 1 and, in FP4, even, not 7"):
        rounding.row_layout(RowFormat.INDEX_FP4, 7)
    with pytest.raises(UsageError, match=r"packed must be dense uint8 \[N, 68\]"):
        rounding.load_rows(rounding.row_layout(RowFormat.INDEX_FP4, 128), torch.empty(3, 67, dtype=torch.uint8))

import math

import pytest
import torch

from pelagos.common.errors import UsageError
from pelagos.formats import rows, simulate

HEADS = [(512, 64), (32, 8), (100, 10), (64, 0), (73, 9)]
DTYPES = [torch.float32, torch.bfloat16]


def random_rows(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    size = 2.0 ** torch.randint(-8, 8, (*shape[:-1], 1), generator=generator)
    return (torch.randn(shape, generator=generator) * size).to(dtype)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


def test_published_row_sizes():
    assert rows.attention_row_bytes(512, 64) == 584
    assert rows.index_row_bytes_fp4(128) == 68
    assert rows.index_row_bytes_fp8(128) == 132


def test_row_sizes_of_other_heads():
    assert rows.attention_row_bytes(32, 8) == 24 + 16 + 1 + 7
    assert rows.attention_row_bytes(136, 8) == 128 + 16 + 2 + 6
    assert rows.attention_row_bytes(64, 0) == 64 + 1 + 7
    assert rows.index_row_bytes_fp4(16) == 8 + 1
    assert rows.index_row_bytes_fp4(40) == 20 + 2
    assert rows.index_row_bytes_fp8(16) == 16 + 4
    assert rows.index_row_bytes_fp8(130) == 130 + 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "num_rope_dims"), HEADS)
def test_attention_row_holds_what_the_simulation_gives(head_dim, num_rope_dims, dtype):
    row = random_rows(11, head_dim, dtype=dtype)
    packed = rows.pack_attention_row(row, num_rope_dims)
    assert packed.dtype == torch.uint8
    assert packed.shape == (11, rows.attention_row_bytes(head_dim, num_rope_dims))
    unpacked = rows.unpack_attention_row(packed, head_dim, num_rope_dims, dtype)
    assert torch.equal(bits(unpacked), bits(simulate.row_fp8(row, num_rope_dims)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [128, 16, 40, 256])
def test_index_rows_hold_what_the_simulation_gives(head_dim, dtype):
    row = random_rows(3, 5, head_dim, dtype=dtype)
    fp4 = rows.pack_index_row_fp4(row)
    assert fp4.shape == (3, 5, rows.index_row_bytes_fp4(head_dim))
    assert torch.equal(bits(rows.unpack_index_row_fp4(fp4, head_dim, dtype)), bits(simulate.index_fp4(row)))
    fp8 = rows.pack_index_row_fp8(row)
    assert fp8.shape == (3, 5, rows.index_row_bytes_fp8(head_dim))
    assert torch.equal(bits(rows.unpack_index_row_fp8(fp8, head_dim, dtype)), bits(simulate.activation_fp8(row)))


def test_bytes_of_an_attention_row_one_by_one():
    row = torch.zeros(512)
    row[0], row[1], row[64], row[511] = 448.0, -1.0, 3.0, 1.5
    packed = rows.pack_attention_row(row, 64).tolist()
    expected = [0] * 584
    expected[0], expected[1] = 0x7E, 0xB8  # 448, -1 under scale 1
    expected[64] = 0x7C  # 3 / 2^-7 = 384
    expected[574:576] = [0xC0, 0x3F]  # 1.5 in bfloat16, low byte first
    expected[576:583] = [127, 120, 105, 105, 105, 105, 105]  # 2^0, 2^-7, and 2^-22 from the floor of 1e-4
    assert packed == expected


def test_bytes_of_index_rows_one_by_one():
    row = torch.zeros(128)
    row[0], row[1], row[127] = 6.0, -0.5, 12.0
    fp4 = rows.pack_index_row_fp4(row).tolist()
    assert fp4 == [0x97, *[0] * 62, 0x70, 127, 1, 1, 128]
    fp8 = rows.pack_index_row_fp8(row).tolist()
    assert fp8[:2] == [0x74, 0xD8]  # 6 / 2^-5 = 192 and -0.5 / 2^-5 = -16
    assert fp8[127:] == [0x7C, 0x00, 0x00, 0x00, 0x3D]  # 12 / 2^-5 = 384, and 2^-5 as float32


def test_padding_is_zero_so_that_equal_rows_have_equal_bytes():
    packed = rows.pack_attention_row(random_rows(4, 32, dtype=torch.float32), 8)
    assert not packed[:, 41:].any()


def test_slices_of_unaligned_pages_unpack():
    page = torch.zeros(4, 137, dtype=torch.uint8)
    row = random_rows(4, 128, dtype=torch.float32)
    page[:, 5:] = rows.pack_index_row_fp8(row)
    assert torch.equal(rows.unpack_index_row_fp8(page[:, 5:], 128), simulate.activation_fp8(row))
    assert torch.equal(rows.unpack_index_row_fp8(page[2, 5:], 128), simulate.activation_fp8(row[2]))


def test_nan_survives_storage():
    row = torch.ones(1, 512)
    row[0, 70] = math.nan
    unpacked = rows.unpack_attention_row(rows.pack_attention_row(row, 64), 512, 64)
    assert unpacked.isnan().nonzero()[:, 1].tolist() == list(range(64, 128))
    fp4 = rows.unpack_index_row_fp4(rows.pack_index_row_fp4(row), 512)
    assert fp4.isnan().nonzero()[:, 1].tolist() == list(range(64, 96))


def test_no_rows():
    assert rows.pack_attention_row(torch.zeros(0, 512), 64).shape == (0, 584)
    assert rows.unpack_attention_row(torch.zeros(0, 584, dtype=torch.uint8), 512, 64).shape == (0, 512)
    assert rows.unpack_index_row_fp4(torch.zeros(0, 68, dtype=torch.uint8), 128).shape == (0, 128)


def test_wrong_length_or_dtype_is_refused():
    with pytest.raises(UsageError, match="584 bytes"):
        rows.unpack_attention_row(torch.zeros(2, 583, dtype=torch.uint8), 512, 64)
    with pytest.raises(UsageError, match="68 bytes"):
        rows.unpack_index_row_fp4(torch.zeros(2, 69, dtype=torch.uint8), 128)
    with pytest.raises(UsageError, match="132 bytes"):
        rows.unpack_index_row_fp8(torch.zeros(2, 132), 128)

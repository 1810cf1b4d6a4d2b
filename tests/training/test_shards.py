"""Shards: what goes in comes out, and nothing damaged is read."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import UsageError
from pelagos.training.shards import ShardSize, ShardWriter, TokenSource, shard_paths

DOCUMENTS = [[1, 2, 3], [], [65535], list(range(1000))]


def write(folder: Path, documents: list[list[int]], vocab_size: int = 65536, split: str = "train") -> None:
    with ShardWriter(folder, "x", split, vocab_size) as shard:
        for ids in documents:
            shard.add(ids, 3 * len(ids))
    num_tokens = sum(map(len, documents))
    assert shard.size == ShardSize(num_documents=len(documents), num_tokens=num_tokens, num_text_bytes=3 * num_tokens)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32), (129280, np.uint32)])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    write(tmp_path, DOCUMENTS, vocab_size)
    shard = TokenSource.open(tmp_path, "x", "train")
    assert shard.num_documents == 4
    assert shard.num_tokens == 1004
    assert shard.num_text_bytes == 3012
    assert shard.lengths().tolist() == [3, 0, 1, 1000]
    for index, ids in enumerate(DOCUMENTS):
        document = shard.document(index)
        assert document.dtype == dtype
        assert document.tolist() == ids
        assert np.shares_memory(document, shard.tokens) or not ids
        assert not document.flags.writeable
    shard.verify()
    for index in (-1, 4):
        with pytest.raises(IndexError, match="document must be 0 to 3"):
            shard.document(index)


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    write(tmp_path, [[258, 3], [4]])
    data = (tmp_path / "x.train.tokens").read_bytes()
    assert data[128:] == bytes([2, 1, 3, 0, 4, 0])
    fields = struct.pack("<8sIIQQQ", b"PELATOK\0", 1, 2, 2, 3, 9)
    assert data[:40] == fields
    assert data[40:128] == hashlib.sha256(data[128:] + fields).digest() + bytes(56)
    assert (tmp_path / "x.train.offsets").read_bytes()[128:] == struct.pack("<3Q", 0, 2, 3)


@given(st.lists(st.lists(st.integers(0, 70000), max_size=5), max_size=6))
def test_any_documents(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write(folder, documents, 70001)
    shard = TokenSource.open(folder, "x", "train")
    assert [shard.document(index).tolist() for index in range(shard.num_documents)] == documents
    shard.verify()


def test_ids_out_of_range_are_a_programming_error(tmp_path: Path) -> None:
    for ids in ([512], [-1]):
        with pytest.raises(AssertionError, match="id out of range"):
            write(tmp_path, [ids], 512)


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail() -> None:
        with ShardWriter(tmp_path, "x", "train", 512) as shard:
            shard.add([1], 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.train\.tokens is not there"):
        TokenSource.open(tmp_path, "x", "train")
    write(tmp_path, DOCUMENTS)
    (tmp_path / "x.train.offsets").unlink()
    with pytest.raises(UsageError, match=r"x\.train\.offsets is not there"):
        TokenSource.open(tmp_path, "x", "train")


@pytest.mark.parametrize("kind", ["tokens", "offsets"])
def test_every_damaged_byte_is_noticed(tmp_path: Path, kind: str) -> None:
    write(tmp_path, [[1, 2], [3]])
    path = shard_paths(tmp_path, "x", "train")[kind]
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UsageError, match=rf"x\.train\.{kind}|headers differ"):
            TokenSource.open(tmp_path, "x", "train").verify()


@pytest.mark.parametrize("kind", ["tokens", "offsets"])
@pytest.mark.parametrize("num_bytes", [0, 127, 128, -1, 1])
def test_wrong_lengths_are_noticed_at_once(tmp_path: Path, kind: str, num_bytes: int) -> None:
    write(tmp_path, [[1, 2], [3]])
    path = shard_paths(tmp_path, "x", "train")[kind]
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" if num_bytes == 1 else whole[:num_bytes])
    with pytest.raises(UsageError, match=rf"x\.train\.{kind}"):
        TokenSource.open(tmp_path, "x", "train")


def test_files_of_two_shards_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2], [3]])
    write(tmp_path, [[1], [2], [3]], split="test")
    (tmp_path / "x.test.offsets").rename(tmp_path / "x.train.offsets")
    with pytest.raises(UsageError, match="their headers differ"):
        TokenSource.open(tmp_path, "x", "train")


def test_other_formats_and_versions(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2], [3]])
    path = tmp_path / "x.train.tokens"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + struct.pack("<I", 2) + whole[12:])
    with pytest.raises(UsageError, match="has version 2 of the format, but this program reads version 1"):
        TokenSource.open(tmp_path, "x", "train")
    path.write_bytes(whole[:12] + struct.pack("<I", 8) + whole[16:])
    with pytest.raises(UsageError, match="cannot have 8 bytes per element"):
        TokenSource.open(tmp_path, "x", "train")
    path.write_bytes(whole[:24] + struct.pack("<Q", 1 << 62) + whole[32:])
    with pytest.raises(UsageError, match="must have 9223372036854775936 bytes"):
        TokenSource.open(tmp_path, "x", "train")

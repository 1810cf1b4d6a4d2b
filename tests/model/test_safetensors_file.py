import json
import os
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import CheckpointError
from pelagos.model.safetensors_file import DTYPES, MAX_HEADER_BYTES, StreamingWriter, open_file

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_file(path)
    assert caught.value.place == str(path)
    assert "\n" not in "".join(caught.value.problems)
    return caught.value.problems


def random_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for shape in ((), (3,), (0,), (4, 0, 2), (2, 3, 5), (17, 1)):
        for name, dtype in DTYPES.items():
            raw = torch.randint(0, 120, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
            tensors[f"{name}{list(shape)}"] = raw.view(dtype).reshape(shape)
    return tensors


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    tensors = random_tensors()
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = open_file(tmp_path / "a.safetensors")
        assert file.metadata == {"format": "pt"}
        assert file.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same_bytes(file.tensor(name), tensor), name
            assert file.tensors[name].num_bytes == tensor.nbytes


def test_the_safetensors_library_reads_what_the_writer_writes(tmp_path: Path) -> None:
    tensors = random_tensors()
    names = {dtype: name for name, dtype in DTYPES.items()}
    layout = {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    path = tmp_path / "a.safetensors"
    with StreamingWriter(path, layout) as writer:
        for name in writer.order:
            for piece in tensors[name].split(2) if tensors[name].dim() else [tensors[name]]:
                writer.write(name, piece)
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same_bytes(loaded[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(path, "pt") as reader:
        assert reader.metadata() == {"format": "pt"}
    file = open_file(path)
    assert all(where.start % DTYPES[where.dtype].itemsize == 0 for where in file.tensors.values())
    digest = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert writer.sha256 == digest


@pytest.mark.parametrize("in_own_memory", [False, True])
def test_a_tensor_at_an_odd_offset_is_read_right(tmp_path: Path, in_own_memory: bool) -> None:
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "numbers": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
        "half": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [13, 17]},
    }
    for padding in range(4):
        raw = json.dumps(header).encode() + b" " * padding
        path = write_raw(tmp_path / "a", raw, b"\x07" + struct.pack("<3f", 1, 2, 3) + b"\x80\x3f\x00\x40")
        file = replace(open_file(path), in_own_memory=in_own_memory)
        assert file.tensor("byte").tolist() == [7]
        assert file.tensor("numbers").tolist() == [1.0, 2.0, 3.0]
        assert file.tensor("half").tolist() == [[1.0, 2.0]]
        if in_own_memory:
            assert all(file.tensor(name).data_ptr() % 64 == 0 for name in header), "no vector lies in two cache lines"


@pytest.mark.parametrize("in_own_memory", [False, True])
def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path, in_own_memory: bool) -> None:
    path = write_raw(tmp_path / "a", {"x": F32}, struct.pack("<2f", 1, 2))
    before = path.read_bytes()
    tensor = replace(open_file(path), in_own_memory=in_own_memory).tensor("x")
    assert tensor.tolist() == [1, 2]
    tensor.fill_(9)
    assert tensor.tolist() == [9, 9]
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files of this size are certain on Linux only")
def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    pages = os.sysconf("SC_PHYS_PAGES")
    rows = 2 * pages * os.sysconf("SC_PAGE_SIZE") // 4096
    header = {"x": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}}
    path = write_raw(tmp_path / "a", header)
    os.truncate(path, path.stat().st_size + rows * 4096)
    tensor = open_file(path).tensor("x")
    assert tensor.shape == (rows, 1024)
    assert tensor[rows // 2].sum() == 0


@pytest.mark.parametrize("in_own_memory", [False, True])
def test_a_file_cut_after_it_was_opened_is_an_error(tmp_path: Path, in_own_memory: bool) -> None:
    path = write_raw(tmp_path / "a", {"x": F32}, bytes(8))
    file = replace(open_file(path), in_own_memory=in_own_memory)
    os.truncate(path, 20)
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        file.tensor("x")


MANY = ", ".join(DTYPES)
BROKEN: dict[str, tuple[object, bytes, str]] = {
    "not an object": ([1], b"", "header must be a JSON object of tensors"),
    "number": (b"12", b"", "header must be a JSON object of tensors"),
    "not JSON": (b'{"a": ]}', b"", "header must be JSON, but is not from character 6 on: Expecting value"),
    "not UTF-8": (b'{"\xff": 1}', b"", "header must be UTF-8 text, but byte 2 is not"),
    "too deep": (b"[" * 100_000, b"", "header nests lists and objects too deep"),
    "NaN": (b'{"a": NaN}', b"", "header must be JSON with unique keys and finite numbers: NaN is not a JSON number"),
    "same name": (
        b'{"a": 1, "b": 2, "a": 3}',
        b"",
        "header must be JSON with unique keys and finite numbers: a stands twice in one object",
    ),
    "metadata list": ({"__metadata__": []}, b"", "__metadata__ must be an object of texts"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "__metadata__ must be an object of texts"),
    "entry": ({"x": 3}, b"", "tensor x: must have dtype, shape and data_offsets, and nothing else"),
    "no shape": (
        {"x": {"dtype": "F32", "data_offsets": [0, 0]}},
        b"",
        "tensor x: must have dtype, shape and data_offsets, and nothing else",
    ),
    "more": ({"x": F32 | {"y": 1}}, bytes(8), "tensor x: must have dtype, shape and data_offsets, and nothing else"),
    "dtype": ({"x": F32 | {"dtype": "F4"}}, bytes(8), f"tensor x: dtype must be one of {MANY}, got 'F4'"),
    "dtype list": ({"x": F32 | {"dtype": ["F32"]}}, bytes(8), f"tensor x: dtype must be one of {MANY}, got ['F32']"),
    "negative": (
        {"x": F32 | {"shape": [-2]}},
        bytes(8),
        "tensor x: shape must be a list of at most 8 whole numbers of at least 0, got [-2]",
    ),
    "fraction": (
        {"x": F32 | {"shape": [2.0]}},
        bytes(8),
        "tensor x: shape must be a list of at most 8 whole numbers of at least 0, got [2.0]",
    ),
    "bool": (
        {"x": F32 | {"shape": [2, True]}},
        bytes(8),
        "tensor x: shape must be a list of at most 8 whole numbers of at least 0, got [2, True]",
    ),
    "dims": (
        {"x": F32 | {"shape": [2] + [1] * 8}},
        bytes(8),
        "tensor x: shape must be a list of at most 8 whole numbers of at least 0, got [2, 1, 1, 1, 1, 1, 1, 1, 1]",
    ),
    "huge": (
        {"x": F32 | {"shape": [0, 1 << 60]}},
        bytes(8),
        "tensor x: shape must ask for at most 281,474,976,710,656 numbers, got [0, 1152921504606846976]",
    ),
    "one offset": (
        {"x": F32 | {"data_offsets": [8]}},
        bytes(8),
        "tensor x: data_offsets must be two whole numbers, start and stop, got [8]",
    ),
    "backwards": (
        {"x": F32 | {"data_offsets": [8, 0]}},
        bytes(8),
        "tensor x: data_offsets must be two whole numbers, start and stop, got [8, 0]",
    ),
    "negative offset": (
        {"x": F32 | {"data_offsets": [-8, 0]}},
        bytes(8),
        "tensor x: data_offsets must be two whole numbers, start and stop, got [-8, 0]",
    ),
    "past the end": ({"x": F32}, bytes(7), "tensor x: data_offsets [0, 8] reach past the 7 bytes of data in the file"),
    "wrong span": (
        {"x": F32 | {"data_offsets": [0, 7]}},
        bytes(7),
        "tensor x: data_offsets [0, 7] must span 8 bytes for F32 [2]",
    ),
    "overlap": (
        {"x": F32, "y": F32 | {"data_offsets": [4, 12]}},
        bytes(12),
        "tensors x and y overlap at data byte 4",
    ),
    "same place": ({"x": F32, "y": F32}, bytes(8), "tensors x and y overlap at data byte 0"),
    "gap": ({"x": F32 | {"data_offsets": [3, 11]}}, bytes(11), "data bytes 0 to 3 belong to no tensor"),
    "rest": ({"x": F32}, bytes(20), "data bytes 8 to 20 belong to no tensor"),
    "name": ({"x\n\x1b": 3}, b"", "tensor 'x\\n\\x1b': must have dtype, shape and data_offsets, and nothing else"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_header_has_its_own_sentence(kind: str, tmp_path: Path) -> None:
    header, data, expected = BROKEN[kind]
    assert problems_of(write_raw(tmp_path / "a", header, data)) == [expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is 0 bytes long, too short for a safetensors file"),
        (b"1234567", "is 7 bytes long, too short for a safetensors file"),
        (struct.pack("<Q", 0), "header length must be from 2 to 100,000,000 bytes, got 0"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "header length must be from 2 to 100,000,000 bytes, got 100,000,001"),
        (b"x" * 8, "header length must be from 2 to 100,000,000 bytes, got 8,680,820,740,569,200,760"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is no safetensors file, it looks like a Git LFS pointer: fetch it with git lfs pull",
        ),
        (struct.pack("<Q", 5) + b"{}", "header of 5 bytes reaches past the end of the file (10 bytes)"),
    ],
)
def test_a_broken_beginning_has_its_own_sentence(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert problems_of(tmp_path / "a") == [expected]


def test_all_problems_are_listed(tmp_path: Path) -> None:
    header = {"__metadata__": 1, "a": F32 | {"dtype": "?"}, "b": 1, "c": F32, "d": F32 | {"data_offsets": [0, 8]}}
    assert len(problems_of(write_raw(tmp_path / "a", header, bytes(9)))) == 4  # the gap may be tensor a's


def test_what_is_not_a_file(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none") == ["cannot be read: No such file or directory"]
    assert problems_of(tmp_path) == ["must be a file"]
    os.mkfifo(tmp_path / "pipe")
    assert problems_of(tmp_path / "pipe") == ["must be a file"]


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    [problem] = problems_of(write_raw(tmp_path / "a", {"x" * 10_000: 1}))
    assert len(problem) < 300


@given(cut=st.integers(0, 400), flip=st.integers(0, 399), value=st.integers(0, 255))
def test_no_byte_of_a_file_can_raise_anything_else(
    cut: int, flip: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    raw = bytearray(safetensors.torch.save({"a": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.int64)}))
    raw[flip % len(raw)] = value
    path.write_bytes(raw[:cut] if cut < 300 else raw)
    try:
        file = open_file(path)
    except CheckpointError:
        return
    for name, where in file.tensors.items():
        assert tuple(file.tensor(name).shape) == where.shape


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("b", torch.ones(1))], "bytes are missing before b"),
        ([("a", torch.ones(2)), ("b", torch.ones(1)), ("a", torch.ones(1))], "a is not the next tensor in order"),
        ([("a", torch.ones(2, dtype=torch.int64))], "a must be torch.float32"),
        ([("a", torch.ones(3))], "too many bytes for a"),
        ([("a", torch.ones(2))], "4 bytes were never written"),
    ],
)
def test_the_writer_insists_on_order_dtype_and_size(
    steps: list[tuple[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    def write() -> None:
        with StreamingWriter(tmp_path / "a", {"a": ("F32", (2,)), "b": ("F32", (1,))}) as writer:
            for name, piece in steps:
                writer.write(name, piece)

    with pytest.raises(AssertionError, match=message):
        write()

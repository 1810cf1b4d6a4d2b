"""One .safetensors file: read without trust, written without being held in memory.

    8 bytes       length of the header, little-endian
    header        JSON: tensor name -> {"dtype", "shape", "data_offsets": [start, stop]}, and "__metadata__"
    data          the tensors, without gaps; offsets count from its first byte

The format is that of https://github.com/huggingface/safetensors. Its own loader stops at the first problem of a file
and says little about it, so files are read here: whatever a header claims is checked before it is used.
"""

import hashlib
import json
import math
import mmap
import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

import torch
from torch import Tensor

from pelagos.common.errors import CheckpointError
from pelagos.common.fields import show

MAX_HEADER_BYTES = 100_000_000
_MAX_NUMBERS = 1 << 48  # of one tensor; far above any file, far below what overflows 64 bits
_MAX_DIMS = 8
_LARGE_PAGE = 2 << 20
_CACHE_LINE = 64
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor:
    """Where one tensor lies: bytes ``start`` to ``stop`` of the whole file. ``dtype`` is a key of ``DTYPES``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


@dataclass(kw_only=True)
class SafetensorsFile:
    """A file whose header is known to be sound. Its data is mapped into memory when the first tensor is asked for.

    ``in_own_memory``: read whole instead, into pages of 2 MiB where the system has them, each tensor at the start of a
    cache line: whoever goes through all of it again and again then spends no time on looking up pages, and no vector
    lies in two lines.
    """

    path: Path
    num_bytes: int
    tensors: Mapping[str, FileTensor]
    in_own_memory: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored. It lies in the mapped file: pages are read when touched, and writing to it changes a
        private copy of the page. KeyError for an unknown name, CheckpointError if the file is no longer what it was.
        """
        where = self.tensors[name]
        dtype = DTYPES[where.dtype]
        if where.num_bytes == 0:
            return torch.empty(where.shape, dtype=dtype)
        memory, starts = self._memory
        data = torch.frombuffer(memory, dtype=torch.uint8, count=where.num_bytes, offset=starts[name])
        if starts[name] % dtype.itemsize:  # memory begins on a page, so only the offset can be off
            data = data.clone()
        return data.view(dtype).view(where.shape)

    @cached_property
    def _memory(self) -> tuple[mmap.mmap, Mapping[str, int]]:
        """The file's bytes, and where each tensor begins in them."""
        try:
            with self.path.open("rb") as file:
                if self.in_own_memory:
                    return _copied(file, self.tensors)
                return _mapped(file, self.num_bytes), {name: where.start for name, where in self.tensors.items()}
        except (OSError, ValueError) as error:  # ValueError: shorter than num_bytes
            raise CheckpointError(str(self.path), [f"cannot be mapped into memory: {error}"]) from error


def _mapped(file: BinaryIO, num_bytes: int) -> mmap.mmap:
    # Private and writable: torch wants writable memory. Linux refuses such a map if it is larger than memory,
    # unless told to reserve none; Python 3.11 has no name for that flag.
    reserve_none = 0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    memory = mmap.mmap(file.fileno(), num_bytes, flags=mmap.MAP_PRIVATE | reserve_none, prot=protection)
    _ask_for_large_pages(memory)  # which files have where the file system keeps them so, as ext4 does since Linux 6.16
    return memory


def _ask_for_large_pages(memory: mmap.mmap) -> None:
    if _has_large_pages():
        with suppress(OSError):  # of a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)


def _has_large_pages() -> bool:
    try:
        return "[never]" not in _LARGE_PAGES.read_text()
    except OSError:
        return False


def _copied(file: BufferedReader, tensors: Mapping[str, FileTensor]) -> tuple[mmap.mmap, Mapping[str, int]]:
    starts: dict[str, int] = {}
    end = 0
    for name, where in sorted(tensors.items(), key=lambda item: item[1].start):
        starts[name] = _up_to(end, _CACHE_LINE)
        end = starts[name] + where.num_bytes
    # Linux places only whole multiples of a large page where large pages begin. Shared memory has small pages.
    size = _up_to(max(end, 1), _LARGE_PAGE)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ask_for_large_pages(memory)
    with memoryview(memory) as view:
        for name, start in starts.items():
            where = tensors[name]
            file.seek(where.start)
            if file.readinto(view[start : start + where.num_bytes]) < where.num_bytes:
                raise ValueError("the file is shorter than it was")
    return memory, starts


def _up_to(number: int, multiple: int) -> int:
    """The next whole multiple."""
    return -(-number // multiple) * multiple


def open_file(path: Path) -> SafetensorsFile:
    """Read and check the header; no tensor is read. Raises CheckpointError with every problem of the file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise CheckpointError(str(path), ["must be a file"])
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            header, data_start = _read_header(file, num_bytes)
    except OSError as error:
        raise CheckpointError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except _BadHeaderError as error:
        raise CheckpointError(str(path), [str(error)]) from None
    metadata = header.pop("__metadata__", {})
    problems = list(_metadata_problems(metadata))
    tensors = {}
    for name, entry in header.items():
        problem = _entry_problem(entry, num_bytes - data_start)
        if problem:
            problems.append(f"tensor {show_name(name)}: {problem}")
        else:
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors[name] = FileTensor(
                dtype=entry["dtype"], shape=shape, start=data_start + start, stop=data_start + stop
            )
    problems += _placement_problems(tensors, data_start, num_bytes, complete=not problems)
    if problems:
        raise CheckpointError(str(path), problems)
    return SafetensorsFile(path=path, num_bytes=num_bytes, tensors=tensors, metadata=metadata)


def show_name(name: str) -> str:
    """A tensor or file name fit for a message: one line, not too long."""
    short = name if len(name) <= 200 else name[:197] + "..."
    return short if short.isprintable() and short else repr(short)


class _BadHeaderError(ValueError):
    """A header that cannot be read at all; its text is the problem."""


def _read_header(file: BinaryIO, num_bytes: int) -> tuple[dict[str, Any], int]:
    """The header as an object, and the place of the first byte behind it."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _BadHeaderError(f"is {num_bytes} bytes long, too short for a safetensors file")
    if prefix == b"version ":
        raise _BadHeaderError("is no safetensors file, it looks like a Git LFS pointer: fetch it with git lfs pull")
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _BadHeaderError(f"header length must be from 2 to {MAX_HEADER_BYTES:,} bytes, got {length:,}")
    if length > num_bytes - 8:
        raise _BadHeaderError(f"header of {length:,} bytes reaches past the end of the file ({num_bytes:,} bytes)")
    raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _BadHeaderError(f"header must be UTF-8 text, but byte {error.start} is not") from None
    except json.JSONDecodeError as error:
        raise _BadHeaderError(f"header must be JSON, but is not from character {error.pos} on: {error.msg}") from None
    except RecursionError:
        raise _BadHeaderError("header nests lists and objects too deep") from None
    except ValueError as error:  # from the hooks, or Python's own limit on the digits of an integer
        raise _BadHeaderError(f"header must be JSON with unique keys and finite numbers: {error}") from None
    if not isinstance(header, dict):
        raise _BadHeaderError("header must be a JSON object of tensors")
    return header, 8 + length


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{show_name(twice)} stands twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _metadata_problems(metadata: object) -> Iterator[str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        yield "__metadata__ must be an object of texts"


def _entry_problem(entry: object, num_data_bytes: int) -> str | None:
    """The first thing wrong with one tensor's entry; later checks build on earlier ones."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "must have dtype, shape and data_offsets, and nothing else"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype must be one of {', '.join(DTYPES)}, got {show(dtype)}"
    if not _whole_numbers(shape) or len(shape) > _MAX_DIMS:
        return f"shape must be a list of at most {_MAX_DIMS} whole numbers of at least 0, got {show(shape)}"
    if math.prod(max(size, 1) for size in shape) > _MAX_NUMBERS:
        return f"shape must ask for at most {_MAX_NUMBERS:,} numbers, got {show(shape)}"
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets must be two whole numbers, start and stop, got {show(offsets)}"
    if offsets[1] > num_data_bytes:
        return f"data_offsets {show(offsets)} reach past the {num_data_bytes:,} bytes of data in the file"
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        return f"data_offsets {offsets} must span {expected:,} bytes for {dtype} {shape}"
    return None


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _placement_problems(
    tensors: Mapping[str, FileTensor], data_start: int, num_bytes: int, *, complete: bool
) -> Iterator[str]:
    """Overlaps and, where every entry is known, gaps: bytes that no tensor owns could carry anything."""
    end, owner = data_start, ""
    for name, where in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if where.start < end and where.num_bytes:
            yield f"tensors {show_name(owner)} and {show_name(name)} overlap at data byte {where.start - data_start:,}"
        elif complete and where.start > end:
            yield f"data bytes {end - data_start:,} to {where.start - data_start:,} belong to no tensor"
        if where.stop >= end:
            end, owner = where.stop, name
    if complete and end < num_bytes:
        yield f"data bytes {end - data_start:,} to {num_bytes - data_start:,} belong to no tensor"


class StreamingWriter:
    """Writes a file in one pass, tensor by tensor, a tensor in as many pieces as wanted.

        with StreamingWriter(path, {"a": ("F32", (2, 3)), "b": ("I8", (5,))}) as writer:
            for name in writer.order:
                writer.write(name, piece)    # pieces of whole rows, first to last

    ``order`` has wide dtypes first, so that every tensor is aligned. When the block ends well the file is complete and
    ``sha256`` is its checksum in hex; a tensor that lacks bytes is an AssertionError.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.order = sorted(tensors, key=lambda name: -DTYPES[tensors[name][0]].itemsize)
        self.sha256 = ""
        self._dtypes = {name: DTYPES[dtype] for name, (dtype, _) in tensors.items()}
        self._stops: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name in self.order:
            dtype, shape = tensors[name]
            stop = position + math.prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
            self._stops[name] = position = stop
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._current = 0  # index in order
        self._position = 0
        self._end = position
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self._put(len(text).to_bytes(8, "little"))
        self._put(text)

    def write(self, name: str, piece: Tensor) -> None:
        """Append ``piece``, a CPU tensor of the dtype of ``name``, to its bytes; names in ``order``, none left out."""
        assert piece.dtype == self._dtypes[name], f"{name} must be {self._dtypes[name]}, got {piece.dtype}"
        while self.order[self._current] != name:
            self._current += 1
            assert self._current < len(self.order), f"{name} is not the next tensor in order"
            assert self._stops[self.order[self._current - 1]] == self._position, f"bytes are missing before {name}"
        assert self._position + piece.nbytes <= self._stops[name], f"too many bytes for {name}"
        self._put(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._position += piece.nbytes

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                assert self._position == self._end, f"{self._end - self._position} bytes were never written"
                self.sha256 = self._hash.hexdigest()

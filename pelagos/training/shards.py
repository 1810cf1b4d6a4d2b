"""Token shards: the documents of one source and split as one flat array on disk, mapped into memory when read.

A shard is two files. ``NAME.SPLIT.tokens`` holds the ids of all documents one after the other, uint16 or uint32,
``NAME.SPLIT.offsets`` holds num_documents + 1 uint64: document i is tokens[offsets[i] : offsets[i + 1]]. Documents are
plain text: begin and end marks are added when they are loaded. Both files start with the same kind of header, all
little-endian, zeros up to 128 bytes:

    magic 8 bytes | version uint32 | bytes per element uint32 | num_documents uint64 | num_tokens uint64 |
    num_text_bytes uint64 | SHA-256 of what follows the header and of the header fields before this one, 32 bytes
"""

import hashlib
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from pelagos.common.errors import UsageError
from pelagos.common.files import atomic_path

SPLITS = ("train", "valid", "test")

VERSION = 1
HEADER_BYTES = 128
HEADER = struct.Struct("<8sIIQQQ")
DIGEST_BYTES = 32
MAGICS = {"tokens": b"PELATOK\0", "offsets": b"PELAOFF\0"}
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """What a shard holds; ``num_text_bytes`` is the UTF-8 length of its documents."""

    num_documents: int
    num_tokens: int
    num_text_bytes: int


def shard_paths(folder: Path, source: str, split: str) -> dict[str, Path]:
    """The files of a shard by kind: tokens, offsets."""
    return {kind: folder / f"{source}.{split}.{kind}" for kind in MAGICS}


class TokenSource:
    """A shard that is open for reading. ``document`` gives views of the mapped file, which nothing may write to.

    Attributes: ``num_documents``, ``num_tokens``, ``num_text_bytes`` (bits per byte need it), ``tokens`` (all ids),
    ``offsets`` (uint64 [num_documents + 1]).
    """

    def __init__(
        self, paths: dict[str, Path], size: ShardSize, tokens: NDArray[Any], offsets: NDArray[np.uint64]
    ) -> None:
        """Use ``open``."""
        self._paths = paths
        self.tokens = tokens
        self.offsets = offsets
        self.num_documents = size.num_documents
        self.num_tokens = size.num_tokens
        self.num_text_bytes = size.num_text_bytes

    @classmethod
    def open(cls, folder: Path, source: str, split: str) -> "TokenSource":
        """Map the shard of ``source`` and ``split`` in ``folder``. Reads headers and offsets, not tokens.

        Raises UsageError for a file that is missing, of another format or version, cut short, or inconsistent.
        """
        paths = shard_paths(folder, source, split)
        arrays, sizes = {}, {}
        for kind, path in paths.items():
            arrays[kind], sizes[kind] = _map(path, kind)
        size, offsets = sizes["tokens"], arrays["offsets"]
        if size != sizes["offsets"]:
            raise UsageError(f"{paths['offsets']} does not belong to {paths['tokens'].name}: their headers differ")
        if offsets[0] != 0 or offsets[-1] != size.num_tokens or np.any(offsets[1:] < offsets[:-1]):
            raise UsageError(f"{paths['offsets']} is damaged: offsets must rise from 0 to {size.num_tokens}")
        return cls(paths, size, arrays["tokens"], offsets)

    def document(self, index: int) -> NDArray[Any]:
        """Ids of a document, uint16 or uint32 [length]; a view. ``index`` is 0 to num_documents - 1."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document must be 0 to {self.num_documents - 1}, got {index}")
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [num_documents]."""
        offsets = self.offsets.astype(np.int64)
        return offsets[1:] - offsets[:-1]

    def verify(self) -> None:
        """Read both files and compare their checksums. Raises UsageError that names the damaged file."""
        for path in self._paths.values():
            with path.open("rb") as file:
                fields, expected = _split_header(file.read(HEADER_BYTES))
                digest = hashlib.sha256()
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
            digest.update(fields)
            if digest.digest() != expected:
                raise UsageError(f"{path} is damaged: its checksum does not match; prepare it again")


def _map(path: Path, kind: str) -> tuple[NDArray[Any], ShardSize]:
    if not path.is_file():
        raise UsageError(f"{path} is not there")
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGICS[kind]):
        raise UsageError(f"{path} is no file of {kind}: its header is missing or another one")
    _, version, element_bytes, *counts = HEADER.unpack_from(header)
    if version != VERSION:
        raise UsageError(f"{path} has version {version} of the format, but this program reads version {VERSION}")
    size = ShardSize(num_documents=counts[0], num_tokens=counts[1], num_text_bytes=counts[2])
    if any(header[HEADER.size + DIGEST_BYTES :]):
        raise UsageError(f"{path} is damaged: the rest of its header must be zero")
    if element_bytes not in ((2, 4) if kind == "tokens" else (8,)):
        raise UsageError(f"{path} is damaged: it cannot have {element_bytes} bytes per element")
    num_elements = size.num_tokens if kind == "tokens" else size.num_documents + 1
    expected_bytes = HEADER_BYTES + num_elements * element_bytes
    if path.stat().st_size != expected_bytes:
        raise UsageError(f"{path} must have {expected_bytes} bytes, but has {path.stat().st_size}: it is damaged")
    dtype = np.dtype(f"<u{element_bytes}")
    if num_elements == 0:  # nothing can be mapped
        return np.empty(0, dtype), size
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(num_elements,)), size


def _split_header(header: bytes) -> tuple[bytes, bytes]:
    return header[: HEADER.size], header[HEADER.size : HEADER.size + DIGEST_BYTES]


class ShardWriter:
    """``with ShardWriter(folder, source, split, vocab_size) as shard: shard.add(ids, num_text_bytes)`` per document.

    The files appear, whole, when the block ends well. Ids become uint16 where ``vocab_size`` allows it, else uint32.
    """

    def __init__(self, folder: Path, source: str, split: str, vocab_size: int) -> None:
        self._paths = shard_paths(folder, source, split)
        self._vocab_size = vocab_size
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._offsets = [0]
        self._num_text_bytes = 0
        self._digest = hashlib.sha256()
        self._stack = ExitStack()

    @property
    def size(self) -> ShardSize:
        """What has been added."""
        return ShardSize(
            num_documents=len(self._offsets) - 1, num_tokens=self._offsets[-1], num_text_bytes=self._num_text_bytes
        )

    def __enter__(self) -> Self:
        self._stack.__enter__()
        offsets_path = self._stack.enter_context(atomic_path(self._paths["offsets"]))
        tokens_path = self._stack.enter_context(atomic_path(self._paths["tokens"]))
        self._offsets_file: BinaryIO = self._stack.enter_context(offsets_path.open("wb"))
        self._tokens_file: BinaryIO = self._stack.enter_context(tokens_path.open("wb"))
        self._tokens_file.write(bytes(HEADER_BYTES))
        return self

    def add(self, token_ids: Sequence[int], num_text_bytes: int) -> None:
        """Append a document of ``token_ids`` in 0 to vocab_size - 1, which stand for ``num_text_bytes`` of text."""
        ids = np.asarray(token_ids, dtype=np.int64)
        assert ids.ndim == 1, "ids of a document must be a list"
        assert not ids.size or (ids.min() >= 0 and ids.max() < self._vocab_size), "id out of range"
        data = ids.astype(self._dtype).tobytes()
        self._tokens_file.write(data)
        self._digest.update(data)
        self._offsets.append(self._offsets[-1] + ids.size)
        self._num_text_bytes += num_text_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            offsets = np.array(self._offsets, dtype="<u8").tobytes()
            self._offsets_file.write(bytes(HEADER_BYTES) + offsets)
            self._write_header(self._offsets_file, "offsets", 8, hashlib.sha256(offsets))
            self._write_header(self._tokens_file, "tokens", self._dtype.itemsize, self._digest)
        self._stack.__exit__(kind, error, traceback)

    def _write_header(self, file: BinaryIO, kind: str, element_bytes: int, digest: "hashlib._Hash") -> None:
        size = self.size
        counts = size.num_documents, size.num_tokens, size.num_text_bytes
        fields = HEADER.pack(MAGICS[kind], VERSION, element_bytes, *counts)
        digest.update(fields)
        file.seek(0)
        file.write(fields + digest.digest())

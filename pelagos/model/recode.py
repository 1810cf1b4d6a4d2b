"""The tensors of a checkpoint in another format, in pieces: what convert.py writes."""

import math
from collections.abc import Iterator, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from pelagos.common.errors import CheckpointError, UsageError
from pelagos.formats.blocks import BLOCK_128X128
from pelagos.formats.matrix import QuantizedMatrix, quantize_fp4, quantize_fp8
from pelagos.model.checkpoint import Checkpoint
from pelagos.model.safetensors_file import DTYPES
from pelagos.model.tensors import StoredSpec, tensor_specs

_PIECE = 1 << 23  # numbers decoded at a time
_CODES = ("F8_E4M3", "I8")
_KIND = {"dense": "fp8", "expert": "fp4"}  # of the official storage, by role


class Recoder:
    """Gives each tensor of ``checkpoint`` in the format asked for. ``old_scales``: scales to try first, by name."""

    def __init__(self, checkpoint: Checkpoint, old_scales: Mapping[str, Tensor]) -> None:
        self._checkpoint = checkpoint
        self._old_scales = old_scales
        self._roles = {spec.name: spec.role for spec in tensor_specs(checkpoint.config)}
        self._last: tuple[str, QuantizedMatrix] | None = None  # codes and scales are asked for one after the other

    def pieces(self, wanted: StoredSpec) -> Iterator[Tensor]:
        """The tensor of that name in that dtype, rows from first to last.

        Raises CheckpointError where it holds what the dtype cannot: NaN, infinity or too large a number.
        """
        if wanted.name not in self._roles:
            yield self._quantized(f"{wanted.name.removesuffix('.scale')}.weight").scales
        elif wanted.dtype in _CODES:
            codes = self._quantized(wanted.name).codes
            yield from (codes[start:stop] for start, stop in _row_pieces(codes.shape))
        else:
            yield from self._plain(wanted.name, DTYPES[wanted.dtype])

    def _plain(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        stored = self._stored(name)
        for start, stop in _row_pieces(stored.shape):
            piece = _rows(stored, start, stop).to(dtype)
            if dtype.is_floating_point and not _is_finite(piece):
                self._fail(name, f"holds NaN, infinity or a number too large for {str(dtype).removeprefix('torch.')}")
            yield piece

    def _quantized(self, name: str) -> QuantizedMatrix:
        if self._last is None or self._last[0] != name:
            self._last = (name, self._quantize(name))
        return self._last[1]

    def _quantize(self, name: str) -> QuantizedMatrix:
        stored, kind = self._stored(name), _KIND[self._roles[name]]
        if isinstance(stored, QuantizedMatrix) and stored.kind == kind and stored.scales.dtype == torch.float8_e8m0fnu:
            return stored
        scales = self._old_scales.get(f"{name.removesuffix('.weight')}.scale")
        if scales is not None:
            matrix = _with_scales(stored, kind, scales)
            if matrix is not None:
                return matrix
        try:
            parts = [_encode(_rows(stored, *rows), kind, None) for rows in _row_pieces(stored.shape)]
        except UsageError as error:
            self._fail(name, str(error))
        return _joined(parts)

    def _stored(self, name: str) -> Tensor | QuantizedMatrix:
        return self._checkpoint.matrix(name) if self._roles[name] in _KIND else self._checkpoint.tensor(name)

    def _fail(self, name: str, problem: str) -> NoReturn:
        raise CheckpointError(str(self._checkpoint.folder), [f"tensor {name}: {problem}"])


def _row_pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ``_PIECE`` numbers. Every range starts with a row of FP8 blocks."""
    num_rows = shape[0]
    row_size = max(1, math.prod(shape[1:]))
    block = BLOCK_128X128.rows
    step = max(block, _PIECE // row_size // block * block)
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def _rows(stored: Tensor | QuantizedMatrix, start: int, stop: int) -> Tensor:
    return stored.decode_rows(start, stop) if isinstance(stored, QuantizedMatrix) else stored[start:stop]


def _is_finite(piece: Tensor) -> bool:
    """Of a piece that is not empty. Both bounds are NaN where a value is; far faster than a test of each value."""
    return all(bound.isfinite().item() for bound in torch.aminmax(piece))


def _encode(rows: Tensor, kind: str, scales: Tensor | None) -> QuantizedMatrix:
    return quantize_fp8(rows, scales=scales) if kind == "fp8" else quantize_fp4(rows, scales=scales)


def _with_scales(stored: Tensor | QuantizedMatrix, kind: str, scales: Tensor) -> QuantizedMatrix | None:
    """The matrix under the given scales, or None unless codes under them are exactly its values."""
    block_rows = BLOCK_128X128.rows if kind == "fp8" else 1
    parts = []
    for start, stop in _row_pieces(stored.shape):
        rows = _rows(stored, start, stop).float()
        try:
            part = _encode(rows, kind, scales[start // block_rows : -(-stop // block_rows)])
        except UsageError:  # a value beyond the range of the codes
            return None
        if not torch.equal(part.decode(), rows):
            return None
        parts.append(part)
    return _joined(parts)


def _joined(parts: list[QuantizedMatrix]) -> QuantizedMatrix:
    codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(parts[0].codes.dtype)
    scales = torch.cat([part.scales.view(torch.uint8) for part in parts]).view(parts[0].scales.dtype)
    return QuantizedMatrix(codes=codes, scales=scales, layout=parts[0].layout)

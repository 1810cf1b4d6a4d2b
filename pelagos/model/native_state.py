"""What a sequence keeps between calls of the native forward pass: bytes, at places that the config alone decides.

Of every layer there is a fixed part (window ring, pairs of the open window, overlap) in one block per sequence, and
compressed rows in pages of 128 tokens. Rows are in the served model's formats where it rounds, else in the dtype of
activations, so nothing is lost by keeping them. The declaration of shapes is ``state.layer_shape``.

    block   layer 0: window ring [W − 1, row bytes] | tail [m, 2, P] float32 | overlap [m, 2, C] float32 | index ...
    rows    layer l, page p: [128 / m, row bytes]
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.common.fields import check_fields, setting
from pelagos.formats.rows import attention_row_bytes, index_row_bytes_fp4, index_row_bytes_fp8
from pelagos.model.config import PAGE_TOKENS, LayerConfig, ModelConfig
from pelagos.model.state import CompressedShape, layer_shape

_ALIGNMENT = 64
_FLOAT_BYTES = 4
# Numbers of native/types.h.
FLOAT32_ROWS, BFLOAT16_ROWS, FP8_ROWS, FP8_INDEX_ROWS, FP4_INDEX_ROWS = 0, 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class RowFormats:
    """How rows of a model that rounds as the served one does are stored. It rounds attention rows to FP8 and index rows
    to FP4, so the defaults are the smallest formats that lose nothing, and the others give the same bits in more bytes.
    A model that does not round stores rows in the dtype of its activations, whatever this says."""

    rows: str = setting("fp8", help="attention rows", choices=("fp8", "bf16"))
    index_rows: str = setting("fp4", help="index rows", choices=("fp4", "fp8", "bf16"))

    def __post_init__(self) -> None:
        check_fields(self)


OFFICIAL_ROWS = RowFormats()


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Bytes of one kept row of ``size`` numbers. ``kind``: its number in native/types.h."""

    kind: int
    size: int
    num_rope: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CompressedPlace:
    """Where one compressor of a layer keeps its pairs (offsets in the block), and the bytes of a page of its rows.

    A pair is a token's value and gate, with overlap for the row of the next window too. ``overlap_bytes``: 0 without.
    """

    row: RowFormat
    ratio: int
    tail_at: int
    pair_bytes: int
    overlap_at: int
    overlap_bytes: int

    @property
    def page_bytes(self) -> int:
        return PAGE_TOKENS // self.ratio * self.row.bytes


@dataclass(frozen=True, kw_only=True)
class LayerPlace:
    """Where one layer keeps what it keeps. None: it has no such part."""

    window_row: RowFormat
    window_at: int
    num_window_rows: int
    rows: CompressedPlace | None
    index: CompressedPlace | None

    @property
    def parts(self) -> list[CompressedPlace]:
        """Those of attention and of the indexer, as far as the layer has them."""
        return [part for part in (self.rows, self.index) if part is not None]


@dataclass(frozen=True, kw_only=True)
class StateLayout:
    """Places of all layers; ``block_bytes``: size of the fixed part."""

    layers: tuple[LayerPlace, ...]
    block_bytes: int

    @staticmethod
    def of(config: ModelConfig, layers: tuple[LayerConfig, ...], formats: RowFormats = OFFICIAL_ROWS) -> "StateLayout":
        """The layout for ``layers`` (the main ones, or those of multi-token prediction) of a model."""
        cutter = _Cutter()
        places = tuple(_place(config, layer, formats, cutter) for layer in layers)
        return StateLayout(layers=places, block_bytes=cutter.used)


class _Cutter:
    def __init__(self) -> None:
        self.used = 0

    def take(self, num_bytes: int) -> int:
        at = self.used
        self.used += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return at


def _place(config: ModelConfig, layer: LayerConfig, formats: RowFormats, cutter: _Cutter) -> LayerPlace:
    shape = layer_shape(config, layer)
    row, index_row = _row_format(config, shape.row_size, formats.rows), _index_row_format(config, formats.index_rows)
    window_at = cutter.take((shape.window - 1) * row.bytes)
    return LayerPlace(
        window_row=row,
        window_at=window_at,
        num_window_rows=shape.window - 1,
        rows=_compressed(shape.rows, row, cutter) if shape.rows else None,
        index=_compressed(shape.index, index_row, cutter) if shape.index else None,
    )


def _compressed(shape: CompressedShape, row: RowFormat, cutter: _Cutter) -> CompressedPlace:
    pair_bytes = 2 * shape.pair_size * _FLOAT_BYTES
    overlap_bytes = shape.ratio * 2 * shape.size * _FLOAT_BYTES if shape.overlap else 0
    return CompressedPlace(
        row=row,
        ratio=shape.ratio,
        tail_at=cutter.take(shape.ratio * pair_bytes),
        pair_bytes=pair_bytes,
        overlap_at=cutter.take(overlap_bytes),
        overlap_bytes=overlap_bytes,
    )


def _row_format(config: ModelConfig, size: int, wanted: str) -> RowFormat:
    if not config.official_rounding:
        return _plain_format(size, config.activation_dtype)
    if wanted == "bf16":
        return _plain_format(size, "bfloat16")
    num_bytes = attention_row_bytes(size, config.rope_dim)
    return RowFormat(kind=FP8_ROWS, size=size, num_rope=config.rope_dim, bytes=num_bytes)


def _index_row_format(config: ModelConfig, wanted: str) -> RowFormat:
    size = config.index_head_dim
    if not config.official_rounding:
        return _plain_format(size, config.activation_dtype)
    if wanted == "bf16":
        return _plain_format(size, "bfloat16")
    if wanted == "fp8":
        return RowFormat(kind=FP8_INDEX_ROWS, size=size, num_rope=0, bytes=index_row_bytes_fp8(size))
    return RowFormat(kind=FP4_INDEX_ROWS, size=size, num_rope=0, bytes=index_row_bytes_fp4(size))


def _plain_format(size: int, dtype: str) -> RowFormat:
    if dtype == "bfloat16":
        return RowFormat(kind=BFLOAT16_ROWS, size=size, num_rope=0, bytes=2 * size)
    return RowFormat(kind=FLOAT32_ROWS, size=size, num_rope=0, bytes=4 * size)


class SequenceMemory(ABC):
    """Where the native forward pass finds one sequence. ``num_tokens``: how many tokens it holds."""

    num_tokens: int

    @abstractmethod
    def reserve(self, num_tokens: int) -> tuple[int, int, int]:
        """Make room for the rows of ``num_tokens`` tokens in all. Returns addresses: of page numbers, int32 (0: pages
        are 0, 1, 2, ...); of the block; of arenas and bytes of a page per layer."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of what is kept."""


class NativeState(SequenceMemory):
    """One sequence with memory of its own: the block, and per layer arenas of pages that grow by doubling."""

    def __init__(self, layout: StateLayout) -> None:
        self.layout, self.num_tokens = layout, 0
        self.block = torch.zeros(layout.block_bytes, dtype=torch.uint8)
        self._arenas = [[torch.empty(0, dtype=torch.uint8) for _ in place.parts] for place in layout.layers]
        self._num_pages = 0
        # Per layer: address of rows, bytes of a page, and the same of index rows; the native code's LayerMemory.
        self.memory = torch.zeros(len(layout.layers), 4, dtype=torch.int64)

    def reserve(self, num_tokens: int) -> tuple[int, int, int]:
        needed = -(-num_tokens // PAGE_TOKENS)
        if needed > self._num_pages:
            self._resize(max(needed, 2 * self._num_pages))
        return 0, self.block.data_ptr(), self.memory.data_ptr()

    def _resize(self, num_pages: int) -> None:
        for number, (place, arenas) in enumerate(zip(self.layout.layers, self._arenas, strict=True)):
            for part, compressed in enumerate(place.parts):
                grown = torch.empty(num_pages * compressed.page_bytes, dtype=torch.uint8)
                grown[: arenas[part].numel()] = arenas[part][: grown.numel()]
                arenas[part] = grown
                self.memory[number, 2 * part] = grown.data_ptr()
                self.memory[number, 2 * part + 1] = compressed.page_bytes
        self._num_pages = num_pages

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept, growth reserve not counted."""
        pages = -(-self.num_tokens // PAGE_TOKENS)
        row_bytes = sum(part.page_bytes for place in self.layout.layers for part in place.parts)
        return self.layout.block_bytes + pages * row_bytes

    def same_as(self, other: "NativeState") -> bool:
        """Whether both keep the same bytes. Places of the tails that no later token can read are not compared."""
        return self.num_tokens == other.num_tokens and all(
            torch.equal(a, b) for a, b in zip(self._live(), other._live(), strict=True)
        )

    def _live(self) -> list[Tensor]:
        """The bytes of every part that the next token may read."""
        parts = []
        for place, arenas in zip(self.layout.layers, self._arenas, strict=True):
            num_window = min(self.num_tokens, place.num_window_rows)
            parts.append(self.block[place.window_at :][: num_window * place.window_row.bytes])
            for part, arena in zip(place.parts, arenas, strict=True):
                num_open, num_rows = self.num_tokens % part.ratio, self.num_tokens // part.ratio
                parts.append(self.block[part.tail_at :][: num_open * part.pair_bytes])
                parts.append(self.block[part.overlap_at :][: part.overlap_bytes if num_rows else 0])
                parts.append(arena[: num_rows * part.row.bytes])
        return parts

    def copy(self) -> "NativeState":
        """An independent state with the same history."""
        other = NativeState(self.layout)
        other.num_tokens = self.num_tokens
        other.block.copy_(self.block)
        other._arenas = [list(arenas) for arenas in self._arenas]
        pages = -(-self.num_tokens // PAGE_TOKENS)
        if pages:
            other._resize(pages)
        return other

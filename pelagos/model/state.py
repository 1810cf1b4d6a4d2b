"""What a sequence keeps between calls: declared here per layer, from the config alone.

| kind   | window rows      | compressed rows   | open window (tail)       | overlap                     | index |
|--------|------------------|-------------------|--------------------------|-----------------------------|-------|
| window | the last W − 1   | -                 | -                        | -                           | -     |
| csa    | the last W − 1   | one per m tokens  | T mod m value/gate pairs | first half of the last      | same, |
|        |                  |                   | of 2C                    | closed window, m pairs of C | of Ci |
| hca    | the last W − 1   | one per m tokens  | T mod m pairs of C       | -                           | -     |

The model advances a state; nobody else counts positions. Nothing depends on the residual streams of past tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pelagos.model.config import LayerConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class CompressedShape:
    """Declared shape of one compressed sequence: row size, tokens per row, and whether rows overlap."""

    size: int
    ratio: int
    overlap: bool

    @property
    def pair_size(self) -> int:
        """Width of a token's value (and of its gate) before pooling."""
        return 2 * self.size if self.overlap else self.size


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Declared shape of what one layer keeps. None: the layer has no such part."""

    window: int
    row_size: int
    rows: CompressedShape | None
    index: CompressedShape | None


def layer_shape(config: ModelConfig, layer: LayerConfig) -> LayerShape:
    """What ``layer`` keeps, in shapes."""
    rows = index = None
    if layer.ratio is not None:
        rows = CompressedShape(size=config.head_dim, ratio=layer.ratio, overlap=layer.overlap)
        if layer.index == "own":
            index = CompressedShape(size=config.index_head_dim, ratio=layer.ratio, overlap=layer.overlap)
    return LayerShape(window=layer.window, row_size=config.head_dim, rows=rows, index=index)


class RowBuffer:
    """Rows appended one after another, [S, C]; grows by doubling."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._data = torch.empty(0, size, dtype=dtype, device=device)
        self._num_rows = 0

    @property
    def rows(self) -> Tensor:
        return self._data[: self._num_rows]

    def append(self, rows: Tensor) -> None:
        needed = self._num_rows + rows.shape[0]
        if needed > self._data.shape[0]:
            grown = self._data.new_empty(max(needed, 2 * self._data.shape[0], 64), self._data.shape[1])
            grown[: self._num_rows] = self.rows
            self._data = grown
        self._data[self._num_rows : needed] = rows
        self._num_rows = needed

    def copy(self) -> "RowBuffer":
        other = RowBuffer.__new__(RowBuffer)
        other._data, other._num_rows = self.rows.clone(), self._num_rows
        return other


@dataclass(kw_only=True)
class CompressorState:
    """Rows so far, and what the next row needs: pairs of the open window, first halves of the last closed one.

    tail_values, tail_gates: [T mod m, pair_size] float32, gates with the position bias already added.
    overlap_values, overlap_gates: [m, size] float32; None before the first window closed, or without overlap.
    """

    rows: RowBuffer
    tail_values: Tensor
    tail_gates: Tensor
    overlap_values: Tensor | None = None
    overlap_gates: Tensor | None = None

    @staticmethod
    def new(shape: CompressedShape, dtype: torch.dtype, device: torch.device) -> "CompressorState":
        tail = torch.zeros(0, shape.pair_size, dtype=torch.float32, device=device)
        return CompressorState(rows=RowBuffer(shape.size, dtype, device), tail_values=tail, tail_gates=tail)

    def copy(self) -> "CompressorState":
        return CompressorState(**{**vars(self), "rows": self.rows.copy()})

    def tensors(self) -> list[Tensor]:
        kept = [self.rows.rows, self.tail_values, self.tail_gates, self.overlap_values, self.overlap_gates]
        return [tensor for tensor in kept if tensor is not None]


@dataclass(kw_only=True)
class LayerState:
    """window: [min(T, W − 1), C]. Tensors are replaced, never written in place (row buffers excepted)."""

    window: Tensor
    rows: CompressorState | None
    index: CompressorState | None

    @staticmethod
    def new(shape: LayerShape, dtype: torch.dtype, device: torch.device) -> "LayerState":
        return LayerState(
            window=torch.zeros(0, shape.row_size, dtype=dtype, device=device),
            rows=CompressorState.new(shape.rows, dtype, device) if shape.rows else None,
            index=CompressorState.new(shape.index, dtype, device) if shape.index else None,
        )

    def copy(self) -> "LayerState":
        return LayerState(
            window=self.window,
            rows=self.rows.copy() if self.rows else None,
            index=self.index.copy() if self.index else None,
        )

    def tensors(self) -> list[Tensor]:
        parts = [part for part in (self.rows, self.index) if part]
        return [self.window, *(tensor for part in parts for tensor in part.tensors())]


@dataclass(kw_only=True)
class State:
    """One sequence: how many tokens it has, and what each layer keeps of them."""

    layers: list[LayerState] = field(default_factory=list)
    num_tokens: int = 0

    @staticmethod
    def new(config: ModelConfig, layers: tuple[LayerConfig, ...], dtype: torch.dtype, device: torch.device) -> "State":
        return State(layers=[LayerState.new(layer_shape(config, layer), dtype, device) for layer in layers])

    @property
    def num_bytes(self) -> int:
        """Bytes of live tensors as held here, growth reserve not counted."""
        tensors = [tensor for layer in self.layers for tensor in layer.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def copy(self) -> "State":
        """An independent state with the same history."""
        return State(layers=[layer.copy() for layer in self.layers], num_tokens=self.num_tokens)

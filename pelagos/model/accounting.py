"""What a model costs, from its config alone: parameters, bytes of weights and state, FLOPs and bytes read per token.

Shapes come from tensors.py and state.py. The count of FLOPs follows section 2.3 of the technical report (arXiv
2606.19348): a multiply-add is two, norms, rotations and the mixing of streams are left out.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from pelagos.formats.rows import attention_row_bytes, index_row_bytes_fp4, index_row_bytes_fp8
from pelagos.model.config import PAGE_TOKENS, LayerConfig, ModelConfig, Storage
from pelagos.model.state import layer_shape
from pelagos.model.tensors import StoredSpec, TensorSpec, stored_tensors, tensor_specs

RowFormat = Literal["fp8_fp4", "fp8_fp8", "bfloat16", "float32"]
"""Formats of attention rows and of index rows. Official: fp8_fp4."""

_AttentionBytes = Callable[[int, int], int]  # head_dim, rope_dim -> bytes of a row
_IndexBytes = Callable[[int], int]  # index_head_dim -> bytes of a row
_ROW_BYTES: Mapping[RowFormat, tuple[_AttentionBytes, _IndexBytes]] = {
    "fp8_fp4": (attention_row_bytes, index_row_bytes_fp4),
    "fp8_fp8": (attention_row_bytes, index_row_bytes_fp8),
    "bfloat16": (lambda head_dim, _: 2 * head_dim, lambda head_dim: 2 * head_dim),
    "float32": (lambda head_dim, _: 4 * head_dim, lambda head_dim: 4 * head_dim),
}
ROW_FORMATS: tuple[RowFormat, ...] = tuple(_ROW_BYTES)

_PARTS = {  # part of a model: what its tensor names contain; the first match counts
    "embedding": "embed.",
    "head": "head.weight",
    "streams": "hc_",
    "indexer": ".indexer.",
    "compressor": ".compressor.",
    "attention": ".attn.",
    "router": ".ffn.gate.",
    "shared_experts": ".shared_experts.",
    "experts": ".experts.",
    "norms": "norm.",
}

_Spec = TypeVar("_Spec", TensorSpec, StoredSpec)


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters.

    total: the main model. active: what one token uses of it, embedding not counted. mtp and dspark: draft blocks, not
    in total. ids: entries of the tables from token to expert ids, which are in none of the others.
    by_part: the parts of total.
    """

    total: int
    active: int
    active_with_embedding: int
    mtp: int
    dspark: int
    ids: int
    by_part: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes that one sequence keeps in the main layers.

    per_token: compressed rows and index rows, exact for multiples of 128 tokens. window: rows of the last tokens, the
    newest included. open_windows: at most, for tokens whose compressed row is not complete (float32).
    overlaps: for the next row of layers whose rows overlap (float32).
    """

    per_token: float
    window: int
    open_windows: int
    overlaps: int


@dataclass(frozen=True, kw_only=True)
class TokenFlops:
    """Floating-point operations of one token.

    dense: two per active parameter. The others are products with cached rows: attention by layer kind, index scores.
    """

    dense: int
    window: int
    csa: int
    hca: int
    indexer: int

    @property
    def total(self) -> int:
        return self.dense + self.window + self.csa + self.hca + self.indexer


@dataclass(frozen=True, kw_only=True)
class TokenBytes:
    """Bytes read for one token decoded alone: divided by the memory bandwidth, the least time it takes."""

    weights: int
    state: int

    @property
    def total(self) -> int:
        return self.weights + self.state


def parameters(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of a model."""
    parts: Counter[str] = Counter(dict.fromkeys(_PARTS, 0))
    drafts = ids = 0
    for times, spec in _counted(config, tensor_specs):
        size = times * math.prod(spec.shape)
        if spec.role == "ids":
            ids += size
        elif spec.name.startswith("mtp."):
            drafts += size
        else:
            parts[_part_of(spec.name)] += size
    total = parts.total()
    active = total - parts["experts"] + parts["experts"] * config.num_experts_per_token // config.num_experts
    return ParameterCounts(
        total=total,
        active=active - parts["embedding"],
        active_with_embedding=active,
        mtp=drafts if config.mtp_layers else 0,
        dspark=drafts if config.num_dspark_blocks else 0,
        ids=ids,
        by_part=dict(parts),
    )


def checkpoint_totals(config: ModelConfig, storage: Storage | None = None) -> tuple[int, int]:
    """Number of tensors in a checkpoint, and bytes of their data, in ``storage`` (default: the config's)."""
    num_names = num_bytes = 0
    for times, spec in _counted(config, lambda reduced: stored_tensors(reduced, storage)):
        num_names += times
        num_bytes += times * spec.num_bytes
    return num_names, num_bytes


def state_bytes(config: ModelConfig, row_format: RowFormat = "fp8_fp4") -> StateBytes:
    """What one sequence keeps, with rows in ``row_format``."""
    row_bytes, index_bytes = _row_bytes(config, row_format)
    page = window = open_windows = overlaps = 0
    for layer in config.layers:
        shape = layer_shape(config, layer)
        window += shape.window * row_bytes
        for compressed, size in ((shape.rows, row_bytes), (shape.index, index_bytes)):
            if compressed is not None:
                page += PAGE_TOKENS // compressed.ratio * size
                open_windows += _pair_bytes(compressed.pair_size) * (compressed.ratio - 1)
                overlaps += _pair_bytes(compressed.size) * compressed.ratio if compressed.overlap else 0
    return StateBytes(per_token=page / PAGE_TOKENS, window=window, open_windows=open_windows, overlaps=overlaps)


def flops_per_token(config: ModelConfig, context: int) -> TokenFlops:
    """For the last of ``context`` tokens. An indexer that would keep every row is not counted, as it need not score."""
    core = Counter({"window": 0, "csa": 0, "hca": 0})
    indexer = 0
    for layer, times in Counter(config.layers).items():
        num_rows, num_scored = _rows_read(config, layer, context)
        core[layer.kind] += times * 4 * config.num_heads * config.head_dim * num_rows
        indexer += times * 2 * config.num_index_heads * config.index_head_dim * num_scored
    return TokenFlops(dense=2 * parameters(config).active, indexer=indexer, **core)


def bytes_read_per_token(
    config: ModelConfig, context: int, storage: Storage | None = None, row_format: RowFormat = "fp8_fp4"
) -> TokenBytes:
    """For the last of ``context`` tokens, with weights in ``storage`` (default: the config's), rows in ``row_format``.

    Of the experts those of one token are read, of the embedding and the tables of expert ids one row.
    """
    weights = 0
    for times, spec in _counted(config, lambda reduced: stored_tensors(reduced, storage)):
        if spec.name.startswith("mtp."):
            continue
        num_bytes, part = times * spec.num_bytes, _part_of(spec.name)
        if part == "experts":
            weights += num_bytes * config.num_experts_per_token
        elif part == "embedding" or spec.name.endswith(".tid2eid"):
            weights += num_bytes // config.vocab_size * config.num_experts
        else:
            weights += num_bytes * config.num_experts
    row_bytes, index_bytes = _row_bytes(config, row_format)
    rows = [_rows_read(config, layer, context) for layer in config.layers]
    state = sum(num_rows * row_bytes + num_scored * index_bytes for num_rows, num_scored in rows)
    return TokenBytes(weights=weights // config.num_experts, state=state)


def _rows_read(config: ModelConfig, layer: LayerConfig, context: int) -> tuple[int, int]:
    """Attention rows and index rows that the last of ``context`` tokens reads in one layer."""
    num_window = min(context, layer.window)
    if layer.ratio is None:
        return num_window, 0
    num_compressed = context // layer.ratio
    if layer.index == "none" or num_compressed <= config.index_topk:
        return num_window + num_compressed, 0
    return num_window + config.index_topk, num_compressed


def _row_bytes(config: ModelConfig, row_format: RowFormat) -> tuple[int, int]:
    """Bytes of an attention row and of an index row."""
    attention, index = _ROW_BYTES[row_format]
    return attention(config.head_dim, config.rope_dim), index(config.index_head_dim)


def _pair_bytes(size: int) -> int:
    """A value and its gate in float32."""
    return 2 * 4 * size


def _counted(
    config: ModelConfig, list_tensors: Callable[[ModelConfig], Iterator[_Spec]]
) -> Iterator[tuple[int, _Spec]]:
    """Every tensor with how often it occurs: those of equal layers once, as there may be 150,000 in all."""
    times = Counter(config.layers)
    times_of = {f"layers.{number}": count for number, count in enumerate(times.values())}
    for spec in list_tensors(dataclasses.replace(config, layers=tuple(times))):
        yield times_of.get(".".join(spec.name.split(".", 2)[:2]), 1), spec


def _part_of(name: str) -> str:
    return next(part for part, words in _PARTS.items() if words in name)

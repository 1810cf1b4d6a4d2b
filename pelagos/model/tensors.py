"""What a checkpoint holds: the one table of official tensor names, with shapes and the kind of number behind each.

Official names; a matrix is [outputs, inputs]. Letters of the shapes: D hidden size, V vocabulary, H heads, C head size,
E experts, K experts of a token, F inner width of an expert, M streams, m tokens per compressed row.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pelagos.common.errors import ConfigError
from pelagos.model.config import LayerConfig, ModelConfig, Storage

Role = Literal["dense", "expert", "matrix", "norm", "float32", "ids"]

# Bytes per element, by the names that safetensors gives to number formats.
DTYPE_BYTES = {"F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "BF16": 2, "F32": 4, "I64": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor as the model sees it: ``shape`` counts numbers, however they are packed.

    Roles and their official formats: dense FP8 in blocks of 128 x 128; expert FP4 in rows of 32 (FP8 in -Base);
    matrix and norm BF16; float32; ids int64 (expert ids by token id).
    """

    name: str
    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSpec:
    """A tensor as a file holds it: ``dtype`` by its safetensors name, ``shape`` in elements of that dtype."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """How a role is stored. ``scale`` and ``block`` (rows, columns) are set where values share scales."""

    dtype: str
    scale: str | None = None
    block: tuple[int, int] = (1, 1)


_FP8 = _Format(dtype="F8_E4M3", scale="F8_E8M0", block=(128, 128))
_FP8_BASE = _Format(dtype="F8_E4M3", scale="F32", block=(128, 128))
_FP4 = _Format(dtype="I8", scale="F8_E8M0", block=(1, 32))
_BF16, _F32, _I64 = _Format(dtype="BF16"), _Format(dtype="F32"), _Format(dtype="I64")


def _formats(dense: _Format, expert: _Format, other: _Format) -> Mapping[Role, _Format]:
    return {"dense": dense, "expert": expert, "matrix": other, "norm": other, "float32": _F32, "ids": _I64}


_FORMATS: Mapping[Storage, Mapping[Role, _Format]] = {
    "official": _formats(_FP8, _FP4, _BF16),
    "base": _formats(_FP8_BASE, _FP8_BASE, _BF16),
    "bfloat16": _formats(_BF16, _BF16, _BF16),
    "float32": _formats(_F32, _F32, _F32),
}


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor of a model in official storage order: embedding, layers, final norm, head, draft blocks."""
    V, D = config.vocab_size, config.hidden_size
    yield TensorSpec(name="embed.weight", shape=(V, D), role="matrix")
    for number, layer in enumerate(config.layers):
        yield from layer_specs(config, layer, f"layers.{number}")
    yield from _final(config, "")
    yield TensorSpec(name="head.weight", shape=(V, D), role="matrix")
    for number, layer in enumerate(config.mtp_layers):
        yield from _mtp_block(config, layer, f"mtp.{number}")
    for number in range(config.num_dspark_blocks):
        yield from _dspark_block(config, number)


def layer_specs(config: ModelConfig, layer: LayerConfig, prefix: str) -> Iterator[TensorSpec]:
    """The tensors of one layer, named ``prefix`` + '.' + ..."""
    D, M = config.hidden_size, config.num_streams
    for part in ("attn", "ffn"):
        yield TensorSpec(name=f"{prefix}.{part}_norm.weight", shape=(D,), role="norm")
        yield from _stream_mixer(f"{prefix}.hc_{part}", outputs=(2 + M) * M, num_scales=3, inputs=M * D)
    yield from _attention(config, layer, f"{prefix}.attn")
    yield from _experts(config, layer, f"{prefix}.ffn")


def _attention(config: ModelConfig, layer: LayerConfig, prefix: str) -> Iterator[TensorSpec]:
    D, H, C, rank = config.hidden_size, config.num_heads, config.head_dim, config.query_rank
    groups, width = config.num_output_groups, config.output_rank
    yield TensorSpec(name=f"{prefix}.wq_a.weight", shape=(rank, D), role="dense")
    yield TensorSpec(name=f"{prefix}.q_norm.weight", shape=(rank,), role="norm")
    yield TensorSpec(name=f"{prefix}.wq_b.weight", shape=(H * C, rank), role="dense")
    yield TensorSpec(name=f"{prefix}.wkv.weight", shape=(C, D), role="dense")
    yield TensorSpec(name=f"{prefix}.kv_norm.weight", shape=(C,), role="norm")
    yield TensorSpec(name=f"{prefix}.wo_a.weight", shape=(groups * width, H * C // groups), role="dense")
    yield TensorSpec(name=f"{prefix}.wo_b.weight", shape=(D, groups * width), role="dense")
    yield TensorSpec(name=f"{prefix}.attn_sink", shape=(H,), role="float32")
    if layer.ratio is not None:
        yield from _compressor(config, layer, C, f"{prefix}.compressor")
    if layer.index == "own":
        heads, size = config.num_index_heads, config.index_head_dim
        yield TensorSpec(name=f"{prefix}.indexer.wq_b.weight", shape=(heads * size, rank), role="dense")
        yield TensorSpec(name=f"{prefix}.indexer.weights_proj.weight", shape=(heads, D), role="matrix")
        yield from _compressor(config, layer, size, f"{prefix}.indexer.compressor")


def _compressor(config: ModelConfig, layer: LayerConfig, size: int, prefix: str) -> Iterator[TensorSpec]:
    """``size`` is that of a compressed row. With overlap a token gives one half to the row after its own."""
    assert layer.ratio is not None
    width = 2 * size if layer.overlap else size
    yield TensorSpec(name=f"{prefix}.ape", shape=(layer.ratio, width), role="float32")
    yield TensorSpec(name=f"{prefix}.norm.weight", shape=(size,), role="norm")
    yield TensorSpec(name=f"{prefix}.wkv.weight", shape=(width, config.hidden_size), role="matrix")
    yield TensorSpec(name=f"{prefix}.wgate.weight", shape=(width, config.hidden_size), role="matrix")


def _experts(config: ModelConfig, layer: LayerConfig, prefix: str) -> Iterator[TensorSpec]:
    V, D, E, K = config.vocab_size, config.hidden_size, config.num_experts, config.num_experts_per_token
    yield TensorSpec(name=f"{prefix}.gate.weight", shape=(E, D), role="matrix")
    if layer.router == "hash":
        yield TensorSpec(name=f"{prefix}.gate.tid2eid", shape=(V, K), role="ids")
    else:
        yield TensorSpec(name=f"{prefix}.gate.bias", shape=(E,), role="float32")
    yield from _expert(config, f"{prefix}.shared_experts", "dense")
    for number in range(E):
        yield from _expert(config, f"{prefix}.experts.{number}", "expert")


def _expert(config: ModelConfig, prefix: str, role: Role) -> Iterator[TensorSpec]:
    D, F = config.hidden_size, config.expert_dim
    for name, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D))):  # gate, down, up
        yield TensorSpec(name=f"{prefix}.{name}.weight", shape=shape, role=role)


def _stream_mixer(prefix: str, *, outputs: int, num_scales: int, inputs: int) -> Iterator[TensorSpec]:
    yield TensorSpec(name=f"{prefix}_fn", shape=(outputs, inputs), role="float32")
    yield TensorSpec(name=f"{prefix}_base", shape=(outputs,), role="float32")
    yield TensorSpec(name=f"{prefix}_scale", shape=(num_scales,), role="float32")


def _final(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    """What brings the streams together before the head."""
    D, M = config.hidden_size, config.num_streams
    yield TensorSpec(name=f"{prefix}norm.weight", shape=(D,), role="norm")
    yield from _stream_mixer(f"{prefix}hc_head", outputs=M, num_scales=1, inputs=M * D)


def _mtp_block(config: ModelConfig, layer: LayerConfig, prefix: str) -> Iterator[TensorSpec]:
    """A multi-token-prediction block. -Base checkpoints may also hold copies of embedding and head, not listed."""
    D = config.hidden_size
    for name in ("enorm", "hnorm"):
        yield TensorSpec(name=f"{prefix}.{name}.weight", shape=(D,), role="norm")
    for name in ("e_proj", "h_proj"):
        yield TensorSpec(name=f"{prefix}.{name}.weight", shape=(D, D), role="dense")
    yield from layer_specs(config, layer, prefix)
    yield from _final(config, f"{prefix}.")


def _dspark_block(config: ModelConfig, number: int) -> Iterator[TensorSpec]:
    """Block ``number`` of DSpark's draft blocks, which read as many main layers as they are themselves."""
    V, D, rank, blocks = config.vocab_size, config.hidden_size, config.dspark_markov_rank, config.num_dspark_blocks
    assert rank is not None
    prefix = f"mtp.{number}"
    if number == 0:
        yield TensorSpec(name=f"{prefix}.main_proj.weight", shape=(D, blocks * D), role="dense")
        yield TensorSpec(name=f"{prefix}.main_norm.weight", shape=(D,), role="norm")
    yield from layer_specs(config, LayerConfig(window=config.layers[0].window), prefix)
    if number == blocks - 1:
        yield from _final(config, f"{prefix}.")
        for name in ("markov_w1", "markov_w2"):
            yield TensorSpec(name=f"{prefix}.markov_head.{name}.weight", shape=(V, rank), role="matrix")
        yield TensorSpec(name=f"{prefix}.confidence_head.proj.weight", shape=(1, D + rank), role="matrix")


def stored_tensors(config: ModelConfig, storage: Storage | None = None) -> Iterator[StoredSpec]:
    """Every tensor of a checkpoint file in ``storage`` (default: the config's), scales right behind their weight.

    Raises ConfigError where FP4 would need half a byte.
    """
    formats = _FORMATS[config.storage if storage is None else storage]
    for spec in tensor_specs(config):
        yield from _stored(spec, formats[spec.role])


def _stored(spec: TensorSpec, how: _Format) -> Iterator[StoredSpec]:
    shape = spec.shape
    if how is _FP4:
        if shape[1] % 2:
            raise ConfigError(f"{spec.name} must have an even number of columns to be stored in FP4, got {shape[1]}")
        shape = (shape[0], shape[1] // 2)
    yield _stored_as(spec.name, how.dtype, shape)
    if how.scale is not None:
        name = spec.name.removesuffix(".weight") + ".scale"
        rows, columns = (-(-size // block) for size, block in zip(spec.shape, how.block, strict=True))
        yield _stored_as(name, how.scale, (rows, columns))


def _stored_as(name: str, dtype: str, shape: tuple[int, ...]) -> StoredSpec:
    return StoredSpec(name=name, dtype=dtype, shape=shape, num_bytes=DTYPE_BYTES[dtype] * math.prod(shape))

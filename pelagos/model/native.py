"""The forward pass in native code: one call per batch, from token ids to logits, on the weights as they lie in memory.

Computes what ``Model.forward`` defines, with sums in another fixed order. A sequence's bits depend neither on other
sequences, nor on how it is cut into calls, nor on the number of threads.

Shapes: T new tokens of all sequences, M streams, D width, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pelagos.formats.matrix import QuantizedMatrix
from pelagos.model.attention import Attention
from pelagos.model.block import Block
from pelagos.model.compressor import Compressor
from pelagos.model.config import ModelConfig
from pelagos.model.mhc import StreamHead, StreamMixer
from pelagos.model.mtp import MtpBlock
from pelagos.model.native_state import (
    OFFICIAL_ROWS,
    CompressedPlace,
    LayerPlace,
    RowFormat,
    RowFormats,
    SequenceMemory,
    StateLayout,
)
from pelagos.model.rope import rope_frequencies
from pelagos.ops.cpu.indexer import MAX_SIZE
from pelagos.ops.cpu.linear import NativeMatrix
from pelagos.ops.cpu.module import native

if TYPE_CHECKING:
    from pelagos.model.transformer import Model

MAX_BATCH_TOKENS = 512  # of one native call: bounds scratch memory; longer batches are cut, which changes no bit
_MAX_ROW, _MAX_GROUPS = 1024, 64  # native/forward_scratch.h
_ROTATIONS = {"main": 0, "compressed": 1}


def unsupported(config: ModelConfig) -> str | None:
    """Why the native code cannot run a model of this config; None: it can."""
    if config.activation_dtype == "float16":
        return "activations in float16"
    if config.index_head_dim > MAX_SIZE and any(layer.index == "own" for layer in config.layers):
        return f"index heads beyond {MAX_SIZE} numbers"
    if config.head_dim > _MAX_ROW or config.num_output_groups > _MAX_GROUPS or config.num_streams > 8:
        return f"heads beyond {_MAX_ROW} numbers, more than {_MAX_GROUPS} output groups or more than 8 streams"
    return None


class NativeForward:
    """A model's weights, bound to the native code. The model must stay as it is while this lives."""

    def __init__(self, model: "Model", formats: RowFormats = OFFICIAL_ROWS) -> None:
        module = native()
        assert module is not None, "the native module was built"
        self._module: Any = module
        self._config = config = model.config
        self._kept: list[Tensor | NativeMatrix] = []  # what the native code points to
        self._forward = module.Forward()
        self.layout = StateLayout.of(config, config.layers, formats)
        self.draft_layout = StateLayout.of(config, config.mtp_layers[:1], formats)
        self._set_shape(model)
        self._forward.norm = self._vector(model.norm.weight)
        self._forward.hc_head = self._streams(model.hc_head)
        for block, place in zip(model.layers, self.layout.layers, strict=True):
            self._add(block, place, is_draft=False)
        if model.mtp:
            self._set_draft(model.mtp[0])

    def run(
        self, token_ids: Sequence[Tensor], states: Sequence[SequenceMemory], num_logits: int | None
    ) -> list[Tensor]:
        """Advance the states by their tokens; logits of the last ``num_logits`` tokens (None: all) of each sequence."""
        parts: list[list[Tensor]] = [[] for _ in states]
        for pieces in _passes([len(ids) for ids in token_ids]):
            streams = self._pass(token_ids, states, pieces)
            self._append_logits(streams, pieces, [len(ids) for ids in token_ids], num_logits, parts)
        empty = torch.empty(0, self._config.vocab_size)
        return [torch.cat(logits) if len(logits) > 1 else logits[0] if logits else empty for logits in parts]

    def streams(self, token_ids: Tensor, state: SequenceMemory) -> Tensor:
        """Advance one state; the residual streams [T, M, D] float32 of its tokens."""
        return torch.cat([self._pass([token_ids], [state], pieces) for pieces in _passes([len(token_ids)])])

    def draft(self, streams: Tensor, next_ids: Tensor, state: SequenceMemory) -> tuple[Tensor, Tensor]:
        """See ``Model.draft``."""
        streams = streams.float().clone(memory_format=torch.contiguous_format)
        for ((_, start, stop),) in _passes([len(next_ids)]):
            self.advance(next_ids[start:stop].tolist(), [stop - start], [state], streams[start:stop], is_draft=True)
        logits = self.new_logits(len(next_ids))
        self.output(streams, range(len(next_ids)), logits, is_draft=True)
        return logits, streams

    def advance(
        self,
        token_ids: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[SequenceMemory],
        streams: Tensor,
        *,
        is_draft: bool = False,
    ) -> None:
        """One native call: the next ``lengths[i]`` tokens of each state, all in ``token_ids`` one behind another, at
        most MAX_BATCH_TOKENS and not checked. ``streams`` [T, M, D] float32: out; of a draft in and out."""
        steps: list[int] = []
        begin = 0
        for length, state in zip(lengths, states, strict=True):
            first = state.num_tokens
            steps += (begin, begin + length, first, *state.reserve(first + length))
            begin += length
        ids, table = array("i", token_ids), array("q", steps)
        self._forward.forward(
            is_draft, ids.buffer_info()[0], begin, table.buffer_info()[0], len(lengths), streams.data_ptr()
        )
        for length, state in zip(lengths, states, strict=True):
            state.num_tokens += length

    def new_streams(self, num_tokens: int) -> Tensor:
        """Room for the streams of a call, [T, M, D] float32."""
        return torch.empty(num_tokens, self._config.num_streams, self._config.hidden_size)

    def new_logits(self, num_rows: int) -> Tensor:
        """Room for logits, [N, V] float32."""
        return torch.empty(num_rows, self._config.vocab_size)

    def output(self, streams: Tensor, rows: Sequence[int], logits: Tensor, *, is_draft: bool = False) -> None:
        """``logits`` [N, V] float32: out; those behind these rows of ``streams``."""
        numbers = array("i", rows)
        self._forward.output(is_draft, streams.data_ptr(), numbers.buffer_info()[0], len(rows), logits.data_ptr())

    def _pass(self, token_ids: Sequence[Tensor], states: Sequence[SequenceMemory], pieces: "list[Piece]") -> Tensor:
        flat = torch.cat([token_ids[i][start:stop] for i, start, stop in pieces]).tolist()
        streams = self.new_streams(len(flat))
        self.advance(flat, [stop - start for _, start, stop in pieces], [states[i] for i, _, _ in pieces], streams)
        return streams

    def _append_logits(
        self,
        streams: Tensor,
        pieces: "list[Piece]",
        lengths: list[int],
        num_logits: int | None,
        parts: list[list[Tensor]],
    ) -> None:
        rows: list[int] = []
        counts: list[tuple[int, int]] = []
        begin = 0
        for i, start, stop in pieces:
            first = start if num_logits is None else max(start, lengths[i] - num_logits)
            if first < stop:
                rows += range(begin + first - start, begin + stop - start)
                counts.append((i, stop - first))
            begin += stop - start
        if rows:
            logits = self.new_logits(len(rows))
            self.output(streams, rows, logits)
            for (i, _), part in zip(counts, torch.split(logits, [count for _, count in counts]), strict=True):
                parts[i].append(part)

    def _set_shape(self, model: "Model") -> None:
        config, shape = self._config, self._forward.shape
        shape.num_streams, shape.width = config.num_streams, config.hidden_size
        shape.num_heads, shape.head_dim, shape.rope_dim = config.num_heads, config.head_dim, config.rope_dim
        shape.query_rank, shape.num_groups, shape.output_rank = (
            config.query_rank, config.num_output_groups, config.output_rank,
        )  # fmt: skip
        shape.num_index_heads, shape.index_head_dim = config.num_index_heads, config.index_head_dim
        shape.index_topk, shape.num_experts = config.index_topk, config.num_experts
        shape.num_chosen, shape.expert_dim = config.num_experts_per_token, config.expert_dim
        shape.routed_factor, shape.norm_eps, shape.hc_eps = config.routed_scaling_factor, config.norm_eps, config.hc_eps
        shape.has_limit, shape.limit = config.swiglu_limit is not None, config.swiglu_limit or 0.0
        shape.sinkhorn_iterations = config.sinkhorn_iterations
        shape.rounds, shape.bf16 = config.official_rounding, config.activation_dtype == "bfloat16"
        shape.embed, shape.head = self._matrix(model.embed.weight), self._matrix(model.head.weight)
        for name, number in _ROTATIONS.items():
            rope = config.rope if name == "main" else config.compressed_rope
            shape.set_frequencies(number, self._vector(rope_frequencies(rope, config.rope_dim)))

    def _add(self, block: Any, place: LayerPlace, *, is_draft: bool) -> None:
        assert isinstance(block, Block)
        layer, attention, moe = self._module.Layer(), block.attn, block.ffn
        layer.window, layer.ratio = attention.layer.window, attention.layer.ratio or 0
        layer.rotation = _ROTATIONS[attention.layer.rotation]
        layer.window_layout, layer.window_at = self._row(place.window_row), place.window_at
        layer.hc_attn, layer.hc_ffn = self._streams(block.hc_attn), self._streams(block.hc_ffn)
        layer.attn_norm, layer.ffn_norm = self._vector(block.attn_norm.weight), self._vector(block.ffn_norm.weight)
        self._set_attention(layer, attention, place)
        layer.gate, layer.by_hash = self._matrix(moe.gate.weight), moe.gate.by_hash
        if moe.gate.by_hash:
            layer.expert_of_token = self._keep(moe.gate.tid2eid.to(torch.int32).contiguous())
        else:
            layer.gate_bias = self._vector(moe.gate.bias)
        for name in ("w1", "w2", "w3"):
            setattr(layer, f"shared_{name}", self._matrix(getattr(moe.shared_experts, name).weight))
        experts = [[self._matrix(w) for w in getattr(moe.experts, name)] for name in ("w1", "w2", "w3")]
        self._forward.add_layer(layer, *experts, is_draft)

    def _set_attention(self, layer: Any, attention: Attention, place: LayerPlace) -> None:
        for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
            setattr(layer, name, self._matrix(getattr(attention, name).weight))
        layer.q_norm, layer.kv_norm = self._vector(attention.q_norm.weight), self._vector(attention.kv_norm.weight)
        layer.sink = self._vector(attention.attn_sink)
        if place.rows:
            layer.compressor = self._compressor(attention.compressor, place.rows)
        if place.index:
            layer.has_index = True
            layer.index_compressor = self._compressor(attention.indexer.compressor, place.index)
            layer.index_wq_b = self._matrix(attention.indexer.wq_b.weight)
            layer.index_weights = self._matrix(attention.indexer.weights_proj.weight)

    def _compressor(self, compressor: Compressor, place: CompressedPlace) -> Any:
        weights = self._module.CompressorWeights()
        weights.wkv, weights.wgate = self._matrix(compressor.wkv.weight), self._matrix(compressor.wgate.weight)
        weights.ape, weights.norm = self._vector(compressor.ape), self._vector(compressor.norm.weight)
        weights.size, weights.pair_size = compressor.shape.size, compressor.shape.pair_size
        weights.layout, weights.tail_at, weights.overlap_at = self._row(place.row), place.tail_at, place.overlap_at
        return weights

    def _set_draft(self, block: Any) -> None:
        assert isinstance(block, MtpBlock)
        draft = self._forward.draft
        draft.enorm, draft.hnorm = self._vector(block.enorm.weight), self._vector(block.hnorm.weight)
        draft.e_proj, draft.h_proj = self._matrix(block.e_proj.weight), self._matrix(block.h_proj.weight)
        self._forward.draft_norm = self._vector(block.norm.weight)
        self._forward.draft_hc_head = self._streams(block.hc_head)
        self._add(block, self.draft_layout.layers[0], is_draft=True)

    def _streams(self, mixer: StreamMixer | StreamHead) -> Any:
        weights = self._module.StreamWeights()
        weights.fn = self._matrix(mixer.fn.detach().float().contiguous())
        weights.base, weights.scale = self._vector(mixer.base), self._vector(mixer.scale)
        return weights

    def _row(self, row: RowFormat) -> Any:
        layout = self._module.RowLayout(row.kind, row.size, row.num_rope)
        assert layout.bytes == row.bytes
        return layout

    def _matrix(self, weight: Tensor | QuantizedMatrix) -> Any:
        matrix = NativeMatrix(weight)
        self._kept.append(matrix)
        return matrix.handle

    def _vector(self, values: Tensor) -> int:
        return self._keep(values.detach().float().contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


Piece = tuple[int, int, int]  # tokens start .. stop of sequence i


def _passes(lengths: list[int]) -> list[list[Piece]]:
    """The tokens of all sequences in passes of at most MAX_BATCH_TOKENS, each sequence's in order."""
    passes: list[list[Piece]] = [[]]
    room = MAX_BATCH_TOKENS
    for i, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0:
                passes.append([])
                room = MAX_BATCH_TOKENS
            stop = min(length, start + room)
            passes[-1].append((i, start, stop))
            room -= stop - start
            start = stop
    return passes

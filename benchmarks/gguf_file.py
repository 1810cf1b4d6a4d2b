"""Write a checkpoint as the GGUF file that llama.cpp reads, without a vocabulary: token ids in, logits out.

    PYTHONPATH=. DIR/venv/bin/python benchmarks/gguf_file.py CHECKPOINT FILE.gguf [--dense Q8_0]

Needs the environment that benchmarks/peers.py makes. Experts that are stored as FP4 keep their codes and scales, as
MXFP4: llama.cpp then multiplies by the very numbers that Pelagos does. Other matrices become ``--dense``: Q8_0, as
llama.cpp's own MXFP4 recipe has it, or F32 or BF16. What that recipe leaves alone is float32.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from pelagos.formats.matrix import QuantizedMatrix
from pelagos.model.checkpoint import Checkpoint, open_checkpoint
from pelagos.model.config import ModelConfig

ARCHITECTURE = "deepseek4"
GROUP = 32  # numbers that share a scale in MXFP4 and Q8_0

# Official name -> GGUF name, outside the layers and behind "layers.N." / "blk.N.".
OUTSIDE = {
    "embed.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    **{f"hc_head_{part}": f"output_hc_{part}.weight" for part in ("fn", "base", "scale")},
}
_COMPRESSOR = {"ape": "ape", "norm.weight": "norm", "wgate.weight": "gate", "wkv.weight": "kv"}
IN_LAYER = {
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    **{f"hc_{a}_{b}": f"hc_{a}_{b}.weight" for a in ("attn", "ffn") for b in ("fn", "base", "scale")},
    "attn.attn_sink": "attn_sinks.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    **{f"attn.compressor.{a}": f"attn_compressor_{b}.weight" for a, b in _COMPRESSOR.items()},
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    **{f"attn.indexer.compressor.{a}": f"indexer_compressor_{b}.weight" for a, b in _COMPRESSOR.items()},
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
}
EXPERT_MATRICES = {"w1": "gate", "w2": "down", "w3": "up"}
_FLOAT32 = re.compile(r"norm|sink|\.ape$|hc_|gate\.(weight|bias)$")


class Entry(NamedTuple):
    """A tensor of the file. ``read`` makes its array: float32, int32, or bytes [..., bytes of a row] of ``type``."""

    name: str
    shape: tuple[int, ...]
    type: Type
    read: Callable[[], np.ndarray]


def write_gguf(checkpoint: Checkpoint, path: Path, dense: Type) -> None:
    """Write the file, one tensor in memory at a time."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _add_fields(writer, checkpoint.config)
    entries = _entries(checkpoint, dense)
    for entry in entries:
        shape, num_bytes, plain = entry.shape, 4 * int(np.prod(entry.shape)), np.dtype(np.float32)
        if entry.type not in (Type.F32, Type.I32):
            shape, plain = gguf.quants.quant_shape_to_byte_shape(shape, entry.type), np.dtype(np.uint8)
            num_bytes = int(np.prod(shape))
        writer.add_tensor_info(entry.name, shape, plain, num_bytes, raw_dtype=entry.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(entry.read())
    writer.close()


def _add_fields(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    yarn = config.compressed_rope.yarn
    whole = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "embedding_length_out": config.hidden_size * config.num_streams,
        "block_count": len(config.layers),
        "feed_forward_length": config.expert_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.q_lora_rank": config.query_rank,
        "attention.sliding_window": config.layers[0].window,
        "attention.output_group_count": config.num_output_groups,
        "attention.output_lora_rank": config.output_rank,
        "attention.indexer.head_count": config.num_index_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk,
        "rope.dimension_count": config.rope_dim,
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_token,
        "expert_feed_forward_length": config.expert_dim,
        "expert_shared_count": 1,
        "expert_gating_func": 4,  # square root of softplus
        "hyper_connection.count": config.num_streams,
        "hyper_connection.sinkhorn_iterations": config.sinkhorn_iterations,
        "hash_layer_count": sum(layer.router == "hash" for layer in config.layers),
    }
    real = {
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.compress_rope_freq_base": config.compressed_rope.theta,
        "expert_weights_scale": config.routed_scaling_factor,
        "hyper_connection.epsilon": config.hc_eps,
        "rope.freq_base": config.rope.theta,
    }
    if yarn is not None:
        writer.add_string(f"{ARCHITECTURE}.rope.scaling.type", "yarn")
        whole["rope.scaling.original_context_length"] = yarn.original_positions
        real["rope.scaling.factor"] = yarn.factor
        real |= {"rope.scaling.yarn_beta_fast": yarn.beta_fast, "rope.scaling.yarn_beta_slow": yarn.beta_slow}
    for name, number in whole.items():
        writer.add_uint32(f"{ARCHITECTURE}.{name}", number)
    for name, number in real.items():
        writer.add_float32(f"{ARCHITECTURE}.{name}", number)
    writer.add_bool(f"{ARCHITECTURE}.expert_weights_norm", True)
    writer.add_array(f"{ARCHITECTURE}.attention.compress_ratios", [layer.ratio or 0 for layer in config.layers])
    if config.swiglu_limit is not None:
        for name in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
            writer.add_array(f"{ARCHITECTURE}.{name}", [config.swiglu_limit] * len(config.layers))
    writer.add_string("tokenizer.ggml.model", "none")


def _entries(checkpoint: Checkpoint, dense: Type) -> list[Entry]:
    entries = []
    for name in checkpoint.stored:
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if name.endswith(".scale") or ".ffn.experts." in name or name.startswith("mtp."):
            continue
        gguf_name = f"blk.{match[1]}.{IN_LAYER[match[2]]}" if match else OUTSIDE[name]
        entries.append(_plain_entry(checkpoint, name, gguf_name, dense))
    for number in range(len(checkpoint.config.layers)):
        entries += [_expert_entry(checkpoint, number, matrix, dense) for matrix in EXPERT_MATRICES]
    return entries


def _plain_entry(checkpoint: Checkpoint, name: str, gguf_name: str, dense: Type) -> Entry:
    if name.endswith(".tid2eid"):
        ids = checkpoint.tensor(name)
        return Entry(gguf_name, tuple(ids.shape), Type.I32, lambda: ids.to(torch.int32).numpy())
    stored = checkpoint.matrix(name) if name.endswith(".weight") else checkpoint.tensor(name)
    kind = Type.F32 if _FLOAT32.search(name) or len(stored.shape) < 2 else dense
    return Entry(gguf_name, tuple(stored.shape), kind, lambda: _encoded(stored, kind))


def _expert_entry(checkpoint: Checkpoint, layer: int, matrix: str, dense: Type) -> Entry:
    """One matrix of all experts of a layer: [experts, outputs, inputs]."""
    prefix = f"layers.{layer}.ffn.experts"
    stored = [checkpoint.matrix(f"{prefix}.{e}.{matrix}.weight") for e in range(checkpoint.config.num_experts)]
    kind = Type.MXFP4 if isinstance(stored[0], QuantizedMatrix) and stored[0].kind == "fp4" else dense
    name = f"blk.{layer}.ffn_{EXPERT_MATRICES[matrix]}_exps.weight"
    return Entry(name, (len(stored), *stored[0].shape), kind, lambda: np.stack([_encoded(x, kind) for x in stored]))


def _encoded(stored: torch.Tensor | QuantizedMatrix, kind: Type) -> np.ndarray:
    if kind == Type.MXFP4:
        assert isinstance(stored, QuantizedMatrix)
        return _mxfp4(stored)
    values = stored.decode() if isinstance(stored, QuantizedMatrix) else stored.float()
    return values.numpy() if kind == Type.F32 else gguf.quants.quantize(values.numpy(), kind)


def _mxfp4(matrix: QuantizedMatrix) -> np.ndarray:
    """The same codes in ggml's order: a scale byte, then 16 bytes with number i below number i + 16 of a group."""
    num_rows, num_columns = matrix.shape
    pairs = matrix.codes.view(torch.uint8).numpy().reshape(num_rows, num_columns // GROUP, GROUP // 2)
    codes = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(num_rows, -1, GROUP)
    halves = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
    scales = matrix.scales.view(torch.uint8).numpy()[..., None]
    return np.concatenate((scales, halves), axis=-1).reshape(num_rows, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dense", choices=["Q8_0", "BF16", "F32"], default="Q8_0")
    options = parser.parse_args()
    write_gguf(open_checkpoint(options.checkpoint), options.file, Type[options.dense])


if __name__ == "__main__":
    main()

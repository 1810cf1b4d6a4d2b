"""Where each tensor of a model is in a checkpoint: one table for the three ways to spell its name.

    official         what DeepSeek released                      layers.0.attn.wq_a.weight
    transformers     module names of the Hugging Face model      model.layers.0.self_attn.q_a_proj.weight
    save_pretrained  what that model's save_pretrained writes    model.layers.0.attn.wq_a.weight

All of Pelagos uses official names; this module says under which name a file holds them. Tensors of draft blocks
(``mtp.*``) exist only in the official spelling; transformers neither reads nor writes them.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Spelling = Literal["official", "transformers", "save_pretrained"]


class Source(NamedTuple):
    """The file's tensor that holds a weight: all of it or, where experts are fused, a part of one ``expert``.

    With an expert, the file's tensor is [experts, rows, columns]; ``part`` is the weight's place among ``num_parts``
    equal parts of the rows (w1, then w3).
    """

    name: str
    expert: int | None = None
    part: int = 0
    num_parts: int = 1


# Official name -> module name, both behind "layers.N.".
_LAYER_MODULES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.norm.weight": "self_attn.compressor.kv_norm.weight",
    "attn.compressor.wkv.weight": "self_attn.compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.gate_proj.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.norm.weight": "self_attn.compressor.indexer.kv_norm.weight",
    "attn.indexer.compressor.wkv.weight": "self_attn.compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.compressor.indexer.gate_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
}
# Official name -> name in both transformers spellings, outside the layers.
_OUTSIDE = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
_EXPERT = re.compile(r"(layers\.\d+\.)ffn\.experts\.(\d+)\.w([123])\.weight")
_LAYER = re.compile(r"(layers\.\d+\.)(.+)")

# Names that occur in one spelling alone.
_SIGNS: dict[Spelling, re.Pattern[str]] = {
    "official": re.compile(r"layers\.|embed\.weight$|norm\.weight$|hc_head_"),
    "transformers": re.compile(
        r"lm_head\.|model\.layers\.\d+\.(self_attn|mlp|input_layernorm|post_attention_layernorm|attn_hc|ffn_hc)\."
    ),
    "save_pretrained": re.compile(r"model\.layers\.\d+\.(attn\.|ffn\.|attn_norm\.|ffn_norm\.|hc_attn_|hc_ffn_)"),
}
# Draft blocks beyond those of the config, -Base's own copies of the tables, and the rotation tables of old saves.
_OPTIONAL = re.compile(r"(model\.)?mtp\.|model\..*rotary_emb\.\w*inv_freq$")


def find_spellings(names: Iterable[str]) -> dict[Spelling, str]:
    """The spellings that occur in a checkpoint's tensor names, each with the first name that shows it."""
    found: dict[Spelling, str] = {}
    for name in names:
        for spelling, sign in _SIGNS.items():
            if sign.match(name):
                found.setdefault(spelling, name)
    return found


def source_of(name: str, spelling: Spelling) -> Source:
    """Where a checkpoint in this spelling holds the tensor of this official name. AssertionError for unknown names."""
    if spelling == "official" or name.startswith("mtp."):
        return Source(name)
    if name == "head.weight":
        return Source("lm_head.weight" if spelling == "transformers" else name)
    if name in _OUTSIDE:
        return Source(_OUTSIDE[name])
    if spelling == "save_pretrained":
        return Source("model." + name.replace(".attn.kv_norm.", ".attn.norm."))
    if match := _EXPERT.fullmatch(name):
        layer, expert, matrix = match.groups()
        if matrix == "2":
            return Source(f"model.{layer}mlp.experts.down_proj", int(expert))
        fused = f"model.{layer}mlp.experts.gate_up_proj"
        return Source(fused, int(expert), part=0 if matrix == "1" else 1, num_parts=2)
    match = _LAYER.fullmatch(name)
    assert match is not None, f"{name} is not an official tensor name"
    return Source(f"model.{match[1]}{_LAYER_MODULES[match[2]]}")


def scale_names(name: str) -> tuple[str, ...]:
    """The names under which a file may hold the scales of its weight ``name``; empty if it can have none."""
    base = name.removesuffix(".weight")
    return () if base == name else (f"{base}.scale", f"{base}.weight_scale_inv")


def is_optional(name: str) -> bool:
    """Whether a tensor that the model does not ask for may be there all the same."""
    return _OPTIONAL.match(name) is not None

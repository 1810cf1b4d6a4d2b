"""transformers' DeepseekV4ForCausalLM as the oracle: random configs, random weights, and the same weights under
official names. The name mapping here is written apart from the project's own, so that names are tested too."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from pelagos.model import indexer as indexer_module
from pelagos.model import moe as moe_module
from pelagos.model.config_json import config_from_json
from pelagos.model.loading import fill
from pelagos.model.transformer import Model
from pelagos.ops.reference import indexer, moe

NEAR_TIE = 2e-5  # a gap between ranks k and k+1 below this share of the largest score

SWA, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"

_SPEC_CONFIG = {
    "vocab_size": 97,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 32,
    "partial_rotary_factor": 0.25,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "sliding_window": 16,
    "index_n_heads": 24,
    "index_head_dim": 16,
    "index_topk": 9,
    "swiglu_limit": 0.05,
    "routed_scaling_factor": 1.5,
    "layer_types": [SWA, CSA, HCA, CSA, SWA],
    "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"],
    "compress_rates": {CSA: 4, HCA: 128},
    "rope_theta": 1e4,
    "compress_rope_theta": 1.6e5,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 256,
    },
    "max_position_embeddings": 4096,
}  # fmt: skip


def oracle_config(**changes: object) -> DeepseekV4Config:
    """The spec's small config with changes."""
    fields = {**_SPEC_CONFIG, "num_key_value_heads": 1, "num_nextn_predict_layers": 0, **changes}
    fields["num_hidden_layers"] = len(fields["layer_types"])  # type: ignore[arg-type]
    return DeepseekV4Config(**fields)


def random_config(seed: int) -> DeepseekV4Config:
    """A config drawn over the allowed ranges; every third one without YaRN."""
    draw = random.Random(seed)
    groups = draw.choice([1, 2, 3])
    head_dim = draw.choice([16, 24, 32, 48])
    rope_dim = draw.choice([4, 8, 16])
    num_layers = draw.randint(2, 6)
    kinds = draw.sample([SWA, CSA, HCA], 2) + [draw.choice([SWA, CSA, HCA]) for _ in range(num_layers - 2)]
    num_hash = draw.randint(0, num_layers)
    experts = draw.choice([4, 7, 8, 16])
    changes: dict[str, object] = {
        "vocab_size": draw.choice([33, 97, 200]),
        "hidden_size": draw.choice([24, 40, 64, 96]),
        "moe_intermediate_size": draw.choice([8, 20, 32]),
        "num_attention_heads": groups * draw.choice([1, 2, 4]),
        "o_groups": groups,
        "head_dim": head_dim,
        "partial_rotary_factor": rope_dim / head_dim,
        "q_lora_rank": draw.choice([8, 24, 33]),
        "o_lora_rank": draw.choice([5, 12, 16]),
        "n_routed_experts": experts,
        "num_experts_per_tok": draw.randint(1, 4),
        "sliding_window": draw.choice([2, 3, 16, 64, 128]),  # transformers keeps all rows with 1
        "index_n_heads": draw.choice([16, 24]),
        "index_head_dim": draw.choice([16, 24, 32]),
        "index_topk": draw.choice([5, 9, 40, 512]),
        "swiglu_limit": draw.choice([0.05, 1.0, 10.0]),
        "routed_scaling_factor": draw.choice([1.0, 1.5, 2.5]),
        "hc_mult": draw.choice([2, 4, 4]),
        "hc_sinkhorn_iters": draw.choice([1, 5, 20]),
        "layer_types": kinds,
        "mlp_layer_types": ["hash_moe"] * num_hash + ["moe"] * (num_layers - num_hash),
        "compress_rates": {CSA: draw.choice([2, 4, 4, 8]), HCA: draw.choice([16, 32, 128])},
        "rope_theta": draw.choice([1e3, 1e4]),
    }
    if seed % 3 == 0:
        changes["rope_parameters"] = {"rope_type": "default"}
    return oracle_config(**changes)


def oracle_model(config: DeepseekV4Config, seed: int, *, scale: float = 1.0) -> DeepseekV4ForCausalLM:
    """A float32 model in which no tensor is idle. ``scale``: each tensor may be this much too large or small."""
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "inv_freq" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("tid2eid"):
            order = torch.rand(tensor.shape[0], config.n_routed_experts, generator=generator).argsort(1)
            value = order[:, : tensor.shape[1]]
        elif "norm" in name:
            value = 1.0 + 0.3 * noise
        elif name.endswith("scale"):
            value = 1.0 + 0.5 * noise
        elif tensor.dim() == 1 or name.endswith("position_bias"):
            value = 0.7 * noise
        else:
            value = noise / tensor.shape[-1] ** 0.5
        if not name.endswith("tid2eid"):
            value = value * draw.choice([1.0 / scale, 1.0, 1.0, scale])
        tensor.data.copy_(value)
    return model


_RENAMES = [
    (r"^model\.", ""),
    (r"^lm_head\.", "head."),
    (r"^embed_tokens\.", "embed."),
    (r"^hc_head\.hc_", "hc_head_"),
    (r"\.self_attn\.compressor\.indexer\.q_b_proj", ".self_attn.indexer.wq_b"),
    (r"\.self_attn\.compressor\.indexer\.scorer\.", ".self_attn.indexer."),
    (r"\.self_attn\.compressor\.indexer\.", ".self_attn.indexer.compressor."),
    (r"compressor\.position_bias", "compressor.ape"),
    (r"compressor\.kv_norm", "compressor.norm"),
    (r"compressor\.kv_proj", "compressor.wkv"),
    (r"compressor\.gate_proj", "compressor.wgate"),
    (r"\.self_attn\.", ".attn."),
    (r"\.q_a_proj", ".wq_a"),
    (r"\.q_a_norm", ".q_norm"),
    (r"\.q_b_proj", ".wq_b"),
    (r"\.attn\.kv_proj", ".attn.wkv"),
    (r"\.o_a_proj", ".wo_a"),
    (r"\.o_b_proj", ".wo_b"),
    (r"\.sinks$", ".attn_sink"),
    (r"\.input_layernorm", ".attn_norm"),
    (r"\.post_attention_layernorm", ".ffn_norm"),
    (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
    (r"\.mlp\.", ".ffn."),
    (r"e_score_correction_bias", "bias"),
    (r"shared_experts\.gate_proj", "shared_experts.w1"),
    (r"shared_experts\.up_proj", "shared_experts.w3"),
    (r"shared_experts\.down_proj", "shared_experts.w2"),
]


def official_tensors(model: DeepseekV4ForCausalLM) -> dict[str, Tensor]:
    """The weights under official names, experts apart."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                base = name.removesuffix("gate_up_proj")
                tensors[f"{base}{e}.w1.weight"], tensors[f"{base}{e}.w3.weight"] = both.chunk(2)
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(tensor):
                tensors[f"{name.removesuffix('down_proj')}{e}.w2.weight"] = down
        else:
            tensors[name] = tensor
    return tensors


def same_model(oracle: DeepseekV4ForCausalLM) -> Model:
    """Our model with the oracle's config and weights; every tensor of either side must be used."""
    data = oracle.config.to_dict()
    data["dtype"] = "float32"
    with torch.device("meta"):
        model = Model(config_from_json(data))
    tensors = official_tensors(oracle)
    fill(model, lambda spec: tensors.pop(spec.name).clone())
    assert not tensors, f"not used: {sorted(tensors)}"
    return model.eval().requires_grad_(False)


def prompt(length: int, vocab_size: int, seed: int) -> list[int]:
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@contextmanager
def smallest_gap() -> Iterator[Callable[[], float]]:
    """Watch the choices of indexers and routers; gives the smallest relative gap between the last kept and the first
    not kept."""
    gaps: list[float] = [1.0]

    def watch(scores: Tensor, k: int) -> None:
        if scores.shape[1] > k:
            ranked = scores.sort(dim=1, descending=True).values
            gap = ranked[:, k - 1] - ranked[:, k]
            gaps.append(float((gap / scores.masked_fill(scores == -torch.inf, 0).abs().amax(1)).nan_to_num(1.0).min()))

    def choose_rows(q: Tensor, head_weights: Tensor, rows: Tensor, num_visible: Tensor, k: int) -> Tensor:
        if len(q):
            hidden = torch.arange(len(rows)) >= num_visible.unsqueeze(1)
            watch(indexer.index_scores(q, head_weights, rows).masked_fill(hidden, -torch.inf), k)
        return indexer.choose_rows(q, head_weights, rows, num_visible, k)

    def top_experts(scores: Tensor, bias: Tensor, k: int) -> Tensor:
        watch(scores + bias, k)
        return moe.top_experts(scores, bias, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexer_module, "choose_rows", choose_rows)
        patch.setattr(moe_module, "top_experts", top_experts)
        yield lambda: min(gaps)

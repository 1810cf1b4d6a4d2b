"""Small checkpoint folders in every layout, made without our own code: values by hand into the Hugging Face model,
number formats by numpy and ml_dtypes, files by the safetensors library, config.json by hand."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.torch
import torch
from hf_oracle import CSA, HCA, SWA, official_tensors, oracle_config, oracle_model
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 160,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 32,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 72,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "index_n_heads": 24,
    "index_head_dim": 32,
    "index_topk": 9,
}
OFFICIAL_CONFIG: dict[str, Any] = {
    **SIZES,
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "qk_rope_head_dim": 8,
    "n_shared_experts": 1,
    "num_hash_layers": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "compress_ratios": [0, 4, 128, 0],
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 256,
    },
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 1,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
}
FLOAT_CONFIG = {k: v for k, v in OFFICIAL_CONFIG.items() if k not in ("quantization_config", "expert_dtype")}
BASE_CONFIG = {k: v for k, v in OFFICIAL_CONFIG.items() if k != "expert_dtype"}

FP8 = re.compile(
    r"\.attn\.(wq_a|wq_b|wkv|wo_a|wo_b|indexer\.wq_b)\.weight$|shared_experts\.w.\.weight$|[eh]_proj\.weight$"
)
FP4 = re.compile(r"\.experts\.\d+\.w.\.weight$")
F32 = re.compile(r"(attn_sink|\.ape|gate\.bias|hc_(attn|ffn|head)_(fn|base|scale))$")


@cache
def hf_model() -> DeepseekV4ForCausalLM:
    """Float32, three layers: window with hash router, CSA, HCA. Do not change its weights."""
    config = oracle_config(
        **SIZES, swiglu_limit=10.0, layer_types=[SWA, CSA, HCA], mlp_layer_types=["hash_moe", "moe", "moe"]
    )
    return oracle_model(config, seed=3)


def main_tensors() -> dict[str, Tensor]:
    """The model's weights under official names, float32 (ids int64)."""
    return {name: tensor.detach().contiguous() for name, tensor in official_tensors(hf_model()).items()}


@cache
def draft_tensors() -> dict[str, Tensor]:
    """A multi-token-prediction block, which the Hugging Face model lacks: a window layer, a way in and a way out."""
    generator = torch.Generator().manual_seed(4)
    size = SIZES["hidden_size"]
    shapes = {
        name.replace("layers.0.", "mtp.0."): tuple(tensor.shape)
        for name, tensor in main_tensors().items()
        if name.startswith("layers.0.") and not name.endswith("tid2eid")
    }
    shapes |= {f"mtp.0.{name}.weight": (size,) for name in ("enorm", "hnorm", "norm")}
    shapes |= {f"mtp.0.{name}.weight": (size, size) for name in ("e_proj", "h_proj")}
    shapes |= {"mtp.0.hc_head_fn": (4, 4 * size), "mtp.0.hc_head_base": (4,), "mtp.0.hc_head_scale": (1,)}
    shapes["mtp.0.ffn.gate.bias"] = (SIZES["n_routed_experts"],)
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


def all_tensors() -> dict[str, Tensor]:
    return {**main_tensors(), **draft_tensors()}


def module_tensors() -> dict[str, Tensor]:
    """The model's weights under transformers' module names, experts fused."""
    return {name: tensor.detach().contiguous() for name, tensor in hf_model().state_dict().items()}


def packed(*, base: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors as the released files hold them, and the float32 values those files mean.

    Some blocks get a larger scale than their largest value asks for, as in a checkpoint trained in low precision.
    """
    stored, values = _packed(base)
    return dict(stored), dict(values)


@cache
def _packed(base: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    rng = np.random.default_rng(6)
    for name, tensor in all_tensors().items():
        if FP8.search(name) or FP4.search(name):
            fp4 = FP4.search(name) is not None and not base
            codes, scales, value = quantize(tensor.numpy(), fp4=fp4, rng=rng, any_scale=base)
            stored[name], stored[name.removesuffix("weight") + "scale"] = codes, scales
        elif F32.search(name) or name.endswith("tid2eid"):
            stored[name] = value = tensor
        else:
            stored[name] = tensor.to(torch.bfloat16)
            value = stored[name].float()
        values[name] = value
    return stored, values


def quantize(
    w: np.ndarray, *, fp4: bool, rng: np.random.Generator | None = None, any_scale: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and values of a matrix, block by block. ``rng``: some scales are twice as large as they need to be.

    ``any_scale``: float32 scales that are no powers of two.
    """
    rows, cols = (1, 32) if fp4 else (128, 128)
    code_type, top = (ml_dtypes.float4_e2m1fn, 6.0) if fp4 else (ml_dtypes.float8_e4m3fn, 448.0)
    codes = np.zeros(w.shape, code_type)
    scales = np.zeros((-(-w.shape[0] // rows), -(-w.shape[1] // cols)), np.float32)
    values = np.zeros(w.shape, np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = np.s_[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
            scales[i, j] = 2.0 ** np.ceil(np.log2(np.abs(w[block]).max() / top))
            if rng is not None:
                scales[i, j] *= rng.uniform(1, 2) if any_scale else rng.integers(1, 3)
            codes[block] = (w[block] / scales[i, j]).astype(code_type)
            values[block] = codes[block].astype(np.float32) * scales[i, j]
    if fp4:
        nibbles = codes.view(np.uint8) & 15
        stored = torch.from_numpy((nibbles[:, 0::2] | nibbles[:, 1::2] << 4).view(np.int8))
    else:
        stored = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
    if any_scale:
        return stored, torch.from_numpy(scales), torch.from_numpy(values)
    exponents = scales.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    return stored, torch.from_numpy(exponents).view(torch.float8_e8m0fnu), torch.from_numpy(values)


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], num_files: int = 3) -> Path:
    """A folder in Hugging Face layout; one file has no index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if num_files == 1:
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(num_files):
        file_name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = dict(list(tensors.items())[number::num_files])
        safetensors.torch.save_file(part, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    write_index(folder, weight_map, sum(tensor.nbytes for tensor in tensors.values()))
    return folder


def write_index(folder: Path, weight_map: dict[str, str], total_size: int) -> None:
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def official_folder(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as released, in three files, and the values it means."""
    stored, values = packed()
    return write_folder(folder, OFFICIAL_CONFIG, stored), values


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same in dtype, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))

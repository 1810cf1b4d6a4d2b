"""Make a bench model: random weights in the sizes nano-bench or mini-bench, once for each system.

    python benchmarks/models.py OUT PEERS [nano-bench mini-bench]

PEERS is the folder of benchmarks/peers.py. Each model gets a folder in OUT with

    transformers/   what save_pretrained writes: nano-bench in float32, mini-bench in bfloat16
    official/       the same, converted by Pelagos: FP4 experts, FP8 dense matrices
    model.gguf      the official one for llama.cpp: its FP4 experts as MXFP4, code for code; other matrices Q8_0
    float32.gguf    nano-bench alone: the first one in float32, for the check of logits

so all systems have the same weights up to the format that each computes in. Every width is a multiple of the blocks
of these formats. Speed does not depend on what the weights say; the text such a model writes has no meaning.
"""

import argparse
import os
import subprocess
from pathlib import Path

import torch
from peers import peers_python
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from pelagos.model.convert import convert

MODEL_SEED, TABLE_SEED = 20260724, 7
SIZES = {
    "nano-bench": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "q_lora_rank": 256,
        "o_groups": 2,
        "o_lora_rank": 128,
        "n_routed_experts": 32,
        "moe_intermediate_size": 256,
        "index_topk": 128,
    },
    "mini-bench": {
        "vocab_size": 16384,
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "q_lora_rank": 512,
        "o_groups": 4,
        "o_lora_rank": 256,
        "n_routed_experts": 64,
        "moe_intermediate_size": 512,
        "index_topk": 256,
    },
}
DTYPES = {"nano-bench": torch.float32, "mini-bench": torch.bfloat16}


def bench_config(name: str) -> DeepseekV4Config:
    """Two window layers with hash routing, then CSA and HCA in turns; YaRN as in the released models."""
    size = SIZES[name]
    later = ["compressed_sparse_attention", "heavily_compressed_attention"] * (size["num_hidden_layers"] // 2 - 1)
    return DeepseekV4Config(
        **size,
        layer_types=["sliding_attention"] * 2 + later,
        mlp_layer_types=["hash_moe"] * 2 + ["moe"] * len(later),
        num_key_value_heads=1,
        head_dim=128,
        partial_rotary_factor=0.25,
        n_shared_experts=1,
        num_experts_per_tok=4,
        sliding_window=128,
        hc_mult=4,
        hc_sinkhorn_iters=20,
        index_n_heads=8,
        index_head_dim=64,
        max_position_embeddings=1 << 20,
        rope_theta=10000.0,
        compress_rope_theta=160000.0,
        num_nextn_predict_layers=0,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 16.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 65536,
        },
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.02,
    )


def random_model(name: str) -> DeepseekV4ForCausalLM:
    """Seeded weights. What the initialisation leaves at zero is random too: a table of zeros would send every token of
    a hash layer to one expert, and a sink or bias of zero would hide a mistake."""
    torch.manual_seed(MODEL_SEED)
    config = bench_config(name)
    model = DeepseekV4ForCausalLM._from_config(config, dtype=DTYPES[name])
    g = torch.Generator().manual_seed(TABLE_SEED)
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if key.endswith("tid2eid"):
            order = torch.rand(config.vocab_size, config.n_routed_experts, generator=g)
            tensor.data.copy_(order.topk(config.num_experts_per_tok, dim=-1).indices)
        elif key.endswith("e_score_correction_bias"):
            tensor.data.copy_(0.05 * torch.randn(tensor.shape, generator=g))
        elif key.endswith(("sinks", "position_bias", ".base", "hc_base")):
            tensor.data.copy_(0.5 * torch.randn(tensor.shape, generator=g))
    return model


def make(name: str, folder: Path, peers: Path) -> None:
    random_model(name).save_pretrained(folder / "transformers")
    convert(folder / "transformers", folder / "official", "official", force=True)
    _write_gguf(folder / "official", folder / "model.gguf", "Q8_0", peers)
    if DTYPES[name] == torch.float32:
        _write_gguf(folder / "transformers", folder / "float32.gguf", "F32", peers)


def _write_gguf(source: Path, path: Path, dense: str, peers: Path) -> None:
    here = Path(__file__).resolve().parent
    command = [peers_python(peers), here / "gguf_file.py", source, path, "--dense", dense]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(here.parent)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the models: 0.8 GB for nano-bench, 4.1 GB for mini-bench")
    parser.add_argument("peers", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="nano-bench, mini-bench; default: both")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SIZES):
        parser.error(f"NAME must be one of {', '.join(SIZES)}, got {', '.join(unknown)}")
    for name in options.names or SIZES:
        make(name, options.out / name, options.peers)
        print(f"{options.out / name}: done", flush=True)


if __name__ == "__main__":
    main()

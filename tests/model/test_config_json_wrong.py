"""config.json files that are wrong: each with its message, and junk in every field that never ends otherwise."""

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_configs import FLASH, FLASH_0731
from test_config_json import CSA, HCA, SWA, TINY, problem_of, tiny

from pelagos.common.errors import ConfigError
from pelagos.model.config import ModelConfig
from pelagos.model.config_json import config_from_json

SCALING = TINY["rope_scaling"]
QUANTIZATION = FLASH["quantization_config"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number from 1 to 4096, got 0"),
        ({"vocab_size": "512"}, "vocab_size must be a whole number from 2 to 4194304, got '512'"),
        ({"hidden_size": 64.5}, "hidden_size must be a whole number from 1 to 131072, got 64.5"),
        ({"head_dim": True}, "head_dim must be a whole number from 2 to 8192, got True"),
        ({"hc_mult": 10**400}, f"hc_mult must be a whole number from 1 to 16, got 1{'0' * 76}..."),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number from 0 to 1, got nan"),
        ({"rope_theta": 1}, "rope_theta must be a number from 1.000001 to 1e+12, got 1"),
        ({"hidden_act": "gelu"}, "hidden_act must be \"silu\", got 'gelu'"),
        ({"scoring_func": "sigmoid"}, "scoring_func must be \"sqrtsoftplus\", got 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method must be \"noaux_tc\", got 'greedy'"),
        ({"norm_topk_prob": False}, "norm_topk_prob must be true, got False"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be true, got 1"),
        ({"num_key_value_heads": 8}, "num_key_value_heads must be 1, got 8"),
        ({"n_shared_experts": 2}, "n_shared_experts must be 1, got 2"),
        ({"attention_bias": True}, "attention_bias must be false, got True"),
        ({"mlp_bias": True}, "mlp_bias must be false, got True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be false, got True"),
        ({"n_group": 8}, "n_group must be 1, got 8"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace must be 0, got 3"),
        ({"model_type": "deepseek_v3"}, "model_type must be 'deepseek_v4', got 'deepseek_v3'"),
        ({"model_type": None}, "model_type must be 'deepseek_v4', got None"),
        (
            {"model_type": "deepseek_v41"},
            "DeepSeek-V4.1 is not supported yet: model_type must be 'deepseek_v4', got 'deepseek_v41'",
        ),
        (
            {"compress_ratios": None, "layer_types": None},
            "compress_ratios is missing: it must list the ratio of every layer",
        ),
        (
            {"num_hash_layers": None, "mlp_layer_types": None},
            "num_hash_layers is missing: it must say how many of the first layers route by token id",
        ),
        (
            {"rope_scaling": None},
            "rope_scaling is missing: layers with compressed rows need it, as in "
            '{"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536}',
        ),
        ({"compress_rope_theta": None}, "compress_rope_theta is missing"),
        ({"swiglu_limit": -1.0}, "swiglu_limit must be a number from 1e-06 to 1000000, got -1.0"),
        ({"swiglu_limit": False}, "swiglu_limit must be a number from 1e-06 to 1000000, got False"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to 1024, got 0"),
        (
            {"compress_ratios": [0, 4, 3, 4, 128]},
            "compress_ratios[2] must be one of 0, 2, 4, 8, 16, 32, 64, 128, got 3",
        ),
        (
            {"compress_ratios": [0, True, 128, 4, 128]},
            "compress_ratios[1] must be one of 0, 2, 4, 8, 16, 32, 64, 128, got True",
        ),
        (
            {"compress_ratios": [0, 4, 128, 4]},
            "compress_ratios must list num_hidden_layers (5) ratios and at most 16 more for draft blocks, got 4",
        ),
        ({"compress_ratios": [0, 4, 128, 4, 128, 4]}, "compress_ratios must be 0 behind those of the main layers"),
        ({"compress_ratios": [0, 8, 128, 4, 128, 0]}, f"compress_ratios[1] must be a ratio of {CSA}, got 8"),
        ({"compress_ratios": [4, 4, 128, 4, 128, 0]}, f"compress_ratios[0] must be a ratio of {SWA}, got 4"),
        ({"compress_ratios": {"0": 4}}, "compress_ratios must be a list, got {'0': 4}"),
        ({"layer_types": [SWA]}, "layer_types must list num_hidden_layers (5) layers, got 1"),
        (
            {"layer_types": ["full_attention"] * 5},
            f"layer_types[0] must be one of '{SWA}', '{CSA}', '{HCA}', got 'full_attention'",
        ),
        (
            {"compress_rate_csa": 8, "compress_ratios": None},
            "compress_rate_csa must be what compress_rates says (4), got 8",
        ),
        ({"compress_rates": {CSA: 3}}, f"compress_rates.{CSA} must be one of 2, 4, 8, 16, 32, 64, 128, got 3"),
        ({"compress_rates": [4]}, "compress_rates must be an object, got [4]"),
        ({"num_hash_layers": 3}, "num_hash_layers must be what mlp_layer_types says, got 3"),
        ({"num_hash_layers": 6}, "num_hash_layers must be a whole number from 0 to 5, got 6"),
        ({"mlp_layer_types": ["dense"] * 5}, "mlp_layer_types[0] must be one of 'hash_moe', 'moe', got 'dense'"),
        ({"mlp_layer_types": ["moe"]}, "mlp_layer_types must list num_hidden_layers (5) layers, got 1"),
        (
            {"num_nextn_predict_layers": 10**9},
            "num_nextn_predict_layers must be a whole number from 0 to 16, got 1000000000",
        ),
        ({"dspark_block_size": 5}, "dspark_markov_rank is missing: dspark_block_size needs it"),
        (
            {"rope_scaling": SCALING | {"type": "linear"}},
            "rope_scaling.type must be one of 'yarn', 'default', got 'linear'",
        ),
        ({"rope_scaling": {"factor": 16}}, "rope_scaling.rope_type must be one of 'yarn', 'default', got None"),
        ({"rope_scaling": SCALING | {"rope_type": "default"}}, "rope_scaling.type must be the same as rope_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 16}}, "rope_scaling.original_max_position_embeddings is missing"),
        ({"rope_scaling": SCALING | {"factor": 0.5}}, "rope_scaling.factor must be a number from 1 to 1024, got 0.5"),
        (
            {"rope_scaling": SCALING | {"attention_factor": 1.277}},
            "rope_scaling.attention_factor must be 1.0, got 1.277",
        ),
        (
            {"rope_scaling": SCALING | {"beta_fast": 0.5}},
            "rope_scaling.beta_fast must be at least beta_slow (1), got 0.5",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object, got 'yarn'"),
        ({"rope_parameters": SCALING | {"factor": 8.0}}, "rope_scaling and rope_parameters must say the same"),
        (
            {"rope_parameters": {"main": {"rope_type": "default", "rope_theta": 500.0}}},
            "rope_theta must be what rope_parameters says (500), got 10000",
        ),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim must be even and at most 16 (head_dim, index_head_dim), got 7"),
        ({"qk_rope_head_dim": None}, "qk_rope_head_dim is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be qk_rope_head_dim / head_dim (0.25), got 0.5"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor must be a number from 0 to 1, got 2"),
        (
            {"partial_rotary_factor": 0.26, "qk_rope_head_dim": None},
            "partial_rotary_factor times head_dim must be a whole number from 2 on, got 8.32",
        ),
        ({"o_groups": 3}, "o_groups must divide num_attention_heads (4), got 3"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok must be at most n_routed_experts (8), got 9"),
        ({"bos_token_id": 512}, "bos_token_id must be from 0 to 511, got 512"),
        ({"eos_token_id": [1, 512]}, "eos_token_id must be from 0 to 511, got 512"),
        ({"eos_token_id": "1"}, "eos_token_id must be a token id or a list of them, got '1'"),
        ({"eos_token_id": [True]}, "eos_token_id must be a token id or a list of them, got [True]"),
        ({"torch_dtype": "int8"}, "torch_dtype must be one of 'bfloat16', 'float32', 'float16', got 'int8'"),
        ({"dtype": "bfloat16"}, "dtype must be the same as torch_dtype ('float32'), got 'bfloat16'"),
        ({"official_rounding": 1}, "official_rounding must be true or false, got 1"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object, got 'fp8'"),
        (
            {"quantization_config": QUANTIZATION | {"quant_method": "awq"}},
            "quantization_config.quant_method must be \"fp8\", got 'awq'",
        ),
        (
            {"quantization_config": QUANTIZATION | {"weight_block_size": [32, 32]}},
            "quantization_config.weight_block_size must be [128, 128], got [32, 32]",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            'quantization_config.scale_fmt is missing: it must be "ue8m0"',
        ),
        (
            {"quantization_config": QUANTIZATION | {"expert_dtype": "fp8"}, "expert_dtype": "fp4"},
            "expert_dtype must be the same as quantization_config.expert_dtype",
        ),
        ({"expert_dtype": "int4"}, "expert_dtype must be one of 'fp4', 'fp8', got 'int4'"),
        (
            {"official_rounding": True, "index_head_dim": 24},
            "index_head_dim must be a power of two with official_rounding, got 24",
        ),
    ],
)
def test_one_problem(changes: dict[str, Any], message: str) -> None:
    assert problem_of(tiny(**changes)) == message


OPTIONAL = {
    *("architectures", "model_type", "attention_bias", "hidden_act", "scoring_func", "topk_method", "norm_topk_prob"),
    *("num_key_value_heads", "n_shared_experts", "tie_word_embeddings", "bos_token_id", "eos_token_id", "torch_dtype"),
    *("hc_mult", "hc_sinkhorn_iters", "hc_eps", "rms_norm_eps", "max_position_embeddings", "num_nextn_predict_layers"),
    *("compress_ratios", "num_hash_layers", "rope_scaling"),  # another spelling is there, or a longer message
}
REQUIRED = [name for name in TINY if name in FLASH and name not in OPTIONAL]


@pytest.mark.parametrize("name", REQUIRED)
def test_nothing_is_guessed(name: str) -> None:
    data = copy.deepcopy(TINY)
    del data[name]
    assert problem_of(data) == f"{name} is missing"


def test_all_problems_at_once() -> None:
    data = tiny(num_attention_heads=0, hidden_act="gelu", compress_ratios=[3], rope_scaling=None, num_hash_layers="two")
    data["quantization_config"] = {"quant_method": "gptq"}
    message = problem_of(data)
    for part in (
        "num_attention_heads must be",
        'hidden_act must be "silu"',
        "compress_ratios[0] must be one of",
        "num_hash_layers must be a whole number",
        "quantization_config.quant_method must be",
        "quantization_config.weight_block_size is missing",
    ):
        assert part in message
    assert message.count("; ") == 6  # and scale_fmt


def test_rope_is_asked_for_beside_other_problems() -> None:
    message = problem_of(tiny(vocab_size=0, rope_scaling=None))
    assert "vocab_size" in message
    assert "rope_scaling is missing" in message


JUNK = [None, True, False, 0, -1, 1, 10**9, 10**400, -(10**400), 0.5, -0.0, 1e308, math.nan, math.inf, "", "1", "fp8"]
JUNK += [[], [0], [None], [[]], {}, {"main": 1}, {"type": "yarn"}, [10**400], {"a": {}}, "x" * 1000, 10**5000]
QUANTIZED = TINY | {name: FLASH_0731[name] for name in ("quantization_config", "expert_dtype")}
QUANTIZED |= {name: value for name, value in FLASH_0731.items() if name.startswith("dspark_")}
NAMES = sorted({*FLASH_0731, *TINY})
NAMES += ["rope_parameters", "dtype", "compress_rate_csa", "partial_rotary_factor", "expert_dtype", "activation_dtype"]


def reads_or_refuses(data: Any) -> None:
    try:
        config = config_from_json(data)
    except ConfigError:
        return
    assert isinstance(config, ModelConfig)


@pytest.mark.parametrize("name", NAMES)
def test_junk_values(name: str) -> None:
    for base in (TINY, QUANTIZED):
        for junk in JUNK:
            reads_or_refuses(base | {name: junk})
            for outer in ("rope_scaling", "quantization_config", "compress_rates"):
                if isinstance(base.get(outer), dict) and name in base[outer]:
                    reads_or_refuses(base | {outer: base[outer] | {name: junk}})


@pytest.mark.parametrize("name", [*SCALING, "rope_theta", "attention_factor", "rope_type", "truncate"])
def test_junk_rotations(name: str) -> None:
    for junk in JUNK:
        section = SCALING | {name: junk}
        reads_or_refuses(tiny(rope_scaling=section))
        reads_or_refuses(TINY | {"rope_scaling": None, "rope_parameters": section})
        nested = {"main": section, "compress": section}
        reads_or_refuses(TINY | {"rope_scaling": None, "rope_parameters": nested})
        reads_or_refuses(TINY | {"rope_parameters": nested, "rope_theta": None})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4))
def test_random_changes(changes: dict[str, Any]) -> None:
    reads_or_refuses(TINY | changes)


@settings(max_examples=30)
@given(json_values)
def test_random_json(data: Any) -> None:
    with pytest.raises(ConfigError):
        config_from_json(data)

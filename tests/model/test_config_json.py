"""config.json: the released files, every spelling, transformers as reader and writer, and files that are wrong."""

import copy
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_configs import FLASH, FLASH_0731, FLASH_BASE, PRO_0813, RELEASED
from transformers import DeepseekV4Config

from pelagos.common.errors import CheckpointError, ConfigError
from pelagos.model.config import (
    ModelConfig,
    RopeConfig,
    YarnConfig,
    csa_layer,
    hca_layer,
    window_layer,
)
from pelagos.model.config_json import config_from_json, config_to_json, read_config
from pelagos.model.presets import PRESETS, preset

SWA, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
TINY = config_to_json(preset("tiny"))
Change = Callable[[dict[str, Any]], object]


def tiny(**changes: Any) -> dict[str, Any]:
    """The JSON of ``tiny`` with other fields; None removes one."""
    data = copy.deepcopy(TINY) | changes
    return {name: value for name, value in data.items() if value is not None}


def problem_of(data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_json(data)
    return str(caught.value)


# Reading what was released


def test_released_values() -> None:
    config = config_from_json(FLASH)
    assert config.storage == "official"
    assert config.official_rounding
    assert config.activation_dtype == "bfloat16"
    assert config.rope == RopeConfig(theta=10000.0)
    assert config.compressed_rope == RopeConfig(theta=160000.0, yarn=YarnConfig(factor=16.0, original_positions=65536))
    assert config.mtp_layers == (window_layer(window=128),)
    assert config.eos_ids == (1,)
    assert isinstance(config.rope.theta, float)


def test_dspark_replaces_mtp() -> None:
    for data, rank in ((FLASH_0731, 256), (PRO_0813, 512)):
        config = config_from_json(data)
        assert (config.num_dspark_blocks, config.dspark_markov_rank, config.mtp_layers) == (3, rank, ())
        assert len(config.layers) == data["num_hidden_layers"]


def test_dspark_block_count_without_draft_ratios() -> None:
    data = FLASH_0731 | {"compress_ratios": FLASH["compress_ratios"][:43]}
    assert config_from_json(data).num_dspark_blocks == 3


def test_base_has_fp8_experts() -> None:
    assert config_from_json(FLASH_BASE).storage == "base"
    assert config_from_json(FLASH_BASE | {"expert_dtype": "fp8"}).storage == "base"


# Writing


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive(name: str) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(preset(name))))) == preset(name)


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_written_as_they_are(name: str) -> None:
    written = config_to_json(preset(name))
    not_kept = {"attention_dropout", "initializer_range", "transformers_version", "use_cache"}
    not_kept |= {"dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids"}
    assert {field: written.get(field) for field in RELEASED[name] if field not in not_kept} == {
        field: value for field, value in RELEASED[name].items() if field not in not_kept
    }


def rotations(*, yarn: bool | None = None) -> st.SearchStrategy[RopeConfig]:
    floats = st.floats(1.0, 1024.0)
    yarns = st.builds(
        YarnConfig,
        factor=floats,
        original_positions=st.integers(1, 1 << 24),
        beta_fast=st.floats(2.0, 1e6),
        beta_slow=st.floats(1e-3, 2.0),
    )
    choice = {None: st.none() | yarns, True: yarns, False: st.none()}[yarn]
    return st.builds(RopeConfig, theta=st.floats(1.001, 1e12), yarn=choice)


@st.composite
def configs(draw: st.DrawFn, *, for_transformers: bool = False) -> ModelConfig:
    """Any config that config.json has words for; or that transformers has."""
    small, groups, window = st.integers(1, 1000), draw(st.integers(1, 8)), draw(st.integers(1, 300))
    router = st.sampled_from(["learned", "hash"])
    one = {"csa": draw(st.sampled_from([2, 4, 8])), "hca": draw(st.sampled_from([4, 16, 128]))}
    ratios = {
        kind: st.just(ratio) if for_transformers else st.sampled_from([2, 4, 64, 128]) for kind, ratio in one.items()
    }
    layer = st.one_of(
        st.builds(window_layer, window=st.just(window), router=router),
        st.builds(csa_layer, window=st.just(window), ratio=ratios["csa"], router=router),
        st.builds(hca_layer, window=st.just(window), ratio=ratios["hca"], router=router),
    )
    vocab_size, num_experts = draw(st.integers(10, 1 << 20)), draw(small)
    token = st.integers(0, vocab_size - 1)
    dspark = draw(st.booleans())
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=draw(small),
        num_heads=groups * draw(st.integers(1, 64)),
        head_dim=draw(st.sampled_from([32, 64, 512])),
        rope_dim=draw(st.sampled_from([2, 8, 16])),
        query_rank=draw(small),
        num_output_groups=groups,
        output_rank=draw(small),
        num_index_heads=draw(small),
        index_head_dim=draw(st.sampled_from([16, 128])),
        index_topk=draw(small),
        num_experts=num_experts,
        num_experts_per_token=draw(st.integers(1, num_experts)),
        expert_dim=draw(small),
        routed_scaling_factor=draw(st.floats(0.0, 1e4)),
        swiglu_limit=draw(st.floats(1e-6, 1e6) if for_transformers else st.none() | st.floats(1e-6, 1e6)),
        num_streams=draw(st.integers(1, 16)),
        sinkhorn_iterations=draw(st.integers(1, 1000)),
        hc_eps=draw(st.floats(0.0, 1.0)),
        norm_eps=draw(st.floats(0.0, 1.0)),
        rope=draw(rotations(yarn=False if for_transformers else None)),
        compressed_rope=draw(rotations(yarn=True if for_transformers else None)),
        max_positions=draw(st.integers(1, 1 << 24)),
        bos_id=draw(st.none() | token),
        eos_ids=tuple(draw(st.lists(token, max_size=4))),
        layers=tuple(draw(st.lists(layer, min_size=1, max_size=12))),
        mtp_layers=() if dspark else (window_layer(window=window),) * draw(st.integers(0, 3)),
        num_dspark_blocks=draw(st.integers(1, 16)) if dspark else 0,
        dspark_markov_rank=draw(small) if dspark else None,
        activation_dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        storage=draw(st.sampled_from(["bfloat16", "float32"] + ["official", "base"] * (not for_transformers))),
        official_rounding=draw(st.booleans()),
    )


@settings(max_examples=100)
@given(configs())
def test_valid_configs_survive(config: ModelConfig) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_written_json_shares_nothing() -> None:
    config_to_json(preset("flash"))["quantization_config"]["weight_block_size"].append(7)
    assert config_to_json(preset("flash"))["quantization_config"]["weight_block_size"] == [128, 128]


@pytest.mark.parametrize(
    "layer",
    [
        window_layer(window=17),
        dataclasses.replace(csa_layer(window=16), overlap=False),
        dataclasses.replace(hca_layer(window=16), overlap=True),
        dataclasses.replace(hca_layer(window=16), rotation="main"),
    ],
)
def test_layers_without_words_are_refused(layer: Any) -> None:
    layers = preset("tiny").layers
    config = dataclasses.replace(preset("tiny"), layers=(*layers[:2], layer))
    with pytest.raises(ConfigError, match=rf"^layers\[2\] must be a plain {layer.kind} layer of window 16"):
        config_to_json(config)


# transformers


@settings(max_examples=40)
@given(configs(for_transformers=True))
def test_transformers_reads_what_we_write(config: ModelConfig) -> None:
    check_transformers(config)


def test_transformers_reads_tiny() -> None:
    check_transformers(preset("tiny"))


def check_transformers(config: ModelConfig) -> None:
    theirs = DeepseekV4Config(**config_to_json(config))
    assert theirs.layer_types == [{"window": SWA, "csa": CSA, "hca": HCA}[layer.kind] for layer in config.layers]
    assert theirs.mlp_layer_types == [{"hash": "hash_moe", "learned": "moe"}[layer.router] for layer in config.layers]
    for layer_type, layer in zip(theirs.layer_types, config.layers, strict=True):
        assert theirs.compress_rates.get(layer_type) == layer.ratio
    main, compress = theirs.rope_parameters["main"], theirs.rope_parameters["compress"]
    yarn = config.compressed_rope.yarn
    assert yarn is not None
    assert (main["rope_type"], main["rope_theta"]) == ("default", config.rope.theta)
    assert (compress["rope_type"], compress["rope_theta"]) == ("yarn", config.compressed_rope.theta)
    assert compress["factor"] == yarn.factor
    assert compress["original_max_position_embeddings"] == yarn.original_positions
    assert (compress["beta_fast"], compress["beta_slow"]) == (yarn.beta_fast, yarn.beta_slow)
    assert compress["attention_factor"] == 1.0
    assert theirs.qk_rope_head_dim == config.rope_dim
    assert theirs.swiglu_limit == config.swiglu_limit
    assert theirs.sliding_window == config.layers[0].window
    assert theirs.vocab_size == config.vocab_size
    assert theirs.index_topk == config.index_topk
    assert theirs.tie_word_embeddings is False
    assert str(theirs.dtype).removeprefix("torch.") == config_to_json(config)["torch_dtype"]


@settings(max_examples=40)
@given(configs(for_transformers=True))
def test_we_read_what_transformers_writes(config: ModelConfig) -> None:
    written = json.loads(DeepseekV4Config(**config_to_json(config)).to_json_string())
    assert "compress_ratios" not in written
    assert "rope_scaling" not in written
    if not config.num_dspark_blocks:  # their number stands in compress_ratios
        assert config_from_json(written) == config


# Spellings


def nested_rope(data: dict[str, Any]) -> None:
    yarn = data.pop("rope_scaling")
    yarn["rope_type"] = yarn.pop("type")
    data["rope_parameters"] = {
        "main": {"rope_type": "default", "rope_theta": data.pop("rope_theta"), "partial_rotary_factor": 0.25},
        "compress": {**yarn, "rope_theta": data.pop("compress_rope_theta"), "attention_factor": 1.0},
    }


def flat_rope(data: dict[str, Any]) -> None:
    data["rope_parameters"] = data.pop("rope_scaling")


def both_ropes(data: dict[str, Any]) -> None:
    data["rope_parameters"] = {
        "main": {"rope_type": "default", "rope_theta": data["rope_theta"]},
        "compress": {**data["rope_scaling"], "rope_theta": data["compress_rope_theta"]},
    }


def official_layers(data: dict[str, Any]) -> None:
    for name in ("layer_types", "compress_rates", "mlp_layer_types"):
        del data[name]


def transformers_layers(data: dict[str, Any]) -> None:
    del data["compress_ratios"], data["num_hash_layers"]


def flat_rates(data: dict[str, Any]) -> None:
    transformers_layers(data)
    del data["compress_rates"]
    data |= {"compress_rate_csa": 4, "compress_rate_hca": 128}


@pytest.mark.parametrize(
    "change",
    [
        nested_rope,
        flat_rope,
        both_ropes,
        official_layers,
        transformers_layers,
        flat_rates,
        lambda data: data.update(dtype=data.pop("torch_dtype")),
        lambda data: data.update(dtype=data["torch_dtype"]),
        lambda data: data.update(partial_rotary_factor=data.pop("qk_rope_head_dim") / 32),
        lambda data: data.update(partial_rotary_factor=0.25),
        lambda data: data.update(eos_token_id=[1]),
        lambda data: data.pop("eos_token_id"),
        lambda data: data.pop("num_nextn_predict_layers"),
        lambda data: data.update(rope_scaling={"rope_type": data["rope_scaling"].pop("type"), **data["rope_scaling"]}),
        lambda data: [data["rope_scaling"].pop(name) for name in ("beta_fast", "beta_slow")],
        lambda data: [data.pop(name) for name in ("hc_mult", "hc_sinkhorn_iters", "hc_eps", "rms_norm_eps")],
        lambda data: [data.pop(name) for name in ("hidden_act", "scoring_func", "topk_method", "n_shared_experts")],
        lambda data: data.update(quantization_config=None, unknown=None, rope_theta=10000),
    ],
)
def test_spellings_of_tiny(change: Change, caplog: pytest.LogCaptureFixture) -> None:
    data = copy.deepcopy(TINY)
    change(data)
    assert config_from_json(data) == preset("tiny")
    assert not caplog.records


def test_no_swiglu_limit() -> None:
    for limit in (0, 0.0):
        assert config_from_json(tiny(swiglu_limit=limit)).swiglu_limit is None
    assert config_from_json(TINY | {"swiglu_limit": None}).swiglu_limit is None
    assert config_to_json(config_from_json(tiny(swiglu_limit=0)))["swiglu_limit"] == 0.0


def test_null_ids_mean_none() -> None:
    config = config_from_json(TINY | {"bos_token_id": None, "eos_token_id": None})
    assert (config.bos_id, config.eos_ids) == (None, ())


def test_no_draft_blocks() -> None:
    assert config_from_json(tiny(num_nextn_predict_layers=0)).mtp_layers == ()
    assert len(config_from_json(tiny(compress_ratios=TINY["compress_ratios"][:5])).mtp_layers) == 1


def test_ratios_decide_kinds_unless_types_do() -> None:
    ratios = {"compress_ratios": [0, 4, 8, 2, 128], "layer_types": None, "compress_rates": None}
    layers = config_from_json(tiny(**ratios)).layers
    assert [(layer.kind, layer.ratio) for layer in layers] == [
        ("window", None), ("csa", 4), ("hca", 8), ("hca", 2), ("hca", 128),
    ]  # fmt: skip
    ratios["layer_types"] = [SWA, HCA, CSA, CSA, HCA]
    layers = config_from_json(tiny(**ratios)).layers
    assert [layer.kind for layer in layers] == ["window", "hca", "csa", "csa", "hca"]


def test_windows_only_needs_no_second_rotation() -> None:
    data = tiny(compress_ratios=[0] * 5, layer_types=None, compress_rates=None, rope_scaling=None)
    assert config_from_json(data).compressed_rope == RopeConfig(theta=160000.0)
    del data["compress_rope_theta"]
    assert config_from_json(data).compressed_rope == RopeConfig(theta=10000.0)


def test_plain_rotation_of_compressed_layers_must_be_said() -> None:
    config = config_from_json(tiny(rope_scaling={"type": "default"}))
    assert config.compressed_rope == RopeConfig(theta=160000.0)


def test_rounding_follows_quantization_unless_said_otherwise() -> None:
    assert not config_from_json(TINY).official_rounding
    assert config_from_json(tiny(official_rounding=True)).official_rounding
    assert not config_from_json(FLASH | {"official_rounding": False}).official_rounding


def test_dtype_says_storage() -> None:
    for dtype, storage in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")):
        config = config_from_json(tiny(torch_dtype=dtype))
        assert (config.storage, config.activation_dtype) == (storage, dtype)
    config = config_from_json(tiny(torch_dtype="bfloat16", activation_dtype="float32"))
    assert (config.storage, config.activation_dtype) == ("bfloat16", "float32")


def test_expert_dtype_inside_quantization_config() -> None:
    inside = FLASH["quantization_config"] | {"expert_dtype": "fp4"}
    assert config_from_json(FLASH_BASE | {"quantization_config": inside}).storage == "official"


def test_unknown_fields_give_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = tiny(zeta=1, n_hash_layers=3, use_cache=False)
    data["rope_scaling"] = TINY["rope_scaling"] | {"alpha": 2, "mscale": 1.0}
    assert config_from_json(data) == preset("tiny")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    names = "'n_hash_layers', 'rope_scaling.alpha', 'zeta'"
    assert record.getMessage() == f"config.json has fields that have no effect here: {names}"


def test_released_files_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for data in RELEASED.values():
        config_from_json(data)
    assert not caplog.records


# Files


def test_read_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FLASH))
    assert read_config(tmp_path) == preset("flash")


def test_read_config_lists_problems(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny(vocab_size=-1, mlp_bias=True)))
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert caught.value.place == str(tmp_path / "config.json")
    assert caught.value.problems == [
        "mlp_bias must be false, got True",
        "vocab_size must be a whole number from 2 to 4194304, got -1",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("{", "must be JSON, but is not"),
        ("[]", "the file must hold a JSON object, got []"),
        ('{"vocab_size": NaN}', "must be JSON with unique keys and finite numbers"),
        ('{"a": 1, "a": 2}', "must be JSON with unique keys"),
        (" " * (1 << 21), "must have at most 1,048,576 bytes"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    [found] = caught.value.problems
    assert found.startswith(problem)

"""The table of tensors: shapes of published headers, published counts and bytes, and transformers' own modules."""

import dataclasses
import itertools

import pytest
from hf_oracle import official_tensors
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from pelagos.common.errors import ConfigError
from pelagos.model.config import ModelConfig
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import preset
from pelagos.model.tensors import stored_tensors, tensor_specs

# Copied from the headers of DeepSeek-V4-Flash (shards 2, 4, 5) and -Flash-0731 (shards 46 to 48).
FLASH_HEADERS = {
    "embed.weight": ("BF16", 129280, 4096),
    "head.weight": ("BF16", 129280, 4096),
    "norm.weight": ("BF16", 4096),
    "hc_head_fn": ("F32", 4, 16384),
    "hc_head_base": ("F32", 4),
    "hc_head_scale": ("F32", 1),
    "layers.0.attn_norm.weight": ("BF16", 4096),
    "layers.0.ffn_norm.weight": ("BF16", 4096),
    "layers.0.hc_attn_fn": ("F32", 24, 16384),
    "layers.0.hc_ffn_base": ("F32", 24),
    "layers.0.hc_ffn_scale": ("F32", 3),
    "layers.0.attn.wq_a.weight": ("F8_E4M3", 1024, 4096),
    "layers.0.attn.wq_a.scale": ("F8_E8M0", 8, 32),
    "layers.0.attn.q_norm.weight": ("BF16", 1024),
    "layers.0.attn.wq_b.weight": ("F8_E4M3", 32768, 1024),
    "layers.0.attn.wq_b.scale": ("F8_E8M0", 256, 8),
    "layers.0.attn.wkv.weight": ("F8_E4M3", 512, 4096),
    "layers.0.attn.wkv.scale": ("F8_E8M0", 4, 32),
    "layers.0.attn.kv_norm.weight": ("BF16", 512),
    "layers.0.attn.wo_a.weight": ("F8_E4M3", 8192, 4096),
    "layers.0.attn.wo_a.scale": ("F8_E8M0", 64, 32),
    "layers.0.attn.wo_b.weight": ("F8_E4M3", 4096, 8192),
    "layers.0.attn.wo_b.scale": ("F8_E8M0", 32, 64),
    "layers.0.attn.attn_sink": ("F32", 64),
    "layers.2.attn.compressor.ape": ("F32", 4, 1024),
    "layers.3.attn.compressor.ape": ("F32", 128, 512),
    "layers.2.attn.compressor.norm.weight": ("BF16", 512),
    "layers.2.attn.compressor.wkv.weight": ("BF16", 1024, 4096),
    "layers.3.attn.compressor.wgate.weight": ("BF16", 512, 4096),
    "layers.2.attn.indexer.wq_b.weight": ("F8_E4M3", 8192, 1024),
    "layers.2.attn.indexer.wq_b.scale": ("F8_E8M0", 64, 8),
    "layers.2.attn.indexer.weights_proj.weight": ("BF16", 64, 4096),
    "layers.2.attn.indexer.compressor.ape": ("F32", 4, 256),
    "layers.2.attn.indexer.compressor.norm.weight": ("BF16", 128),
    "layers.2.attn.indexer.compressor.wgate.weight": ("BF16", 256, 4096),
    "layers.0.ffn.gate.weight": ("BF16", 256, 4096),
    "layers.3.ffn.gate.bias": ("F32", 256),
    "layers.2.ffn.gate.tid2eid": ("I64", 129280, 6),
    "layers.0.ffn.shared_experts.w1.weight": ("F8_E4M3", 2048, 4096),
    "layers.0.ffn.shared_experts.w1.scale": ("F8_E8M0", 16, 32),
    "layers.0.ffn.shared_experts.w2.scale": ("F8_E8M0", 32, 16),
    "layers.0.ffn.experts.0.w1.weight": ("I8", 2048, 2048),
    "layers.0.ffn.experts.0.w1.scale": ("F8_E8M0", 2048, 128),
    "layers.42.ffn.experts.255.w2.weight": ("I8", 4096, 1024),
    "layers.42.ffn.experts.255.w2.scale": ("F8_E8M0", 4096, 64),
    "layers.42.ffn.experts.255.w3.scale": ("F8_E8M0", 2048, 128),
    "mtp.0.e_proj.weight": ("F8_E4M3", 4096, 4096),
    "mtp.0.h_proj.scale": ("F8_E8M0", 32, 32),
    "mtp.0.enorm.weight": ("BF16", 4096),
    "mtp.0.norm.weight": ("BF16", 4096),
    "mtp.0.hc_head_fn": ("F32", 4, 16384),
    "mtp.0.ffn.gate.bias": ("F32", 256),
}
DSPARK_HEADERS = {
    "mtp.0.main_proj.weight": ("F8_E4M3", 4096, 12288),
    "mtp.0.main_proj.scale": ("F8_E8M0", 32, 96),
    "mtp.0.main_norm.weight": ("BF16", 4096),
    "mtp.1.attn.wq_a.scale": ("F8_E8M0", 8, 32),
    "mtp.2.norm.weight": ("BF16", 4096),
    "mtp.2.hc_head_scale": ("F32", 1),
    "mtp.2.markov_head.markov_w1.weight": ("BF16", 129280, 256),
    "mtp.2.markov_head.markov_w2.weight": ("BF16", 129280, 256),
    "mtp.2.confidence_head.proj.weight": ("BF16", 1, 4352),
}
BASE_HEADERS = {
    "layers.0.attn.wq_a.scale": ("F32", 8, 32),
    "layers.0.ffn.experts.0.w1.weight": ("F8_E4M3", 2048, 4096),
    "layers.0.ffn.experts.0.w1.scale": ("F32", 16, 32),
}


def headers(config: ModelConfig) -> dict[str, tuple[str | int, ...]]:
    return {spec.name: (spec.dtype, *spec.shape) for spec in stored_tensors(config)}


@pytest.mark.parametrize(
    ("name", "published"),
    [("flash", FLASH_HEADERS), ("flash-0731", DSPARK_HEADERS), ("flash-base", BASE_HEADERS)],
)
def test_published_headers(name: str, published: dict[str, tuple[str | int, ...]]) -> None:
    ours = headers(preset(name))
    assert {tensor: ours.get(tensor) for tensor in published} == published


def test_names_that_do_not_exist() -> None:
    flash, dspark = headers(preset("flash")), headers(preset("flash-0731"))
    for name in (
        "layers.0.attn.compressor.ape",
        "layers.3.attn.indexer.wq_b.weight",
        "layers.2.ffn.gate.bias",
        "layers.3.ffn.gate.tid2eid",
        "mtp.0.ffn.gate.tid2eid",
        "mtp.0.attn.compressor.ape",
        "layers.0.attn.attn_sink.scale",
    ):
        assert name not in flash
    for name in ("mtp.0.e_proj.weight", "mtp.0.enorm.weight", "mtp.0.norm.weight", "mtp.1.main_proj.weight"):
        assert name not in dspark


@pytest.mark.parametrize("name", ["flash", "flash-0731", "tiny"])
def test_names_are_unique_and_in_order(name: str) -> None:
    names = [spec.name for spec in tensor_specs(preset(name))]
    assert len(set(names)) == len(names)
    groups = [group for group, _ in itertools.groupby(name.split(".")[0] for name in names)]
    assert groups == ["embed", "layers", "norm", "hc_head_fn", "hc_head_base", "hc_head_scale", "head", "mtp"]
    numbers = [int(name.split(".")[1]) for name in names if name.startswith("layers.")]
    assert numbers == sorted(numbers)


def test_scales_stand_right_behind_their_weight() -> None:
    names = [spec.name for spec in stored_tensors(preset("tiny"), "official")]
    scales = [place for place, name in enumerate(names) if name.endswith(".scale")]
    assert scales
    assert all(names[place - 1] == names[place].replace(".scale", ".weight") for place in scales)


def test_float_storages_keep_float32_and_ids() -> None:
    by_role = {spec.name: spec.role for spec in tensor_specs(preset("tiny"))}
    for storage, other in (("bfloat16", "BF16"), ("float32", "F32")):
        stored = list(stored_tensors(preset("tiny"), storage))
        assert [spec.name for spec in stored] == list(by_role)
        expected = {"float32": "F32", "ids": "I64"}
        assert all(spec.dtype == expected.get(by_role[spec.name], other) for spec in stored)


def test_default_storage_is_the_configs() -> None:
    config = dataclasses.replace(preset("tiny"), storage="base")
    assert list(stored_tensors(config)) == list(stored_tensors(preset("tiny"), "base"))


def test_edge_blocks_have_a_scale_of_their_own() -> None:
    stored = headers(dataclasses.replace(preset("tiny"), storage="official", hidden_size=160, expert_dim=136))
    assert stored["layers.0.attn.wq_a.scale"] == ("F8_E8M0", 1, 2)
    assert stored["layers.0.ffn.experts.0.w2.weight"] == ("I8", 160, 68)
    assert stored["layers.0.ffn.experts.0.w2.scale"] == ("F8_E8M0", 160, 5)


def test_fp4_refuses_an_odd_number_of_columns() -> None:
    config = dataclasses.replace(preset("tiny"), expert_dim=33)
    with pytest.raises(ConfigError, match=r"experts\.0\.w2\.weight must have an even number of columns .* got 33"):
        list(stored_tensors(config, "official"))
    assert list(stored_tensors(config, "base"))


def test_specs_are_made_one_by_one() -> None:
    huge = dataclasses.replace(preset("tiny"), num_experts=65536, layers=preset("tiny").layers * 200)
    first = list(itertools.islice(tensor_specs(huge), 5))
    assert first[0].name == "embed.weight"
    assert first[1].name == "layers.0.attn_norm.weight"


def test_names_and_shapes_are_those_of_transformers() -> None:
    config = dataclasses.replace(preset("tiny"), mtp_layers=())
    oracle = DeepseekV4ForCausalLM(DeepseekV4Config(**config_to_json(config)))
    expected = {name: tuple(tensor.shape) for name, tensor in official_tensors(oracle).items()}
    assert {spec.name: spec.shape for spec in tensor_specs(config)} == expected

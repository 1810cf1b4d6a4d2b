"""Costs against published numbers, the report's formulas, transformers' modules and the real state of a sequence."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from pelagos.model.accounting import (
    RowFormat,
    bytes_read_per_token,
    checkpoint_totals,
    flops_per_token,
    parameters,
    state_bytes,
)
from pelagos.model.config import ModelConfig, csa_layer, hca_layer, window_layer
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import PRESETS, preset
from pelagos.model.tensors import stored_tensors, tensor_specs
from pelagos.model.transformer import Model

MILLION = 1 << 20


@pytest.mark.parametrize(
    ("name", "total", "with_drafts", "hub_counter", "active", "active_with_embedding"),
    [
        ("flash", 284_332_240_471, 290_942_289_362, 290_944_616_402, 13_270_101_591, 13_799_632_471),
        ("flash-base", 284_332_240_471, 290_942_289_362, 290_944_616_402, 13_270_101_591, 13_799_632_471),
        ("flash-0731", 284_332_240_471, 304_178_091_454, 304_180_418_494, 13_270_101_591, 13_799_632_471),
        ("pro", 1_572_997_201_763, 1_598_837_347_742, 1_598_839_674_782, 48_852_402_019, 49_779_081_059),
        ("pro-0813", 1_572_997_201_763, 1_650_495_609_866, 1_650_497_936_906, 48_852_402_019, 49_779_081_059),
    ],
)
def test_published_parameters(
    name: str, total: int, with_drafts: int, hub_counter: int, active: int, active_with_embedding: int
) -> None:
    counts = parameters(preset(name))
    assert counts.total == total
    assert counts.total + counts.mtp + counts.dspark == with_drafts
    assert counts.total + counts.mtp + counts.dspark + counts.ids == hub_counter
    assert counts.active == active
    assert counts.active_with_embedding == active_with_embedding
    assert (counts.mtp == 0, counts.dspark == 0) == (("-0" in name), ("-0" not in name))


@pytest.mark.parametrize("name", PRESETS)
def test_parts_add_up(name: str) -> None:
    counts = parameters(preset(name))
    assert sum(counts.by_part.values()) == counts.total
    assert min(counts.by_part.values()) > 0


def test_parameters_of_tiny_are_those_of_transformers() -> None:
    config = preset("tiny")
    oracle = DeepseekV4ForCausalLM(DeepseekV4Config(**config_to_json(config)))
    buffers = dict(oracle.named_buffers())
    biases = sum(tensor.numel() for name, tensor in buffers.items() if name.endswith("e_score_correction_bias"))
    counts = parameters(config)
    assert counts.total == sum(tensor.numel() for tensor in oracle.parameters()) + biases
    assert counts.ids == sum(tensor.numel() for name, tensor in buffers.items() if name.endswith("tid2eid"))
    assert counts.ids == 2 * config.vocab_size * config.num_experts_per_token


def formula(config: ModelConfig, num_experts: int) -> int:
    """Parameters of the main model by the closed form, with that many routed experts per layer."""
    D, H, C, Rq, M = config.hidden_size, config.num_heads, config.head_dim, config.query_rank, config.num_streams
    G, Og, Hi, Ci = config.num_output_groups, config.output_rank, config.num_index_heads, config.index_head_dim
    total = 2 * config.vocab_size * D + D + M * M * D + M + 1
    for layer in config.layers:
        m = layer.ratio or 0
        total += D * Rq + Rq + Rq * H * C + D * C + C + H * C * Og + G * Og * D + H
        if layer.kind == "csa":
            total += 2 * D * 2 * C + m * 2 * C + C + Rq * Hi * Ci + D * Hi + 2 * D * 2 * Ci + m * 2 * Ci + Ci
        if layer.kind == "hca":
            total += 2 * D * C + m * C + C
        total += 2 * D + 2 * ((2 + M) * M * M * D + (2 + M) * M + 3)
        total += config.num_experts * D + (config.num_experts if layer.router == "learned" else 0)
        total += (num_experts + 1) * 3 * D * config.expert_dim
    return total


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    groups = draw(st.integers(1, 4))
    window, ratio = draw(st.integers(1, 200)), st.sampled_from([2, 4, 8, 64, 128])
    router = st.sampled_from(["learned", "hash"])
    layer = st.one_of(
        st.builds(window_layer, window=st.just(window), router=router),
        st.builds(csa_layer, window=st.just(window), ratio=ratio, router=router),
        st.builds(hca_layer, window=st.just(window), ratio=ratio, router=router),
    )
    return dataclasses.replace(
        preset("tiny"),
        vocab_size=draw(st.integers(8, 99)),
        hidden_size=draw(st.integers(1, 70)),
        num_heads=groups * draw(st.integers(1, 3)),
        num_output_groups=groups,
        query_rank=draw(st.integers(1, 40)),
        output_rank=draw(st.integers(1, 40)),
        num_index_heads=draw(st.integers(1, 5)),
        num_experts=draw(st.integers(2, 9)),
        expert_dim=draw(st.integers(1, 40)),
        num_streams=draw(st.integers(1, 5)),
        layers=tuple(draw(st.lists(layer, min_size=1, max_size=9))),
    )


@settings(max_examples=60)
@given(configs())
def test_parameters_follow_the_formula(config: ModelConfig) -> None:
    counts = parameters(config)
    assert counts.total == formula(config, config.num_experts)
    assert counts.active_with_embedding == formula(config, config.num_experts_per_token)
    assert counts.active == counts.active_with_embedding - config.vocab_size * config.hidden_size


@pytest.mark.parametrize(
    ("name", "main_names", "main_bytes", "num_names", "num_bytes"),
    [
        ("flash", 67_612, 156_015_698_140, 69_187, 159_609_485_896),
        ("flash-0731", 67_612, 156_015_698_140, 72_317, 166_878_536_440),
        ("pro", 142_773, 850_748_205_004, 145_116, 864_704_792_696),
        ("pro-0813", 142_773, 850_748_205_004, 149_782, 892_727_580_904),
    ],
)
def test_published_checkpoints(name: str, main_names: int, main_bytes: int, num_names: int, num_bytes: int) -> None:
    config = preset(name)
    assert checkpoint_totals(config) == (num_names, num_bytes)
    main = dataclasses.replace(config, mtp_layers=(), num_dspark_blocks=0, dspark_markov_rank=None)
    assert checkpoint_totals(main) == (main_names, main_bytes)


def test_published_flash_base() -> None:
    num_names, num_bytes = checkpoint_totals(preset("flash-base"))
    copies = 2 * 2 * 129280 * 4096  # its mtp.0 has a BF16 embedding and head of its own, which nothing reads
    assert (num_names + 2, num_bytes + copies) == (69_189, 294_673_469_000)


@settings(max_examples=20)
@given(configs(), st.sampled_from(["base", "bfloat16", "float32"]))
def test_totals_are_sums_over_all_tensors(config: ModelConfig, storage: str) -> None:
    stored = list(stored_tensors(config, storage))  # type: ignore[arg-type]
    assert checkpoint_totals(config, storage) == (len(stored), sum(s.num_bytes for s in stored))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row_format", "flash", "pro"),
    [
        ("fp8_fp4", 3514.25, 5031.4375),
        ("fp8_fp8", 3850.25, 5511.4375),
        ("bfloat16", 6880.0, 9848.0),
        ("float32", 13760.0, 19696.0),
    ],
)
def test_published_state_per_token(row_format: RowFormat, flash: float, pro: float) -> None:
    assert state_bytes(preset("flash"), row_format).per_token == flash
    assert state_bytes(preset("pro"), row_format).per_token == pro


def test_published_state_against_v32() -> None:
    v32 = 61 * (656 + 132)
    assert round(100 * state_bytes(preset("flash")).per_token / v32, 1) == 7.3
    assert round(100 * state_bytes(preset("pro")).per_token / v32, 1) == 10.5


def test_published_fixed_state() -> None:
    flash = state_bytes(preset("flash"))
    assert flash.window == 3_214_336
    assert state_bytes(preset("pro")).window == 4_559_872
    assert flash.open_windows + flash.overlaps == 21 * (40_960 + 10_240) + 20 * 520_192
    assert flash.overlaps == 21 * (16_384 + 4_096)


def test_state_is_what_a_sequence_really_keeps() -> None:
    model = Model.load("tiny", implementation="reference")
    config, expected = model.config, state_bytes(model.config, "float32")
    state = model.new_state()
    unused = len(config.layers) * 4 * config.head_dim  # the newest row of a window is not kept for the next token
    sizes = {}
    for start, stop in ((0, 256), (256, 383), (383, 384)):
        model.step([7] * (stop - start), state)
        sizes[stop] = state.num_bytes
    full = expected.window - unused + expected.overlaps
    assert sizes[256] == full + 256 * expected.per_token
    assert sizes[384] == full + 384 * expected.per_token
    open_rows = sum((383 // layer.ratio) * 4 * config.head_dim for layer in config.layers if layer.ratio)
    index_rows = sum((383 // 4) * 4 * config.index_head_dim for layer in config.layers if layer.kind == "csa")
    assert sizes[383] == full + open_rows + index_rows + expected.open_windows


@pytest.mark.parametrize(
    ("name", "dense", "csa", "hca", "indexer", "total", "of_v32", "equivalent"),
    [
        ("flash", 26.5, 1.8, 21.8, 90.2, 140.3, 12.1, (10.0, 10.4)),
        ("pro", 97.7, 9.1, 67.6, 128.8, 303.2, 26.2, (26.5, 27.5)),
    ],
)
def test_published_flops_at_a_million(
    name: str,
    dense: float,
    csa: float,
    hca: float,
    indexer: float,
    total: float,
    of_v32: float,
    equivalent: tuple[float, float],
) -> None:
    config = preset(name)
    flops = flops_per_token(config, MILLION)
    parts = (flops.dense, flops.csa, flops.hca, flops.indexer, flops.total)
    assert [round(part / 1e9, 1) for part in parts] == [dense, csa, hca, indexer, total]
    v32_dense, v32_indexer, v32_core = 74e9, 61 * 64 * 128 * 2 * MILLION, 61 * 128 * 2048 * (576 + 512) * 2
    assert round(100 * flops.total / (v32_dense + v32_indexer + v32_core), 1) == of_v32
    # In units of an FP8 product BF16 attention counts 2 and FP4 scores 1/2; at most BF16 matrices count 2 as well.
    least = flops.dense + 2 * (flops.window + flops.csa + flops.hca) + flops.indexer / 2
    twice = (".wo_a.", "compressor.w", "ffn.gate.weight", "head.weight")
    main = dataclasses.replace(config, mtp_layers=())
    in_bf16 = sum(math.prod(spec.shape) for spec in tensor_specs(main) if any(word in spec.name for word in twice))
    v32 = v32_dense + 2 * v32_core + v32_indexer
    assert tuple(round(100 * value / v32, 1) for value in (least, least + 2 * in_bf16)) == equivalent


def test_flops_exactly() -> None:
    flash = flops_per_token(preset("flash"), MILLION)
    assert flash.dense == 2 * 13_270_101_591
    assert flash.window == 2 * 64 * 128 * 512 * 4
    assert flash.csa == 21 * 64 * (512 + 128) * 512 * 4
    assert flash.hca == 20 * 64 * (8192 + 128) * 512 * 4
    assert flash.indexer == 21 * 64 * 128 * 2 * 262_144


def test_flops_of_short_contexts() -> None:
    config = preset("flash")
    one = flops_per_token(config, 1)
    assert (one.window, one.csa, one.hca, one.indexer) == (2 * 131_072, 21 * 131_072, 20 * 131_072, 0)
    assert flops_per_token(config, 2051).indexer == 0  # 512 rows, all of them kept
    assert flops_per_token(config, 2052).indexer == 21 * 64 * 128 * 2 * 513
    assert flops_per_token(config, 2052).csa == flops_per_token(config, MILLION).csa


def read_weights(config: ModelConfig, storage: str) -> int:
    """Bytes of one row of the tables, of the first experts, and of everything else in the main model."""
    total = 0
    for spec in stored_tensors(config, storage):  # type: ignore[arg-type]
        words = spec.name.split(".")
        if words[0] == "mtp" or ("experts" in words and int(words[4]) >= config.num_experts_per_token):
            continue
        total += spec.num_bytes // (config.vocab_size if words[0] == "embed" or words[-1] == "tid2eid" else 1)
    return total


@pytest.mark.parametrize("storage", ["official", "base", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["flash", "tiny"])
def test_weights_read_per_token(name: str, storage: str) -> None:
    config = preset(name)
    assert bytes_read_per_token(config, 1, storage).weights == read_weights(config, storage)  # type: ignore[arg-type]


def test_state_read_per_token() -> None:
    read = bytes_read_per_token(preset("flash"), MILLION)
    assert read.state == 43 * 128 * 584 + 21 * (512 * 584 + 262_144 * 68) + 20 * 8192 * 584
    assert read.total == read.weights + read.state
    assert bytes_read_per_token(preset("flash"), 1024).state == 43 * 128 * 584 + 21 * 256 * 584 + 20 * 8 * 584
    assert bytes_read_per_token(preset("flash"), 1).state == 43 * 584

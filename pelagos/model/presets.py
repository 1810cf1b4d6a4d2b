"""Ready-made configs: the released models and ``tiny``, which has every part of them and runs in milliseconds.

Sources: sections 4.2.1 and 2.3 of the technical report (arXiv 2606.19348) and the released config.json files.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pelagos.common.errors import UsageError
from pelagos.model.config import (
    LayerConfig,
    ModelConfig,
    RopeConfig,
    YarnConfig,
    csa_layer,
    hca_layer,
    window_layer,
)

_WINDOW = 128
_NUM_HASH_LAYERS = 3
_RELEASED: dict[str, Any] = {
    "vocab_size": 129280,
    "head_dim": 512,
    "rope_dim": 64,
    "output_rank": 1024,
    "num_index_heads": 64,
    "index_head_dim": 128,
    "num_experts_per_token": 6,
    "swiglu_limit": 10.0,
    "rope": RopeConfig(theta=10000.0),
    "compressed_rope": RopeConfig(theta=160000.0, yarn=YarnConfig(factor=16.0, original_positions=65536)),
    "mtp_layers": (window_layer(window=_WINDOW),),
    "storage": "official",
    "official_rounding": True,
}


def _layers(*ratios: int) -> tuple[LayerConfig, ...]:
    kinds: dict[int, Callable[..., LayerConfig]] = {0: window_layer, 4: csa_layer, 128: hca_layer}
    return tuple(
        kinds[ratio](window=_WINDOW, router="hash" if number < _NUM_HASH_LAYERS else "learned")
        for number, ratio in enumerate(ratios)
    )


def _flash() -> ModelConfig:
    return ModelConfig(
        hidden_size=4096,
        num_heads=64,
        query_rank=1024,
        num_output_groups=8,
        index_topk=512,
        num_experts=256,
        expert_dim=2048,
        routed_scaling_factor=1.5,
        layers=_layers(0, 0, *(4, 128) * 20, 4),
        **_RELEASED,
    )


def _pro() -> ModelConfig:
    return ModelConfig(
        hidden_size=7168,
        num_heads=128,
        query_rank=1536,
        num_output_groups=16,
        index_topk=1024,
        num_experts=384,
        expert_dim=3072,
        routed_scaling_factor=2.5,
        layers=_layers(128, 128, *(4, 128) * 29, 4),
        **_RELEASED,
    )


def _with_dspark(config: ModelConfig, *, rank: int) -> ModelConfig:
    return dataclasses.replace(config, mtp_layers=(), num_dspark_blocks=3, dspark_markov_rank=rank)


def _tiny() -> ModelConfig:
    window = 16
    return ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_heads=4,
        head_dim=32,
        rope_dim=8,
        query_rank=32,
        num_output_groups=2,
        output_rank=16,
        num_index_heads=4,
        index_head_dim=16,
        index_topk=8,
        num_experts=8,
        num_experts_per_token=2,
        expert_dim=32,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
        rope=RopeConfig(theta=10000.0),
        compressed_rope=RopeConfig(theta=160000.0, yarn=YarnConfig(factor=16.0, original_positions=256)),
        max_positions=4096,
        layers=(
            window_layer(window=window, router="hash"),
            csa_layer(window=window, router="hash"),
            hca_layer(window=window),
            csa_layer(window=window),
            hca_layer(window=window),
        ),
        mtp_layers=(window_layer(window=window),),
        activation_dtype="float32",
        storage="float32",
    )


PRESETS: Mapping[str, Callable[[], ModelConfig]] = {
    "flash": _flash,
    "flash-0731": lambda: _with_dspark(_flash(), rank=256),
    "flash-base": lambda: dataclasses.replace(_flash(), storage="base"),
    "pro": _pro,
    "pro-0813": lambda: _with_dspark(_pro(), rank=512),
    "tiny": _tiny,
}


def preset(name: str) -> ModelConfig:
    """The config of a preset. Raises UsageError that lists the names when there is no such preset."""
    if name not in PRESETS:
        raise UsageError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()

"""config.json, from and to.

The official field names are written, together with ``layer_types``, ``mlp_layer_types`` and ``compress_rates`` for
transformers. Both spellings are read, older and newer ones. Two fields are our own, written only where they are needed:
``official_rounding`` (default: whether there is a quantization_config) and ``activation_dtype`` (default: torch_dtype).

Nothing that changes what the model computes is guessed: the layer list, the routers and the rotation must be there, and
facts of the architecture must hold. transformers fills in defaults of its own for some of these, another model's.
"""

import copy
import logging
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelagos.common.errors import CheckpointError, ConfigError, UsageError
from pelagos.common.fields import check_value, show
from pelagos.common.files import read_json
from pelagos.model.config import ModelConfig
from pelagos.model.json_fields import JsonFields
from pelagos.model.layers_json import layers_to_json, read_layers
from pelagos.model.rotations_json import read_rotations, rotations_to_json

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1 << 20
_MAX_WARNED = 20
_MAX_TOKEN_ID = 1 << 22

# Fields of ModelConfig that stand in config.json as they are, by another name.
_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "head_dim": "head_dim",
    "query_rank": "q_lora_rank",
    "num_output_groups": "o_groups",
    "output_rank": "o_lora_rank",
    "num_index_heads": "index_n_heads",
    "index_head_dim": "index_head_dim",
    "index_topk": "index_topk",
    "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "expert_dim": "moe_intermediate_size",
    "routed_scaling_factor": "routed_scaling_factor",
    "num_streams": "hc_mult",
    "sinkhorn_iterations": "hc_sinkhorn_iters",
    "hc_eps": "hc_eps",
    "norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
    "bos_id": "bos_token_id",
}
_NAMES_IN_MESSAGES = {
    **_NAMES,
    "rope_dim": "qk_rope_head_dim",
    "eos_ids": "eos_token_id",
    "num_dspark_blocks": "dspark_block_size",
    "mtp_layers": "num_nextn_predict_layers",
}

# What this code computes and nothing else. The first are written too; absent means the same.
_ARCHITECTURE = {
    "hidden_act": "silu",
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_OTHER_MODELS = {"mlp_bias": False, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "moe_layer_freq": 1}
_QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
}
_QUANTIZATION_REQUIRED = ("quant_method", "scale_fmt", "weight_block_size")

# No influence on what is computed here.
_IGNORED = frozenset((
    "model_type", "architectures", "transformers_version", "use_cache", "initializer_range", "attention_dropout",
    "pad_token_id", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha",
    "seq_aux", "ep_size", "pretraining_tp", "auto_map", "name_or_path", "_name_or_path", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder", "problem_type",
    "id2label", "label2id", "dspark_noise_token_id", "dspark_target_layer_ids",
))  # fmt: skip
_IGNORED_QUANTIZATION = frozenset({"modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize"})
_DTYPES = ("bfloat16", "float32", "float16")


def read_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder. Raises CheckpointError with every problem of its config.json."""
    path = Path(folder) / "config.json"
    try:
        config, problems = _convert(read_json(path, _MAX_FILE_BYTES))
    except UsageError as error:
        raise CheckpointError(str(path), [str(error).removeprefix(f"{path} ")]) from None
    if config is None:
        raise CheckpointError(str(path), problems)
    return config


def config_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """The config that a parsed config.json describes. Raises ConfigError with every problem in one message."""
    config, problems = _convert(data)
    if config is None:
        raise ConfigError("; ".join(problems))
    return config


def _convert(data: object) -> tuple[ModelConfig | None, list[str]]:
    """A config, or None and why not."""
    if not isinstance(data, Mapping):
        return None, [f"the file must hold a JSON object, got {show(data)}"]
    if (model_type := data.get("model_type")) != "deepseek_v4":
        known = "DeepSeek-V4.1 is not supported yet: " if model_type == "deepseek_v41" else ""
        return None, [f"{known}model_type must be 'deepseek_v4', got {show(model_type)}"]
    fields = JsonFields(data, ignored=_IGNORED)
    values = _read_values(fields)
    _warn_of(sorted(fields.unread()))
    if fields.problems:
        return None, fields.problems
    try:
        return ModelConfig(**values), []
    except ConfigError as error:
        words = re.compile(r"\b(" + "|".join(_NAMES_IN_MESSAGES) + r")\b")
        return None, [words.sub(lambda match: _NAMES_IN_MESSAGES[match[0]], str(error))]


def _warn_of(names: list[str]) -> None:
    if names:
        shown = ", ".join(map(show, names[:_MAX_WARNED])) + (", ..." if len(names) > _MAX_WARNED else "")
        logger.warning("config.json has fields that have no effect here: %s", shown)


def _read_values(fields: JsonFields) -> dict[str, Any]:
    for name, expected in (_ARCHITECTURE | _OTHER_MODELS).items():
        fields.fixed(name, expected)
    values = {field: fields.read(name, ModelConfig, field) for field, name in _NAMES.items()}
    values["rope_dim"] = _read_rope_dim(fields, values["head_dim"])
    values["swiglu_limit"] = _read_swiglu_limit(fields)
    values["eos_ids"] = _read_eos_ids(fields)
    values |= _read_storage(fields)
    values |= read_layers(fields)
    compressed = any(layer.ratio is not None for layer in values.get("layers", ()))
    return values | read_rotations(fields, compressed)


def _read_swiglu_limit(fields: JsonFields) -> float | None:
    value = fields.get("swiglu_limit")
    if type(value) in (int, float) and value == 0:  # the official spelling of no limit
        return None
    return typing.cast(float | None, fields.read("swiglu_limit", ModelConfig, "swiglu_limit"))


def _read_rope_dim(fields: JsonFields, head_dim: int | None) -> int | None:
    factor = fields.get("partial_rotary_factor")
    if factor is not None:
        try:
            check_value("partial_rotary_factor", factor, float, low=0.0, high=1.0)
        except ConfigError as error:
            fields.problems.append(str(error))
            return None
    if factor is None or head_dim is None or fields.has("qk_rope_head_dim"):
        rope_dim = fields.read("qk_rope_head_dim", ModelConfig, "rope_dim")
        if None not in (factor, head_dim, rope_dim) and abs(head_dim * factor - rope_dim) >= 1:
            fields.problem(
                f"partial_rotary_factor must be qk_rope_head_dim / head_dim ({rope_dim / head_dim:g}), got {factor:g}"
            )
        return typing.cast(int | None, rope_dim)
    rope_dim = round(head_dim * typing.cast(float, factor))
    if rope_dim < 2 or abs(head_dim * factor - rope_dim) > 1e-3:
        fields.problem(
            f"partial_rotary_factor times head_dim must be a whole number from 2 on, got {head_dim * factor:g}"
        )
    return rope_dim


def _read_eos_ids(fields: JsonFields) -> tuple[int, ...] | None:
    if "eos_token_id" not in fields:
        return (1,)
    value = fields.get("eos_token_id")
    ids = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not all(type(token) is int and 0 <= token <= _MAX_TOKEN_ID for token in ids):
        fields.problem(f"eos_token_id must be a token id or a list of them, got {show(value)}")
        return None
    return tuple(ids)


def _read_storage(fields: JsonFields) -> dict[str, Any]:
    """How weights are stored, and the dtype and rounding that this implies unless our own fields say otherwise."""
    dtypes = {name: fields.choice(name, _DTYPES) for name in ("torch_dtype", "dtype") if fields.has(name)}
    if len({*dtypes.values()} - {None}) > 1:
        fields.problem(f"dtype must be the same as torch_dtype ({dtypes['torch_dtype']!r}), got {dtypes['dtype']!r}")
    dtype = next(iter(dtypes.values()), None) or _DTYPES[0]
    expert_dtypes = [fields.choice("expert_dtype", ("fp4", "fp8"))]
    quantization = fields.inner("quantization_config", ignored=_IGNORED_QUANTIZATION)
    if quantization is None:
        storage = "float32" if dtype == "float32" else "bfloat16"
    else:
        for name, expected in _QUANTIZATION.items():
            quantization.fixed(name, expected, required=name in _QUANTIZATION_REQUIRED)
        expert_dtypes.append(quantization.choice("expert_dtype", ("fp4", "fp8")))
        if {"fp4", "fp8"} <= {*expert_dtypes}:
            fields.problem("expert_dtype must be the same as quantization_config.expert_dtype")
        storage = "official" if "fp4" in expert_dtypes else "base"
    rounding = fields.flag("official_rounding")
    return {
        "storage": storage,
        "activation_dtype": fields.choice("activation_dtype", _DTYPES) or dtype,
        "official_rounding": quantization is not None if rounding is None else rounding,
    }


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """What to write to config.json; ``config_from_json`` gives the same config back.

    transformers reads it too, apart from what it cannot express: no SwiGLU limit, or several ratios of one layer kind.
    Raises ConfigError for layers that config.json has no words for.
    """
    data: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"}
    data |= {name: getattr(config, field) for field, name in _NAMES.items()}
    data |= {"qk_rope_head_dim": config.rope_dim, "swiglu_limit": config.swiglu_limit or 0.0}
    eos_ids: list[int] | int | None = list(config.eos_ids) or None
    data["eos_token_id"] = config.eos_ids[0] if len(config.eos_ids) == 1 else eos_ids
    return data | _ARCHITECTURE | layers_to_json(config) | rotations_to_json(config) | _storage_to_json(config)


def _storage_to_json(config: ModelConfig) -> dict[str, Any]:
    quantized = config.storage in ("official", "base")
    dtype = config.activation_dtype
    if not quantized and (config.storage == "float32") != (dtype == "float32"):
        dtype = config.storage
    data: dict[str, Any] = {"torch_dtype": dtype}
    if quantized:
        data["quantization_config"] = copy.deepcopy(_QUANTIZATION)
        data["expert_dtype"] = "fp4" if config.storage == "official" else "fp8"
    if config.official_rounding != quantized:
        data["official_rounding"] = config.official_rounding
    if config.activation_dtype != dtype:
        data["activation_dtype"] = config.activation_dtype
    return data

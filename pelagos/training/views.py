"""The weights of a model seen otherwise: under another config or other ops, and under their official names."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pelagos.model.config import ModelConfig
from pelagos.model.tensors import TensorSpec, tensor_specs
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import Ops


def with_config(model: Model, config: ModelConfig, ops: Ops | None = None) -> Model:
    """A model of ``config`` on ``ops`` (None: those of ``model``) that shares every weight with ``model``: YaRN or
    official rounding switched on, or inference on the reference.

    The configs must give the same tensors; a change to a weight's values shows in both.
    """
    with torch.device("meta"):
        view = Model(config, ops or model.ops)
    for name, module in model.named_modules():
        other = view.get_submodule(name)
        other._parameters.update(module._parameters)
        other._buffers.update(module._buffers)
    return view.train(model.training)


def named_weights(model: Model) -> dict[str, Tensor]:
    """Parameters and buffers of a trainable model by module name; experts are stacked, [E, rows, columns]."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def stacked_specs(config: ModelConfig) -> Iterator[tuple[str, TensorSpec]]:
    """Module name and spec of every weight; of the E matrices of stacked experts the first alone."""
    for spec in tensor_specs(config):
        if spec.role != "expert":
            yield module_name(spec.name), spec
        elif spec.name.split(".")[-3] == "0":
            path, _, matrix, _ = spec.name.rsplit(".", 3)
            yield f"{path}.{matrix}", spec


def official_weights(model: Model) -> Iterator[tuple[TensorSpec, Tensor]]:
    """Every weight under its official name, in official order; views, so that writing to one changes the model."""
    weights = named_weights(model)
    for spec in tensor_specs(model.config):
        if spec.role == "expert":
            path, number, matrix, _ = spec.name.rsplit(".", 3)
            yield spec, weights[f"{path}.{matrix}"].detach()[int(number)]
        else:
            yield spec, weights[module_name(spec.name)].detach()


def module_name(name: str) -> str:
    """Module name of an official tensor name outside the routed experts: stream parameters are flat there."""
    for prefix in ("hc_attn_", "hc_ffn_", "hc_head_"):
        name = name.replace(prefix, prefix[:-1] + ".")
    return name

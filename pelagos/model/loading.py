"""From a checkpoint folder, or a preset, to a model with values."""

import dataclasses
import logging
import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from pelagos.common.device import parse_device
from pelagos.common.errors import ResourceError, UsageError
from pelagos.model.checkpoint import Checkpoint, open_checkpoint
from pelagos.model.config import ModelConfig
from pelagos.model.layers import StoredWeights
from pelagos.model.native import unsupported
from pelagos.model.places import model_place
from pelagos.model.presets import preset
from pelagos.model.tensors import TensorSpec, tensor_specs
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import Wanted, choose_implementation
from pelagos.ops.reference.linear import Matrix

log = logging.getLogger(__name__)

_RANDOM_LIMIT = 1 << 30  # bytes of random weights that a preset may take
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MATRIX_ROLES = ("dense", "expert", "matrix")
_FLAT_STREAM_NAMES = ("hc_attn_", "hc_ffn_", "hc_head_")


def load_model(
    path_or_preset: str | PathLike[str],
    device: str | torch.device,
    dtype: torch.dtype | None,
    official_rounding: bool | None,
    implementation: Wanted | None = None,
) -> Model:
    """See ``Model.load``."""
    target = parse_device(str(device))
    chosen = choose_implementation(target, implementation)
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(
            f"dtype must be one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}, got {dtype}"
        )
    folder = Path(model_place(str(path_or_preset)))
    if folder.is_dir():
        checkpoint = open_checkpoint(folder)
        model = _empty(checkpoint.config, dtype, official_rounding)
        fill(model, _from_checkpoint(checkpoint))
    else:
        config = preset(str(folder))
        _check_size(config)
        model = _empty(config, dtype, official_rounding)
        fill(model, random_values(config, seed=0))
    model.to(target).eval().requires_grad_(False)
    if chosen.implementation == "native":
        _use_native(model, is_forced=implementation == "native")
    return model


def _use_native(model: Model, *, is_forced: bool) -> None:
    reason = unsupported(model.config)
    if reason is None:
        model.use_native()
    elif is_forced:
        raise UsageError(f"the native kernels cannot run this model: {reason}")
    else:
        log.warning("the native kernels cannot run this model (%s): it runs on PyTorch, exact but slow", reason)


def fill(model: Model, value_of: Callable[[TensorSpec], Matrix]) -> None:
    """Give every weight of ``model`` the value that ``value_of`` returns for its official name."""
    experts: dict[tuple[str, str], list[Matrix]] = {}
    for spec in tensor_specs(dataclasses.replace(model.config, num_dspark_blocks=0, dspark_markov_rank=None)):
        path, attribute = _place(spec.name)
        value = value_of(spec)
        if spec.role == "expert":
            path, _, _ = path.rpartition(".")  # the expert's number; specs come in order
            experts.setdefault((path, attribute), []).append(value)
        else:
            _put(model.get_submodule(path), attribute, value)
    for (path, attribute), matrices in experts.items():
        _put(model.get_submodule(path), attribute, matrices)


def _place(name: str) -> tuple[str, str]:
    """Module path and attribute of an official tensor name. Stream parameters are flat there, a module here; an expert
    matrix is ``experts.E.w1.weight`` there, entry E of ``experts.w1`` here."""
    path, _, attribute = name.rpartition(".")
    for prefix in _FLAT_STREAM_NAMES:
        if attribute.startswith(prefix):
            module = prefix.rstrip("_")
            return f"{path}.{module}".lstrip("."), attribute.removeprefix(prefix)
    if ".ffn.experts." in name:
        path, _, attribute = path.rpartition(".")
    return path, attribute


def _put(module: nn.Module, attribute: str, value: Matrix | list[Matrix]) -> None:
    if isinstance(module, StoredWeights):
        module.put(attribute, value)
    else:
        assert isinstance(value, Tensor)
        if attribute in module._buffers:
            module._buffers[attribute] = value
        else:
            setattr(module, attribute, nn.Parameter(value, requires_grad=False))


def _empty(config: ModelConfig, dtype: torch.dtype | None, official_rounding: bool | None) -> Model:
    changes: dict[str, object] = {}
    if dtype is not None:
        changes["activation_dtype"] = str(dtype).removeprefix("torch.")
    if official_rounding is not None:
        changes["official_rounding"] = official_rounding
    with torch.device("meta"):
        return Model(dataclasses.replace(config, **changes))  # type: ignore[arg-type]


def _from_checkpoint(checkpoint: Checkpoint) -> Callable[[TensorSpec], Matrix]:
    def value_of(spec: TensorSpec) -> Matrix:
        if spec.role in _MATRIX_ROLES:
            return checkpoint.matrix(spec.name)
        tensor = checkpoint.tensor(spec.name)
        return tensor.float() if spec.role == "float32" else tensor

    return value_of


def _check_size(config: ModelConfig) -> None:
    needed = sum(4 * math.prod(spec.shape) for spec in tensor_specs(config))
    if needed > _RANDOM_LIMIT:
        raise ResourceError(
            f"random weights for this preset would take {needed / 2**30:,.0f} GiB, at most {_RANDOM_LIMIT >> 30} GiB "
            "are made: give the folder of a checkpoint, or a smaller preset"
        )


def random_values(config: ModelConfig, *, seed: int) -> Callable[[TensorSpec], Tensor]:
    """Random values, the same for a seed when asked for in the order of ``tensor_specs``.

    No part of the model is idle: matrices are N/sqrt(inputs), norms near 1, everything else is spread.
    """
    generator = torch.Generator().manual_seed(seed)

    def value_of(spec: TensorSpec) -> Tensor:
        if spec.role == "ids":
            order = torch.rand(spec.shape[0], config.num_experts, generator=generator).argsort(1)
            return order[:, : spec.shape[1]].contiguous()
        noise = torch.randn(spec.shape, generator=generator)
        if spec.role == "norm":
            return 1.0 + 0.3 * noise
        if spec.name.endswith("_scale"):
            return 1.0 + 0.5 * noise
        if len(spec.shape) == 1 or spec.name.endswith(".ape"):
            return 0.7 * noise
        return noise / math.sqrt(spec.shape[-1])

    return value_of

"""Training in the numbers that the model is served in: FP4 experts, FP8 dense matrices, BF16 for the rest.

Forward and backward use the values that an exported checkpoint holds; the optimizer works on the float32 masters, with
the gradients of the rounded ones (straight-through), rounded once per step. The rounding is that of ``formats``, so
inference from the export computes with the very same numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pelagos.formats.matrix import quantize_fp4, quantize_fp8
from pelagos.model.tensors import Role
from pelagos.model.transformer import Model
from pelagos.training.views import named_weights, stacked_specs


def served_value(weight: Tensor, role: Role) -> Tensor:
    """What a float32 weight becomes in an official checkpoint, float32. Experts may be stacked, [E, rows, columns]."""
    if role == "expert":
        return quantize_fp4(weight.flatten(0, -2)).decode().view(weight.shape)
    if role == "dense":
        return quantize_fp8(weight).decode()
    return weight.bfloat16().float() if role in ("matrix", "norm") else weight


@contextmanager
def served_weights(model: Model) -> Iterator[None]:
    """Within the block all parameters hold served values; gradients gather on the same parameters."""
    weights, masters = named_weights(model), []
    for name, spec in stacked_specs(model.config):
        weight = weights[name]
        if spec.role not in ("ids", "float32"):
            masters.append((weight, weight.data))
            weight.data = served_value(weight.data, spec.role)
    try:
        yield
    finally:
        for weight, master in masters:
            weight.data = master


@torch.no_grad()
def rounding_error(model: Model) -> dict[str, float]:
    """Health of FP4 experts over all their matrices: relative error, gain <Wq, W> / <W, W>, bias in units of the
    weights' RMS, share of zero codes. Healthy: error 0.11 to 0.14, gain above 0.97, bias below 1e-3."""
    weights = named_weights(model)
    experts = [weights[name].data for name, spec in stacked_specs(model.config) if spec.role == "expert"]
    weight = torch.cat([expert.flatten() for expert in experts]).double()
    rounded = torch.cat([served_value(expert, "expert").flatten() for expert in experts]).double()
    size = weight.square().sum()
    return {
        "relative_error": float(((rounded - weight).square().sum() / size).sqrt()),
        "gain": float((rounded * weight).sum() / size),
        "bias": float((rounded - weight).mean() / weight.square().mean().sqrt()),
        "zero_codes": float((rounded == 0).double().mean()),
    }

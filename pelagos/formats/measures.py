"""Error and bias of an approximation, each as one float, computed in float64.

In all of them `value` is the approximation and `reference` the truth: tensors of one shape, any float dtype, not empty
(ValueError otherwise). NaN anywhere gives NaN.
"""

import math

import torch
from torch import Tensor


def relative_rms_error(value: Tensor, reference: Tensor) -> float:
    """rms(value - reference) / rms(reference). 0 where both are equal, inf where only the reference is zero."""
    value, reference = _as_float64(value, reference)
    return _ratio(_rms(value - reference), _rms(reference))


def max_relative_error(value: Tensor, reference: Tensor) -> float:
    """The largest |value - reference| / |reference| of one element. 0 / 0 counts as 0, x / 0 as inf."""
    value, reference = _as_float64(value, reference)
    error = (value - reference).abs() / reference.abs()
    return error.masked_fill((value == 0) & (reference == 0), 0.0).max().item()


def bias(value: Tensor, reference: Tensor) -> float:
    """mean(value - reference) / rms(reference). Rounding to nearest keeps it near 0, cutting digits off does not."""
    value, reference = _as_float64(value, reference)
    return _ratio((value - reference).mean().item(), _rms(reference))


def signal_to_noise_db(value: Tensor, reference: Tensor) -> float:
    """20 log10(rms(reference) / rms(value - reference)) in decibels. inf where both are equal, -inf where only the
    reference is zero."""
    error = relative_rms_error(value, reference)
    return -20.0 * math.log10(error) if error else math.inf


def _as_float64(value: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if value.shape != reference.shape or value.numel() == 0:
        raise ValueError(
            f"value and reference must have one shape and an element, not {value.shape} and {reference.shape}"
        )
    return value.detach().to(torch.float64), reference.detach().to(torch.float64)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _ratio(error: float, size: float) -> float:
    if size == 0.0 and not math.isnan(error):
        return math.copysign(math.inf, error) if error else 0.0
    return error / size

"""Rotation frequencies of a layer: plain, or extended by YaRN (Peng et al. 2023), amplitude 1 in both."""

import math

import torch
from torch import Tensor

from pelagos.model.config import RopeConfig


def rope_frequencies(config: RopeConfig, rope_dim: int) -> Tensor:
    """Angles per position, [rope_dim / 2] float32: theta^(−2i/rope_dim), YaRN-interpolated where configured.

    The arithmetic follows the order in which the public implementations round, so that the tables are equal bit for
    bit.
    """
    exponents = torch.arange(0, rope_dim, 2, dtype=torch.float32, device="cpu") / rope_dim
    powers = config.theta**exponents
    if config.yarn is None:
        return 1.0 / powers
    yarn = config.yarn
    low = max(math.floor(_turns_dim(yarn.beta_fast, config, rope_dim)), 0)
    high: float = min(math.ceil(_turns_dim(yarn.beta_slow, config, rope_dim)), rope_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (yarn.factor * powers) * (1 - keep) + 1.0 / powers * keep


def _turns_dim(turns: float, config: RopeConfig, rope_dim: int) -> float:
    """The (fractional) dim whose angle makes ``turns`` turns over the original positions."""
    assert config.yarn is not None
    ratio = config.yarn.original_positions / (turns * 2 * math.pi)
    return rope_dim * math.log(ratio) / (2 * math.log(config.theta))

"""The weights that a run of `pelagos train` had at a step, in a model for benchmarks that compare it."""

from dataclasses import replace
from pathlib import Path

import torch

from pelagos.model.config import ModelConfig
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.training.saved_run import read_checkpoint
from pelagos.training.views import named_weights


def model_at(config: ModelConfig, run: Path, step: int) -> Model:
    """On the functions for training. Without YaRN, which comes in nano's last stage alone: for steps before that."""
    model = Model(replace(config, compressed_rope=replace(config.compressed_rope, yarn=None)), autograd_ops())
    saved, own = read_checkpoint(run, step), named_weights(model)
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved.weights[name])
    return model

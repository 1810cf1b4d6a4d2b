"""A small training set-up for tests: a config with every feature on, random documents, and steps without data files."""

import dataclasses
import itertools
import random
from typing import Any

import torch

from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.recipes.tiny import tiny
from pelagos.training.batch import PADDING, PackedBatch
from pelagos.training.config import TrainConfig
from pelagos.training.initialize import initialize
from pelagos.training.optimizer import Optimizer
from pelagos.training.parallel import Group
from pelagos.training.step import Stepper


def changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, **changes)


def random_batch(num_rows: int, length: int, seed: int, vocab_size: int = 512) -> PackedBatch:
    """Rows of two or three documents and a little padding."""
    draw = random.Random(seed)
    shape = (num_rows, length)
    ids = torch.tensor([[draw.randrange(vocab_size) for _ in range(length)] for _ in range(num_rows)])
    documents = torch.full(shape, PADDING, dtype=torch.int32)
    positions, weights = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    for r in range(num_rows):
        cuts = sorted(draw.sample(range(5, length - 5), 2))
        ends = [0, *cuts, length - draw.randrange(4)]
        for d, (start, stop) in enumerate(itertools.pairwise(ends)):
            documents[r, start:stop], positions[r, start:stop] = d, torch.arange(stop - start)
            weights[r, start:stop] = torch.tensor([draw.choice([1.0, 1.0, 0.1]) for _ in range(stop - start)])
            weights[r, start] = 0.0
    return PackedBatch(
        token_ids=ids,
        document_ids=documents,
        positions=positions,
        loss_weights=weights,
        num_bytes=(documents >= 0).int() * 3,
    )


def fresh_model(config: TrainConfig) -> Model:
    model = Model(config.model, autograd_ops())
    initialize(model, std=config.init_std, seed=config.seed)
    return model


def stepper(config: TrainConfig | None = None) -> Stepper:
    config = config or tiny()
    model = fresh_model(config)
    return Stepper(config, model, Optimizer(model, config.optimizer), Group())

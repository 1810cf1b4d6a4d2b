"""What the numbers of the served model cost: the loss of one held-out batch in each of them.

    full          float32 weights and activations
    fp4_weights   FP4 experts, FP8 dense matrices, BF16 for the rest; float32 activations
    fp4           the same, with activations, rows and index path rounded as the served model rounds them
    exported      a real official checkpoint, written, opened and run by exact inference

``exported`` is ``fp4`` on the functions for inference; float32 rounding, and what that flips in coarser numbers, is all
that they differ by. Whether their gap to ``full`` is that of training for FP4 or of rounding afterwards depends on how
the model was trained.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from pelagos.model.transformer import Model
from pelagos.training.answers import log_probabilities
from pelagos.training.batch import PackedBatch
from pelagos.training.export import export
from pelagos.training.held_out import objective_loss
from pelagos.training.qat import served_weights
from pelagos.training.views import with_config


def measure_low_precision(model: Model, batch: PackedBatch, *, pass_tokens: int) -> dict[str, float]:
    """Nats per predicted token by kind of numbers. ``model`` is on the functions for training, with float weights; it
    is as before afterwards. The export goes to a temporary folder."""
    plain, rounded = (with_config(model, replace(model.config, official_rounding=on)) for on in (False, True))
    losses = {"full": objective_loss(plain, batch, pass_tokens=pass_tokens)[0]}
    with served_weights(model):
        # The views share parameters, so they see the served values.
        losses["fp4_weights"] = objective_loss(plain, batch, pass_tokens=pass_tokens)[0]
        losses["fp4"] = objective_loss(rounded, batch, pass_tokens=pass_tokens)[0]
    with tempfile.TemporaryDirectory() as name:
        export(rounded, Path(name), official=True)
        losses["exported"] = exact_loss(Model.load(name, implementation="reference"), batch)
    return losses


def exact_loss(model: Model, batch: PackedBatch) -> float:
    """Nats per predicted token by exact inference, document by document."""
    cost = weight = torch.zeros((), dtype=torch.float64)
    for ids, documents, weights in zip(batch.token_ids, batch.document_ids, batch.loss_weights, strict=True):
        for number in range(int(documents.max()) + 1):
            inside = documents == number
            log_p, _ = log_probabilities(model, ids[inside].tolist())
            share = weights[inside][1:].double()
            cost, weight = cost - (share * log_p.cpu()).sum(), weight + share.sum()
    return float(cost / weight)

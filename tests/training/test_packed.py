"""Packed rows: each document's logits equal those it gets alone, in inference and in training; nothing leaks across."""

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from pelagos.model.config import ModelConfig
from pelagos.model.loading import fill, random_values
from pelagos.model.presets import preset
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.training import packed
from pelagos.training.batch import PADDING, PackedBatch
from pelagos.training.packed import Packed, PackedRows


def pack(rows: list[list[list[int]]], length: int) -> PackedBatch:
    """Rows of documents, padded to ``length``."""
    shape = (len(rows), length)
    ids, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    documents = torch.full(shape, PADDING, dtype=torch.int32)
    weights = torch.zeros(shape)
    for r, row in enumerate(rows):
        at = 0
        for d, document in enumerate(row):
            span = slice(at, at + len(document))
            ids[r, span], documents[r, span] = torch.tensor(document), d
            positions[r, span], weights[r, span] = torch.arange(len(document)), 1.0
            weights[r, at] = 0.0
            at += len(document)
    num_bytes = torch.ones(shape, dtype=torch.int32)
    return PackedBatch(
        token_ids=ids, document_ids=documents, positions=positions, loss_weights=weights, num_bytes=num_bytes
    )


def training_model(config: ModelConfig | None = None) -> Model:
    config = config or preset("tiny")
    with torch.device("meta"):
        model = Model(config, autograd_ops())
    values = random_values(config, seed=0)
    fill(model, values)
    return model


def packed_streams(model: Model, batch: PackedBatch, *, sparse: bool) -> Tensor:
    layout = PackedRows(batch)
    contexts = [Packed(layout=layout, sparse=sparse) for _ in model.layers]
    streams: Tensor = model(batch.token_ids.flatten(), batch.positions.flatten(), contexts)
    return streams


def documents(seed: int, length: int, num_rows: int) -> list[list[list[int]]]:
    draw, rows = random.Random(seed), []
    for _ in range(num_rows):
        row: list[list[int]] = []
        while (room := length - sum(map(len, row))) > 0 and len(row) < 12:
            size = min(room, draw.choice([1, 2, 3, 4, 5, 16, 17, 31, 64, 127, 128, 129, 200, 300]))
            row.append([draw.randrange(512) for _ in range(size)])
        rows.append(row)
    return rows


@pytest.mark.parametrize("official_rounding", [False, True])
@pytest.mark.parametrize("dense_tokens", [4096, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_documents_get_what_they_get_alone(
    seed: int, dense_tokens: int, official_rounding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_DENSE_TOKENS", dense_tokens)
    config = dataclasses.replace(preset("tiny"), official_rounding=official_rounding, index_topk=5)
    model, rows = training_model(config), documents(seed, 400, 2)
    inference = Model.load("tiny", official_rounding=official_rounding, implementation="reference")
    inference.config = config
    for layer in inference.layers:
        layer.attn.index_topk = 5
        if hasattr(layer.attn, "indexer"):
            layer.attn.indexer.topk = 5
    batch = pack(rows, 400)
    logits = model.output(packed_streams(model, batch, sparse=True)).unflatten(0, (2, 400))
    errors = []
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            alone = inference.logits(document)
            error = (logits[r, at : at + len(document)] - alone).abs().amax(1) / alone.abs().max()
            errors.append(error)
            at += len(document)
    error = torch.cat(errors)
    if official_rounding:  # a value at a rounding border may fall to either side
        assert (error < 1e-4).float().mean() > 0.8
    else:
        assert error.max() < 2e-5


def test_dense_sees_all_rows() -> None:
    """Dense training equals a model whose index_topk is beyond every row."""
    config = dataclasses.replace(preset("tiny"), index_topk=4096)
    rows = documents(3, 300, 1)
    batch = pack(rows, 300)
    dense = packed_streams(training_model(), batch, sparse=False)
    assert torch.equal(dense, packed_streams(training_model(config), batch, sparse=True))
    assert not torch.allclose(dense, packed_streams(training_model(), batch, sparse=True))


def test_no_gradient_flows_between_documents() -> None:
    model = training_model()
    batch = pack([[[1, 2, 3] * 50, [4, 5, 6] * 40], [[7] * 200]], 270)
    streams = {}

    def keep(module: object, inputs: object, output: Tensor) -> Tensor:
        streams["embedded"] = output.detach().requires_grad_()
        return streams["embedded"]

    model.embed.register_forward_hook(keep)
    out = packed_streams(model, batch, sparse=True).unflatten(0, (2, 270))
    out[0, 150:270].square().sum().backward()
    grad = streams["embedded"].grad
    assert grad is not None
    grad = grad.unflatten(0, (2, 270)).abs().sum(2)
    assert (grad[0, 150:] > 0).all()
    assert not grad[0, :150].any()
    assert not grad[1].any()


def test_padding_changes_nothing() -> None:
    model, rows = training_model(), documents(5, 200, 1)
    short = packed_streams(model, pack(rows, 200), sparse=True)
    long = packed_streams(model, pack(rows, 333), sparse=True)
    assert (short - long[:200]).abs().max() <= 1e-5 * short.abs().max()


def test_index_loss_trains_the_indexer_alone() -> None:
    model, batch = training_model(), pack(documents(6, 300, 2), 300)
    model.requires_grad_(True)
    layout = PackedRows(batch)
    contexts = [Packed(layout=layout, sparse=False) for _ in model.layers]
    model(batch.token_ids.flatten(), batch.positions.flatten(), contexts)
    reports = [context.index_report for context in contexts]
    assert [report is not None for report in reports] == [layer.kind == "csa" for layer in model.config.layers]
    losses = [report.loss for report in reports if report is not None]
    assert all(loss > 0 for loss in losses)
    torch.stack(losses).sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched
    assert all(".indexer." in name for name in touched)
    for layer in (1, 3):
        own = {name for name, _ in model.named_parameters() if name.startswith(f"layers.{layer}.attn.indexer.")}
        assert own <= touched


def test_index_loss_is_zero_when_the_indexer_agrees() -> None:
    weights = torch.softmax(torch.randn(1, 3, 2, 6), -1)
    mass = weights.sum(2)
    scores = (mass / mass.sum(2, keepdim=True)).log()
    seen = torch.ones(1, 3, 6, dtype=torch.bool)
    report = packed._index_report(scores, seen, weights, 6)
    assert abs(float(report.loss)) < 1e-5
    assert float(report.recall) == pytest.approx(3.0)  # three queries
    assert float(packed._index_report(-scores, seen, weights, 2).loss) > 0.01
    assert float(packed._index_report(-scores, seen, weights, 2).recall) < 1.2

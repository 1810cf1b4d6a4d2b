"""The model against the naive second implementation: what transformers does not have (MTP, official rounding)."""

import random

import pytest
from naive import Naive

from pelagos.model.config import ModelConfig
from pelagos.model.loading import random_values
from pelagos.model.presets import preset
from pelagos.model.tensors import tensor_specs
from pelagos.model.transformer import Model


def _naive(config: ModelConfig) -> Naive:
    value_of = random_values(config, seed=0)
    tensors = {}
    for spec in tensor_specs(config):
        tensors[spec.name] = value_of(spec)
    return Naive(config, tensors)


def _prompt(length: int) -> list[int]:
    draw = random.Random(length)
    return [draw.randrange(512) for _ in range(length)]


@pytest.mark.parametrize("length", [1, 5, 290])
def test_main_logits(length: int) -> None:
    model, ids = Model.load("tiny"), _prompt(length)
    expected = _naive(preset("tiny")).logits(ids)
    assert (model.logits(ids) - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("length", [2, 5, 200])
def test_draft_logits(length: int) -> None:
    model, ids = Model.load("tiny"), _prompt(length)
    naive = _naive(preset("tiny"))
    streams = model.streams(ids[:-1], model.new_state())
    ours, _ = model.draft(streams, ids[1:], model.new_draft_state())
    expected = naive.draft_logits(naive.streams(ids[:-1]), ids[1:])
    assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_official_rounding() -> None:
    """A value next to a rounding border may fall to the other side in float64; it then shifts the logits from its
    position on, by little. So nearly all positions must agree closely and all of them roughly, while the rounding
    itself moves every position by far more."""
    model, ids = Model.load("tiny", official_rounding=True), _prompt(290)
    expected = _naive(model.config).logits(ids)
    plain = Model.load("tiny").logits(ids)
    scale = expected.abs().max()
    error = (model.logits(ids) - expected).abs().amax(1) / scale
    effect = (plain - expected).abs().amax(1) / scale
    assert (error <= 1e-4).float().mean() > 0.8
    assert error.median() < 1e-5
    assert effect.median() > 5e-3
    assert error.max() < effect.max()

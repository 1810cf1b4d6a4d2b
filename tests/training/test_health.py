"""What is seen of a model's inside, on models made so that it is known."""

import dataclasses

import pytest
import torch
from training_case import fresh_model, random_batch

from pelagos.recipes.tiny import tiny
from pelagos.training.health import examine


def test_a_fresh_model_is_healthy() -> None:
    health = examine(fresh_model(tiny()), random_batch(1, 64, 1), sparse=False)
    assert health.stream_gain == pytest.approx(1.0, abs=0.01)
    assert health.post_share == 0.0
    assert health.clamped == {"gate_high": 0.0, "up_high": 0.0, "up_low": 0.0}


def test_write_weights_near_their_limit_and_clamps_are_seen() -> None:
    config = dataclasses.replace(tiny(), model=dataclasses.replace(tiny().model, swiglu_limit=1e-6))
    model = fresh_model(config)
    for name, parameter in model.named_parameters():
        if name.endswith("hc_ffn.base"):
            parameter.data[4:8] = 9.0
    health = examine(model, random_batch(1, 64, 1), sparse=True)
    assert health.post_share == pytest.approx(0.5)
    assert health.clamped["gate_high"] > 0.4
    assert health.clamped["up_high"] + health.clamped["up_low"] > 0.95


def test_nothing_is_counted_without_a_limit() -> None:
    config = dataclasses.replace(tiny(), model=dataclasses.replace(tiny().model, swiglu_limit=None))
    assert examine(fresh_model(config), random_batch(1, 64, 1), sparse=False).clamped == {}
    assert torch.is_grad_enabled()

"""Weights that start with look-up circuits: they find values without a step of training, near and far."""

import dataclasses
import random

import pytest
import torch

from pelagos.common.errors import ConfigError
from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.recipes.nano import nano
from pelagos.recipes.tiny import tiny
from pelagos.training.initialize import initialize

NANO = nano().model
WINDOW, CSA, HCA = NANO.layers[:3]


def started(layers: tuple[LayerConfig, ...], start: str) -> Model:
    config = dataclasses.replace(NANO, layers=layers, mtp_layers=())
    model = Model(config, autograd_ops())
    initialize(model, std=0.02, seed=3, start=start)
    return model


def share_found(model: Model, num_filler: int) -> float:
    """Lists of six lines "- key: value"; then "- key:". How often the right value beats the five others."""
    draw, right, num = random.Random(1), 0, 24
    for _ in range(num):
        words = draw.sample(range(300, 4000), 12 + num_filler)
        pairs, filler = list(zip(words[:6], words[6:12], strict=True)), words[12:]
        asked, wanted = draw.choice(pairs)
        ids = [4032, *(token for key, value in pairs for token in (12, key, 25, value, 198)), *filler, 12, asked, 25]
        logits = model.logits(ids)[-1]
        right += max((value for _, value in pairs), key=lambda value: float(logits[value])) == wanted
    return right / num


@pytest.mark.parametrize(
    ("layers", "num_filler"),
    [((WINDOW, HCA, HCA), 0), ((WINDOW, CSA, CSA), 120)],
    ids=["near", "far"],
)
def test_values_are_found_without_training(layers: tuple[LayerConfig, ...], num_filler: int) -> None:
    """The far list is 120 tokens back, outside of all windows: compressed rows alone can hold it."""
    assert num_filler == 0 or num_filler > WINDOW.window
    assert share_found(started(layers, "recall"), num_filler) >= 0.6
    assert share_found(started(layers, "plain"), num_filler) <= 0.4  # one in six by chance


def test_a_shape_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads must be at least 4 per output group for init recall, got 2"):
        dataclasses.replace(tiny(), init="recall")
    narrow: ModelConfig = dataclasses.replace(NANO, query_rank=32)
    with pytest.raises(ConfigError, match="query_rank must be at least 96 for init recall, got 32"):
        dataclasses.replace(nano(), model=narrow, init="recall")


def test_the_same_seed_gives_the_same_start() -> None:
    one, two = (started((WINDOW, CSA), "recall").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)

"""Stages of a run: all tokens are divided among the groups of the mixture, and each group holds what it promises."""

import random

import pytest
from task_cases import official

from pelagos.common.errors import ConfigError
from pelagos.recipes import RECIPES
from pelagos.training.config import StageConfig
from pelagos.training.task_documents import TASK_MIXES
from pelagos.training.tasks import encode


def test_a_stage_divides_all_tokens() -> None:
    stage = StageConfig(until=1.0, sequence_length=256, num_rows=1, text=0.3, lists=0.4, recall=0.2, chat=0.1)
    assert stage.mixture == {"text": 0.3, "lists": 0.4, "recall": 0.2, "chat": 0.1, "talk": 0.0}
    with pytest.raises(ConfigError, match=r"text, recall, lists, chat, talk must add up to 1, got 1\.1"):
        StageConfig(until=1.0, sequence_length=256, num_rows=1, text=0.3, lists=0.5, recall=0.2, chat=0.1)


def test_groups_of_stages_are_mixes() -> None:
    for recipe in RECIPES.values():
        for stage in recipe().stages:
            assert {*stage.mixture} - {"text"} == {*TASK_MIXES}


def answers(mix: str) -> tuple[float, float]:
    """Tokens of a sample in the mean, and the share of answers among them."""
    lengths, weights = [], 0
    for seed in range(60):
        ids, loss_weights = encode(TASK_MIXES[mix].make(random.Random(seed), tokenizer=official()), official())
        lengths.append(len(ids))
        weights += sum(weight == 1.0 for weight in loss_weights)
    return sum(lengths) / len(lengths), weights / sum(lengths)


def test_lists_are_short_and_full_of_answers() -> None:
    length, share = answers("lists")
    assert length < 200
    assert share > 0.2

"""What the benchmark of training parts computes from its records."""

import json
from pathlib import Path

import pytest
from training_claims import base_config, equal_loss, sizes, step_at, stored, variants

CURVE = [(5, 8.0), (10, 7.0), (15, 6.5)]


@pytest.mark.parametrize(("goal", "step"), [(9.0, 5.0), (8.0, 5.0), (7.5, 7.5), (7.0, 10.0), (6.6, 14.0), (6.0, None)])
def test_the_step_of_a_loss_is_between_points(goal: float, step: float | None) -> None:
    assert step_at(CURVE, goal) == step


def test_the_best_of_each_optimizer_are_compared() -> None:
    def record(variant: str, held_out: float, last: float) -> dict:
        return {"variant": variant, "steps": 15, "held_out": held_out, "curve": [*CURVE[:2], (15, last)]}

    records = [record("muon lr 1", 7.2, 6.9), record("muon lr 2", 6.0, 6.5), record("muon5", 1.0, 1.0)]
    assert equal_loss(records) is None
    records += [record("adamw lr 1", 7.5, 7.5), record("adamw lr 2", 8.1, 8.0)]
    expected = {"muon": "muon lr 2", "adamw": "adamw lr 1", "loss": 7.5, "muon_step": 7.5, "step_ratio": 2.0}
    assert equal_loss(records) == expected


def test_results_of_the_same_size_and_steps_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert stored(path, "half", 80) == {}
    records = [
        {"variant": "old", "steps": 80},
        {"variant": "half", "steps": 80, "size": "half"},
        {"variant": "nano", "steps": 80, "size": "nano"},
        {"variant": "short", "steps": 6, "size": "half"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert set(stored(path, "half", 80)) == {"old", "half"}
    assert set(stored(path, "nano", 80)) == {"nano"}


def test_nano_is_the_recipe_and_steps_have_the_promised_tokens(tmp_path: Path) -> None:
    from pelagos.recipes.nano import nano

    tokens = {}
    for name, size in sizes().items():
        config = base_config(tmp_path, size, size.num_steps)
        [stage] = config.stages
        tokens[name] = stage.sequence_length * stage.num_rows
        names = [variant for variant, _ in variants(config)]
        assert len(set(names)) == len(names)
    assert tokens == {"half": 2048, "nano": 8192}
    assert sizes()["nano"].model == nano().model

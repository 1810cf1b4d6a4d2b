"""The help of ``pelagos train``: quick without a recipe, with all fields of one after it."""

import re

import pytest

from pelagos.cli.main import main
from pelagos.recipes import RECIPES
from pelagos.training.overrides import settings_of


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_help_after_a_recipe_lists_its_fields(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["train", name, "--help"], capsys)
    assert "Usage: pelagos train" in text
    lines = dict(line.strip().split(" = ", 1) for line in text.splitlines() if " = " in line)
    for path, value, about in settings_of(RECIPES[name]()):
        line = lines[re.sub(r"\.\d+\.", ".N.", path)]
        assert str(value) in line
        assert line.endswith(f"# {about}")


def test_help_shows_range_values_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["train", "--help", "nano", "--set", "optimizer.peak_lr=0.25", "--data", "there"], capsys)
    assert "\n  optimizer.peak_lr = 0.25  # learning rate between warm-up and decay" in text
    assert "\n  data.folder = there  # " in text
    lengths = "256, 256, 1024, 4096, 16384, 1024, 4096, 16384"
    assert f"\n  stages.N.sequence_length = {lengths}  # tokens per packed row (from 8 to 2097152)\n" in text
    assert "\n  model.layers.N.router = hash, learned, learned, " in text
    assert "(learned, hash)\n" in text


def test_help_without_a_recipe_says_how_to_get_them(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(["train", "--help"], capsys).split())
    assert "`pelagos train RECIPE --help` lists what --set can change" in text
    assert "optimizer.clip_norm" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RECIPE': tiny, nano or small"),
        (["huge"], "recipe must be one of tiny, nano, small, got 'huge'"),
        (["huge", "--help"], "recipe must be one of tiny, nano, small, got 'huge'"),
        (["tiny", "--help", "--set", "x=1"], "--set x: 'x' must be one of name, num_steps, "),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err

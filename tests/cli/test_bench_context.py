import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from pelagos.cli.bench_context import bench_context_command
from pelagos.common.errors import ConfigError, UsageError
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.recipes.tiny import tiny
from pelagos.training.bpe import train_tokenizer
from pelagos.training.export import export
from pelagos.training.initialize import initialize
from pelagos.training.shards import ShardWriter

QUICK = ["--lengths", "256, 300", "--depths", "100,0", "--samples", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without training, and beside it text as `pelagos train prepare` leaves it."""
    data, model = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("model")
    text = "the sea is deep and wide but a ship goes over it by night with its lamps lit, and nobody aboard is asleep\n"
    words = " ".join(f"{a}{b}" for a in text.split() for b in text.split())
    (data / "tokenizer.json").write_text(train_tokenizer([text, words], 512))
    (data / "tokens").mkdir()
    with ShardWriter(data / "tokens", "sea", "test", 512) as shard:
        shard.add(list(range(60, 100)) * 10, 400)
    config = tiny().model
    weights = Model(config, autograd_ops())
    initialize(weights, std=0.1, seed=1)
    export(weights, model, official=True, tokenizer_folder=data)
    (model / "data").symlink_to(data)
    return model


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(bench_context_command)
    return CliRunner().invoke(app, arguments)


def test_json_holds_the_grid(folder: Path, tmp_path: Path) -> None:
    result = run(str(folder), *QUICK, "--json", "--out", str(tmp_path / "out"), "--data", str(folder / "data"))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["lengths"] == [256, 300]
    assert found["depths"] == [0.0, 1.0]
    assert found["accuracy"] == [[0.0, 0.0], [0.0, 0.0]]
    assert found["num_samples"] == 1
    assert found["model"] == str(folder)
    assert json.loads((tmp_path / "out" / "recall.json").read_text()) == found
    assert (tmp_path / "out" / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_per_depth(folder: Path) -> None:
    result = run(str(folder), *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["depth", "256", "300"]
    assert [line.split() for line in lines[1:3]] == [["0%", "0%", "0%"], ["100%", "0%", "0%"]]
    assert "1 per cell" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "1K"], "--lengths must be whole numbers with commas, got '1K'"),
        (["--depths", "-5"], "--depths must be whole numbers with commas"),
        (["--depths", "101"], "depths must be a number from 0 to 1, got 1.01"),
        (["--lengths", "20"], "lengths must be a whole number from 128"),
        (["--lengths", "8192"], "lengths must be at most 4096, what the model takes, got 8192"),
    ],
)
def test_bad_cells_are_refused(folder: Path, arguments: list[str], message: str) -> None:
    result = run(str(folder), *arguments)
    assert isinstance(result.exception, UsageError | ConfigError)
    assert message in str(result.exception)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    result = run(str(tmp_path))
    assert isinstance(result.exception, UsageError)
    assert "with its tokenizer.json" in str(result.exception)

"""The folder of a run gives back its config and its state."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from training_case import changed

from pelagos.common.errors import CheckpointError, PelagosError, UsageError
from pelagos.recipes import RECIPES
from pelagos.recipes.tiny import tiny
from pelagos.training import session
from pelagos.training.catalogue import SAMPLE
from pelagos.training.config import TrainConfig
from pelagos.training.data import open_loader
from pelagos.training.evaluate import EvaluateConfig
from pelagos.training.metrics import read_history
from pelagos.training.prepare import PrepareConfig, prepare
from pelagos.training.saved_run import fork, from_plain, read_checkpoint, read_config


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_comes_back_from_json(name: str) -> None:
    config = RECIPES[name]()
    assert from_plain(TrainConfig, json.loads(json.dumps(session.plain(config))), "x") == config


def test_fields_added_since_have_their_defaults() -> None:
    plain = session.plain(tiny())
    del plain["qat"], plain["model"]["num_streams"]
    config = from_plain(TrainConfig, plain, "x")
    assert (config.qat.start, config.model.num_streams) == (1.0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": 1}, "x: new is no field of TrainConfig"),
        ({"qat": {"start": 0.5, "end": 1}}, "x: qat: end is no field of QatConfig"),
        ({"data": {"seed": 1}}, "x: data: folder is missing"),
        ({"data": "there"}, "x: data must be an object"),
        ({"stages": {}}, "x: stages must be a list"),
        ({"num_steps": "many"}, "num_steps must be a whole number"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PelagosError) as caught:
        from_plain(TrainConfig, session.plain(tiny()) | change, "x")
    assert str(caught.value).startswith(message)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, out = tmp_path_factory.mktemp("sample"), tmp_path_factory.mktemp("run")
    prepare(PrepareConfig(vocab_size=512, sources=SAMPLE, plots=False), data)
    config = changed(tiny(), num_steps=6, data=dataclasses.replace(tiny().data, folder=str(data)))
    stages = tuple(dataclasses.replace(stage, num_rows=1) for stage in config.stages)
    saving = dataclasses.replace(config.saving, every_steps=2, keep=10, log_every=1)
    measured = EvaluateConfig(
        context_length=64, tokens_per_source=64, batch_tokens=None, samples_per_task=None, recall=None
    )
    config = changed(config, stages=stages, saving=saving, evaluation=measured)
    assert session.train(config, out)
    return out


def test_a_fork_goes_on_as_the_run_did(run: Path) -> None:
    config = read_config(run)
    loader = open_loader(config.data, session._tokenizer(config))
    saved = read_checkpoint(run, 4)
    loader.load_state_dict(saved.state["data"])
    forked = fork(config, saved, loader)
    forked.batches.set_mixture(config.stage_at(4).mixture)
    batch = forked.batches.batch(config.rows_at(4), config.stage_at(4).sequence_length)
    assert forked.stepper.gradients(4, batch).loss == read_history(run).steps[4].loss
    assert forked.step == 0


def test_the_newest_or_a_named_checkpoint(run: Path, tmp_path: Path) -> None:
    assert read_checkpoint(run).state["step"] == 6
    assert read_checkpoint(run, 2).state["step"] == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; there are \[2, 4, 6\]"):
        read_checkpoint(run, 3)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path)
    with pytest.raises(UsageError, match=r"must be the folder of a training run, but has no config\.json"):
        read_config(tmp_path)


def test_another_model_is_no_fork(run: Path) -> None:
    config = read_config(run)
    loader = open_loader(config.data, session._tokenizer(config))
    other = changed(config, model=dataclasses.replace(config.model, num_experts=4))
    with pytest.raises(CheckpointError, match="shape must be"):
        fork(other, read_checkpoint(run), loader)

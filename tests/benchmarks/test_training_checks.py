"""The checks of a run, on a short run of the tiny recipe that ends just after the top-k switch."""

import dataclasses
import hashlib
import json
import statistics
from pathlib import Path

import pytest
import training_checks

from pelagos.common.errors import CheckpointError
from pelagos.recipes.tiny import tiny
from pelagos.training import session
from pelagos.training.catalogue import SAMPLE
from pelagos.training.metrics import read_history
from pelagos.training.prepare import PrepareConfig, prepare
from pelagos.training.saved_run import read_config

SWITCH = 14  # of 20 steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    prepare(PrepareConfig(vocab_size=512, sources=SAMPLE, plots=False), folder)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, config = tmp_path_factory.mktemp("run"), tiny()
    stages = tuple(dataclasses.replace(stage, num_rows=1) for stage in config.stages)
    saving = dataclasses.replace(config.saving, every_steps=2, keep=10, log_every=1)
    config = dataclasses.replace(
        config, num_steps=20, stages=stages, saving=saving, data=dataclasses.replace(config.data, folder=str(data))
    )
    assert not session.train(config, out, stop_after=SWITCH + 3)
    return out


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def checked(run: Path, data: Path, out: Path, *more: str) -> tuple[int, dict[str, dict]]:
    short = ["--tokens", "512", "--prompts", "4", "--prompt-tokens", "16", "--new-tokens", "4", "--qat-steps", "3"]
    code = training_checks.main([str(run), "--data", str(data), "--out", str(out), *short, *more])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return code, {record["name"]: record for record in records}


def test_all_checks_of_a_run_that_goes_on(run: Path, data: Path, tmp_path: Path) -> None:
    before = contents(run)
    code, found = checked(run, data, tmp_path / "results.jsonl", "--step", "16")
    assert contents(run) == before
    assert set(found) == set(training_checks.NAMES) - {"sparse"}
    assert code == int(any(record["passed"] is False for record in found.values()))

    steps = read_history(run).steps
    lowest = min(steps[SWITCH - 1].indexer_recall.values())
    assert found["recall"]["value"] == pytest.approx(lowest)
    assert found["recall"]["detail"]["at_step"] == SWITCH
    loads = [record.expert_load for record in steps if record.step > 6]
    assert found["balance"]["value"] == pytest.approx(max(statistics.fmean(x[n] for x in loads) for n in loads[0]))

    switch = found["switch"]
    assert switch["detail"]["steps_after_switch"] == 2
    gaps = [switch["detail"][name]["gap"] for name in ("held_out", "next_batch")]
    assert switch["value"] == max(gaps)
    assert all(0 < abs(gap) < 0.2 for gap in gaps)
    assert switch["passed"] == (switch["value"] < 0.01)

    assert found["packed"]["passed"]
    assert found["export"]["value"] == 1.0
    assert found["export"]["detail"]["num_prompts"] == 4
    rounded, trained = found["rounded"], found["qat"]
    for record in (rounded, trained):
        assert record["value"] == pytest.approx(record["detail"]["fp4"] / record["detail"]["full"] - 1)
        assert record["detail"]["exported"] == pytest.approx(record["detail"]["fp4"], rel=1e-3)
    assert rounded["detail"]["full"] == pytest.approx(switch["detail"]["held_out"]["top_rows"])
    assert trained["detail"]["full"] < rounded["detail"]["full"]  # it has learned meanwhile
    assert trained["detail"]["steps"] == 3


def test_an_early_checkpoint_is_not_judged_by_what_comes_later(run: Path, data: Path, tmp_path: Path) -> None:
    _, found = checked(run, data, tmp_path / "results.jsonl", "--step", "2", "--only", "switch,experts")
    assert set(found) == {"switch", "experts"}
    assert found["switch"]["detail"]["steps_after_switch"] == 2 - SWITCH
    assert 0 <= found["experts"]["value"] < 1


def test_the_newest_checkpoint_is_the_default_and_others_must_be_there(run: Path, data: Path, tmp_path: Path) -> None:
    _, found = checked(run, data, tmp_path / "results.jsonl", "--only", "sparse")
    assert found["sparse"]["step"] == SWITCH + 3
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; there are \[2, 4, "):
        checked(run, data, tmp_path / "results.jsonl", "--step", "3", "--only", "sparse")


def test_a_balance_of_the_first_steps_is_for_later(run: Path) -> None:
    config = dataclasses.replace(read_config(run), num_steps=1000)
    check = training_checks.balance(config, read_history(run))
    assert (check.value, check.passed) == (None, None)


def test_a_fork_trains_on_as_the_run_stood(run: Path, data: Path) -> None:
    config = read_config(run)
    early, late = (training_checks.forked(config, data, step, 60, 0.2) for step in (2, 19))
    assert (early.stages[0].sequence_length, late.stages[0].sequence_length) == (128, 512)
    assert (early.is_sparse(0), late.is_sparse(59)) == (False, True)
    assert (early.loss.mtp_weight, late.loss.mtp_weight) == (config.loss.mtp_weight, config.loss.mtp_weight_late)
    assert early.optimizer.peak_lr == pytest.approx(0.2 * config.optimizer.peak_lr)
    assert early.qat.start == 0.0

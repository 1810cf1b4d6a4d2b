"""Whole runs of the tiny recipe: falling loss, files, bit-equal resumption, bad steps, signals, what is refused."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_case import changed

from pelagos.common.errors import CheckpointError, ConfigError, PelagosError, ResourceError, UsageError
from pelagos.model.transformer import Model
from pelagos.recipes.tiny import tiny
from pelagos.training import checkpoint, session
from pelagos.training.catalogue import SAMPLE
from pelagos.training.config import TrainConfig
from pelagos.training.evaluate import EvaluateConfig
from pelagos.training.loop import Run
from pelagos.training.metrics import Event, read_history
from pelagos.training.overrides import settings_of, with_settings
from pelagos.training.prepare import PrepareConfig, prepare
from pelagos.training.step import StepReport


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    prepare(PrepareConfig(vocab_size=512, sources=SAMPLE, plots=False), folder)
    return folder


def short(data: Path, **changes: Any) -> TrainConfig:
    """12 steps with two length changes, the top-k switch, YaRN and low precision among them."""
    config = changed(tiny(), num_steps=12, data=dataclasses.replace(tiny().data, folder=str(data)), **changes)
    rows = [dataclasses.replace(stage, num_rows=1) for stage in config.stages]
    saving = dataclasses.replace(config.saving, every_steps=3, log_every=1)
    return dataclasses.replace(config, stages=tuple(rows), saving=saving)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.newest(out)
    assert saved is not None
    return {**saved.weights, **saved.optimizer}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert session.train(short(data), out)
    return out


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    history = read_history(whole)
    assert [record.step for record in history.steps] == list(range(1, 13))
    assert {record.sequence_length for record in history.steps} == {128, 256, 512}
    assert all(0.5 < record.stream_gain < 1.6 for record in history.steps)
    assert set(history.steps[-1].clamped) == {"gate_high", "up_high", "up_low"}
    assert history.steps[-1].parts["main"] < history.steps[0].parts["main"] - 0.5
    assert "<html" in (whole / "report.html").read_text()
    assert json.loads((whole / "config.json").read_text())["optimizer"]["peak_lr"] == 0.01
    assert len(list((whole / "checkpoints").iterdir())) == tiny().saving.keep
    model = Model.load(whole / "model")
    assert model.config.official_rounding
    assert model.config.compressed_rope.yarn is not None
    assert model.logits([1, 2, 3]).shape == (3, 512)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [5], [7, 1]])
def test_stopped_and_resumed_is_the_same_to_the_bit(cuts: list[int], data: Path, whole: Path, tmp_path: Path) -> None:
    for number, steps in enumerate(cuts):
        assert not session.train(short(data), tmp_path, resume=number > 0, stop_after=steps)
    assert session.train(short(data), tmp_path, resume=True)
    assert same(weights_of(tmp_path), weights_of(whole))
    ours, theirs = read_history(tmp_path), read_history(whole)
    assert [r.loss for r in ours.steps] == [r.loss for r in theirs.steps]


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_not(data: Path, whole: Path, tmp_path: Path) -> None:
    session.train(short(data), tmp_path / "a")
    assert same(weights_of(tmp_path / "a"), weights_of(whole))
    session.train(short(data, seed=1), tmp_path / "b", stop_after=12)
    assert not same(weights_of(tmp_path / "b"), weights_of(whole))


def _command(data: Path, out: Path, *more: str) -> list[str]:
    config = short(data)
    settings = [f"num_steps={config.num_steps}", "saving.every_steps=3", "saving.log_every=1"]
    settings += [f"stages.{i}.num_rows=1" for i in range(3)]
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-c", "import sys; from pelagos.cli.main import main; sys.exit(main())", "train", "tiny",
            "--out", str(out), "--data", str(data), *words, *more]  # fmt: skip


def _wait_for_step(out: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    metrics, ends = out / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < ends:
        if metrics.exists() and len(metrics.read_bytes().splitlines()) >= step:
            return
        time.sleep(0.01)


def test_killed_and_resumed_is_the_same_to_the_bit(data: Path, whole: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    threads = torch.get_num_threads()
    command = _command(data, tmp_path, "--threads", str(threads))
    with subprocess.Popen(command, env=environment) as process:
        _wait_for_step(tmp_path, 5, process)
        process.send_signal(signal.SIGKILL)
    with subprocess.Popen([*command, "--resume"], env=environment) as process:
        _wait_for_step(tmp_path, 8, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    subprocess.run([*command, "--resume"], env=environment, check=True, capture_output=True)
    assert same(weights_of(tmp_path), weights_of(whole))


@pytest.mark.slow
def test_killed_ten_times_at_random_steps(data: Path, tmp_path: Path) -> None:
    """The recipe as it is: lengths change at steps 48 and 68, top-k is switched on at 56, low precision at 72."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["train", "tiny", "--data", str(data), "--threads", "1", "--set", "saving.log_every=1",
             "--set", "saving.every_steps=5"]  # fmt: skip
    command = [sys.executable, "-m", "pelagos", *words, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    draw, out = random.Random(7), tmp_path / "killed"
    steps = sorted(draw.sample(range(2, 80), 10))
    for number, step in enumerate(steps):
        more = ["--resume"] if number else []
        with subprocess.Popen([*command, str(out), *more], env=environment, stderr=subprocess.DEVNULL) as process:
            _wait_for_step(out, step, process)
            time.sleep(draw.random() / 4)
            process.send_signal(signal.SIGKILL)
    subprocess.run([*command, str(out), "--resume"], env=environment, check=True, capture_output=True)
    assert same(weights_of(out), weights_of(tmp_path / "whole"))


class _Scripted:
    """A run whose reports are made up from its third step on."""

    def __init__(self, run: Run, losses: list[float]) -> None:
        self.gradients, self.losses = run.stepper.gradients, iter(losses)

    def __call__(self, step: int, batch: Any, forced: Any = None) -> StepReport:
        report = self.gradients(step, batch, forced)
        loss = next(self.losses, 5.0)
        return dataclasses.replace(report, loss=loss, gradient_norm=loss)


@pytest.fixture
def scripted(data: Path) -> Iterator[Any]:
    def make(losses: list[float], **stability: Any) -> Run:
        config = short(data)
        config = changed(config, stability=dataclasses.replace(config.stability, **stability))
        batches = session.open_loader(config.data, session._tokenizer(config))
        run = Run(config, batches, session.parallel.Group(), torch.device("cpu"))
        run.stepper.gradients = _Scripted(run, losses)  # type: ignore[method-assign]
        return run

    return make


def test_bad_steps_are_skipped_then_rolled_back(scripted: Any) -> None:
    nan = float("nan")
    run = scripted([5.0, 5.0, nan, 5.0, nan, nan, nan, 5.0], rollback_after=3, snapshot_steps=2)
    entries = [entry for _ in range(8) for entry in run.advance()]
    kinds = [entry.kind if isinstance(entry, Event) else "step" for entry in entries]
    assert kinds == ["step", "step", "skipped", "step", "skipped", "skipped", "skipped", "rolled_back", "step"]
    assert entries[7].to_step == 2
    assert run.step == 3


def test_a_run_that_cannot_be_mended_gives_up(scripted: Any) -> None:
    run = scripted([float("nan")] * 20, rollback_after=1, max_rollbacks=2)
    for _ in range(2):
        list(run.advance())
    with pytest.raises(ResourceError, match=r"^1 bad steps in a row after 2 roll-backs: lower optimizer.peak_lr"):
        list(run.advance())


def test_weights_after_a_roll_back_are_those_of_the_snapshot(scripted: Any) -> None:
    run = scripted([5.0, 5.0, float("inf")], rollback_after=1, snapshot_steps=2)
    list(run.advance())
    list(run.advance())
    before = {name: tensor.clone() for name, tensor in run._tensors()[0].items()}
    list(run.advance())
    assert run.num_rollbacks == 1
    assert same(before, run._tensors()[0])


def _rolled_back(scripted: Any, **stability: Any) -> Run:
    run: Run = scripted([5.0, 5.0, float("inf")], rollback_after=1, snapshot_steps=2, **stability)
    for _ in range(3):
        list(run.advance())
    assert run.num_rollbacks == 1
    return run


def test_experts_chosen_without_delay_change_nothing(scripted: Any) -> None:
    plain, anticipating = _rolled_back(scripted), _rolled_back(scripted, anticipate_steps=3, anticipate_delay=0)
    for _ in range(4):
        list(plain.advance())
        list(anticipating.advance())
    assert same(plain._tensors()[0], anticipating._tensors()[0])


def test_experts_are_chosen_by_older_weights_for_a_while(scripted: Any, tmp_path: Path) -> None:
    plain, anticipating = _rolled_back(scripted), _rolled_back(scripted, anticipate_steps=3, anticipate_delay=2)
    depths = []
    for _ in range(3):
        list(plain.advance())
        list(anticipating.advance())
        depths.append(len(anticipating.ahead))
    assert depths == [2, 2, 2]
    assert not same(plain._tensors()[0], anticipating._tensors()[0])
    anticipating.save(tmp_path, "digest")
    resumed = scripted([], rollback_after=1, snapshot_steps=2, anticipate_steps=3, anticipate_delay=2)
    assert resumed.resume(tmp_path, "digest")
    for _ in range(4):
        list(anticipating.advance())
        list(resumed.advance())
    assert anticipating.ahead == []
    assert same(anticipating._tensors()[0], resumed._tensors()[0])


def test_an_evaluation_on_the_way_and_at_the_end(data: Path, tmp_path: Path) -> None:
    config = with_settings(short(data), ["num_steps=2"])
    measured = EvaluateConfig(
        context_length=64,
        tokens_per_source=64,
        batch_tokens=128,
        low_precision=False,
        samples_per_task=None,
        recall=None,
    )
    saving = dataclasses.replace(config.saving, evaluate_every=1)
    assert session.train(changed(config, evaluation=measured, saving=saving), tmp_path)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["step"] == 2
    assert evaluation["bits_per_byte"]


def test_a_folder_with_a_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    session.train(short(data), tmp_path, stop_after=1)
    with pytest.raises(UsageError, match=r"holds a run: give --resume to go on with it, --force to start over"):
        session.train(short(data), tmp_path)
    with pytest.raises(CheckpointError, match="its checkpoints belong to another config"):
        session.train(short(data, seed=3), tmp_path, resume=True)
    session.train(short(data, seed=3), tmp_path, force=True, stop_after=1)


def test_a_damaged_checkpoint_is_passed_over(data: Path, whole: Path, tmp_path: Path) -> None:
    session.train(short(data), tmp_path, stop_after=6)
    newest = max((tmp_path / "checkpoints").iterdir())
    path = newest / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert session.train(short(data), tmp_path, resume=True)
    assert same(weights_of(tmp_path), weights_of(whole))


def test_no_sound_checkpoint_is_an_error(data: Path, tmp_path: Path) -> None:
    session.train(short(data), tmp_path, stop_after=1)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError):
        session.train(short(data), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.peak_lr"], "--set must be path=value, got 'optimizer.peak_lr'"),
        (["optimiser.peak_lr=1"], "--set optimiser.peak_lr: 'optimiser' must be one of name, num_steps, seed,"),
        (["optimizer.lr=1"], "--set optimizer.lr: 'lr' must be one of peak_lr, warmup_steps,"),
        (["optimizer=1"], "--set optimizer: name one of its fields, such as optimizer.peak_lr"),
        (["optimizer.peak_lr=fast"], "--set optimizer.peak_lr: peak_lr must be a number from 0 to 10, got 'fast'"),
        (["stages.7.num_rows=1"], "--set stages.7.num_rows: '7' must be a number from 0 to 2"),
        (["num_steps=0"], "--set num_steps: num_steps must be a whole number from 1 to 1073741824, got 0"),
        (["seed.x=1"], "--set seed.x: there is nothing below 'x'"),
        (["stages.0.until=0.99"], "--set stages.0.until: until of stages must rise to 1"),
        (["model.num_heads=3"], "--set model.num_heads: num_output_groups must divide num_heads (3), got 2"),
    ],
)
def test_settings_that_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(PelagosError) as caught:
        with_settings(tiny(), settings)
    assert str(caught.value).startswith(message)


def test_settings_reach_every_field() -> None:
    config = tiny()
    for path, value, text in settings_of(config):
        assert text, path
        assert with_settings(config, [f"{path}={value!r}"]) == config, path
    config = with_settings(config, ["optimizer.peak_lr=1", "stages.1.num_rows=7", "qat.start=0.5", "recompute=true"])
    assert (config.optimizer.peak_lr, config.stages[1].num_rows, config.qat.start, config.recompute) == (
        1.0,
        7,
        0.5,
        True,
    )


def test_words_that_are_choices_stay_words() -> None:
    assert with_settings(tiny(), ["sharding=full", "sharding=none"]).sharding == "none"
    assert with_settings(tiny(), ["optimizer.clip_norm=none"]).optimizer.clip_norm is None


def test_data_that_does_not_fit(data: Path, tmp_path: Path) -> None:
    other = with_settings(short(data), ["model.vocab_size=520"])
    with pytest.raises(ConfigError, match=r"^model.vocab_size must be that of the data's tokenizer \(512\), got 520$"):
        session.train(other, tmp_path)
    with pytest.raises(UsageError, match=r"^data.folder .*nowhere does not exist: make it with `pelagos train prepare"):
        session.train(with_settings(short(data), [f"data.folder={tmp_path / 'nowhere'}"]), tmp_path / "x")

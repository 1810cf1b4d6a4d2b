"""Everything around the steps of a run: its folder, its data, metrics, console, report.

One call, ``train``, is what ``pelagos train`` does; under torchrun every process calls it, and the first one writes.
"""

import dataclasses
import hashlib
import json
import math
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.device import describe_machine
from pelagos.common.errors import ConfigError, UsageError
from pelagos.common.files import FolderLock, write_atomic
from pelagos.model import accounting
from pelagos.training import checkpoint, parallel, sharded_checkpoint
from pelagos.training.config import TrainConfig
from pelagos.training.console import ConsoleLine
from pelagos.training.data import Batches, Loader, open_loader
from pelagos.training.evaluate import evaluate
from pelagos.training.evaluation import write_evaluation
from pelagos.training.health import examine
from pelagos.training.loop import Run, Watcher, export_model, run_steps
from pelagos.training.metrics import (
    METRICS_FILE,
    RUN_FILE,
    Event,
    MetricsLog,
    RunInfo,
    StepRecord,
    bits_per_byte,
    describe_hardware,
    share_of_peak,
    write_run_info,
)
from pelagos.training.parallel import Group
from pelagos.training.prefetch import Prefetcher
from pelagos.training.prepare import PrepareConfig, prepare
from pelagos.training.report import write_report
from pelagos.training.sources import optional_module
from pelagos.training.step import StepReport

SAMPLE = "sample"  # as data.folder: the text that ships with Pelagos, prepared inside the run's folder
CONFIG_FILE = "config.json"
_REPORT_SECONDS = 60.0  # between reports while a run goes on


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    device: torch.device | None = None,
    tensorboard: bool = False,
    stop_after: int | None = None,
) -> bool:
    """Train in the folder ``out``. Returns whether the run came to its end (False: it was asked to stop, and saved).

    Raises UsageError when ``out`` holds a run and neither ``resume`` nor ``force`` is given, or the data does not fit
    the config; CheckpointError when what is there cannot be resumed. ``stop_after``: steps to do now.
    """
    optional_module("matplotlib", "matplotlib", "the report")  # before hours of work, not after them
    group = parallel.join()
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out) if group.is_first else nullcontext():
        if group.is_first:
            _claim(out, resume=resume, force=force)
            if config.data.folder == SAMPLE:
                _prepare_sample(out / "data", config.model.vocab_size)
        group.sum(torch.zeros(1))  # the others wait here for the folder
        if config.data.folder == SAMPLE:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=str(out / "data")))
        tokenizer = _tokenizer(config)
        loader = open_loader(config.data, tokenizer, rank=group.rank, num_ranks=group.num_ranks)
        with _ahead(loader, config.data.prefetch_batches) as batches:
            run = _new_run(config, batches, group, device or torch.device("cpu"))
            digest = config_digest(config)
            resumed = resume and _resume(run, out, digest)
            watch: AbstractContextManager[Watcher] = nullcontext(_nothing)
            if group.is_first:
                write_atomic(out / CONFIG_FILE, json.dumps(plain(config), indent=2) + "\n")
                watch = _Watch(run, out, tokenizer, resumed=resumed, tensorboard=tensorboard)
            with watch as watching:
                done = run_steps(run, out, digest, watching, stop_after=stop_after)
        if done:
            _finish(run, out, tokenizer)
        if group.is_first:
            write_report(out)
        parallel.leave()
        return done


def _new_run(config: TrainConfig, batches: Batches, group: Group, device: torch.device) -> Run:
    if config.sharding == "full" and group.num_ranks > 1:
        from pelagos.training.sharded_run import ShardedRun

        return ShardedRun(config, batches, group, device)
    return Run(config, batches, group, device)


def _resume(run: Run, out: Path, digest: str) -> bool:
    """Whole weights also go on from a divided checkpoint, if that is the newest."""
    if run.config.sharding == "none":
        if run.group.is_first:
            sharded_checkpoint.to_plain(out)
        run.group.barrier()
    return run.resume(out, digest)


def _finish(run: Run, out: Path, tokenizer: Tokenizer) -> None:
    """Evaluation and the model's folder; divided weights are gathered by all processes together."""
    from pelagos.training.sharded_run import ShardedRun

    if isinstance(run, ShardedRun):
        run.export(out, Path(run.config.data.folder))
    elif run.group.is_first:
        evaluate_run(run, out, tokenizer)
        export_model(run, out, Path(run.config.data.folder))


def _nothing(step: int, entry: StepReport | Event) -> None:
    """What the other processes do with reports."""


def evaluate_run(run: Run, out: Path, tokenizer: Tokenizer) -> None:
    """Measure what the config asks for, into ``evaluation.json`` and a picture, for the report."""
    if run.config.evaluation is None:
        return
    model = run.stepper.view(max(run.step - 1, 0))
    folder = Path(run.config.data.folder)
    write_evaluation(evaluate(model, tokenizer, folder, run.config.evaluation, step=run.step), out)


def _ahead(loader: Loader, num_batches: int | None) -> AbstractContextManager[Batches]:
    """The loader, or a thread that makes batches ahead of the steps. The batches are the same."""
    return nullcontext(loader) if num_batches is None else Prefetcher(loader, num_batches)


def plain(config: Any) -> Any:
    """A config as JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return [plain(item) for item in config] if isinstance(config, tuple) else config


def config_digest(config: TrainConfig) -> str:
    """What must be equal for a checkpoint to be resumed: all but where the data lies and how often things are saved."""
    data = plain(config)
    data["data"].pop("folder")
    data["data"].pop("prefetch_batches")
    data.pop("saving")
    data.pop("evaluation")
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _claim(out: Path, *, resume: bool, force: bool) -> None:
    there = (out / CONFIG_FILE).exists() or (out / checkpoint.FOLDER).exists()
    if there and not resume and not force:
        raise UsageError(f"{out} holds a run: give --resume to go on with it, --force to start over, or another --out")
    if force and not resume:
        checkpoint.remove_all(out)
        for name in (METRICS_FILE, RUN_FILE, "report.html", CONFIG_FILE):
            (out / name).unlink(missing_ok=True)


def _prepare_sample(folder: Path, vocab_size: int) -> None:
    from pelagos.training.catalogue import SAMPLE as SOURCES

    if not (folder / "tokenizer.json").exists():
        prepare(PrepareConfig(vocab_size=vocab_size, sources=SOURCES, plots=False), folder)


def _tokenizer(config: TrainConfig) -> Tokenizer:
    """The tokenizer of the data. Raises where its vocabulary is not the model's."""
    folder = Path(config.data.folder)
    if not folder.is_dir():
        raise UsageError(
            f"data.folder {folder} does not exist: make it with `pelagos train prepare {folder}`, or give --data"
        )
    tokenizer = Tokenizer.from_folder(folder)
    model = config.model
    if tokenizer.vocab_size != model.vocab_size:
        raise ConfigError(
            f"model.vocab_size must be that of the data's tokenizer ({tokenizer.vocab_size}), got {model.vocab_size}"
        )
    if (tokenizer.bos_id, (tokenizer.eos_id,)) != (model.bos_id, model.eos_ids):
        ids = f"bos_id {tokenizer.bos_id} and eos_ids ({tokenizer.eos_id},)"
        raise ConfigError(f"model must have the tokenizer's {ids}, got {model.bos_id} and {model.eos_ids}")
    return tokenizer


class _Watch:
    """Writes metrics, the console's lines and now and then the report, as steps come."""

    def __init__(self, run: Run, out: Path, tokenizer: Tokenizer, *, resumed: bool, tensorboard: bool) -> None:
        self.run, self.out, self.tokenizer, config = run, out, tokenizer, run.config
        counts = accounting.parameters(config.model)
        flops = accounting.flops_per_token(config.model, config.stages[0].sequence_length)
        self.flops_per_token = 3.0 * flops.total
        self.peak = measure_peak()
        self.reported = time.monotonic()
        num_tokens = sum(
            config.rows_at(step) * config.stage_at(step).sequence_length for step in range(config.num_steps)
        )
        info = RunInfo(
            recipe=config.name,
            num_parameters=counts.total + counts.mtp,
            num_active_parameters=counts.active,
            num_steps=config.num_steps,
            num_tokens=num_tokens,
            hardware=describe_hardware(describe_machine()),
        )
        write_run_info(out, info)
        self.log = MetricsLog(out, resume_step=run.step if resumed else None, tensorboard=tensorboard)
        self.console = ConsoleLine(num_steps=config.num_steps, num_tokens=num_tokens)

    def __enter__(self) -> Watcher:
        self.log.__enter__()
        self.console.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.console.__exit__(*error)
        self.log.__exit__(*error)

    def __call__(self, step: int, entry: StepReport | Event) -> None:
        config = self.run.config
        if isinstance(entry, Event):
            self.log.write(entry)
            self.console.show(entry)
            if entry.to_step is not None:
                checkpoint.remove_after(self.out, entry.to_step)
                sharded_checkpoint.remove_after(self.out, entry.to_step)
            return
        self.console.advance(self.run.num_tokens)
        if step % config.saving.log_every == 0 or step in (1, config.num_steps):
            record = self._record(step, entry)
            self.log.write(record)
            self.console.show(record)
        wanted = config.saving.evaluate_every
        if wanted and step % wanted == 0 and step < config.num_steps:
            evaluate_run(self.run, self.out, self.tokenizer)
        if step % config.saving.every_steps == 0:
            self.log.sync()
            if time.monotonic() - self.reported > _REPORT_SECONDS:
                write_report(self.out)
                self.reported = time.monotonic()

    def _record(self, step: int, report: StepReport) -> StepRecord:
        config = self.run.config
        stage = config.stage_at(step - 1)
        number = config.stages.index(stage) + 1
        speed = report.num_tokens / max(report.seconds, 1e-9)
        sparse = ", sparse" if config.is_sparse(step - 1) else ""
        loads = {_layer_number(name): float(x.max() / x.float().mean()) for name, x in report.load.items()}
        biases = {_layer_number(name): _range(self.run.model.get_submodule(name)) for name in report.load}
        assert self.run.stepper.last_pass is not None
        health = None
        if config.sharding == "none":  # divided weights cannot be looked at by one process alone
            first_row = self.run.stepper.last_pass.rows(0, 1)
            health = examine(self.run.stepper.view(step - 1), first_row, sparse=config.is_sparse(step - 1))
        bytes_per_token = report.num_bytes / max(report.num_tokens, 1)
        return StepRecord(
            step=step,
            tokens=self.run.num_tokens,
            seconds=self.run.seconds,
            stage=f"{number}: {stage.sequence_length} tokens{sparse}",
            sequence_length=stage.sequence_length,
            batch_tokens=report.num_tokens,
            loss=report.loss,
            learning_rate=report.learning_rate,
            parts={"main": report.main, "mtp": report.mtp, "balance": report.balance, "index": report.index},
            bits_per_byte=bits_per_byte(report.main, bytes_per_token) if bytes_per_token else None,
            tokens_per_second=speed,
            share_of_peak=share_of_peak(speed, self.flops_per_token, self.peak),
            gradient_norm=report.gradient_norm,
            expert_load=loads,
            router_bias=biases,
            indexer_recall={int(name.split(".")[1]): value for name, value in report.recall.items()},
            stream_gain=health.stream_gain if health else None,
            post_share=health.post_share if health else None,
            clamped=health.clamped if health else {},
            memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )


def _range(router: torch.nn.Module) -> tuple[float, float]:
    assert isinstance(router.bias, torch.Tensor)
    low, high = torch.aminmax(router.bias)
    return float(low), float(high)


def _layer_number(router: str) -> int:
    return int(router.split(".")[1])


def measure_peak(size: int = 1024) -> float:
    """FLOP/s of a large float32 product on this machine, the best of a few."""
    x, best = torch.ones(size, size), math.inf
    for _ in range(4):
        began = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best

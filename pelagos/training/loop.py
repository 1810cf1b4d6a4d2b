"""A training run from its config to its last checkpoint: start or resume, steps, metrics, saving, bad steps, the end.

    DIR/config.json        the resolved config     DIR/metrics.jsonl, run.json   metrics.py
    DIR/checkpoints/       checkpoint.py           DIR/report.html               report.py
    DIR/model/             the trained model as a checkpoint folder, in float32

A run is a function of its config, its data and the machine: killed anywhere and resumed, it ends with the same bits.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pelagos.common.errors import CheckpointError, ResourceError
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.training import checkpoint
from pelagos.training.batch import PackedBatch
from pelagos.training.config import TrainConfig
from pelagos.training.data import Batches
from pelagos.training.export import export
from pelagos.training.initialize import initialize
from pelagos.training.metrics import Event
from pelagos.training.objective import Forced
from pelagos.training.optimizer import Optimizer
from pelagos.training.parallel import Group, own_queue, whole_queue
from pelagos.training.stability import Ahead, SpikeDetector, chosen_experts, from_tensors, to_tensors
from pelagos.training.step import Stepper, StepReport
from pelagos.training.views import named_weights

Watcher = Callable[[int, StepReport | Event], None]


class Run:
    """The state of a run between two steps."""

    def __init__(self, config: TrainConfig, batches: Batches, group: Group, device: torch.device) -> None:
        self.config, self.batches, self.group = config, batches, group
        with torch.device(device):
            self.model = Model(config.model, autograd_ops())
        initialize(self.model, std=config.init_std, seed=config.seed, start=config.init)
        self.optimizer = Optimizer(self.model, config.optimizer, ranks=group.ranks())
        self.stepper = Stepper(config, self.model, self.optimizer, group)
        self.detector = SpikeDetector()
        self.step = 0
        self.num_tokens = 0
        self.seconds = 0.0
        self.num_bad, self.num_rollbacks = 0, 0
        self.ahead: list[Ahead] = []
        self.anticipate_until = 0
        self._snapshot: dict[str, Any] | None = None

    def advance(self) -> Iterator[StepReport | Event]:
        """Do the next step. Yields its report, or what went wrong with it."""
        if self.step % self.config.stability.snapshot_steps == 0 or self._snapshot is None:
            self._snapshot = self._copy()
        stage = self.config.stage_at(self.step)
        if self.step and stage is not self.config.stage_at(self.step - 1):
            self.detector.restart()
        began = time.perf_counter()
        batch, forced = self._next()
        report = self.stepper.gradients(self.step, batch, forced)
        if self._is_bad(report):
            yield from self._skip(report)
            return
        self.stepper.apply(self.step, report)
        self.detector.add(report.loss)
        self.num_bad = 0
        self.step += 1
        self.num_tokens += report.num_tokens
        report.seconds = time.perf_counter() - began
        self.seconds += report.seconds
        yield report

    def _next(self) -> tuple[PackedBatch, list[Forced] | None]:
        """The batch of this step; for a while after a roll-back with experts that older weights chose for it."""
        if self.step < self.anticipate_until:
            while len(self.ahead) <= self.config.stability.anticipate_delay:
                self.ahead.append(self._fetch_ahead(self.step + len(self.ahead)))
        if self.ahead:
            first = self.ahead.pop(0)
            return first.batch, first.forced
        return self._fetch(self.step), None

    def _fetch(self, step: int) -> PackedBatch:
        stage = self.config.stage_at(step)
        self.batches.set_mixture(stage.mixture)
        return self.batches.batch(self.config.rows_at(step), stage.sequence_length).to(self.model.device)

    def _fetch_ahead(self, step: int) -> Ahead:
        step = min(step, self.config.num_steps - 1)
        batch = self._fetch(step)
        passes, sparse = self.stepper.passes(batch), self.config.is_sparse(step)
        return Ahead(batch=batch, forced=chosen_experts(self.stepper.view(step), passes, sparse=sparse))

    def _is_bad(self, report: StepReport) -> bool:
        finite = torch.isfinite(torch.tensor(report.gradient_norm)).item()
        return not finite or self.detector.is_bad(report.loss, self.config.stability.spike_deviations)

    def _skip(self, report: StepReport) -> Iterator[Event]:
        """Leave the batch out; after several in a row go back to the snapshot. The data goes on in both cases."""
        self.optimizer.zero_grad()
        self.num_bad += 1
        reason = f"loss {report.loss:.4g}, mean {self.detector.mean:.4g}, gradient norm {report.gradient_norm:.4g}"
        yield Event(step=self.step, kind="skipped", reason=reason)
        if self.num_bad < self.config.stability.rollback_after:
            return
        if self.num_rollbacks == self.config.stability.max_rollbacks:
            raise ResourceError(
                f"{self.num_bad} bad steps in a row after {self.num_rollbacks} roll-backs: lower optimizer.peak_lr, or "
                "look at metrics.jsonl"
            )
        assert self._snapshot is not None
        failed = self.step
        self._restore(self._snapshot)
        self.num_bad, self.num_rollbacks = 0, self.num_rollbacks + 1
        self.ahead.clear()
        self.anticipate_until = self.step + (self.config.stability.anticipate_steps or 0)
        yield Event(step=failed, kind="rolled_back", reason=reason, to_step=self.step)

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {n: t.detach() for n, t in named_weights(self.model).items()}, self.optimizer.state_dict()

    def _copy(self) -> dict[str, Any]:
        weights, optimizer = ({n: t.clone() for n, t in part.items()} for part in self._tensors())
        counters = {"step": self.step, "num_tokens": self.num_tokens, "detector": dict(vars(self.detector))}
        return {"weights": weights, "optimizer": optimizer, **counters}

    def _restore(self, copy: dict[str, Any]) -> None:
        checkpoint.load_weights(self._tensors()[0], copy["weights"])
        self.optimizer.load_state_dict(copy["optimizer"])
        self.step, self.num_tokens = copy["step"], copy["num_tokens"]
        self.detector = SpikeDetector(**copy["detector"])

    def save(self, out: Path, digest: str) -> None:
        """Write a checkpoint of this moment, from the first process; all must call it together."""
        parts, state = self._parts(), self._state(digest)
        if self.group.is_first:
            checkpoint.save(out, self.step, parts, state)
            checkpoint.remove_old(out, self.config.saving.keep)

    def resume(self, out: Path, digest: str) -> bool:
        """Go on from the newest checkpoint, if there is one. Raises CheckpointError if it is of another config."""
        saved = checkpoint.newest(out)
        if saved is None:
            return False
        self._check_digest(out, saved.state, digest)
        checkpoint.load_weights(self._tensors()[0], saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        self._take_state(saved.state, saved.ahead)
        return True

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        weights, optimizer = self._tensors()
        ahead = to_tensors(whole_queue(self.ahead, self.group))
        return {"weights": weights, "optimizer": optimizer, "ahead": ahead}

    def _state(self, digest: str) -> dict[str, Any]:
        return {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "num_bad": self.num_bad,
            "num_rollbacks": self.num_rollbacks,
            "anticipate_until": self.anticipate_until,
            "detector": vars(self.detector),
            "data": self.batches.state_dict(),
            "config": digest,
        }

    def _check_digest(self, out: Path, state: dict[str, Any], digest: str) -> None:
        if state["config"] != digest:
            raise CheckpointError(str(out), ["its checkpoints belong to another config: use another --out, or --force"])

    def _take_state(self, state: dict[str, Any], ahead: dict[str, Tensor]) -> None:
        self.batches.load_state_dict(state["data"])
        self.step, self.num_tokens, self.seconds = state["step"], state["num_tokens"], state["seconds"]
        self.num_bad, self.num_rollbacks = state["num_bad"], state["num_rollbacks"]
        self.anticipate_until = state["anticipate_until"]
        self.ahead = own_queue(from_tensors(ahead), self.group, self.stepper.passes)
        self.detector = SpikeDetector(**state["detector"])


def run_steps(run: Run, out: Path, digest: str, watch: Watcher, *, stop_after: int | None = None) -> bool:
    """Steps until the end, or until SIGTERM or SIGINT, or for ``stop_after`` steps; saves on the way and at the end.

    ``watch(step, entry)`` gets each report and event, with the number of steps done. Returns whether the run is done.
    """
    last = run.config.num_steps if stop_after is None else min(run.config.num_steps, run.step + stop_after)
    with _termination() as asked_to_stop:
        while run.step < last:
            for entry in run.advance():
                watch(run.step, entry)
            stopping = run.group.agree(asked_to_stop())
            if run.step % run.config.saving.every_steps == 0 or stopping:
                run.save(out, digest)
            if stopping:
                return False
        run.save(out, digest)
    return run.step == run.config.num_steps


def export_model(run: Run, out: Path, tokenizer_folder: Path) -> Path:
    """The model as it is at the end, in float32, with the tokenizer."""
    model = run.stepper.view(run.config.num_steps - 1)
    export(model, out / "model", official=False, tokenizer_folder=tokenizer_folder)
    return out / "model"


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask the run to save and end, in place of killing it; a second SIGINT kills as usual."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

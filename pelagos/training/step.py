"""One optimizer step, top to bottom: passes through the model, clipping, the optimizer, router biases.

A step's batch is read in passes of at most ``micro_tokens``; each loss is a mean over the whole step, so how a step is
cut changes rounding alone. Passes and sums have a fixed order: the same step gives the same bits.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pelagos.model.config import ModelConfig
from pelagos.model.moe import Router
from pelagos.model.transformer import Model
from pelagos.training.batch import PackedBatch
from pelagos.training.config import TrainConfig
from pelagos.training.objective import Forced, Totals, Weights, evaluate_objective, index_ratios
from pelagos.training.optimizer import Optimizer, learning_rate
from pelagos.training.parallel import Group
from pelagos.training.qat import served_weights
from pelagos.training.views import with_config


@dataclass(kw_only=True)
class StepReport:
    """What a step came to. Losses in nats per predicted token; load: tokens per expert and learned router;
    seconds: from the data to the moved weights."""

    loss: float
    main: float
    mtp: float
    balance: float
    index: float
    gradient_norm: float
    learning_rate: float
    num_tokens: int
    num_bytes: int
    seconds: float = 0.0
    load: dict[str, Tensor] = field(default_factory=dict)
    recall: dict[str, float] = field(default_factory=dict)


class Stepper:
    """Turns batches into steps of ``model``, whose weights and optimizer it owns."""

    def __init__(self, config: TrainConfig, model: Model, optimizer: Optimizer, group: Group) -> None:
        self.config, self.model, self.optimizer, self.group = config, model, optimizer, group
        self._views: dict[ModelConfig, Model] = {model.config: model}
        self.last_pass: PackedBatch | None = None

    def view(self, step: int) -> Model:
        """The model as it is at ``step``: YaRN and official rounding on or off."""
        config = self.config.model
        if not self.config.stage_at(step).yarn:
            config = replace(config, compressed_rope=replace(config.compressed_rope, yarn=None))
        if self.in_qat(step) and self.config.qat.official_rounding:
            config = replace(config, official_rounding=True)
        if config not in self._views:
            self._views[config] = with_config(self.model, config)
        return self._views[config]

    def in_qat(self, step: int) -> bool:
        return step >= round(self.config.qat.start * self.config.num_steps)

    def passes(self, batch: PackedBatch) -> list[PackedBatch]:
        num_rows, length = batch.token_ids.shape
        rows = max(1, self.config.micro_tokens // length)
        return [batch.rows(start, start + rows) for start in range(0, num_rows, rows)]

    def gradients(self, step: int, batch: PackedBatch, forced: Sequence[Forced] | None = None) -> StepReport:
        """Losses of a step, with their gradients on the parameters. ``batch``: this process's rows."""
        config, model = self.config, self.view(step)
        passes, weights, ratios = self.passes(batch), self._weights(step), index_ratios(model)
        own = [Totals.of(part, ratios) for part in passes]
        self.last_pass = passes[-1]
        totals = own[0].replaced(self.group.sum(torch.stack([part.vector() for part in own]).sum(0)))
        sums = torch.zeros(4, dtype=torch.float64)
        load: dict[str, Tensor] = {}
        recall: dict[str, float] = {}
        with served_weights(self.model) if self.in_qat(step) else nullcontext():
            for i, part in enumerate(passes):
                outcome = evaluate_objective(
                    model,
                    part,
                    sparse=config.is_sparse(step),
                    weights=weights,
                    totals=totals,
                    recompute=config.recompute,
                    forced=forced[i] if forced else None,
                )
                outcome.total(weights).backward()
                parts = (outcome.main, outcome.mtp, outcome.balance, outcome.index)
                sums += torch.stack([x.detach().double().cpu() for x in parts])
                for name, counts in outcome.load.items():
                    load[name] = load.get(name, 0) + counts
                for name, value in outcome.recall.items():
                    recall[name] = recall.get(name, 0.0) + value
        self.group.reduce_gradients(self.optimizer)
        main, mtp, balance, index = self.group.sum(sums).tolist()
        loss = main + weights.mtp * mtp + weights.balance * balance + weights.index * index
        counted = batch.document_ids >= 0
        sizes = self.group.sum(torch.tensor([counted.sum(), batch.num_bytes.sum()], dtype=torch.float64)).tolist()
        return StepReport(
            loss=loss,
            main=main,
            mtp=mtp,
            balance=balance,
            index=index,
            gradient_norm=self.optimizer.clip(config.optimizer.clip_norm),
            learning_rate=learning_rate(step, config.num_steps, config.optimizer),
            num_tokens=int(sizes[0]),
            num_bytes=int(sizes[1]),
            load={name: self.group.sum(counts) for name, counts in load.items()},
            recall={name: float(self.group.sum(torch.tensor(value))) for name, value in recall.items()},
        )

    def apply(self, step: int, report: StepReport) -> None:
        """Move the weights by the gradients, and the router biases by the load."""
        self.optimizer.step(report.learning_rate)
        self.optimizer.zero_grad()
        if step < round(self.config.balance.fixed_from * self.config.num_steps):
            self._move_biases(report.load)

    @torch.no_grad()
    def _move_biases(self, load: dict[str, Tensor]) -> None:
        """b_e += speed · sign(mean load − load_e): crowded experts become harder to choose."""
        for name, counts in load.items():
            router = self.model.get_submodule(name)
            assert isinstance(router, Router)
            counts = counts.float()
            router.bias.add_(torch.sign(counts.mean() - counts), alpha=self.config.balance.bias_speed)

    def _weights(self, step: int) -> Weights:
        loss, late = self.config.loss, step >= self.config.optimizer.decay_start_share * self.config.num_steps
        return Weights(
            mtp=loss.mtp_weight_late if late else loss.mtp_weight, balance=loss.balance_weight, index=loss.index_weight
        )

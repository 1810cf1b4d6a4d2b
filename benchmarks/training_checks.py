"""Is the training of a run right? What a run folder of `pelagos train` says about it, finished or still going on.

    python benchmarks/training_checks.py RUN_DIR --data DATA [--step 300] [--only qat,export] [--out results.jsonl]

RUN_DIR is only read; a checkpoint is continued in memory. Each check prints its criterion, what was found and whether
it passed; "later" is one whose time in the run has not come. The exit code is 1 if one failed.

    balance     from metrics: the busiest expert of each layer after 30 % of the steps
    experts     on the next batch of the run: the least used expert of each layer
    recall      from metrics: what indexers find of dense attention in the last logged step before top-k
    switch      same weights, loss with top rows against all rows: of a checkpoint up to the first after the switch
    sparse      the same of later ones
    rounded     loss of the served numbers against float32, only rounded
    qat         the same after --qat-steps of training in the served numbers; after the run's own, if it has some
    packed      logits of an official export against those of the served model in memory
    export      greedy answers of the two to held-out text
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pelagos.chat.tokenizer import Tokenizer
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import reference_ops
from pelagos.training.answers import greedy_answers
from pelagos.training.config import QatConfig, TrainConfig
from pelagos.training.data import open_loader, open_shards
from pelagos.training.evaluate import EvaluateConfig, evaluate
from pelagos.training.evaluation import Evaluation
from pelagos.training.export import export
from pelagos.training.held_out import mixed_batch, objective_loss, text_batch
from pelagos.training.loop import Run
from pelagos.training.metrics import Event, History, read_history
from pelagos.training.qat import served_weights
from pelagos.training.saved_run import fork, read_checkpoint, read_config
from pelagos.training.stability import chosen_experts
from pelagos.training.views import with_config

MAX_LENGTH = 4096  # dense attention on longer rows takes gigabytes
PASS_TOKENS = 4096
NUM_LOGIT_PROMPTS = 8
FROM_METRICS = ("balance", "recall")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """passed: None where the time of the check has not come. detail: what else was measured."""

    name: str
    criterion: str
    value: float | None
    passed: bool | None
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)


def balance(config: TrainConfig, history: History) -> Check:
    records = [r for r in history.steps if r.step > 0.3 * config.num_steps and r.expert_load]
    criterion = "mean over logged steps after 30 % of the run, busiest expert / mean of the worst layer < 2"
    if not records:
        return Check(name="balance", criterion=criterion, value=None, passed=None)
    layers = {layer: [r.expert_load[layer] for r in records] for layer in records[0].expert_load}
    means = {layer: statistics.fmean(loads) for layer, loads in layers.items()}
    worst = max(means.values())
    detail = {
        "by_layer": _rounded(means),
        "highest_single_step": round(max(map(max, layers.values())), 3),
        "num_records": len(records),
    }
    return Check(name="balance", criterion=criterion, value=worst, passed=worst < 2, detail=detail)


def recall(config: TrainConfig, history: History) -> Check:
    records = [r for r in history.steps if not config.is_sparse(r.step - 1) and r.indexer_recall]
    criterion = "share of dense attention that the top rows hold, worst layer, last step before the switch >= 0.9"
    if not records:
        return Check(name="recall", criterion=criterion, value=None, passed=None)
    last = records[-1].indexer_recall
    lowest = min(last.values())
    detail = {
        "by_layer": _rounded(last),
        "at_step": records[-1].step,
        "length": records[-1].sequence_length,
        "untrained": _rounded(records[0].indexer_recall),
    }
    return Check(name="recall", criterion=criterion, value=lowest, passed=lowest >= 0.9, detail=detail)


def first_sparse_step(config: TrainConfig) -> int | None:
    return next((step for step in range(config.num_steps) if config.is_sparse(step)), None)


def forked(config: TrainConfig, data: Path, step: int, num_steps: int, rate_share: float) -> TrainConfig:
    """Training in the served numbers as if the run stood still after ``step``: its stage, attention and weights of
    losses, at a share of the peak rate."""
    at = max(step - 1, 0)
    late = at >= config.optimizer.decay_start_share * config.num_steps
    fixed = at >= config.balance.fixed_from * config.num_steps
    replace = dataclasses.replace
    return replace(
        config,
        num_steps=max(num_steps, 1),
        batch_ramp=0.0,
        data=replace(config.data, folder=str(data), prefetch_batches=None),
        stages=(replace(config.stage_at(at), until=1.0, sparse_from=0.0 if config.is_sparse(at) else 1.0),),
        optimizer=replace(
            config.optimizer,
            peak_lr=rate_share * config.optimizer.peak_lr,
            warmup_steps=0,
            decay_start_share=1.0,
            decay_end_share=1.0,
        ),
        loss=replace(config.loss, mtp_weight=config.loss.mtp_weight_late if late else config.loss.mtp_weight),
        balance=replace(config.balance, fixed_from=0.0 if fixed else 1.0),
        qat=QatConfig(start=0.0),
    )


class Checkpoint:
    """A checkpoint of a run, to be continued in memory."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.config = options, read_config(options.run)
        saved = read_checkpoint(options.run, options.step)
        self.step: int = saved.state["step"]
        self.tokenizer = Tokenizer.from_folder(options.data)
        config = forked(self.config, options.data, self.step, options.qat_steps, options.rate_share)
        loader = open_loader(config.data, self.tokenizer)
        if not options.fresh_data:
            loader.load_state_dict(saved.state["data"])
        self.run: Run = fork(config, saved, loader)
        self.length = options.length or min(config.stages[0].sequence_length, MAX_LENGTH)
        served = self.run.stepper.view(0).config
        self.model = with_config(self.run.model, dataclasses.replace(served, official_rounding=False))
        self.exact = with_config(self.run.model, served, reference_ops())
        self.run.batches.set_mixture(config.stages[0].mixture)
        self.next_batch = self.run.batches.batch(max(1, options.tokens // self.length), self.length)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Held-out text as the checkpoint is, before anything else is done to it."""
        return self.evaluate(low_precision=bool({"rounded", "qat"} & set(self.options.only)))

    def evaluate(self, *, low_precision: bool) -> Evaluation:
        wanted = EvaluateConfig(
            split="valid",
            context_length=self.length,
            tokens_per_source=None,
            batch_tokens=self.options.tokens,
            low_precision=low_precision,
            samples_per_task=None,
            recall=None,
            pass_tokens=PASS_TOKENS,
        )
        return evaluate(self.model, self.tokenizer, self.options.data, wanted, step=self.step)

    def experts(self) -> Iterator[Check]:
        sparse = self.config.is_sparse(max(self.step - 1, 0))
        chosen = chosen_experts(self.model, self.run.stepper.passes(self.next_batch), sparse=sparse)
        loads = {
            name.removesuffix(".ffn.gate"): torch.stack(
                [torch.bincount(one[name].flatten(), minlength=self.model.config.num_experts) for one in chosen]
            ).sum(0)
            for name in chosen[0]
        }
        least = {name: float(load.min() / load.double().mean()) for name, load in loads.items()}
        most = {name: float(load.max() / load.double().mean()) for name, load in loads.items()}
        yield Check(
            name="experts",
            criterion="tokens of the least used expert of any layer / mean > 0 (none is dead)",
            value=min(least.values()),
            passed=min(least.values()) > 0,
            detail={"least": _rounded(least), "most": _rounded(most), "num_tokens": self.next_batch.token_ids.numel()},
        )

    def attention(self) -> Iterator[Check]:
        found, switch = self.evaluation.attention, first_sparse_step(self.config)
        assert found is not None
        sparse, dense = (
            objective_loss(self.model, self.next_batch, pass_tokens=PASS_TOKENS, dense=all_rows)[0]
            for all_rows in (False, True)
        )
        text, mix = found.sparse / found.dense - 1, sparse / dense - 1
        is_later = switch is not None and self.step > switch + self.config.saving.every_steps
        yield Check(
            name="sparse" if is_later else "switch",
            criterion="loss with top rows / with all rows - 1, on held-out text and on the run's next batch < 0.01",
            value=max(text, mix),
            passed=max(text, mix) < 0.01,
            detail={
                "held_out": {"top_rows": found.sparse, "all_rows": found.dense, "gap": text},
                "next_batch": {"top_rows": sparse, "all_rows": dense, "gap": mix},
                "indexer_recall": _rounded(found.indexer_recall),
                "length": self.length,
                "steps_after_switch": None if switch is None else self.step - switch,
            },
        )

    def precision(self) -> Iterator[Check]:
        before, own = self.evaluation.qat, self.config.qat.start * self.config.num_steps < self.step
        after, events = before, []
        if not own:
            events = self.train()
            after = self.evaluate(low_precision=True).qat
        gap_before, gap_after = (losses["fp4"] / losses["full"] - 1 for losses in (before, after))
        if not own:
            yield Check(
                name="rounded",
                criterion="served numbers / float32 - 1, only rounded: larger than after training for it",
                value=gap_before,
                passed=gap_before > gap_after,
                detail=dict(before),
            )
        yield Check(
            name="qat",
            criterion="served numbers / float32 - 1, after training in them < 0.01",
            value=gap_after,
            passed=gap_after < 0.01,
            detail={**after, "length": self.length, "steps": None if own else self.run.step, "skipped": len(events)},
        )

    def train(self) -> list[Event]:
        """All steps in the served numbers; what went wrong with some of them."""
        events = []
        while self.run.step < self.options.qat_steps:
            events += [entry for entry in self.run.advance() if isinstance(entry, Event)]
        return events

    def prompts(self) -> list[list[int]]:
        shards = open_shards(self.options.data, "valid")
        length, number = self.options.prompt_tokens, self.options.prompts
        batches = [
            text_batch(name, shard, self.tokenizer, context_length=length, num_tokens=length * number, seed=1)
            for name, shard in shards.items()
        ]
        batch = mixed_batch(batches, number)
        return [ids[inside].tolist() for ids, inside in zip(batch.token_ids, batch.document_ids >= 0, strict=True)]

    def export(self) -> Iterator[Check]:
        prompts, number = self.prompts(), self.options.new_tokens
        with tempfile.TemporaryDirectory() as name:
            export(self.exact, Path(name), official=True)
            loaded = Model.load(name, implementation="reference")
            with served_weights(self.run.model):
                pairs = [(self.exact.logits(p), loaded.logits(p)) for p in prompts[:NUM_LOGIT_PROMPTS]]
                ours = _answers(self.exact, prompts, number)
            theirs = _answers(loaded, prompts, number)
        apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        yield Check(
            name="packed",
            criterion="largest difference of logits / largest logit, official export against memory <= 1e-6",
            value=apart,
            passed=apart <= 1e-6,
            detail={"num_prompts": len(pairs)},
        )
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        yield Check(
            name="export",
            criterion="share of prompts with the same greedy tokens, official export against memory = 1",
            value=same / len(prompts),
            passed=same == len(prompts),
            detail={"num_prompts": len(prompts), "new_tokens": number, "different": len({tuple(a) for a in ours})},
        )


def _answers(model: Model, prompts: Sequence[Sequence[int]], number: int) -> list[list[int]]:
    return greedy_answers(model, prompts, [number] * len(prompts), stop_ids=())


def _rounded(values: Any) -> dict[str, float]:
    return {str(name): round(value, 4) for name, value in values.items()}


def checks(options: argparse.Namespace) -> Iterator[tuple[int | None, Check]]:
    """The wanted ones, each with the step of its checkpoint."""
    config, wanted = read_config(options.run), set(options.only)
    history = read_history(options.run)
    for name, check in (("balance", balance), ("recall", recall)):
        if name in wanted:
            yield None, check(config, history)
    if wanted <= set(FROM_METRICS):
        return
    subject = Checkpoint(options)
    parts = {
        ("experts",): subject.experts,
        ("switch", "sparse"): subject.attention,
        ("rounded", "qat"): subject.precision,
        ("packed", "export"): subject.export,
    }
    for names, part in parts.items():
        if wanted & set(names):
            yield from ((subject.step, check) for check in part())


NAMES = ("balance", "experts", "recall", "switch", "sparse", "rounded", "qat", "packed", "export")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} must be one of {', '.join(NAMES)}")
    return names


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--data", type=Path, required=True, help="what the run was trained on, with its tokenizer")
    parser.add_argument("--step", type=int, default=None, help="which checkpoint; default: the newest")
    parser.add_argument(
        "--fresh-data", action="store_true", help="batches from the start of DATA, where its sources or tasks changed"
    )
    parser.add_argument("--only", type=_names, default=list(NAMES), help="names of checks, with commas")
    parser.add_argument("--length", type=int, default=None, help="tokens a row; default: the stage's, at most 4096")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of each measured batch")
    parser.add_argument("--qat-steps", type=int, default=60)
    parser.add_argument("--rate-share", type=float, default=0.2, help="learning rate of these, as a share of the peak")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=None, help="append the results to this JSONL file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    num_failed, began = 0, time.perf_counter()
    for step, check in checks(options):
        num_failed += check.passed is False
        word = {True: "pass", False: "FAIL", None: "later"}[check.passed]
        value = "" if check.value is None else f"{check.value:.4g}"
        print(f"{word:6}{check.name:9}{value:>10}  {check.criterion}\n      {json.dumps(check.detail)}", flush=True)
        record = {"run": options.run.resolve().name, "step": step, **dataclasses.asdict(check)}
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps({**record, "seconds": round(time.perf_counter() - began)}) + "\n")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())

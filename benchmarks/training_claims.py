"""Do the parts of the training recipe earn their place? Short runs of a small model, all on the same tokens.

    python benchmarks/training_claims.py DATA [--size nano] [--only muon,adamw] [--out results.jsonl]

DATA is a folder of `pelagos train prepare` with a vocabulary of 4,096. Sizes: half is nano's model with half its width
and four layers, 80 steps of 2,048 tokens; nano is nano's own, 60 steps of 8,192; rows have 256 tokens. Each variant
prints its held-out loss (nats per token of documentation text), that loss on a quarter of the text every five steps,
expert load, and what else it is about; what --out holds already of the same size and steps is not run again. At the
end: after which step the best learning rate of Muon has the loss that the best of AdamW ends with.

    muon, adamw       each at three learning rates; muon5 is plain Newton-Schulz with five steps
    no_mtp            without multi-token prediction
    one_stream        one residual stream: hyper-connections off
    no_balance        router biases fixed: experts should be used less evenly
    sparse            top-k from half of the steps on, with top 8 of 64 rows; beside it the loss with all rows
    qat, rounded      low precision in the last fifth of the steps, and only after training
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pelagos.chat.tokenizer import Tokenizer
from pelagos.model.config import ModelConfig, csa_layer, hca_layer, window_layer
from pelagos.recipes.nano import nano
from pelagos.training.batch import PackedBatch
from pelagos.training.config import QatConfig, StageConfig, TrainConfig
from pelagos.training.data import DataConfig, open_loader, open_shards
from pelagos.training.held_out import mixed_batch, objective_loss, text_batch
from pelagos.training.loop import Run
from pelagos.training.optimizer import OptimizerConfig
from pelagos.training.parallel import Group
from pelagos.training.qat import served_weights
from pelagos.training.step import StepReport
from pelagos.training.views import with_config

Point = tuple[int, float]  # step, held-out loss
CURVE_STEPS = 5  # between points of the curve
CURVE_ROWS = 32  # of the held-out batch that it is measured on
PASS_TOKENS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    num_steps: int
    num_rows: int
    model: ModelConfig


def sizes() -> dict[str, Size]:
    nano_model, window = nano().model, nano().model.layers[0].window
    layers = (
        window_layer(window=window, router="hash"),
        csa_layer(window=window),
        hca_layer(window=window, ratio=32),
        csa_layer(window=window),
    )
    half = dataclasses.replace(
        nano_model, hidden_size=128, num_heads=4, query_rank=64, expert_dim=64, output_rank=64, layers=layers
    )
    return {
        "half": Size(num_steps=80, num_rows=8, model=half),
        "nano": Size(num_steps=60, num_rows=32, model=nano_model),
    }


def base_config(data: Path, size: Size, num_steps: int) -> TrainConfig:
    """The setting that every variant changes one thing of."""
    return dataclasses.replace(
        nano(),
        name="claims",
        num_steps=num_steps,
        init="plain",  # optimizers are compared from random weights; the smaller size has no room for another start
        model=size.model,
        data=DataConfig(folder=str(data), prefetch_batches=None),
        stages=(StageConfig(until=1.0, sequence_length=256, num_rows=size.num_rows),),
        optimizer=OptimizerConfig(peak_lr=5e-3, warmup_steps=8),
        evaluation=None,
    )


def variants(base: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Name and config of every run."""

    def change(part: str, **values: Any) -> TrainConfig:
        return dataclasses.replace(base, **{part: dataclasses.replace(getattr(base, part), **values)})

    for lr in (2.5e-3, 5e-3, 1e-2):
        yield f"muon lr {lr:g}", change("optimizer", peak_lr=lr)
    for lr in (1e-3, 3e-3, 9e-3):
        yield f"adamw lr {lr:g}", change("optimizer", peak_lr=lr, muon=False)
    yield "muon5", change("optimizer", newton_schulz_steps=(5, 0))
    yield "no_mtp", change("loss", mtp_weight=0.0, mtp_weight_late=0.0)
    yield "one_stream", change("model", num_streams=1)
    yield "no_balance", change("balance", bias_speed=0.0)
    stage = dataclasses.replace(base.stages[0], sparse_from=0.5)
    yield "sparse", dataclasses.replace(change("model", index_topk=8), stages=(stage,))
    yield "qat", dataclasses.replace(base, qat=QatConfig(start=0.8))


def train(config: TrainConfig, tokenizer: Tokenizer, batch: PackedBatch) -> tuple[Run, StepReport, list[Point]]:
    """The run, its last step, and its held-out loss after every few steps."""
    run = Run(config, open_loader(config.data, tokenizer), Group(), torch.device("cpu"))
    last: StepReport | None = None
    curve = []
    while run.step < config.num_steps:
        for entry in run.advance():
            last = entry if isinstance(entry, StepReport) else last
        if run.step % CURVE_STEPS == 0 or run.step == config.num_steps:
            model = run.stepper.view(run.step - 1)
            loss, _ = objective_loss(model, batch, pass_tokens=PASS_TOKENS)
            curve.append((run.step, round(loss, 4)))
    assert last is not None
    return run, last, curve


def measure(run: Run, last: StepReport, batch: PackedBatch) -> dict[str, Any]:
    model = run.stepper.view(run.config.num_steps - 1)
    sparse, _ = objective_loss(model, batch, pass_tokens=PASS_TOKENS)
    dense, recall = objective_loss(model, batch, pass_tokens=PASS_TOKENS, dense=True)
    rounding = with_config(run.model, dataclasses.replace(run.config.model, official_rounding=True))
    with served_weights(run.model):
        rounded, _ = objective_loss(rounding, batch, pass_tokens=PASS_TOKENS)
    return {
        "held_out": round(sparse, 4),
        "train": round(last.main, 4),
        "load": max(round(float(x.max() / x.float().mean()), 2) for x in last.load.values()),
        "all_rows": round(dense, 4),
        "indexer_recall": [round(value, 3) for value in recall.values()],
        "low_precision": round(rounded, 4),
    }


def equal_loss(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the best Muon's curve comes to the end of the best AdamW's; None unless both are there."""
    best: dict[str, dict[str, Any]] = {}
    for record in records:
        kind = record["variant"].split(" lr ")[0]
        if "curve" in record and (kind not in best or record["held_out"] < best[kind]["held_out"]):
            best[kind] = record
    if not {"muon", "adamw"} <= best.keys():
        return None
    muon, adamw = best["muon"], best["adamw"]
    goal = adamw["curve"][-1][1]
    step = step_at(muon["curve"], goal)
    return {
        "muon": muon["variant"],
        "adamw": adamw["variant"],
        "loss": goal,
        "muon_step": step,
        "step_ratio": None if step is None else round(adamw["steps"] / step, 2),
    }


def step_at(curve: Sequence[Point], goal: float) -> float | None:
    """The first step at which a loss is down to ``goal``, on straight lines between points; None: it never is."""
    before = curve[0]
    for step, loss in curve:
        if loss <= goal:
            share = 1.0 if loss == before[1] else (before[1] - goal) / (before[1] - loss)
            return round(before[0] + share * (step - before[0]), 1) if before[1] > goal else float(step)
        before = (step, loss)
    return None


def stored(path: Path | None, size: str, num_steps: int) -> dict[str, dict[str, Any]]:
    """Results by variant that are there already. Those without a size are older, and of half."""
    if path is None or not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    fitting = [r for r in records if r.get("size", "half") == size and r["steps"] == num_steps]
    return {record["variant"]: record for record in fitting}


def held_out_batch(data: Path, tokenizer: Tokenizer) -> PackedBatch:
    shards = open_shards(data, "valid")
    pieces = [
        text_batch(name, shard, tokenizer, context_length=256, num_tokens=4096, seed=0)
        for name, shard in shards.items()
    ]
    return mixed_batch(pieces, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", choices=tuple(sizes()), default="half")
    parser.add_argument("--steps", type=int, default=None, help="default: 80 of half, 60 of nano")
    parser.add_argument("--only", default="", help="names of variants, or how they begin, with commas")
    parser.add_argument("--out", type=Path, default=None, help="append the results to this JSONL file")
    options = parser.parse_args()
    size = sizes()[options.size]
    num_steps = options.steps or size.num_steps
    tokenizer = Tokenizer.from_folder(options.data)
    batch = held_out_batch(options.data, tokenizer)
    results = stored(options.out, options.size, num_steps)
    for name, config in variants(base_config(options.data, size, num_steps)):
        if name in results or not name.startswith(tuple(options.only.split(","))):
            continue
        began = time.perf_counter()
        run, last, curve = train(config, tokenizer, batch.rows(0, CURVE_ROWS))
        result = {"variant": name, "size": options.size, "steps": num_steps, **measure(run, last, batch)}
        result |= {"curve": curve, "seconds": round(time.perf_counter() - began)}
        results[name] = result
        print(json.dumps(result), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(result) + "\n")
    if ratio := equal_loss(results.values()):
        print(json.dumps({"equal_loss": ratio}))


if __name__ == "__main__":
    main()

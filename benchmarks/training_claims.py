"""Do the parts of the training recipe earn their place? Short runs of a small model, all on the same tokens.

    python benchmarks/training_claims.py DATA [--steps 80] [--only muon,adamw] [--out results.jsonl]

DATA is a folder of `pelagos train prepare` with a vocabulary of 4,096. The model is nano's with half its width and four
layers; a step has 2,048 tokens. Each variant prints its held-out loss (nats per token of documentation text, at the
length of the last step), expert load, and what else it is about:

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pelagos.chat.tokenizer import Tokenizer
from pelagos.model.config import csa_layer, hca_layer, window_layer
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

_WINDOW = 64


def small_config(data: Path, num_steps: int) -> TrainConfig:
    """The setting that every variant changes one thing of."""
    recipe = nano()
    layers = (
        window_layer(window=_WINDOW, router="hash"),
        csa_layer(window=_WINDOW),
        hca_layer(window=_WINDOW, ratio=32),
        csa_layer(window=_WINDOW),
    )
    model = dataclasses.replace(
        recipe.model, hidden_size=128, num_heads=4, query_rank=64, expert_dim=64, output_rank=64, layers=layers
    )
    return dataclasses.replace(
        recipe,
        name="claims",
        num_steps=num_steps,
        model=model,
        data=DataConfig(folder=str(data), prefetch_batches=None),
        stages=(StageConfig(until=1.0, sequence_length=256, num_rows=8),),
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


def train(config: TrainConfig, tokenizer: Tokenizer) -> tuple[Run, StepReport]:
    run = Run(config, open_loader(config.data, tokenizer), Group(), torch.device("cpu"))
    last: StepReport | None = None
    while run.step < config.num_steps:
        for entry in run.advance():
            last = entry if isinstance(entry, StepReport) else last
    assert last is not None
    return run, last


def measure(run: Run, last: StepReport, batch: PackedBatch) -> dict[str, Any]:
    model = run.stepper.view(run.config.num_steps - 1)
    loss: Callable[[bool], float] = lambda dense: objective_loss(model, batch, pass_tokens=4096, dense=dense)[0]  # noqa: E731
    load = {name: round(float(x.max() / x.float().mean()), 2) for name, x in last.load.items()}
    found: dict[str, Any] = {
        "held_out": round(loss(False), 4),
        "train": round(last.main, 4),
        "load": max(load.values()),
    }
    _, recall = objective_loss(model, batch, pass_tokens=4096, dense=True)
    found |= {"all_rows": round(loss(True), 4), "indexer_recall": [round(value, 3) for value in recall.values()]}
    rounding = with_config(run.model, dataclasses.replace(run.config.model, official_rounding=True))
    with served_weights(run.model):
        found["low_precision"] = round(objective_loss(rounding, batch, pass_tokens=4096)[0], 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", default="", help="names of variants, or how they begin, with commas")
    parser.add_argument("--out", type=Path, default=None, help="append the results to this JSONL file")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_folder(options.data)
    shards = open_shards(options.data, "valid")
    pieces = [
        text_batch(name, shard, tokenizer, context_length=256, num_tokens=4096, seed=0)
        for name, shard in shards.items()
    ]
    batch = mixed_batch(pieces, 128)
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    for name, config in variants(small_config(options.data, options.steps)):
        if not name.startswith(wanted):
            continue
        began = time.perf_counter()
        run, last = train(config, tokenizer)
        result = {"variant": name, "steps": options.steps, **measure(run, last, batch)}
        result["seconds"] = round(time.perf_counter() - began)
        print(json.dumps(result), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

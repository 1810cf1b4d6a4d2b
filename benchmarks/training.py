"""Training speed of a recipe's model against transformers' DeepseekV4 with torch AdamW, side by side in one run.

    python benchmarks/training.py [--recipe nano] [--repeat 3] [--out results.jsonl]

For each stage of the recipe both take steps of its size on random tokens, in turns, in passes of as many tokens.
Medians are printed with their ratio, then the ratio over all: of the times that the tokens of the stages take. Pelagos
does more per token: multi-token prediction, the indexer's loss, the balance loss, router biases, Muon; transformers has
none of them. Lengths where transformers would need more memory than ``--memory`` are left out, and said so.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine_record
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from pelagos.model.config import ModelConfig
from pelagos.model.config_json import config_to_json
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops
from pelagos.recipes import RECIPES
from pelagos.training.batch import PackedBatch
from pelagos.training.config import TrainConfig
from pelagos.training.initialize import initialize
from pelagos.training.optimizer import Optimizer
from pelagos.training.parallel import Group
from pelagos.training.step import Stepper


def batch_of(ids: torch.Tensor) -> PackedBatch:
    """One document per row."""
    rows, length = ids.shape
    weights = torch.ones(rows, length)
    weights[:, 0] = 0.0
    return PackedBatch(
        token_ids=ids,
        document_ids=torch.zeros(rows, length, dtype=torch.int32),
        positions=torch.arange(length).expand(rows, length).contiguous(),
        loss_weights=weights,
        num_bytes=torch.ones(rows, length, dtype=torch.int32),
    )


def pelagos_step(config: TrainConfig, step: int) -> Callable[[torch.Tensor], None]:
    model = Model(config.model, autograd_ops())
    initialize(model, std=config.init_std, seed=0)
    stepper = Stepper(config, model, Optimizer(model, config.optimizer), Group())

    def run(ids: torch.Tensor) -> None:
        stepper.apply(step, stepper.gradients(step, batch_of(ids)))

    return run


def transformers_step(config: ModelConfig, pass_tokens: int) -> Callable[[torch.Tensor], None]:
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**config_to_json(config))).float()
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            table.copy_(torch.rand(table.shape[0], config.num_experts).argsort(1)[:, : table.shape[1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run(ids: torch.Tensor) -> None:
        for rows in ids.split(max(1, pass_tokens // ids.shape[1])):
            model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def score_bytes(config: ModelConfig, length: int) -> int:
    """What transformers' dense attention scores of one sequence take in a layer, about four times over."""
    ratio = min(layer.ratio or length for layer in config.layers)
    return 4 * 4 * config.num_heads * length * (length + length // ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB that transformers' scores of a layer may take")
    parser.add_argument("--out", type=Path, default=None, help="append the results to this JSONL file")
    options = parser.parse_args()
    config = RECIPES[options.recipe]()
    ours_total = theirs_total = begin = 0.0
    for stage in config.stages:
        length, share, begin = stage.sequence_length, stage.until - begin, stage.until
        if score_bytes(config.model, length) > options.memory * 2**30:
            print(json.dumps({"length": length, "left_out": "transformers needs more memory than --memory"}))
            continue
        ids = torch.randint(0, config.model.vocab_size, (stage.num_rows, length))
        step = round(stage.until * config.num_steps) - 1
        runs = {
            "pelagos": pelagos_step(config, step),
            "transformers": transformers_step(config.model, config.micro_tokens),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(options.repeat + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run(ids)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
        speed = {name: ids.numel() / statistics.median(times) for name, times in seconds.items()}
        num_tokens = share * config.num_steps * ids.numel()
        ours_total += num_tokens / speed["pelagos"]
        theirs_total += num_tokens / speed["transformers"]
        result = {
            "length": length,
            "rows": len(ids),
            "threads": torch.get_num_threads(),
            "pelagos_tokens_per_second": round(speed["pelagos"], 1),
            "transformers_tokens_per_second": round(speed["transformers"], 1),
            "ratio": round(speed["pelagos"] / speed["transformers"], 2),
        }
        print(json.dumps(result), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(result) + "\n")
    whole = {"ratio_over_measured_stages": round(theirs_total / ours_total, 2)}
    whole |= {"hours": {"pelagos": round(ours_total / 3600, 2), "transformers": round(theirs_total / 3600, 2)}}
    print(json.dumps(whole))
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps({**whole, "machine": machine_record(None)}) + "\n")


if __name__ == "__main__":
    main()
